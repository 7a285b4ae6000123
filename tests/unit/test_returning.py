"""The way out of a member: what was written is read back and compared before anybody is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import unified
from separator.result import read_weights
from tests.unit.test_trainer import Host, make_data, make_job, make_member, make_model
from unified.admission import ModelForm, ModelRef
from unified.errors import JobFailedError
from unified.returning import Departure, depart, verify_departure, write_departure


def make_departure(folder: Path) -> Departure:
    train = make_data()
    path = unified.export(make_model(), train[0][:2], folder / "submitted.umodel")
    member = make_member(unified.load_umodel(path), make_job(epochs=1), train, make_data(9, seed=1))
    Host(member).turn(member)
    departure = depart(member, folder / "result")
    return replace(departure, model=ModelRef(path=path, form=ModelForm.UMODEL, sha256=""))


def test_a_result_is_whole_and_loads_into_the_owners_class(tmp_path: Path) -> None:
    departure = make_departure(tmp_path)
    write_departure(departure)
    returned = verify_departure(departure)
    assert set(returned.hashes) == {"metrics.jsonl", "model.safetensors", "model.umodel", "state_dict.pt"}
    model = make_model(seed=7)
    model.load_state_dict(torch.load(tmp_path / "result" / "state_dict.pt", weights_only=True), strict=True)
    for name, value in read_weights(tmp_path / "result").items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("damage", ["weights", "archive"])
def test_a_result_that_does_not_hold_is_not_returned(tmp_path: Path, damage: str) -> None:
    departure = make_departure(tmp_path)
    state = departure.separated.state_dict
    wrong = {name: value.clone() for name, value in state.items()}
    wrong["head.bias"][0] += 1
    if damage == "weights":
        write_departure(replace(departure, separated=replace(departure.separated, state_dict=wrong)))
        unified.submission.umodel_write.rewrite_weights(departure.model.path, state, tmp_path / "result" / "model.umodel")
    else:
        write_departure(departure)
        unified.submission.umodel_write.rewrite_weights(departure.model.path, wrong, tmp_path / "result" / "model.umodel")
    with pytest.raises(JobFailedError, match=r"head.bias"):
        verify_departure(departure)
