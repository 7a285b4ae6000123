"""A stored graph, compiled into steps over numbered slots.

Before a call, the slots hold the inputs, the parameters and buffers, the constants and the plain arguments; each step takes its
arguments from slots, calls its operator and stores the result; a value is dropped right after its last use, so that no more
memory is held than in the eager model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from unified.submission.operators import resolve
from unified.submission.umodel_format import (
    DTYPES,
    FLOATS,
    LAYOUTS,
    MEMORY_FORMATS,
    AutocastRecord,
    GraphRecord,
    NodeRecord,
)

DEVICE_SLOT = 0
_SYMBOLS: dict[str, Mapping[str, Any]] = {
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "memory_format": MEMORY_FORMATS,
    "float": FLOATS,
}

#: (function, arguments from the slots, keyword arguments, slot of the result, slots to clear)
Step = tuple[Callable[..., Any], Callable[[list], Iterable], dict[str, Any], int, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A compiled graph.

    Attributes:
        template: What the slots hold at the start: plain arguments in place, None elsewhere.
        inputs: (name, slot) of each input that is used.
        tensors: (name, slot) of each parameter or buffer that is used.
        constants: (index, slot) of each constant that is used.
        steps: Operator calls in order.
        output: Builds the output from the slots.
        writes: (slot of a buffer, slot of what it is to hold after the call).
    """

    template: list[Any]
    inputs: tuple[tuple[str, int], ...]
    tensors: tuple[tuple[str, int], ...]
    constants: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...]
    output: Callable[[list], Any]
    writes: tuple[tuple[int, int], ...]

    def run(self, slots: list[Any]) -> Any:
        """Run on slots that were filled from ``template``, the inputs, the tensors and the constants."""
        for function, arguments, keywords, result, dead in self.steps:
            slots[result] = function(*arguments(slots), **keywords)
            for slot in dead:
                slots[slot] = None
        if self.writes:
            with torch.no_grad():
                for buffer, value in self.writes:
                    slots[buffer].copy_(slots[value])
        return self.output(slots)


def compile_graph(graph: GraphRecord) -> Program:
    """Compile a graph that keeps :mod:`unified.submission.graph_rules`."""
    compiler = _Compiler()
    for node in graph.nodes:
        compiler.add(node)
    return compiler.finish(graph)


class _Compiler:
    def __init__(self) -> None:
        self._template: list[Any] = [None]
        self._nodes: list[int] = []
        self._named: dict[tuple[str, Any], int] = {("device", "model"): DEVICE_SLOT}
        self._calls: list[tuple[Callable[..., Any], list[int], dict[str, Any], int]] = []

    def add(self, node: NodeRecord) -> None:
        operator = resolve(node.op)
        function: Callable[..., Any] = operator.function
        if node.autocast is not None:
            function = _in_autocast(function, node.autocast)
        if node.grad is not None:
            function = _in_grad_mode(function, node.grad)
        slots = [self._slot(value) for value in node.args]
        plain = {name: _literal(value) for name, value in node.kwargs.items() if not _refers(value)}
        live = [name for name, value in node.kwargs.items() if _refers(value)]
        if live:
            slots += [self._slot(node.kwargs[name]) for name in live]
            function = _with_keywords(function, len(node.args), live)
        if node.autocast is not None:
            slots = [DEVICE_SLOT, *slots]
        self._nodes.append(self._call(function, slots, plain))

    def finish(self, graph: GraphRecord) -> Program:
        output = self._output(graph.output)
        writes = tuple((self._slot({"tensor": name}), self._slot(value)) for name, value in graph.writes)
        kept = self._kept(graph.output) | {slot for pair in writes for slot in pair}
        return Program(
            template=self._template,
            inputs=tuple((name, slot) for (kind, name), slot in self._named.items() if kind == "input"),
            tensors=tuple((name, slot) for (kind, name), slot in self._named.items() if kind == "tensor"),
            constants=tuple((name, slot) for (kind, name), slot in self._named.items() if kind == "constant"),
            steps=self._steps(kept),
            output=output,
            writes=writes,
        )

    def _steps(self, kept: set[int]) -> tuple[Step, ...]:
        """Choose for every slot the step after which it is cleared, going backwards."""
        changing = {result for *_, result in self._calls}
        changing |= {slot for (kind, _), slot in self._named.items() if kind == "input"}
        steps: list[Step] = []
        seen = set(kept)
        for function, slots, keywords, result in reversed(self._calls):
            dead = tuple(sorted((({*slots, result}) & changing) - seen))
            seen.update(slots, (result,))
            steps.append((function, _getter(slots), keywords, result, dead))
        return tuple(reversed(steps))

    def _call(self, function: Callable[..., Any], slots: list[int], keywords: dict[str, Any]) -> int:
        result = self._new(None)
        self._calls.append((function, slots, keywords, result))
        return result

    def _new(self, value: Any) -> int:
        self._template.append(value)
        return len(self._template) - 1

    def _slot(self, value: Any) -> int:
        """Return the slot of a reference, a plain value, or a list (built by a step of its own if it holds references)."""
        if not _refers(value):
            return self._new(_literal(value))
        if isinstance(value, list):
            return self._call(_as_list, [self._slot(item) for item in value], {})
        ((kind, target),) = value.items()
        if kind == "node":
            return self._nodes[target]
        if (kind, target) not in self._named:
            self._named[kind, target] = self._new(None)
        return self._named[kind, target]

    def _output(self, value: Any) -> Callable[[list], Any]:
        """Return a function that builds the output from the slots."""
        if not isinstance(value, dict):
            return lambda slots: value
        ((kind, content),) = value.items()
        if kind == "dict":
            entries = [(key, self._output(item)) for key, item in content]
            return lambda slots: {key: build(slots) for key, build in entries}
        if kind in {"tuple", "list"}:
            build = [self._output(item) for item in content]
            make = tuple if kind == "tuple" else list
            return lambda slots: make(item(slots) for item in build)
        return itemgetter(self._slot(value))

    def _kept(self, value: Any) -> set[int]:
        """Return the slots that the output needs."""
        if not isinstance(value, dict):
            return set()
        ((kind, content),) = value.items()
        if kind in {"tuple", "list", "dict"}:
            items = [item[1] for item in content] if kind == "dict" else content
            return set().union(*(self._kept(item) for item in items))
        return {self._slot(value)}


def _getter(slots: list[int]) -> Callable[[list], Iterable]:
    """Return what fetches these slots; ``itemgetter`` alone gives no sequence for fewer than two."""
    if len(slots) < 2:
        return itemgetter(slice(slots[0], slots[0] + 1) if slots else slice(0, 0))
    return itemgetter(*slots)


def _refers(value: Any) -> bool:
    """Whether a value differs from call to call."""
    if isinstance(value, list):
        return any(_refers(item) for item in value)
    return isinstance(value, dict) and next(iter(value)) not in _SYMBOLS


def _literal(value: Any) -> Any:
    if isinstance(value, list):
        return [_literal(item) for item in value]
    if isinstance(value, dict):
        ((kind, target),) = value.items()
        return _SYMBOLS[kind][target]
    return value


def _as_list(*items: Any) -> list[Any]:
    return list(items)


def _with_keywords(function: Callable[..., Any], count: int, names: list[str]) -> Callable[..., Any]:
    """Pass what follows the first ``count`` arguments by keyword."""

    def call(*args: Any, **keywords: Any) -> Any:
        return function(*args[:count], **dict(zip(names, args[count:], strict=True)), **keywords)

    return call


def _in_grad_mode(function: Callable[..., Any], enabled: bool) -> Callable[..., Any]:
    def call(*args: Any, **keywords: Any) -> Any:
        with torch.set_grad_enabled(enabled):
            return function(*args, **keywords)

    return call


def _in_autocast(function: Callable[..., Any], region: AutocastRecord) -> Callable[..., Any]:
    dtype = None if region.dtype is None else DTYPES[region.dtype]

    def call(device: torch.device, *args: Any, **keywords: Any) -> Any:
        with torch.autocast(region.device_type or device.type, dtype=dtype, enabled=region.enabled):
            return function(*args, **keywords)

    return call
