"""Reading a job happens in a child process of its own: what it does to that process is its own problem, and nobody else's."""

from __future__ import annotations

import os
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.reading import plain_job, read, write_job
from unified.errors import WorkerDiedError
from unified.read_limits import ReadLimits
from unified.validation import Stage

MB = 1 << 20


class OnLoading(nn.Module):
    """Does something when it is read from its file: an own goal of a trusted model."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.head, self.act = nn.Linear(4, 3), act

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        match self.act:
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(3)
            case "loop":
                while True:
                    pass
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@pytest.mark.parametrize(
    ("act", "limits", "code", "says"),
    [
        ("crash", ReadLimits(), "E-CRASH", "SIGSEGV"),
        ("exit", ReadLimits(), "E-CRASH", "code 3"),
        ("loop", ReadLimits(wall_seconds=2.0), "E-LIMIT", "takes longer"),
        ("loop", ReadLimits(cpu_seconds=1.0), "E-LIMIT", "CPU time"),
    ],
    ids=["crash", "exit", "wall", "cpu"],
)
def test_a_model_that_ends_its_reader_is_refused_and_the_next_job_is_read(nursery, tmp_path, act, limits, code, says):
    bad = write_job(tmp_path / "bad", OnLoading(act), torch.randn(8, 4), torch.arange(8) % 3, form="pickle")
    good = plain_job(tmp_path / "good")
    first, second = read(nursery, bad, good, limits=limits, trust=True)
    (problem,) = first.problems
    assert (first.submission, problem.code, says in str(problem)) == (None, code, True), problem
    assert problem.job == "bad"
    assert (second.problems, second.submission is not None) == ((), True)


def test_a_reader_that_is_killed_from_outside_blames_nobody(nursery, tmp_path):
    job = write_job(tmp_path / "job", OnLoading("killed"), torch.randn(8, 4), torch.arange(8) % 3, form="pickle")
    with pytest.raises(WorkerDiedError, match="job"):
        read(nursery, job, trust=True)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is limited on Linux only")
def test_a_model_that_needs_more_memory_than_its_reader_may_have_is_refused(nursery, tmp_path):
    large = write_job(tmp_path / "large", nn.Linear(4, 2 * MB), torch.randn(8, 4), torch.arange(8) % 3)
    good = plain_job(tmp_path / "good")
    limits = ReadLimits(memory_bytes=100 * MB)
    first, second = read(nursery, large, good, limits=limits)
    assert first.submission is None
    assert first.problems[0].code in {"E-LIMIT", "E-READ"}, first.problems
    assert second.problems == ()


def test_a_job_that_passes_has_passed_every_stage_but_admission(nursery, tmp_path):
    (found,) = read(nursery, plain_job(tmp_path / "good"))
    passed = {outcome.stage for outcome in found.stages if outcome.passed}
    assert passed == {*Stage} - {Stage.ADMISSION}
    assert [outcome.stage for outcome in found.stages] == [*Stage]


def test_stages_before_the_one_that_failed_are_passed_and_later_ones_were_not_reached(nursery, tmp_path):
    folder = plain_job(tmp_path / "job")
    with zipfile.ZipFile(folder / "model.umodel", "a") as archive:
        archive.writestr("more.txt", "text")
    (found,) = read(nursery, folder)
    verdicts = {outcome.stage: outcome.passed for outcome in found.stages}
    failed = min(stage for stage, passed in verdicts.items() if passed is False)
    assert failed is Stage.CONTAINER
    assert verdicts[Stage.FILE] is True
    assert {verdicts[stage] for stage in Stage if Stage.CONTAINER < stage < Stage.DATA} == {None}
    assert verdicts[Stage.STEP] is None


def test_a_job_whose_data_another_one_brought_first_is_read_within_its_own_folder(nursery, tmp_path):
    """In a queue each reader may open its own job's files only, and equal data is known by the first file that had it."""
    inputs, targets = torch.randn(8, 4), torch.arange(8) % 3
    first, second = (write_job(tmp_path / name / "spec", nn.Linear(4, 3), inputs, targets) for name in "ab")
    (second / "train.pt").unlink()
    os.link(first / "train.pt", second / "train.pt")
    third = write_job(tmp_path / "c" / "spec", nn.Linear(4, 3), inputs, targets)
    answers = read(nursery, first, second, third, cache=tmp_path / "cache")
    assert [found.problems for found in answers] == [(), (), ()]
    assert len({found.submission.train.key for found in answers}) == 1


def test_model_and_data_are_told_of_in_one_go_and_each_stage_names_the_codes_of_its_problems(nursery, tmp_path):
    folder = write_job(tmp_path / "job", nn.Linear(4, 3), torch.full((8, 4), torch.nan), torch.arange(8) % 3)
    with zipfile.ZipFile(folder / "model.umodel", "a") as archive:
        archive.writestr("more.txt", "text")
    (found,) = read(nursery, folder)
    assert {problem.code for problem in found.problems} == {"E-ZIP", "E-DATA"}
    told = {outcome.stage: outcome.found for outcome in found.stages if outcome.passed is False}
    assert told == {Stage.CONTAINER: "E-ZIP", Stage.DATA: "E-DATA"}


def test_a_step_that_cannot_be_done_was_not_measured(nursery, tmp_path):
    folder = plain_job(tmp_path / "job")
    torch.save((torch.randn(8, 5), torch.arange(8) % 3), folder / "train.pt")
    (found,) = read(nursery, folder)
    (problem,) = found.problems
    verdicts = {outcome.stage: outcome.passed for outcome in found.stages}
    assert (problem.code, verdicts[Stage.MEMORY], verdicts[Stage.STEP]) == ("E-STEP", None, False)


def test_a_file_that_was_cut_off_is_told_from_one_of_no_known_form(nursery, tmp_path):
    folder = plain_job(tmp_path / "job")
    model = folder / "model.umodel"
    model.write_bytes(model.read_bytes()[:-30])
    (found,) = read(nursery, folder)
    (problem,) = found.problems
    assert (problem.code, problem.given) == ("E-FORM", "model.umodel, an archive without its end")


class Lookup(nn.Module):
    """An embedding of ten words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


@pytest.mark.parametrize(
    ("split", "word", "label", "code", "says"),
    [
        ("train", 10, 0, "E-DATA", "from 0 to 10"),
        ("train", -1, 0, "E-DATA", "from -1 to 9"),
        ("train", 0, 3, "E-LABEL", "[3]"),
        ("test", 10, 0, "E-DATA", "data.test"),
        ("test", 0, 3, "E-LABEL", "[3]"),
    ],
)
def test_an_index_deep_in_the_data_that_the_model_does_not_have_is_refused(nursery, tmp_path, split, word, label, code, says):
    """Not in the first batches, which a trial step sees: on a GPU it would end the process of all members."""
    words, labels = torch.arange(400).reshape(100, 4) % 10, torch.arange(100) % 3
    folder = write_job(tmp_path / "job", Lookup(), words, labels, data={"train": "train.pt", "test": "test.pt"})
    torch.save((words, labels), folder / "test.pt")
    words, labels = words.clone(), labels.clone()
    words[73, 2] = word or words[73, 2]
    labels[81] = label or labels[81]
    torch.save((words, labels), folder / f"{split}.pt")
    (found,) = read(nursery, folder)
    assert found.submission is None
    (problem,) = found.problems
    assert (problem.code, says in str(problem)) == (code, True), problem
    assert f"data.{split}" in problem.field
