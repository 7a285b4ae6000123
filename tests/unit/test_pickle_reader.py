"""Pickles are described, never unpickled; tensors are read from where they lie."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import pytest
import torch

from unified.submission.pickle_machine import Global, Made, describe_pickle
from unified.submission.refusal import RefusedModelError
from unified.submission.saved_values import equals, mapping
from unified.submission.torch_file import open_torch_file
from unified.submission.weight_files import Weight, torch_weights


class Runs:
    def __reduce__(self) -> tuple:
        return os.system, ("false",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_themselves(protocol):
    value = {"a": [1, -70_000, 2**40, 1.5, True, None, "text"], "b": (), "c": (1,), "d": (1, 2, 3, 4), "e": {}}
    assert describe_pickle(pickle.dumps(value, protocol=protocol)) == value


def test_calls_are_described_and_not_made():
    made = describe_pickle(pickle.dumps(Runs(), protocol=2))
    assert isinstance(made, Made)
    assert (made.maker, made.args, made.is_new) == (Global("posix", "system"), ("false",), False)


def test_what_is_shared_is_shared():
    part = Runs()
    first, second = describe_pickle(pickle.dumps([part, part], protocol=2))
    assert first is second


def test_saved_values_are_compared_type_for_type():
    real = {"a": (1, 2.0), "b": {"x"}, "c": torch.Size([2, 3]), "d": collections.OrderedDict()}
    saved = describe_pickle(pickle.dumps(real, protocol=2))
    assert all(equals(saved[key], real[key]) for key in real)
    for key, other in {"a": (1, 2), "b": {"y"}, "c": (2, 4), "d": {"k": 1}}.items():
        assert not equals(saved[key], other)
    assert equals(saved["c"], (2, 3))  # a size where a module keeps a tuple of its own is what it stands for
    assert mapping(saved["d"]) == {}


def weights_of(value: object, path: Path) -> dict[str, Weight]:
    torch.save(value, path)
    return torch_weights(open_torch_file(path), path.name)


def test_tensors_are_read_as_torch_load_reads_them(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = collections.OrderedDict(
        whole=base,
        turned=torch.arange(6).reshape(2, 3).T,
        part=torch.arange(10.0)[3:7],
        sparse_rows=torch.arange(12).reshape(4, 3)[::2],
        scalar=torch.tensor(3.5, dtype=torch.float64),
        empty=torch.zeros(0, 3),
        flags=torch.tensor([True, False]),
        small=torch.ones(3, dtype=torch.bfloat16),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    weights = weights_of(state, tmp_path / "w.pt")
    loaded = torch.load(tmp_path / "w.pt", weights_only=True)
    assert list(weights) == list(loaded)
    for name, tensor in loaded.items():
        assert torch.equal(weights[name].read(), tensor)
        assert (weights[name].dtype, weights[name].shape) == (tensor.dtype, tuple(tensor.shape))
    assert weights["turned"].read().stride() == state["turned"].stride()


def test_the_state_dict_of_a_module_is_weights_and_ties_are_one_tensor(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    weights = weights_of(model.state_dict(), tmp_path / "w.pt")
    assert weights["0.weight"].read() is weights["1.weight"].read()


def test_a_flat_mapping_is_asked_for(tmp_path):
    with pytest.raises(RefusedModelError, match="nothing in it but tensors"):
        weights_of({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "w.pt")
