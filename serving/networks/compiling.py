"""A checked list of operator calls as one Python function: no more per call than the calls themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.networks.encoding import Reference, references


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call; lists in its arguments may hold references."""

    function: Callable[..., Any]
    args: list[Any]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a program does.

    Attributes:
        num_inputs: Inputs by position.
        tensors: Names of the weights that it uses.
        calls: In order; each refers to calls before it.
        outputs: What each task's output is.
    """

    num_inputs: int
    tensors: tuple[str, ...]
    calls: tuple[Call, ...]
    outputs: Mapping[str, Reference]


def compiled(recipe: Recipe) -> Callable[..., tuple[Any, ...]]:
    """Return a function of the inputs, then of the tensors, that gives the outputs in order.

    Each value is let go after its last use. The source that is compiled holds only names made here and names of operators'
    arguments: functions and plain arguments are handed in as its globals.
    """
    writer = _Source(recipe)
    source = writer.source()
    scope = writer.scope
    exec(compile(source, "<program>", "exec"), scope)
    return scope["run"]


class _Source:
    """The source of a function, and what its names stand for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.scope: dict[str, Any] = {}
        self.places = {name: f"t{index}" for index, name in enumerate(recipe.tensors)}

    def source(self) -> str:
        recipe = self.recipe
        parameters = [*(f"x{index}" for index in range(recipe.num_inputs)), *self.places.values()]
        dead = self._dead()
        lines = [f"def run({', '.join(parameters)}):", "    device = x0.device"]
        for index, call in enumerate(recipe.calls):
            args = [self._spelled(value) for value in call.args]
            args += [f"{name}={self._spelled(value)}" for name, value in call.kwargs.items()]
            lines.append(f"    v{index} = {self._constant(call.function)}({', '.join(args)})")
            if dead[index]:
                lines.append(f"    {' = '.join(dead[index])} = None")
        results = "".join(f"{self._spelled(value)}, " for value in recipe.outputs.values())
        lines.append(f"    return ({results})")
        return "\n".join(lines)

    def _dead(self) -> list[list[str]]:
        """Return for each call the values that nothing takes after it."""
        seen = {value for value in self.recipe.outputs.values() if value.kind == "node"}
        dead: list[list[str]] = []
        for index in reversed(range(len(self.recipe.calls))):
            call = self.recipe.calls[index]
            used = {value for value in references([*call.args, *call.kwargs.values()]) if value.kind == "node"}
            used.add(Reference("node", index))
            dead.append([f"v{value.target}" for value in sorted(used - seen, key=lambda value: int(value.target))])
            seen |= used
        return dead[::-1]

    def _spelled(self, value: Any) -> str:
        if isinstance(value, Reference):
            kinds = {"node": "v{}", "input": "x{}", "device": "device"}
            return self.places[str(value.target)] if value.kind == "tensor" else kinds[value.kind].format(value.target)
        if isinstance(value, list) and any(True for _ in references(value)):
            return f"[{', '.join(self._spelled(item) for item in value)}]"
        return self._constant(value)

    def _constant(self, value: Any) -> str:
        """Return the name that stands for a function or a plain argument."""
        name = f"c{len(self.scope)}"
        self.scope[name] = value
        return name
