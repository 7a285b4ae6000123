"""A queue that trusts a key: a signed model of a module of the lab's own is trained to its end, an unsigned one is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.faults.service import Service, assert_equal
from tests.integration.batches import TEST, TRAIN
from tests.integration.command_line import unified_command
from tests.plain import train_alone
from unified.job_state import JobState

MODULE = """
from torch import nn


class LabNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.body(x)
"""
JOB: dict[str, Any] = {
    "name": "lab-net",
    "user": "ann",
    "model": "model.pt",
    "data": {"train": "../train.pt", "test": "../test.pt"},
    "loss": "CrossEntropyLoss",
    "optimizer": {"name": "SGD", "lr": 0.1},
    "epochs": 2,
    "batch_size": 8,
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of models, which is on the path of whoever is started from here."""
    (tmp_path / "code" / "signedlab").mkdir(parents=True)
    (tmp_path / "code" / "signedlab" / "models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    torch.save(TRAIN, tmp_path / "train.pt")
    torch.save(TEST, tmp_path / "test.pt")
    return tmp_path


def make_net() -> nn.Module:
    from signedlab.models import LabNet  # pyrefly: ignore[missing-import] - written by the fixture

    torch.manual_seed(2)
    return LabNet()


@pytest.fixture
def service(lab: Path) -> Iterator[Service]:
    made = unified_command("keygen", "--out", lab / "ann.key", "--user", "ann")
    assert made.returncode == 0, made.stderr
    trusted = {"name": "lab", "modules": ["signedlab"], "keys": [made.stdout.strip()]}
    service = Service(lab / "queue", trust=False, trusted=trusted)
    yield service
    service.close()


@pytest.mark.slow
def test_a_signed_model_is_trained_and_an_unsigned_one_is_not(lab: Path, service: Service) -> None:
    folder = lab / "job"
    folder.mkdir()
    torch.save(make_net(), folder / "model.pt")
    (folder / "job.json").write_text(json.dumps(JOB))
    shutil.copytree(folder, lab / "unsigned")
    signed = unified_command("sign", folder, "--key", lab / "ann.key", "--queue", "lab", "--expires", "1h")
    assert signed.returncode == 0, signed.stderr
    served = service.begin()
    refused = unified_command("submit", lab / "unsigned", "--root", service.path, "--wait")
    assert (refused.returncode, "E-CLASS" in refused.stderr, "unified sign" in refused.stderr) == (1, True, True), refused
    trained = unified_command("submit", folder, "--root", service.path, "--wait")
    assert trained.returncode == 0, trained.stderr + served.said
    job = signed.stdout.strip()
    assert service.row(job).state is JobState.FINISHED
    found = torch.load(service.queue.root.result(job) / "state_dict.pt", weights_only=True)
    assert_equal(found, train_alone(make_net(), JOB, TRAIN, TEST)[0], job)
    assert type(torch.load(service.queue.root.result(job) / "model.pt", weights_only=False)) is type(make_net())
    said = served.said
    assert "accepts models that run code, signed for queue 'lab'; modules of pickles: signedlab" in said
    assert "accepts the key of 'ann': ed25519:" in said


def test_keygen_and_sign_say_what_is_wrong_in_a_line(lab: Path) -> None:
    (lab / "there.key").touch()
    for arguments, words in (
        (("keygen", "--out", lab / "there.key", "--user", "ann"), "never overwritten"),
        (("sign", lab / "no-job", "--key", lab / "there.key", "--queue", "lab"), "is no private key"),
        (("sign", lab / "no-job", "--key", lab / "no.key", "--queue", "lab"), "No such file"),
    ):
        done = unified_command(*arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
        assert words in done.stderr
