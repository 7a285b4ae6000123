"""Hostile job folders: what is around the model. Each is refused with its code, and the inspector goes on to the next job."""

from __future__ import annotations

import json
import math
import re
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import unified
from tests.hostile.archives import Parts
from tests.reading import plain_job, read, write_job
from unified.cli import main
from unified.errors import InvalidSubmission
from unified.submission.models import load_unchanged, recognise
from unified.validation import Stage, stage_of

#: What is put in the place of a field's value, as text: JSON that no writer would write. Each with the code it gets.
VALUES = [
    ("batch_size", "-1", "E-VALUE"),
    ("batch_size", "true", "E-TYPE"),
    ("batch_size", "9" * 5000, "E-JSON"),
    ("batch_size", str(2**70), "E-JSON"),
    ("epochs", "1.5", "E-TYPE"),
    ("epochs", '"3"', "E-TYPE"),
    ("seed", "-1", "E-VALUE"),
    ("optimizer", '{"name": "SGD", "lr": 1e999}', "E-VALUE"),
    ("optimizer", '{"name": "SGD", "lr": NaN}', "E-JSON"),
    ("optimizer", '{"name": "SGD", "lr": -0.1}', "E-VALUE"),
    ("optimizer", '{"name": "__import__"}', "E-NAME"),
    ("optimizer", '{"name": "SGD", "__class__": 1}', "E-FIELD"),
    ("loss", '"os.system"', "E-NAME"),
    ("loss", '{"name": "CrossEntropyLoss", "weight": [1e999]}', "E-VALUE"),
    ("model", '"../../../../etc/passwd"', "E-PATH"),
    ("model", '"/etc/passwd"', "E-PATH"),
    ("model", '"model\\u0000.umodel"', "E-VALUE"),
    ("name", '"../escape"', "E-VALUE"),
    ("data", '{"train": "../../outside.pt"}', "E-PATH"),
    ("name", "[" * 100_000 + "]" * 100_000, "E-JSON"),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return plain_job(tmp_path_factory.mktemp("good") / "job")


def changed(good: Path, folder: Path, field: str, value: str) -> Path:
    """Return a copy of a job in which a field has the value that ``value`` writes."""
    shutil.copytree(good, folder)
    fields = json.loads((good / "job.json").read_text()) | {field: "PLACE"}
    (folder / "job.json").write_text(json.dumps(fields).replace('"PLACE"', value))
    return folder


@pytest.mark.parametrize(("field", "value", "code"), VALUES, ids=[f"{field}-{value[:24]}" for field, value, _ in VALUES])
def test_a_value_that_nobody_means_is_refused(nursery, good, tmp_path, field, value, code):
    (found,) = read(nursery, changed(good, tmp_path / "job", field, value))
    assert found.submission is None
    assert code in {problem.code for problem in found.problems}, found.problems
    assert all(problem.remedy and problem.expected and problem.given for problem in found.problems)


def test_a_key_that_stands_twice_is_refused(nursery, good, tmp_path):
    folder = changed(good, tmp_path / "job", "epochs", '1, "epochs": 2')
    (found,) = read(nursery, folder)
    assert [problem.code for problem in found.problems] == ["E-JSON"]


@pytest.mark.parametrize("name", ["model.umodel", "train.pt"])
def test_a_link_out_of_the_folders_is_not_followed(nursery, good, tmp_path, name):
    folder = tmp_path / "in" / "job"
    shutil.copytree(good, folder)
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    (found,) = read(nursery, folder)
    assert [problem.code for problem in found.problems] == ["E-PATH"]


def test_a_model_that_was_swapped_after_the_check_is_not_loaded(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "job")
    ref = recognise(folder / "model.umodel", job="job", trust=False, staged=False)
    unified.export(nn.Linear(4, 3), torch.zeros(2, 4), folder / "model.umodel")
    with pytest.raises(InvalidSubmission, match="has changed since it was checked") as refused:
        load_unchanged(ref, job="job")
    (problem,) = refused.value.problems
    assert (problem.code, stage_of(problem.code)) == ("E-HASH", Stage.HASH)


def test_an_allocation_bomb_is_measured_without_being_allocated(nursery, good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "job")
    parts = Parts(folder / "model.umodel")
    parts.train["nodes"].append({"op": "aten.ones.default", "args": [[1 << 42]]})
    parts.write(folder / "model.umodel")
    (found,) = read(nursery, folder)
    assert found.submission is not None, found.problems
    assert found.submission.estimate.peak_bytes >= 4 << 42
    assert found.step_seconds is None


def test_a_job_that_no_slot_could_hold_is_refused_with_the_number(good, tmp_path, capsys):
    folder = shutil.copytree(good, tmp_path / "job")
    parts = Parts(folder / "model.umodel")
    parts.train["nodes"].append({"op": "aten.ones.default", "args": [[1 << 42]]})
    parts.write(folder / "model.umodel")
    assert main(["inspect", str(folder)]) == 1
    said = capsys.readouterr()
    assert "[E-FIT] job 'job': batch_size: expected a job that a slot could hold" in said.err
    assert "16 TiB" in said.err
    assert re.search(r"11 +memory +refused", said.out)
    assert main(["run", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "needs about 16 TiB" in capsys.readouterr().err


@pytest.mark.parametrize("rate", [math.inf, math.nan])
def test_infinite_rates_from_python_are_refused(rate):
    with pytest.raises(InvalidSubmission, match=re.escape("finite")):
        unified.JobSpec(
            name="job",
            model="model.umodel",
            data={"train": "train.pt"},
            loss="CrossEntropyLoss",
            optimizer={"name": "SGD", "lr": rate},
            epochs=1,
            batch_size=4,
        )


FORGERIES = {
    "an object of the caller's own": """
        model = replace(answer[0].submission.model, form=ModelForm.OBJECT)
        answer = (replace(answer[0], submission=replace(answer[0].submission, model=model)),)
    """,
    "another record": "answer = (answer[0].submission,)",
    "no records": "answer, imported = 3, 4",
}


class Forges:
    """Unpickling it makes the process that reads the job send another answer."""

    def __init__(self, forgery: str) -> None:
        self.forgery = textwrap.dedent(forgery).strip()

    def __reduce__(self) -> tuple[object, ...]:
        lines = ["import pickle", "from dataclasses import replace", "from unified import inspector"]
        lines += ["from unified.admission import ModelForm", "class Forger:", "    def dumps(said):"]
        lines += ["        answer, imported = said", *(f"        {line}" for line in self.forgery.splitlines())]
        lines += ["        return pickle.dumps((answer, imported))", "inspector.pickle = Forger"]
        return exec, ("\n".join(lines), {})


@pytest.mark.parametrize("forgery", FORGERIES)
def test_trusted_code_cannot_change_what_its_job_is_taken_for(nursery, good, tmp_path, forgery):
    model = nn.Linear(4, 3)
    model.payload = Forges(FORGERIES[forgery])
    folder = write_job(tmp_path / "job", model, torch.randn(8, 4), torch.arange(8) % 3, form="pickle")
    found, after = read(nursery, folder, good, trust=True)
    assert [problem.code for problem in found.problems] == ["E-CRASH"]
    assert found.submission is None
    assert after.submission is not None, "the inspector goes on"
