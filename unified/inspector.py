"""The short-lived process that reads job folders: everything that is wrong with one is found here, before anything starts.

What reading needs (``datasets``, ``transformers``, fake tensors and sympy behind them) is imported here and goes with the
process, so workers stay small.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from schedulers.base import Steps
from separator.separate import SeparationError, separate
from unified.admission import DatasetRef, Estimate, ModelRef, Submission
from unified.batch_order import batch_problems
from unified.component_problems import component_problems
from unified.components import build_loss, build_optimizer
from unified.cores import use_threads
from unified.dataset_files import reference
from unified.datasets import label_problems, load_tensors
from unified.errors import InvalidSubmission, Problem
from unified.hybrid import HybridModule
from unified.job import JobSpec
from unified.member import Member
from unified.memory import count_parameters, estimate
from unified.messages import Inspect, Inspected, StepsTimed, TimeSteps
from unified.process_settings import ProcessSettings
from unified.stack_key import stack_key
from unified.step_kind import step_kind
from unified.stepping import Hooks
from unified.submission.models import load_model, recognise
from unified.trainer import Trainer

MAX_TRIAL_STEPS = 4  #: the first one warms up
TRIAL_SECONDS = 0.3  #: after which no further step is begun

T = TypeVar("T")


def run(pipe: Connection, num_threads: int) -> None:
    """Answer requests until the pipe closes; the entry point of the process."""
    # A step that cannot be done is told as a problem; its traceback would only come twice.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL + 1)
    use_threads(num_threads, first_core=0)
    settings = ProcessSettings.capture()
    while True:
        request = pipe.recv()
        settings.restore(num_threads)  # the job that was read before may have turned the process's switches
        match request:
            case Inspect():
                pipe.send(inspect(request))
            case TimeSteps():
                pipe.send(_time_again(request.submission))


def inspect(request: Inspect) -> tuple[Inspected, ...]:
    """Read a job folder and return its job, or every member of its sweep in order; never raises for what is wrong with it."""
    try:
        return _inspect(request)
    except InvalidSubmission as error:
        return (Inspected(folder=request.folder, submission=None, problems=error.problems, step_seconds=None),)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's model or file raises is that job's problem
        problem = Problem(
            code="E-READ",
            job=request.folder.name,
            field="folder",
            expected="a job that can be read",
            given=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            remedy="check that the model runs on one batch of this data",
        )
        return (Inspected(folder=request.folder, submission=None, problems=(problem,), step_seconds=None),)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """What a job folder holds, read once for all members of a sweep."""

    spec: JobSpec
    model: ModelRef
    train: DatasetRef
    test: DatasetRef | None


def _inspect(request: Inspect) -> tuple[Inspected, ...]:
    files = _read(request)
    members = files.spec.members()
    kinds: dict[str, list[JobSpec]] = {}
    for member in members:
        kinds.setdefault(step_kind(member), []).append(member)
    found = _Found()
    measured = {kind: found.get(partial(_measure, request, files, alike)) for kind, alike in kinds.items()}
    found.raise_if_any()
    answers = {kind: iter(answers or ()) for kind, answers in measured.items()}
    return tuple(next(answers[step_kind(member)]) for member in members)


def _read(request: Inspect) -> _Files:
    spec = JobSpec.read(request.folder / "job.json")
    found = _Found()
    model = found.get(lambda: _model_ref(spec, request))
    train = found.get(lambda: _dataset(spec, spec.data.train, request, None))
    test = None
    if spec.data.test is not None and train is not None:
        test = found.get(lambda: _dataset(spec, spec.data.test, request, train))
    found.raise_if_any()
    assert model is not None, "an absent model is a problem, raised above"
    assert train is not None, "absent training data is a problem, raised above"
    return _Files(spec=spec, model=model, train=train, test=test)


def _measure(request: Inspect, files: _Files, alike: Sequence[JobSpec]) -> list[Inspected]:
    """Check and measure the first of jobs that take the same step; what comes of it holds for the others.

    Raises:
        InvalidSubmission: With everything that is wrong with that step before it is tried.
    """
    spec, module = alike[0], load_model(files.model, job=alike[0].name)
    problems = [*_data_problems(spec, files.train, files.test), *_state_problems(spec, module)]
    problems += component_problems(spec.name, optimizer=spec.optimizer, params=module.parameters())
    if problems:
        raise InvalidSubmission(problems)
    # now: the model's own code, called below, may turn the process's switches
    keys = {member.stacking: _stack_key(member, module, files.train) for member in alike}
    measured, failed = _estimate(spec, module, files.train, request.device_type)
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
    if request.num_threads and not failed and measured.peak_bytes < request.within_bytes:
        seconds, failed = _time_one(submissions, module)
    return [
        Inspected(
            folder=request.folder, submission=each, problems=failed if each is submissions[0] else (), step_seconds=seconds
        )
        for each in submissions
    ]


def _time_one(alike: Sequence[Submission], module: nn.Module) -> tuple[float | None, tuple[Problem, ...]]:
    """Time steps of the first of these jobs; where they fail, as with too high a learning rate, those of the last."""
    seconds, problems = _time_steps(alike[0], module)
    if problems and len(alike) > 1:
        seconds, _ = _time_steps(alike[-1], load_model(alike[-1].model, job=alike[-1].name))
    return seconds, problems


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
    return recognise(path, job=spec.name, trust=request.trust, staged=request.staged)


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
    ignored = spec.loss.kwargs.get("ignore_index", -100)
    for ref in filter(None, (train, test)):
        problems += label_problems(load_tensors(ref), None, spec.loss.name, job=spec.name, ignore_index=ignored)
    return problems


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


def _estimate(spec: JobSpec, module: nn.Module, train: DatasetRef, device_type: str) -> tuple[Estimate, tuple[Problem, ...]]:
    """Return what a step needs; for a step that cannot be done at all only what its weights need, and why."""
    autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[spec.precision]
    sample = load_tensors(train).batch(torch.arange(min(2, train.num_samples)))
    try:
        measured = estimate(
            module,
            build_loss(spec.loss),
            lambda parameters: build_optimizer(spec.optimizer, parameters),
            sample,
            batch_size=min(spec.batch_size, train.num_samples),
            device_type=device_type,
            autocast_dtype=autocast,
            output=spec.output,
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the job's own fault: it will fail alone, when its turn comes
        return _weights_only(module), (_step_problem(spec.name, f"{type(error).__name__}: {error}"),)
    return measured, ()


def _weights_only(module: nn.Module) -> Estimate:
    """Count weights, gradients and two moments of Adam."""
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    held = 4 * parameters + buffers
    return Estimate(
        num_parameters=count_parameters(module),
        resident_bytes=held,
        peak_bytes=held,
        flops_per_step=0,
        num_ops_per_step=0,
        eval_peak_bytes=held,
    )


def _time_steps(submission: Submission, module: nn.Module) -> tuple[float | None, tuple[Problem, ...]]:
    """Return the seconds of a real training step on this process's throw-away copy, or why there was none."""
    device = torch.device("cpu")
    hybrid = HybridModule()
    hybrid.add(submission.name, module)
    member = Member(submission, module, load_tensors(submission.train), None, device)
    trainer = Trainer(hybrid, device, torch.get_num_threads())
    hooks = Hooks(between_steps=lambda: False, on_progress=lambda *_: None, on_epoch=lambda *_: None)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < MAX_TRIAL_STEPS and sum(seconds) < TRIAL_SECONDS):
        report = trainer.run_turn(member, Steps(count=1), hooks)
        if report.failure is not None:
            return None, (_step_problem(submission.name, report.failure.reason),)
        if not report.steps:
            break  # the whole job is a single step
        seconds.append(report.seconds)
    return min(seconds), ()


def _time_again(submission: Submission) -> StepsTimed:
    seconds, _ = _time_steps(submission, load_model(submission.model))
    return StepsTimed(job=submission.name, step_seconds=seconds)


def _step_problem(job: str, reason: str) -> Problem:
    return Problem(
        code="E-STEP",
        job=job,
        field="model",
        expected="a training step on the first batches",
        given=reason,
        remedy="correct the model, its loss or its data",
    )
