"""What was separated comes back from disk as it was, and a failed write leaves what was there before."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from separator.result import read_weights, write_weights
from separator.separate import Separated, SeparationError, separate
from separator.verify import verify
from tests.unit.separable_models import MODULES, conv_net, language_model, snapshot


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("build", MODULES)
def test_weights_come_back_from_disk_with_order_and_ties(build, tmp_path):
    module = build()
    separated = separate(module)
    write_weights(separated, tmp_path / "results" / "job")
    restored = read_weights(tmp_path / "results" / "job")
    assert verify(Separated(state_dict=restored), module) == []
    from_torch = torch.load(tmp_path / "results" / "job" / "state_dict.pt", weights_only=True)
    assert verify(Separated(state_dict=from_torch), module) == []
    assert sorted(path.name for path in (tmp_path / "results" / "job").iterdir()) == [
        "model.safetensors",
        "state_dict.pt",
    ]


def test_a_tied_tensor_is_stored_once_and_its_names_are_in_the_metadata(tmp_path):
    write_weights(separate(language_model()), tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names, metadata = list(file.keys()), file.metadata()
    assert "wte.weight" in names
    assert not {"head.weight", "again.weight"} & set(names)
    assert json.loads(metadata["ties"]) == {"again.weight": "wte.weight", "head.weight": "wte.weight"}
    assert metadata["format"] == "pt"


def test_what_was_read_does_not_need_the_file_any_more(tmp_path):
    module = conv_net()
    write_weights(separate(module), tmp_path)
    restored = read_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert verify(Separated(state_dict=restored), module) == []


def test_writing_again_replaces_the_files(tmp_path):
    write_weights(separate(conv_net()), tmp_path)
    module = language_model()
    write_weights(separate(module), tmp_path)
    assert verify(Separated(state_dict=read_weights(tmp_path)), module) == []


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path):
    module = conv_net()
    write_weights(separate(module), tmp_path)
    impossible = nn.Module()
    impossible.register_buffer("wave", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(SeparationError, match=r"wave: a safetensors file cannot hold torch.complex128"):
        write_weights(separate(impossible), tmp_path)
    assert verify(Separated(state_dict=read_weights(tmp_path)), module) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "state_dict.pt"]


def test_a_write_that_fails_at_the_end_leaves_no_rest(tmp_path):
    (tmp_path / "state_dict.pt" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_weights(separate(conv_net()), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["state_dict.pt"]


def test_a_plain_safetensors_file_is_read_as_it_is(tmp_path):
    save_file({"b": torch.ones(1), "a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert snapshot(read_weights(tmp_path)) == snapshot({"a": torch.zeros(2), "b": torch.ones(1)})


def test_equal_weights_are_equal_files(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    contents = set()
    for attempt in range(12):
        write_weights(separate(module), tmp_path / str(attempt))
        contents.add((tmp_path / str(attempt) / "model.safetensors").read_bytes())
    assert len(contents) == 1
