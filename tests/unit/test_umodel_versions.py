"""Archives that earlier versions wrote: read and trained as they were then."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.data.lenet_v1 import train_and_evaluate
from unified.submission.umodel_read import load_umodel

DATA = Path(__file__).resolve().parents[1] / "data"


def test_an_archive_of_version_1_trains_as_when_it_was_written():
    expected = json.loads((DATA / "lenet-v1.json").read_text())
    actual = train_and_evaluate(load_umodel(DATA / "lenet-v1.umodel"))
    # other CPUs add in other orders; three steps make of that about 1e-5
    torch.testing.assert_close(torch.tensor(actual["losses"]), torch.tensor(expected["losses"]), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.tensor(actual["outputs"]), torch.tensor(expected["outputs"]), rtol=1e-3, atol=1e-3)
