"""What a worker says is taken in as records of ours, or not at all."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from tests.unit.jobs import changed
from unified import messages
from unified.admission import DatasetRef, Estimate, ModelForm, ModelRef, Submission
from unified.budgets import Fault
from unified.errors import Problem, ReportError
from unified.job import JobSpec
from unified.reports import receive

DATA = DatasetRef(path=Path("/q/data/train.pt"), key="0" * 64, num_samples=3, nbytes=9, source="train.pt")
SUBMISSION = Submission(
    spec=JobSpec.model_validate(changed()),
    folder=Path("/q/jobs/a/spec"),
    model=ModelRef(path=Path("/q/jobs/a/spec/a.umodel"), form=ModelForm.UMODEL, sha256="0" * 64),
    train=DATA,
    test=DATA,
    estimate=Estimate(num_parameters=1, resident_bytes=2, peak_bytes=3, flops_per_step=4, num_ops_per_step=5),
)
PROBLEM = Problem(code="E-STEP", job="a", field="model", expected="a step", given="none", remedy="mend it")
PROGRESS = messages.Progress(job="a", data_epoch=1, step=1, loss=0.5)


def told(content: bytes, kind: type[Any] = messages.Report) -> Any:
    """Return what is taken in of these bytes."""
    ours, theirs = Pipe()
    with ours, theirs:
        theirs.send_bytes(content)
        return receive(ours, kind)


@pytest.mark.parametrize(
    "record",
    [
        PROGRESS,
        messages.Failed(job="a", reason="it raised", step=3, fault=Fault.DISK),
        messages.Checkpointed(
            job="a", path=Path("/q/ckpt/3.json"), sha256="0" * 64, step=3, num_bytes=9, seconds=0.1, least_seconds=5.0
        ),
        messages.Returned(job="a", metrics={"loss": 0.5}, hashes={"model.pt": "0"}, versions={"torch": "2"}),
        messages.StackFormed(job="a", members=("a", "b"), speedup=2.0),
        messages.Inspected(folder=Path("/a"), submission=SUBMISSION, problems=(PROBLEM,), step_seconds=0.1),
        messages.StepsTimed(job="a", step_seconds=None),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_report_arrives_as_it_was_sent(record: Any) -> None:
    assert told(pickle.dumps(record), type(record)) == record


class Calls:
    """Pickled as a call of anything."""

    def __init__(self, act: Callable[..., Any], *arguments: Any) -> None:
        self._call = (act, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


class ChangePickler(pickle._Pickler):
    """Pickles that something which all share is to have other attributes."""

    def dump_change(self, shared: object, attributes: dict[str, object]) -> None:
        self.write(pickle.PROTO + bytes([2]))
        self.save(shared)
        self.save((None, attributes))
        self.write(pickle.BUILD + pickle.STOP)


def change(shared: object, **attributes: object) -> bytes:
    content = io.BytesIO()
    ChangePickler(content, 2).dump_change(shared, attributes)
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Calls(os.system, "true")),
        pickle.dumps(Calls(eval, "1")),
        pickle.dumps(Calls(getattr, messages.Host, "__init__")),
        pickle.dumps(Calls(getattr, "text", "format")),
        change(type(Path()), exists=messages.Host),
        change(Fault.OWN, _value_="host"),
        pickle.dumps([1, 2]),
        pickle.dumps(messages.Host),
        pickle.dumps(PROBLEM),
        pickle.dumps(PROGRESS)[:-5],
        b"no pickle",
        b"",
    ],
)
def test_nothing_else_is_taken_in(content: bytes) -> None:
    with pytest.raises(ReportError):
        told(content)
    assert Fault.OWN.value == "own"
    assert Path("/").exists() is True
