"""Read a job folder, stage by stage: everything that is wrong with one is found here, before anything starts.

Runs in a child process of an inspector's, one job each, under the limits of :mod:`unified.read_limits`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import nn

from separator.separate import SeparationError, separate
from unified.admission import DatasetRef, ModelRef, Submission
from unified.batch_order import batch_problems
from unified.budgets import Fault
from unified.component_problems import component_problems
from unified.cores import use_threads
from unified.dataset_files import reference
from unified.datasets import load_tensors
from unified.errors import InvalidSubmission, Problem
from unified.index_bounds import index_problems, labels_out_of_range
from unified.job import JobSpec
from unified.messages import Inspect, Inspected, StepsTimed, TimeSteps
from unified.quantities import bytes_text, count_text, seconds_text
from unified.stack_key import stack_key
from unified.stage_log import StageLog
from unified.step_kind import step_kind
from unified.stepping import fault_of
from unified.submission.described import describe_model, model_stages
from unified.submission.models import load_model, recognise
from unified.trial_steps import measure_step, time_one, time_steps
from unified.validation import Stage, first_failed

T = TypeVar("T")


def answer(request: Inspect | TimeSteps, num_threads: int) -> tuple[Inspected, ...] | StepsTimed:
    """Answer a request in this process, which has answered none before; never raises for what is wrong with the job."""
    use_threads(num_threads, first_core=0)
    if isinstance(request, TimeSteps):
        seconds, _ = time_steps(request.submission, load_model(request.submission.model))
        return StepsTimed(job=request.submission.name, step_seconds=seconds)
    return inspect(request)


def inspect(request: Inspect) -> tuple[Inspected, ...]:
    """Read a job folder and return its job, or every member of its sweep in order; never raises for what is wrong with it."""
    log = StageLog()
    try:
        return _inspect(request, log)
    except InvalidSubmission as error:
        problems = error.problems
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's model or file raises is that job's problem
        if fault_of(error) is Fault.OUT_OF_MEMORY:
            problems = (_unreadable(request, "E-LIMIT", "a job that can be read with the memory there is", error),)
        else:
            problems = (_unreadable(request, "E-READ", "a job that can be read", error),)
    stages = log.outcomes(problems)
    return (Inspected(folder=request.folder, submission=None, problems=problems, step_seconds=None, stages=stages),)


def _unreadable(request: Inspect, code: str, expected: str, error: BaseException) -> Problem:
    return Problem(
        code=code,
        job=request.folder.name,
        field="folder",
        expected=expected,
        given=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        remedy="check that the model runs on one batch of this data",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What a job folder holds, read once for all members of a sweep."""

    spec: JobSpec
    model: ModelRef
    train: DatasetRef
    test: DatasetRef | None


def _inspect(request: Inspect, log: StageLog) -> tuple[Inspected, ...]:
    files = _read(request, log)
    members = files.spec.members()
    kinds: dict[str, list[JobSpec]] = {}
    for member in members:
        kinds.setdefault(step_kind(member), []).append(member)
    found = _Found()
    measured = {kind: found.get(partial(_measure, request, files, alike, log)) for kind, alike in kinds.items()}
    found.raise_if_any()
    answers = {kind: iter(answers or ()) for kind, answers in measured.items()}
    stages = log.outcomes([problem for told in measured.values() for each in told or () for problem in each.problems])
    return tuple(replace(next(answers[step_kind(member)]), stages=stages) for member in members)


def _read(request: Inspect, log: StageLog) -> _Files:
    path = request.folder / "job.json"
    with log.timed(Stage.HYPERPARAMETERS):
        spec = JobSpec.read(path)
    log.note(Stage.HYPERPARAMETERS, f"{spec.loss.name}, {spec.optimizer.name}, batch_size {spec.batch_size}")
    found = _Found()
    with log.timed(Stage.FILE):
        model = found.get(lambda: _model_ref(spec, request))
    with log.timed(Stage.DATA):
        train = found.get(lambda: _dataset(spec, spec.data.train, request, None))
        test = None
        if spec.data.test is not None and train is not None:
            test = found.get(lambda: _dataset(spec, spec.data.test, request, train))
    if model is not None:
        log.note(Stage.FILE, f"{model.path.name}: {model.form}, SHA-256 {model.sha256[:12]}…")
    if found.problems and model is not None and not model.runs_code:
        found.get(partial(_load, model, spec, log))  # what is wrong with it is told along with the data
    found.raise_if_any()
    assert model is not None, "an absent model is a problem, raised above"
    assert train is not None, "absent training data is a problem, raised above"
    return _Files(spec=spec, model=model, train=train, test=test)


def _load(model: ModelRef, spec: JobSpec, log: StageLog) -> nn.Module:
    """Load the model and note the stages that it went through.

    Raises:
        InvalidSubmission: If it is refused.
    """
    try:
        module = load_model(model, job=spec.name)
    except InvalidSubmission as error:
        failed = first_failed(error.problems) or Stage.FILE
        for stage in model_stages(model.form):
            if stage < failed:
                log.note(stage, "")
        raise
    for stage, found in describe_model(model, module).items():
        log.note(stage, found)
    return module


def _measure(request: Inspect, files: _Files, alike: Sequence[JobSpec], log: StageLog) -> list[Inspected]:
    """Check and measure the first of jobs that take the same step; what comes of it holds for the others.

    Raises:
        InvalidSubmission: With everything that is wrong with that step before it is tried.
    """
    spec = alike[0]
    module = _load(files.model, spec, log)
    problems = [*_data_problems(spec, files.train, files.test), *_state_problems(spec, module)]
    problems += component_problems(spec.name, optimizer=spec.optimizer, params=module.parameters())
    if problems:
        raise InvalidSubmission(problems)
    samples = [f"{ref.num_samples} samples of {ref.source}" for ref in _by_field(files.train, files.test).values()]
    log.note(Stage.DATA, ", ".join(samples))
    # now: the model's own code, called below, may turn the process's switches
    keys = {member.stacking: _stack_key(member, module, files.train) for member in alike}
    with log.timed(Stage.MEMORY):
        measured, failed = measure_step(spec, module, files.train, request.device_type)
    first = Submission(
        spec=spec,
        folder=request.folder,
        model=files.model,
        train=files.train,
        test=files.test,
        estimate=measured,
        id=request.id,
    )
    submissions = [replace(first, spec=member, stack_key=None if failed else keys[member.stacking]) for member in alike]
    seconds = None
    if failed:
        log.forget(Stage.MEMORY)  # only what the weights need is known
    else:
        log.note(Stage.MEMORY, f"peak {bytes_text(measured.peak_bytes)}, {count_text(measured.flops_per_step, 'FLOP')} a step")
        with log.timed(Stage.STEP):
            seconds, failed = _try_step(request, submissions, module)
        log.note(Stage.STEP, "not tried" if seconds is None else f"{seconds_text(seconds)} a step on one thread")
    return [
        Inspected(
            folder=request.folder, submission=each, problems=failed if each is submissions[0] else (), step_seconds=seconds
        )
        for each in submissions
    ]


def _try_step(request: Inspect, alike: Sequence[Submission], module: nn.Module) -> tuple[float | None, tuple[Problem, ...]]:
    """Look up the outermost indices of the data and take a real step, on the CPU, unless the model is too large for that.

    Raises:
        InvalidSubmission: If the data has indices that the model or the loss does not.
    """
    first = alike[0]
    if first.estimate.resident_bytes >= request.within_bytes:
        return None, ()
    datasets = _by_field(first.train, first.test)
    problems = index_problems(first.spec, module, {field: load_tensors(ref) for field, ref in datasets.items()})
    if problems:
        raise InvalidSubmission(problems)
    if not request.num_threads or first.estimate.peak_bytes >= request.within_bytes:
        return None, ()
    return time_one(alike, module)


def _stack_key(spec: JobSpec, module: nn.Module, train: DatasetRef) -> str | None:
    try:
        return stack_key(spec, module, load_tensors(train))
    except Exception:  # noqa: BLE001 - the model's own words for itself; it steps by itself then
        return None


class _Found:
    """Collects the problems of independent parts, so that all are told at once."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def get(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except InvalidSubmission as error:
            told = {replace(problem, job="") for problem in self.problems}  # of other members of the same sweep
            self.problems += [problem for problem in error.problems if replace(problem, job="") not in told]
            return None

    def raise_if_any(self) -> None:
        if self.problems:
            raise InvalidSubmission(self.problems)


def _model_ref(spec: JobSpec, request: Inspect) -> ModelRef:
    path = _resolve(request, str(spec.model), "model", spec.name)
    return recognise(path, job=spec.name, trust=request.trust, staged=request.staged, architecture=spec.architecture)


def _dataset(spec: JobSpec, source: object, request: Inspect, train: DatasetRef | None) -> DatasetRef:
    data = spec.data
    field = "data.train" if train is None else "data.test"
    tokenizer = None if data.tokenizer is None else _resolve(request, data.tokenizer, "data.tokenizer", spec.name)
    found = reference(
        _resolve(request, str(source), field, spec.name),
        columns=data.columns,
        tokenizer=tokenizer,
        max_length=data.max_length,
        cache_dir=request.cache,
        job=spec.name,
        train=train,
    )
    return replace(found, source=str(source))


def _resolve(request: Inspect, given: str, field: str, job: str) -> Path:
    """Return the file that a job names: inside its own folder or, one level up, in a folder of shared data beside it."""
    path = Path(given)
    root = request.folder.parent.resolve()
    resolved = (request.folder / path).resolve()
    roots = [other.resolve() for other in request.data_roots] if path.is_absolute() else [root]
    if request.staged or any(resolved.is_relative_to(other) for other in roots):
        return resolved
    raise InvalidSubmission(
        [
            Problem(
                code="E-PATH",
                job=job,
                field=field,
                expected="a relative path inside the job's folder or the folder that holds it",
                given=repr(given),
                remedy="put the file there, e.g. '../data/train.pt' for data that several jobs share",
            )
        ]
    )


def _data_problems(spec: JobSpec, train: DatasetRef, test: DatasetRef | None) -> list[Problem]:
    problems = batch_problems(train.num_samples, spec.batch_size, drop_last=spec.drop_last, job=spec.name)
    for field, ref in _by_field(train, test).items():
        problems += labels_out_of_range(spec, field, load_tensors(ref), None)
    return problems


def _by_field(train: DatasetRef, test: DatasetRef | None) -> dict[str, DatasetRef]:
    return {"data.train": train} | ({} if test is None else {"data.test": test})


def _state_problems(spec: JobSpec, module: nn.Module) -> list[Problem]:
    """Refuse before training what could not be returned after it."""
    try:
        separate(module)
    except SeparationError as error:
        return [
            Problem(
                code="E-STATE",
                job=spec.name,
                field="model",
                expected="a state dict of dense tensors",
                given=str(error),
                remedy="register plain tensors as parameters and buffers",
            )
        ]
    return []
