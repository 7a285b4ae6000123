"""Models of many families train bit for bit through an archive as they do without; what else is tested is with the format."""

from __future__ import annotations

import pytest
import torch

import unified
from benchmarks.formats_measure import compare, task_of
from benchmarks.formats_models import entries

FAMILIES = (
    "distilbert",
    "roberta",
    "albert",
    "deberta_v2",
    "llama",
    "t5",
    "vit",
    "swin",
    "convnext",
    "gru",
    "rnn",
    "lstm_projected",
    "unrolled_cell",
    "unet",
    "encoder_layers",
    "several_inputs",
    "masked_mean",
    "dict_output",
    "tied_weights",
    "inplace_slices",
)  # BERT, GPT-2, ResNet-18 and LSTM are trained through an archive in test_umodel.py


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")  # other libraries' advice on their own models
def test_a_family_trains_bit_for_bit_through_an_archive(name, tmp_path):
    entry = entries()[name]
    eager = entry.build()
    loaded = unified.load_umodel(unified.export(eager, entry.inputs(2), tmp_path / "model.umodel"))
    assert compare(eager, loaded, task_of(entry, eager)) == (0.0, True, True)


def test_names_with_hyphens_as_those_of_regnet_are_kept(tmp_path):
    eager = torch.nn.Sequential()
    eager.add_module("block1-0", torch.nn.Linear(4, 2))
    loaded = unified.load_umodel(unified.export(eager, torch.zeros(2, 4), tmp_path / "model.umodel"))
    assert list(loaded.state_dict()) == ["block1-0.weight", "block1-0.bias"]
