"""A job: what one user hands in to be trained. Free of torch until checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from unified.errors import InvalidSubmission, Problem
from unified.job_parts import (
    ArchitectureSpec,
    CheckpointSpec,
    DataSpec,
    EarlyStopping,
    FromSweep,
    LossSpec,
    LRSchedulerSpec,
    OptimizerSpec,
    Part,
)
from unified.job_problems import MAX_PROBLEMS, problems_in
from unified.job_rules import (
    architecture_problems,
    data_problems,
    early_stopping_problems,
    length_problems,
    metric_problems,
    relative_path_problems,
    schedule_problems,
)
from unified.job_values import (
    MAX_INT,
    ClientToken,
    JobName,
    MetricNames,
    ModelSource,
    OutputName,
    PositiveFloat,
    PositiveInt,
    SweepValues,
    UserName,
)
from unified.strict_json import read_json
from unified.sweeps import equal_members_problems, member_fields, member_problems, sweep_problems

#: The fields that each rule reads, in the order of its arguments.
_RULES: tuple[tuple[tuple[str, ...], Callable[..., Iterable[Problem]]], ...] = (
    (("epochs", "max_steps"), length_problems),
    (("metrics",), metric_problems),
    (("early_stopping", "metrics", "data"), early_stopping_problems),
    (("data",), data_problems),
    (("lr_scheduler",), schedule_problems),
    (("architecture", "model"), architecture_problems),
)

#: Well-formed values for what is missing or malformed, so that everything else can be checked all the same.
_STAND_INS: dict[str, Any] = {
    "name": "unnamed",
    "model": "model.umodel",
    "data": {"train": "train.pt"},
    "loss": "MSELoss",
    "optimizer": "SGD",
    "batch_size": 1,
}

#: What changes when, where and for whom a job trains, but not what comes out. Files count by their content.
_NOT_TRAINING = {
    "name",
    "id",
    "user",
    "client_token",
    "priority",
    "weight",
    "deadline_seconds",
    "deadline_kind",
    "max_retries",
    "max_run_seconds",
    "exclusive",
    "colocate",
    "checkpoint",
    "model",
    "architecture",  # counts as part of the model
    "sweep",
    "from_sweep",
}
_FILES = {"train", "test", "tokenizer"}


def _one_length(schema: dict[str, Any]) -> None:
    """Say in the JSON Schema that a job has epochs or max_steps, and not both."""
    schema["oneOf"] = [{"required": [field], "properties": {field: {"type": "integer"}}} for field in ("epochs", "max_steps")]


class JobSpec(Part):
    """What a user wants trained, and how: the fields of ``job.json``, checked.

    In Python, ``model`` may also be an ``nn.Module`` and data may be tensors; nothing of them is copied or
    changed. A job is frozen. Unpickling one checks nothing again.

    Attributes:
        name: The job's name, unique within a run: letters, digits, ``.``, ``_`` and ``-``.
        id: What a queue calls the job; made from its name and content if it is not given.
        client_token: A word of the submitter's own, at most 200 characters: a second submission with the same one is the
            first job again.
        user: Whose job it is.
        model: Path of the model, or an ``nn.Module``.
        architecture: Of a model file that holds weights alone: what they are the weights of.
        data: What it trains and is tested on.
        loss: A loss of ``torch.nn``, by name or as ``{"name": …, **kwargs}``.
        metrics: What to measure on the test set: names of :data:`unified.metrics.METRIC_NAMES`.
        optimizer: An optimizer of ``torch.optim``, likewise.
        lr_scheduler: A schedule of ``torch.optim.lr_scheduler``, likewise, stepped ``every`` ``"epoch"`` or
            ``"step"``.
        epochs: How often to go through the training data; or else
        max_steps: how many optimizer steps to make.
        batch_size: Samples per step.
        drop_last: Whether to leave out an epoch's last batch if it is not full.
        clip_grad_norm: Largest norm of the gradient, None: not clipped.
        seed: Of the order of samples, and of dropout and the like.
        priority: Lower runs earlier, where the scheduler looks at it.
        deadline_seconds: When it should be done, in seconds since submission, where the scheduler looks at it.
        deadline_kind: ``"hard"``: the scheduler ``edf`` refuses it if it could not be done in time; or ``"soft"``.
        weight: The owner's share, where the scheduler looks at it.
        max_retries: How often a queue tries it again after a failure of its own.
        max_run_seconds: Training time after which a queue fails it.
        exclusive: Whether it must have a slot of its own; the same as ``colocate="never"``.
        colocate: Whose jobs may be in the worker process where it trains: ``"any"``, ``"same-user"``, or ``"never"`` anybody
            else's while it is there.
        early_stopping: When to stop before the end.
        checkpoint: How often to save its state.
        precision: ``"fp32"``, or mixed with ``"bf16"`` or ``"fp16"``.
        stacking: Whether it may step as one with jobs of the same architecture: ``"auto"``, ``"never"``, or
            ``"exact"``: not where that rounds differently.
        on_nan: What a loss of NaN does: ``"fail"`` the job or ``"keep"`` going.
        output: Which output of the model goes to the loss; see :func:`unified.components.select_output`.
        sweep: From a field such as ``"optimizer.lr"`` to the values that it takes, one job for each combination; see
            :meth:`members`.
        from_sweep: Of a member of a sweep: which, and the values that this one got.

    Raises:
        InvalidSubmission: With everything that is wrong, including what PyTorch would refuse in the loss, the
            optimizer and the schedule.

    Example:
        >>> job = JobSpec(
        ...     name="lenet",
        ...     model="lenet.umodel",
        ...     data={"train": "train.pt"},
        ...     loss="CrossEntropyLoss",
        ...     optimizer={"name": "SGD", "lr": 0.01},
        ...     epochs=3,
        ...     batch_size=64,
        ... )
        >>> job.optimizer.kwargs
        {'lr': 0.01}
        >>> JobSpec.parse(job.to_json()) == job
        True
    """

    model_config = ConfigDict(title="job.json", json_schema_extra=_one_length)

    name: JobName
    id: JobName | None = None
    client_token: ClientToken | None = None
    user: UserName | None = None
    model: ModelSource
    architecture: ArchitectureSpec | None = None
    data: DataSpec
    loss: LossSpec
    metrics: MetricNames = ()
    optimizer: OptimizerSpec
    lr_scheduler: LRSchedulerSpec | None = None
    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    batch_size: PositiveInt
    drop_last: bool = False
    clip_grad_norm: PositiveFloat | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_INT)] = 0
    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] = 0
    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0  # else sums of turns by weight lose short turns
    deadline_seconds: PositiveFloat | None = None
    deadline_kind: Literal["hard", "soft"] = "hard"
    max_retries: Annotated[int, Field(ge=0, le=1000)] = 2
    max_run_seconds: PositiveFloat | None = None
    exclusive: bool = False
    colocate: Literal["any", "same-user", "never"] = "any"
    early_stopping: EarlyStopping | None = None
    checkpoint: CheckpointSpec = CheckpointSpec()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    stacking: Literal["auto", "never", "exact"] = "auto"
    on_nan: Literal["fail", "keep"] = "fail"
    output: OutputName | None = None
    sweep: SweepValues | None = None
    from_sweep: FromSweep | None = None

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], job: str | None = None, *, asks_torch: bool = True) -> JobSpec:
        """Check the content of a ``job.json`` and return the job.

        Args:
            mapping: The fields.
            job: What to call the job in messages if it has no name, e.g. its folder.
            asks_torch: Whether to check what PyTorch would refuse in loss, optimizer and schedule, which imports it.

        Raises:
            InvalidSubmission: With everything that is wrong.
        """
        fields = dict(mapping) if isinstance(mapping, Mapping) else mapping
        return cls.model_validate(fields, context={"job": job, "asks_torch": asks_torch})

    @classmethod
    def read(cls, path: str | Path) -> JobSpec:
        """Read and check a ``job.json``.

        Raises:
            InvalidSubmission: If it is not strict JSON, or with everything that is wrong with the job.
        """
        path = Path(path)
        folder = path.absolute().parent.name
        return cls.model_validate(read_json(path, job=folder), context={"job": folder})

    def members(self) -> tuple[JobSpec, ...]:
        """Return the jobs of a sweep, each an ordinary one, in the order written; of a job without a sweep, itself.

        Example:
            >>> job = JobSpec(
            ...     name="digits", model="a.umodel", data={"train": "train.pt"}, loss="CrossEntropyLoss", optimizer="SGD",
            ...     epochs=3, batch_size=64, sweep={"optimizer.lr": [0.1, 0.01], "seed": [0, 1]},
            ... )
            >>> [member.name for member in job.members()][:3]
            ['digits-000-lr0.1-seed0', 'digits-001-lr0.1-seed1', 'digits-002-lr0.01-seed0']
        """
        if self.sweep is None:
            return (self,)
        # What the members hold was checked, PyTorch asked, when this job was made.
        return tuple(JobSpec.parse(fields, asks_torch=False) for fields in member_fields(_plain_fields(self)))

    def to_json(self) -> dict[str, Any]:
        """Return the job as plain JSON, from which :meth:`parse` makes an equal job.

        Raises:
            TypeError: If it holds a module or tensors, which JSON cannot.
        """
        held = [self.model, self.data.train, self.data.test]
        if not all(isinstance(source, str | None) for source in held):
            raise TypeError(f"job {self.name!r} holds Python objects; write them to files and name those")
        return self.model_dump(mode="json")

    def fingerprint(self, *contents: str) -> str:
        """Return a SHA-256 of what determines the trained weights.

        Name, user, priority, deadline and checkpoints do not. Nor do paths: files count by their content.

        Args:
            *contents: The hashes of the model and of the data.
        """
        recipe = self.model_dump(mode="json", exclude=_NOT_TRAINING | {"data"})
        recipe["data"] = self.data.model_dump(mode="json", exclude=_FILES)
        text = json.dumps([recipe, contents], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema (2020-12) of ``job.json``; it cannot say what PyTorch would refuse."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cls.model_json_schema()}

    @model_validator(mode="wrap")
    @classmethod
    def _all_problems_at_once(cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        malformed: frozenset[str] = frozenset()
        problems: list[Problem] = []
        job = _called(value, info.context)
        try:
            spec = handler(value)
        except ValidationError as error:
            problems = problems_in(error, job, cls)
            if not isinstance(value, dict):
                raise InvalidSubmission(problems) from None
            malformed = frozenset(str(details["loc"][0]) for details in error.errors(include_url=False))
            sound = {field: value[field] for field in value.keys() & cls.model_fields.keys() - malformed}
            spec = handler(_STAND_INS | sound)
        problems += _problems_between(spec, malformed, job)
        if (info.context or {}).get("asks_torch", True):
            problems += _torch_problems(spec, malformed, job)
        if spec.sweep is not None:
            as_given = {field: value[field] for field in malformed & value.keys() - {"name"}}
            problems += _sweep_problems(spec, as_given, job, problems, info.context)
        if problems:
            raise InvalidSubmission(problems)
        return spec


def _called(value: object, context: dict[str, Any] | None) -> str:
    """Return what to call a job in messages: its name, or else its folder."""
    name = value.get("name") if isinstance(value, dict) else None
    return name[:100] if isinstance(name, str) and name else (context or {}).get("job") or "?"


def _problems_between(spec: JobSpec, malformed: frozenset[str], job: str) -> list[Problem]:
    """Return what is wrong between well-formed fields."""
    problems: list[Problem] = []
    for fields, rule in _RULES:
        if malformed.isdisjoint(fields):
            problems += rule(job, *(getattr(spec, field) for field in fields))
    return problems


def _sweep_problems(
    spec: JobSpec, malformed: dict[str, Any], job: str, known: list[Problem], context: dict[str, Any] | None
) -> list[Problem]:
    """Return what is wrong with a sweep or else with its members, apart from what is ``known`` of the job without it."""
    assert spec.sweep is not None, "there is a sweep to be checked"
    # What is malformed, is so in the members too: there it counts as known, where a stand-in would bring problems of its own.
    fields = _plain_fields(spec) | malformed
    problems = [*islice(sweep_problems(job, fields, spec.sweep, JobSpec), MAX_PROBLEMS)]
    if problems:
        return problems
    members = member_fields(fields)
    told = {replace(problem, job=job) for problem in known}
    found = [(member, _problems_of(member, job, told, context)) for member in members]
    return [*islice(member_problems(job, found), MAX_PROBLEMS)] or [*equal_members_problems(job, members)]


def _problems_of(fields: dict[str, Any], job: str, known: set[Problem], context: dict[str, Any] | None) -> list[Problem]:
    """Return what is wrong with a member and is not ``known`` of the whole sweep."""
    try:
        JobSpec.model_validate(fields, context=context)
    except InvalidSubmission as error:
        return [problem for problem in error.problems if replace(problem, job=job) not in known]
    return []


def _plain_fields(spec: JobSpec) -> dict[str, Any]:
    """Return a job's fields as JSON has them, but for the model and the data, which in Python may be objects."""
    held = {"model", "data"}
    return spec.model_dump(mode="json", exclude=held) | {field: getattr(spec, field) for field in held}


def _torch_problems(spec: JobSpec, malformed: frozenset[str], job: str) -> list[Problem]:
    """Return what PyTorch would refuse in well-formed fields."""
    # Only here, and not at the top: a process that merely passes jobs on never imports torch.
    from unified.component_problems import component_problems

    loss, optimizer, lr_scheduler, epochs, max_steps = (
        None if field in malformed else getattr(spec, field)
        for field in ("loss", "optimizer", "lr_scheduler", "epochs", "max_steps")
    )
    every_step = lr_scheduler is not None and lr_scheduler.every == "step"
    return component_problems(
        job,
        loss=loss,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        total_steps=max_steps if every_step else epochs,
    )


def path_problems(spec: JobSpec) -> list[Problem]:
    """Return the paths of a ``job.json`` that lead out of its folder; the Python API takes any path."""
    sources = {"model": spec.model, "data.train": spec.data.train, "data.test": spec.data.test}
    paths = {field: source for field, source in sources.items() if isinstance(source, str)}
    return [*relative_path_problems(spec.name, paths | {"data.tokenizer": spec.data.tokenizer})]
