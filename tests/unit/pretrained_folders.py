"""Folders as save_pretrained writes them, of models small enough to be made anew in every test."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

_BERT = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}


def make_model(kind: str) -> PreTrainedModel:
    """Return a model with weights drawn from a fixed seed."""
    torch.manual_seed(3)
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(**_BERT, num_labels=3))
    if kind == "bert-tied":
        return BertForMaskedLM(BertConfig(**_BERT))
    if kind == "gpt2":
        return GPT2ForSequenceClassification(
            GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=16, num_labels=3, pad_token_id=0)
        )
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=3,
    )
    return ViTForImageClassification(config)


def save(model: PreTrainedModel, folder: Path, **options: object) -> Path:
    """Write a model without the notes and bars of transformers."""
    logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    return folder


def bert_folder(folder: Path) -> Path:
    """Write a small classifier of texts."""
    return save(make_model("bert"), folder)
