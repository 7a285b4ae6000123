"""One stack from models to files: stacked, exported, compared with each model alone, timed, written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fusion.stacking.answering import Exported, export
from fusion.stacking.errors import NotStackableError
from fusion.stacking.stack import Stack
from fusion.stacking.stack import stack as stack_of
from fusion.timer import Timing, evaluating
from unified.answering.checking import call, largest_difference, time_both, tolerance
from unified.answering.members import Answerer, check_alike, samples_of
from unified.answering.writing import write_description, written
from unified.errors import UnifiedError

Tell = Callable[[str], None]

DEFAULT_ROWS = 32
_CHECKED_ROWS = (3, 1)  #: further batch sizes that an exported stack of any batch size is checked at


@dataclass(frozen=True, slots=True, kw_only=True)
class StackReport:
    """What a stack is and does.

    Attributes:
        names: The members', in order.
        parameters: Of one member.
        one_input: Whether all members get the same input.
        rows: The batch size it was measured with.
        threads: CPU threads it was measured with.
        batch: The one batch size that the exported module takes; None: any.
        largest_difference: Between its answers and those of a model alone.
        relative_difference: The same over the largest answer.
        together: Seconds of answering for all at once.
        alone: Seconds of one model after another.
        ways: (operator, way, how often) of what does not run once for all members.
        notes: What else there is to say.
    """

    names: tuple[str, ...]
    parameters: int
    one_input: bool
    rows: int
    threads: int
    batch: int | None
    largest_difference: float
    relative_difference: float
    together: Timing
    alone: Timing
    ways: tuple[tuple[str, str, int], ...]
    notes: tuple[str, ...]

    @property
    def speedup(self) -> float:
        """One after another over all at once."""
        return self.alone.median_seconds / self.together.median_seconds

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON data."""
        return {
            "one_input": self.one_input,
            "parameters_per_member": self.parameters,
            "batch": self.batch,
            "measured_batch": self.rows,
            "threads": self.threads,
            "largest_difference": self.largest_difference,
            "relative_difference": self.relative_difference,
            "seconds": self.together.median_seconds,
            "seconds_one_after_another": self.alone.median_seconds,
            "speedup": self.speedup,
            "operators": [{"operator": name, "way": way, "count": count} for name, way, count in self.ways],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stacked:
    """Models of one architecture as one.

    Attributes:
        module: Answers for all members at once, in PyTorch's operators alone.
        stack: The same for Python: some of the members, other weights, training.
        report: What was measured.
        file: The ``.pt2``, or None.
    """

    module: nn.Module
    stack: Stack
    report: StackReport
    file: Path | None

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, in order."""
        return self.report.names


def stack_members(
    members: Sequence[Answerer],
    inputs: Sequence[Any],
    *,
    one_input: bool,
    out: Path | None = None,
    notes: Sequence[str] = (),
    tell: Tell = lambda _: None,
) -> Stacked:
    """Stack, export, compare, time and write.

    Args:
        members: On one device.
        inputs: A batch for each member; with ``one_input`` the same one.
        one_input: Whether the exported module takes one input for all.
        out: The ``.pt2`` to write; beside it goes a ``.json``.
        notes: To be reported.
        tell: Told what is being done.

    Raises:
        UnifiedError: If the models are not of one architecture, cannot be exported, or do not answer as each alone.
    """
    check_alike(members)
    models = [member.model for member in members]
    with evaluating(*models):
        _check_takes(members[0], inputs[0])
        tell("measuring and exporting")
        many, exported = _exported(models, joined(inputs, one_input=one_input), one_input=one_input)
        with written(exported.program, out) as module:
            tell("comparing with each model alone")
            largest, relative = _checked(module, members, inputs, one_input=one_input, free=exported.batch is None)
            tell("timing")
            together, alone = time_both(module, joined(inputs, one_input=one_input), models, inputs)
    report = StackReport(
        names=tuple(member.name for member in members),
        parameters=sum(value.numel() for value in models[0].parameters()),
        one_input=one_input,
        rows=len(pytree.tree_leaves(inputs[0])[0]),
        threads=torch.get_num_threads(),
        batch=exported.batch,
        largest_difference=largest,
        relative_difference=relative,
        together=together,
        alone=alone,
        ways=exported.ways,
        notes=tuple(notes),
    )
    if out is not None:
        write_description(out, members, inputs[0], many.tensors(), report.to_json())
    return Stacked(module=module, stack=many, report=report, file=out)


def _check_takes(member: Answerer, inputs: Any) -> None:
    try:
        with torch.no_grad():
            call(member.model, inputs)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UnifiedError(f"{member.where} does not take the samples: {reason}") from error


def _exported(models: Sequence[nn.Module], inputs: Any, *, one_input: bool) -> tuple[Stack, Exported]:
    try:
        many = stack_of(models)
        return many, export(many, inputs, one_input=one_input)
    except NotStackableError as error:
        raise UnifiedError(str(error)) from error
    except Exception as error:  # the models' own code runs, and takes each alone; what goes wrong is that they are many
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UnifiedError(f"these models cannot answer as one: {reason}") from error


def joined(inputs: Sequence[Any], *, one_input: bool) -> Any:
    """Return what the exported module takes for these inputs of each member."""
    return inputs[0] if one_input else pytree.tree_map(lambda *each: torch.stack(each), *inputs)


def inputs_for(members: Sequence[Answerer], count: int | None, *, one_input: bool) -> tuple[list[Any], tuple[str, ...]]:
    """Return a batch for each member, of its own samples where there are any, and notes on what they are.

    Raises:
        UnifiedError: If nothing says what the models take, or they take different inputs.
    """
    spec = next((member.source.spec for member in members if member.source and member.source.spec), None)
    count = count or (spec.batch_size if spec is not None else DEFAULT_ROWS)
    found = [samples_of(member, count, seed) for seed, member in enumerate(members)]
    known = [each for each in found if each is not None]
    if not known:
        raise UnifiedError(f"{members[0].where} does not say what it takes: give a result or a job folder with its data, too")
    batches = [repeated(each if each is not None else known[0], count) for each in found]
    shapes = [pytree.tree_map(lambda value: (value.dtype, tuple(value.shape)), batch) for batch in batches]
    for member, shape in zip(members, shapes, strict=True):
        if shape != shapes[0]:
            raise UnifiedError(f"{member.where} takes other inputs than {members[0].where}: {shape} against {shapes[0]}")
    return ([batches[0]] * len(members) if one_input else batches), ()


def repeated(inputs: Any, count: int) -> Any:
    """Return so many samples, repeated if there are fewer."""
    return pytree.tree_map(lambda value: value[torch.arange(count, device=value.device) % len(value)], inputs)


def _checked(
    module: nn.Module, members: Sequence[Answerer], inputs: Sequence[Any], *, one_input: bool, free: bool
) -> tuple[float, float]:
    """Compare answers, also at other batch sizes if they are free."""
    rows = len(pytree.tree_leaves(inputs[0])[0])
    worst = (0.0, 0.0, torch.float32)
    for count in dict.fromkeys((rows, *_CHECKED_ROWS)) if free else (rows,):
        batches = [repeated(own, count) for own in inputs]
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            together = call(module, joined(batches, one_input=one_input))
            alone = [call(member.model, own) for member, own in zip(members, batches, strict=True)]
        found = largest_difference(together, alone)
        worst = max(worst, found, key=lambda each: each[1] / tolerance(each[2]))
    if worst[1] > tolerance(worst[2]):
        raise UnifiedError(
            f"the stack does not answer as each model alone: the largest difference is {worst[0]:.3g}, {worst[1]:.3g} of the "
            f"largest answer, where {tolerance(worst[2]):g} is allowed; nothing was written"
        )
    return worst[0], worst[1]
