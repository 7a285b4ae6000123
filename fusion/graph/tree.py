"""Several models in one module that computes what they share once.

References:
    GMorph: Accelerating Multi-DNN Inference via Model Fusion, sections 4.1 and 4.4.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fusion.graph.errors import FusionError
from fusion.graph.task_model import TaskModel

if TYPE_CHECKING:
    from fusion.graph.block import Signature

_STEP_NAME = re.compile(r"b\d+_\d+|a(r|\d+_\d+)_\d+_\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One module of a tree and where it takes its input.

    Attributes:
        name: ``b{task}_{op}`` for a block; ``a{task}_{op}_{task}_{op}`` for an adapter, by source and by the block that it
            was made for (``ar_{task}_{op}`` if its source is the shared input).
        source: Step whose output it takes; None for the shared primary input.
        needs: Positions of the raw inputs that it takes beside.
        task: Task whose output its output is; None for a step on the way.
    """

    name: str
    source: str | None
    needs: tuple[int, ...]
    task: str | None


class FusedTree(nn.Module):
    """A tree of blocks and adapters over shared inputs, with one output for each task.

    A step runs once however many tasks it serves, and only if a wanted task needs it. A value is let go as soon as nothing
    is left that takes it. The state dict has the keys ``nodes.<step>.<name in the block>``.

    Args:
        steps: In any order; what serves no task is left out.
        modules: The module of each step by its name. They are taken as they are, not copied.
        tasks: Names of the tasks, in the order of the outputs.
        signature: What the tasks' models have in common as inputs.
        aliases: Further names that a weight has in its model, by its key in the state dict.

    Raises:
        FusionError: If the steps are no tree with one output for each task.

    Example:
        >>> import torch
        >>> from fusion.graph.block import Signature
        >>> from fusion.graph.feature import Feature, Layout
        >>> vector = Feature((4,), Layout.VEC)
        >>> signature = Signature(names=None, features=(vector,), primary=0)
        >>> steps = [
        ...     Step(name="b0_0", source=None, needs=(), task=None),
        ...     Step(name="b0_1", source="b0_0", needs=(), task="age"),
        ...     Step(name="b1_1", source="b0_0", needs=(), task="mood"),
        ... ]
        >>> modules = {"b0_0": nn.Linear(4, 4), "b0_1": nn.Linear(4, 1), "b1_1": nn.Linear(4, 3)}
        >>> tree = FusedTree(steps, modules, tasks=("age", "mood"), signature=signature)
        >>> {task: tuple(output.shape) for task, output in tree(torch.zeros(2, 4)).items()}
        {'age': (2, 1), 'mood': (2, 3)}
        >>> list(tree(torch.zeros(2, 4), tasks=["mood"]))
        ['mood']
    """

    def __init__(
        self,
        steps: Sequence[Step],
        modules: Mapping[str, nn.Module],
        *,
        tasks: Sequence[str],
        signature: Signature,
        aliases: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        _check_steps(steps, modules, tasks)
        self.tasks = tuple(tasks)
        self.signature = signature
        self.steps = tuple(_live_in_order(steps, frozenset(tasks)))
        self.nodes = nn.ModuleDict({step.name: modules[step.name] for step in self.steps})
        self.aliases = dict(aliases or {})
        self.frozen: frozenset[str] = frozenset()
        self.is_still = False  # evaluation mode even under train(): statistics stay, nothing is dropped out
        self._thaws: tuple[nn.Parameter, ...] = ()
        self._whole = _plan(self.steps, self.tasks, frozenset())

    def forward(self, *args: Any, tasks: Sequence[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        """Answer the tasks; the inputs are given as the models that were fused take them.

        Args:
            args: Positional inputs, or one mapping of all.
            tasks: Those wanted; all if None. Nothing is run for the others.
            kwargs: Inputs by name.

        Returns:
            Output by task, in the order of ``tasks``. Bitwise the same whichever other tasks are wanted, as long as no
            step draws random numbers.
        """
        return self.run(self.signature.flatten(_as_inputs(args, kwargs)), tasks=tasks)

    def run(
        self, inputs: Sequence[Tensor], *, tasks: Sequence[str] | None = None, known: Mapping[str, Tensor] | None = None
    ) -> dict[str, Any]:
        """Answer the tasks from raw inputs in the order of the signature.

        Args:
            inputs: The raw inputs, each ``(batch, ...)``.
            tasks: Those wanted; all if None.
            known: Outputs of steps that have been computed before, by name; what only serves them is not run.

        Returns:
            Output by task, in the order of ``tasks``.

        Raises:
            FusionError: If a task or a step is not in this tree.
        """
        known = known or {}
        wanted = self.tasks if tasks is None else tuple(tasks)
        plan = self._whole if wanted == self.tasks and not known else self._plan(wanted, known)
        values: dict[str, Any] = dict(known)
        outputs: dict[str, Any] = dict.fromkeys(wanted)
        for planned in plan:
            self._run_step(planned, inputs, values, outputs)
        return outputs

    def only(self, *tasks: str) -> FusedTree:
        """Return a copy that has nothing but what serves ``tasks``; it shares no storage with this tree."""
        self._check_tasks(tasks)
        served = self.tasks_of()
        steps = [step for step in self.steps if served[step.name] & set(tasks)]
        steps = [step if step.task in tasks else _without_task(step) for step in steps]
        memo: dict[int, Any] = {}
        modules = {step.name: copy.deepcopy(self.nodes[step.name], memo) for step in steps}
        tree = FusedTree(steps, modules, tasks=tasks, signature=self.signature, aliases=self.aliases)
        tree.training = tree.nodes.training = self.training
        tree.frozen = self.frozen & tree.nodes.keys()
        tree._thaws = tuple(memo[id(parameter)] for parameter in self._thaws if id(parameter) in memo)
        return tree

    def split(self) -> dict[str, TaskModel]:
        """Return for each task a module of its own that answers it alone; they share no storage with this tree."""
        return {task: TaskModel(self.only(task)) for task in self.tasks}

    def tasks_of(self) -> dict[str, frozenset[str]]:
        """Return for each step the tasks that it serves."""
        served: dict[str, frozenset[str]] = {}
        for step in reversed(self.steps):
            served[step.name] = served.get(step.name, frozenset()) | ({step.task} if step.task is not None else set())
            if step.source is not None:
                served[step.source] = served.get(step.source, frozenset()) | served[step.name]
        return {step.name: served[step.name] for step in self.steps}

    def freeze(self, steps: Collection[str]) -> None:
        """Let training change ``steps``, and no others, no longer: no gradients, and evaluation mode even under ``train()``.

        A parameter tied to one of a frozen step is frozen with it. A later call takes the place of this one, so
        ``freeze(())`` ends it; parameters that had no gradient before have none after.
        """
        self._check_known_steps(steps)
        for parameter in self._thaws:
            parameter.requires_grad_(True)
        self.frozen = frozenset(steps)
        held = {id(p): p for name in self.frozen for p in self.nodes[name].parameters() if p.requires_grad}
        self._thaws = tuple(held.values())
        for parameter in self._thaws:
            parameter.requires_grad_(False)
            parameter.grad = None
        self.train(self.training)

    def train(self, mode: bool = True) -> FusedTree:
        """Set training mode, save for frozen steps, and for a tree that is to stay still."""
        super().train(mode and not self.is_still)
        for name in self.frozen:
            self.nodes[name].eval()
        return self

    def _run_step(self, planned: _Planned, inputs: Sequence[Tensor], values: dict[str, Any], outputs: dict[str, Any]) -> None:
        step = planned.step
        if planned.is_known:
            value = values[step.name]
        else:
            if step.source is None:
                x = inputs[self.signature.primary]
            else:
                x = values.pop(step.source) if planned.is_last_use else values[step.source]
            value = self.nodes[step.name](x, *(inputs[position] for position in step.needs))
        if planned.is_used:
            values[step.name] = value
        if step.task in outputs:
            outputs[step.task] = value

    def _plan(self, tasks: Sequence[str], known: Mapping[str, Tensor]) -> tuple[_Planned, ...]:
        self._check_tasks(tasks)
        self._check_known_steps(known)
        return _plan(self.steps, tasks, frozenset(known))

    def _check_tasks(self, tasks: Sequence[str]) -> None:
        unknown = [task for task in tasks if task not in self.tasks]
        if unknown or not tasks:
            raise FusionError(f"expected some of the tasks {', '.join(self.tasks)}; got {', '.join(unknown) or 'none'}")

    def _check_known_steps(self, names: Collection[str]) -> None:
        unknown = sorted(set(names) - self.nodes.keys())
        if unknown:
            raise FusionError(f"no such step in this tree: {', '.join(unknown)}; it has {', '.join(self.nodes)}")


@dataclass(frozen=True, slots=True)
class _Planned:
    """A step that is run, or taken as known, and what becomes of values."""

    step: Step
    is_known: bool
    is_used: bool  # by a later step
    is_last_use: bool  # of its source


def _plan(steps: Sequence[Step], tasks: Collection[str], known: frozenset[str]) -> tuple[_Planned, ...]:
    by_name = {step.name: step for step in steps}
    needed: set[str] = set()
    for step in steps:
        name = step.name if step.task in tasks else None
        while name is not None and name not in needed:
            needed.add(name)
            name = None if name in known else by_name[name].source
    used: set[str | None] = {None}  # the inputs belong to the caller
    backwards: list[_Planned] = []
    for step in reversed(steps):
        if step.name not in needed:
            continue
        is_known = step.name in known
        is_last_use = not is_known and step.source not in used
        backwards.append(_Planned(step, is_known, step.name in used, is_last_use))
        if not is_known:
            used.add(step.source)
    return tuple(reversed(backwards))


def _live_in_order(steps: Sequence[Step], tasks: frozenset[str]) -> Iterator[Step]:
    """Yield the steps that serve a task, each after its source and one branch whole before the next: few values are held."""
    by_source: dict[str | None, list[Step]] = {}
    for step in steps:
        by_source.setdefault(step.source, []).append(step)
    by_name = {step.name: step for step in steps}
    live: set[str] = set()
    for step in steps:
        name = step.name if step.task in tasks else None
        while name is not None and name not in live:
            live.add(name)
            name = by_name[name].source
    stack = list(reversed(by_source.get(None, [])))
    while stack:
        step = stack.pop()
        if step.name in live:
            yield step
            stack.extend(reversed(by_source.get(step.name, [])))


def _check_steps(steps: Sequence[Step], modules: Mapping[str, nn.Module], tasks: Sequence[str]) -> None:
    names = [step.name for step in steps]
    outputs = [step.task for step in steps if step.task is not None]
    problems = [f"two steps are called {name!r}" for name in sorted({name for name in names if names.count(name) > 1})]
    problems += [f"step {name!r} has no module" for name in names if name not in modules]
    problems += [f"expected steps called b1_2 or a0_1_1_2, got {name!r}" for name in names if not _STEP_NAME.fullmatch(name)]
    problems += [
        f"step {step.name!r} takes the output of {step.source!r}, which is no step"
        for step in steps
        if step.source is not None and step.source not in names
    ]
    problems += [f"task {task!r} has {outputs.count(task)} outputs, expected 1" for task in tasks if outputs.count(task) != 1]
    if len(set(tasks)) != len(tasks) or not tasks:
        problems.append(f"expected at least one task, each with a name of its own, got {list(tasks)}")
    problems = problems or [f"step {name!r} cannot be reached from the inputs" for name in _unreachable(steps)]
    if problems:
        raise FusionError("these steps are no tree: " + "; ".join(problems))


def _unreachable(steps: Sequence[Step]) -> list[str]:
    by_name = {step.name: step for step in steps}
    lost = []
    for step in steps:
        name, seen = step.source, {step.name}
        while name is not None and name not in seen:
            seen.add(name)
            name = by_name[name].source
        if name is not None:
            lost.append(step.name)
    return lost


def _without_task(step: Step) -> Step:
    return dataclasses.replace(step, task=None)


def _as_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args and kwargs:
        raise FusionError(f"expected all inputs by position or all by name, got {len(args)} and {', '.join(kwargs)}")
    if kwargs:
        return kwargs
    return args[0] if len(args) == 1 else args
