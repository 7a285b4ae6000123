"""Folders of transformers load as from_pretrained loads them, without the network and without code of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.unit.pretrained_folders import make_model, save
from unified.errors import InvalidSubmission
from unified.job_parts import ArchitectureSpec
from unified.submission.models import load_model, recognise


def load(folder: Path, architecture: ArchitectureSpec | None = None) -> nn.Module:
    return load_model(recognise(folder, job="bert", trust=False, staged=False, architecture=architecture), job="bert")


def train(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for _ in range(2):
        logits = model.train()(inputs).logits
        logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(logits.detach())
    return seen


@pytest.mark.parametrize("kind", ["bert", "bert-tied", "gpt2", "vit"])
def test_trains_bit_for_bit_as_the_library_loads_it(kind, tmp_path):
    original = make_model(kind)
    folder = save(original, tmp_path / "model")
    before = torch.get_rng_state()
    loaded = load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    reference = type(original).from_pretrained(folder)
    assert type(loaded) is type(original)
    assert list(loaded.state_dict()) == list(reference.state_dict())
    inputs = torch.rand(3, 1, 8, 8) if kind == "vit" else torch.randint(1, 40, (3, 6))
    assert all(torch.equal(*pair) for pair in zip(train(reference, inputs), train(loaded, inputs), strict=True))
    assert len([*loaded.parameters()]) == len([*reference.parameters()])


def test_parts_with_an_index_are_one_model_and_count_in_its_hash(tmp_path):
    model = make_model("bert")
    folder = save(model, tmp_path / "model", max_shard_size="2KB")
    assert (folder / "model.safetensors.index.json").is_file()
    state = load(folder).state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    before = recognise(folder, job="bert", trust=False, staged=False).sha256
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert recognise(folder, job="bert", trust=False, staged=False).sha256 != before


def test_a_named_class_goes_before_that_of_the_configuration(tmp_path):
    folder = save(make_model("bert"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": None}))
    named = ArchitectureSpec(library="transformers", name="BertForSequenceClassification")
    assert type(load(folder, named)) is type(make_model("bert"))
    other = ArchitectureSpec(library="transformers", name="BertForMaskedLM")
    with pytest.raises(InvalidSubmission, match="E-DECLARED") as caught:
        load(folder, other)
    assert caught.value.problems[0].job == "bert"


def test_weights_that_are_missing_or_left_over_are_named(tmp_path):
    folder = save(make_model("bert"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_labels": 2}))
    with pytest.raises(InvalidSubmission, match=r"classifier\.weight.*of another shape"):
        load(folder)
