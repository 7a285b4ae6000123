"""What PyTorch would refuse in a job's loss, optimizer and learning-rate schedule, found out by trying them.

Names and keyword arguments are compared with the constructors' signatures, values are tried on a two-by-two
parameter. So the rules are those of the PyTorch that is installed, and none is written down twice.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from unified.component_trials import Arguments, Trial, refusal, try_loss, try_lr_scheduler, try_optimizer
from unified.components import LOSSES, LR_SCHEDULERS, OPTIMIZERS, UNFIT, build_optimizer
from unified.errors import Problem
from unified.job_parts import Component, LossSpec, LRSchedulerSpec, OptimizerSpec
from unified.job_problems import describe, did_you_mean, or_sweep

#: What JSON value fits which word of a constructor's annotation.
_FITTING: dict[str, frozenset[str]] = {
    "bool": frozenset({"bool"}),
    "int": frozenset({"int"}),
    "float": frozenset({"int", "float"}),
    "str": frozenset({"str"}),
    "Literal": frozenset({"str"}),
    "None": frozenset({"NoneType"}),
    "NoneType": frozenset({"NoneType"}),
    "Optional": frozenset({"NoneType"}),
} | dict.fromkeys(["list", "List", "tuple", "Tuple", "Iterable", "Sequence", "Tensor"], frozenset({"list"}))
_WORDS = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "NoneType": "null",
    "list": "a list",
}

_WORKING_OPTIMIZER = OptimizerSpec(name="SGD", momentum=0.9)  # momentum: some schedules want to cycle it


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A component to be checked: whose it is, in which field it stands and where PyTorch has its like."""

    job: str
    field: str
    noun: str
    module: str
    classes: dict[str, type]
    spec: Component

    @property
    def full_name(self) -> str:
        """The name under which PyTorch documents it."""
        return f"{self.module}.{self.spec.name}"

    def problem(self, code: str, argument: str | None, expected: str, given: str, remedy: str) -> Problem:
        """Return a problem with one of its arguments, or with all of it."""
        field = self.field if argument is None else f"{self.field}.{argument}"
        return Problem(code=code, job=self.job, field=field, expected=expected, given=given, remedy=remedy)


def component_problems(
    job: str,
    *,
    loss: LossSpec | None = None,
    optimizer: OptimizerSpec | None = None,
    lr_scheduler: LRSchedulerSpec | None = None,
    total_steps: int | None = None,
    params: Iterable[Tensor] = (),
) -> list[Problem]:
    """Return everything that PyTorch would refuse in these components; None: not to be checked.

    Args:
        job: Whose they are.
        loss: Tried on two samples.
        optimizer: Tried for one step, and built for ``params`` if there are any.
        lr_scheduler: Tried for two steps on ``optimizer``.
        total_steps: How often the schedule will be stepped, if known; see
            :func:`unified.components.build_lr_scheduler`.
        params: The parameters of the job's model; they are not changed.
    """
    problems: list[Problem] = []
    if optimizer is not None:
        candidate = _candidate(job, "optimizer", optimizer)
        problems += _problems(candidate, partial(try_optimizer, optimizer.name))
        problems += [] if problems else _parameter_problems(candidate, optimizer, list(params))
    if lr_scheduler is not None:
        usable = _WORKING_OPTIMIZER if optimizer is None or problems else optimizer
        attempt = partial(try_lr_scheduler, usable, total_steps)
        problems += _schedule_problems(_candidate(job, "lr_scheduler", lr_scheduler), attempt)
    if loss is not None:
        problems += _problems(_candidate(job, "loss", loss), partial(try_loss, loss.name))
    return problems


def _candidate(job: str, field: str, spec: Component) -> Candidate:
    noun, module, classes = {
        "loss": ("a loss", "torch.nn", LOSSES),
        "optimizer": ("an optimizer", "torch.optim", OPTIMIZERS),
        "lr_scheduler": ("a learning-rate schedule", "torch.optim.lr_scheduler", LR_SCHEDULERS),
    }[field.partition(".")[0]]
    return Candidate(job=job, field=field, noun=noun, module=module, classes=dict(classes), spec=spec)


def _problems(candidate: Candidate, trial: Trial) -> list[Problem]:
    """Return what is wrong with the name, then with the arguments, then with their values in concert."""
    if candidate.spec.name not in candidate.classes:
        return [_name_problem(candidate)]
    parameters = _parameters(candidate)
    problems = [*_argument_problems(candidate, parameters)]
    refused = {problem.field.removeprefix(f"{candidate.field}.") for problem in problems}
    stand_ins = {name: _stand_in(parameter) for name, parameter in parameters.items() if _is_required(parameter)}
    usable = {name: value for name, value in candidate.spec.kwargs.items() if name not in refused}
    problems += _value_problems(candidate, trial, stand_ins | usable, stand_ins)
    return problems


def _name_problem(candidate: Candidate) -> Problem:
    name, known = candidate.spec.name, sorted(candidate.classes)
    remedy = UNFIT.get(name) or did_you_mean(name, known, f"use one of {', '.join(known)}")
    expected = f"{candidate.noun} of {candidate.module} that a job can use"
    return candidate.problem("E-NAME", "name", expected, describe(name), remedy)


def _parameters(candidate: Candidate) -> dict[str, inspect.Parameter]:
    """Return the parameters of the constructor that are the user's to give."""
    # PyTorch has retired `size_average` and `reduce` in favour of `reduction`; `last_epoch` is for resuming.
    ours = {"params", "optimizer", "last_epoch", "size_average", "reduce"}
    parameters = inspect.signature(candidate.classes[candidate.spec.name]).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in ours}


def _argument_problems(candidate: Candidate, parameters: dict[str, inspect.Parameter]) -> Iterator[Problem]:
    """Yield the arguments that are unknown, missing, or not of a kind that the constructor's annotation names."""
    kwargs = candidate.spec.kwargs
    for name, value in kwargs.items():
        if name not in parameters:
            remedy = did_you_mean(name, parameters, f"known are {', '.join(parameters) or 'none'}")
            expected = f"a keyword argument of {candidate.full_name}"
            yield candidate.problem("E-FIELD", name, expected, describe(value), remedy)
        elif (fitting := annotated_kinds(parameters[name])) is not None and not is_of_kind(value, fitting):
            remedy = or_sweep(f"{candidate.field}.{name}", value, f"see {candidate.full_name}")
            yield candidate.problem("E-TYPE", name, kinds_in_words(fitting), describe(value), remedy)
    for name, parameter in parameters.items():
        if _is_required(parameter) and name not in kwargs:
            yield candidate.problem("E-MISSING", name, "a value", "nothing", f"{candidate.full_name} needs it")


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def annotated_kinds(parameter: inspect.Parameter) -> frozenset[str] | None:
    """Return the kinds of JSON values that a parameter takes, None if it does not say."""
    words = set(re.findall(r"[A-Za-z_]\w*", str(parameter.annotation)))
    if "Callable" in words:
        return frozenset({"NoneType"})  # it takes a function or nothing, and a job is data
    if "float" in words:
        words.discard("Tensor")  # a learning rate, say: a number will do
    kinds = frozenset[str]().union(*(_FITTING.get(word, frozenset()) for word in words))
    return kinds or None


def is_of_kind(value: object, fitting: frozenset[str]) -> bool:
    """Return whether a JSON value is of one of these kinds."""
    if isinstance(value, list) and "bool" not in fitting and any(isinstance(item, bool) for item in value):
        return False
    return type(value).__name__ in fitting


def kinds_in_words(fitting: frozenset[str]) -> str:
    """Return what values of these kinds are called in a message."""
    named = fitting - {"int"} if "float" in fitting else fitting
    return " or ".join(word for kind, word in _WORDS.items() if kind in named)


def _stand_in(parameter: inspect.Parameter) -> Any:
    """Return a value to try the other arguments with."""
    if parameter.name == "schedulers":
        return ["ConstantLR", "ConstantLR"]
    return [1] if "list" in (annotated_kinds(parameter) or ()) else 1


def _value_problems(candidate: Candidate, trial: Trial, kwargs: Arguments, stand_ins: Arguments) -> Iterator[Problem]:
    """Yield, one after another, the values that PyTorch refuses.

    PyTorch names only the first. The culprit is the argument without which it says something else, or nothing:
    that one is left out, and the rest tried again.
    """
    kwargs = dict(kwargs)
    reason = refusal(trial, kwargs)
    while reason is not None:
        rest = {name: _without(kwargs, name, stand_ins) for name in kwargs}
        culprit = next((name for name in kwargs if refusal(trial, rest[name]) != reason), None)
        if culprit is not None and culprit not in candidate.spec.kwargs:
            return  # a value of ours, in place of one that is missing
        given = describe(candidate.spec.kwargs if culprit is None else kwargs[culprit])
        remedy = f"trying it gave: {reason}"
        yield candidate.problem("E-VALUE", culprit, f"what {candidate.full_name} accepts", given, remedy)
        if culprit is None:
            return
        kwargs = rest[culprit]
        reason = refusal(trial, kwargs)


def _build(spec: OptimizerSpec, params: list[Tensor], _: Arguments) -> None:
    build_optimizer(spec, params)


def _without(kwargs: Arguments, name: str, stand_ins: Arguments) -> Arguments:
    rest = {other: value for other, value in kwargs.items() if other != name}
    return rest | ({name: stand_ins[name]} if name in stand_ins else {})


def _parameter_problems(candidate: Candidate, spec: OptimizerSpec, params: list[Tensor]) -> list[Problem]:
    """Return why the optimizer does not take these parameters; it does if there are none."""
    reason = refusal(partial(_build, spec, params), {}) if params else None
    if reason is None:
        return []
    remedy = f"use another one; trying it gave: {reason}"
    return [candidate.problem("E-VALUE", None, "an optimizer for this model's parameters", spec.name, remedy)]


def _schedule_problems(candidate: Candidate, attempt: Callable[[str, Arguments], None]) -> list[Problem]:
    """Return what is wrong with a schedule and, where it is made of others, with each of them."""
    parts = candidate.spec.kwargs.get("schedulers")
    problems = []
    for index, part in enumerate(parts if isinstance(parts, list) else []):
        problems += _part_problems(candidate, index, part, attempt)
    return problems or _problems(candidate, partial(attempt, candidate.spec.name))


def _part_problems(whole: Candidate, index: int, part: object, attempt: Callable[[str, Arguments], None]) -> list[Problem]:
    argument = f"schedulers[{index}]"
    try:
        spec = Component.model_validate(part)
    except ValidationError:
        expected = "the name of a schedule, or an object with its name and arguments"
        return [whole.problem("E-TYPE", argument, expected, describe(part), "write e.g. 'ConstantLR'")]
    if spec.name == "ReduceLROnPlateau":
        remedy = "PyTorch steps the parts of a schedule without one"
        return [whole.problem("E-VALUE", argument, "a schedule that needs no loss", describe(part), remedy)]
    return _schedule_problems(_candidate(whole.job, f"{whole.field}.{argument}", spec), attempt)
