"""Let a graph that was captured for one batch take any: its literals are told from other numbers by where they stand (3.6)."""

from __future__ import annotations

import dataclasses
import operator
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from fusion.graph.captured import Captured, copied
from fusion.graph.errors import CaptureError
from fusion.graph.operators import packet

_aten = torch.ops.aten
_RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "_reshape_alias"})
_FACTORIES = frozenset(["zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty"])
_EXPANDS = frozenset({"expand", "repeat", "broadcast_to"})


def rebatch(captured: Captured, label: str) -> tuple[Captured, int]:
    """Return the graph for any batch, and the number of literals that were replaced.

    Values are run again with a symbolic batch; wherever an operator was told a size, the one that came from the batch is
    replaced by a multiple of the batch.

    Args:
        captured: Bound to ``captured.static_batch``; it is not changed, but its nodes lend their values.
        label: Name of the model in messages.

    Raises:
        CaptureError: If an operator does not take the symbolic batch.
    """
    assert captured.static_batch is not None, "a graph for any batch needs no other"
    graph, _ = copied(captured.graph)
    pass_ = _Pass(graph, captured, captured.static_batch, label)
    pass_.run()
    return dataclasses.replace(captured, graph=graph), pass_.num_replaced


class _Pass:
    """The state of one call of :func:`rebatch`."""

    def __init__(self, graph: fx.Graph, captured: Captured, batch: int, label: str) -> None:
        self.graph = graph
        self.captured = captured
        self.batch = batch
        self.label = label
        self.num_replaced = 0
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self.sizes: dict[int, fx.Node] = {}
        self.values: dict[fx.Node, Any] = {}

    def run(self) -> None:
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        nodes = list(self.graph.nodes)
        for node in inputs:
            self.values[node] = node.meta["val"] = self._symbolic(node.meta["val"])
        first = next(node for node in inputs if isinstance(node.meta["val"].shape[0], torch.SymInt))
        with self.graph.inserting_after(inputs[-1]):
            self.sizes[1] = self._size_node(_aten.sym_size.int, (first, 0), first.meta["val"].shape[0])
        for node in nodes:
            if node.op == "get_attr":
                self.values[node] = self._constant(node)
            elif node.op == "call_function":
                self._replace_literals(node)
                self.values[node] = node.meta["val"] = self._evaluate(node)
        if self.sizes[1].meta["val"].node.maybe_as_int() is not None:
            raise CaptureError(self._failed("the batch turns into a number"))

    def _symbolic(self, value: Tensor) -> Tensor:
        dynamic = [DimDynamic.STATIC] * value.ndim
        if value.ndim and value.shape[0] == self.batch:
            dynamic[0] = DimDynamic.DYNAMIC
        # traced at a batch that is neither 0 nor 1, which would be taken for constants
        real = torch.empty((max(2, self.batch), *value.shape[1:]), dtype=value.dtype, device="meta")
        if dynamic[0] is not DimDynamic.DYNAMIC:
            real = torch.empty(value.shape, dtype=value.dtype, device="meta")
        context = StatelessSymbolicContext(dynamic_sizes=dynamic)
        fake = self.mode.from_tensor(real, symbolic_context=context)
        with self.mode:
            return torch.empty(fake.shape, dtype=value.dtype, device=value.device)

    def _constant(self, node: fx.Node) -> Any:
        name = str(node.target)
        if name in self.captured.parts:
            return self.captured.parts[name]
        node.meta["val"] = self.mode.from_tensor(self.captured.tensors[name], static_shapes=True)
        return node.meta["val"]

    def _evaluate(self, node: fx.Node) -> Any:
        arguments, named = fx.map_arg((node.args, node.kwargs), self._value)
        try:
            with self.mode, torch.no_grad(), enable_python_dispatcher():
                return cast("Callable[..., Any]", node.target)(*arguments, **named)
        except Exception as error:
            first = str(error).partition("\n")[0]
            raise CaptureError(self._failed(f"{node.name} at {node.meta.get('path') or 'forward'}: {first}")) from error

    def _value(self, node: fx.Node) -> Any:
        return self.values[node] if node in self.values else node.meta["val"]

    def _failed(self, reason: str) -> str:
        return (
            f"model '{self.label}': captured for batch {self.batch}; generalised {self.num_replaced} literals; check at batch "
            f"{2 * self.batch} failed: {reason}. Export it again with a dynamic batch"
        )

    def _replace_literals(self, node: fx.Node) -> None:
        name = packet(node)
        if name in _RESHAPES:
            self._replace_in_list(node, 1, self._reshaped(node))
        elif name in _EXPANDS:
            self._replace_in_list(node, 1, self._expanded(node))
        elif name in _FACTORIES:
            place = 1 if name.startswith("new_") else 0
            self._replace_in_list(node, place, self._made_new(node.args[place]))
        elif name == "arange" and node.args and node.args[0] == self.batch and self.batch > 1:
            node.update_arg(0, self._size(1))
        elif name == "slice" and len(node.args) > 3 and self._is_whole_batch(node):
            node.update_arg(3, sys.maxsize)

    def _replace_in_list(self, node: fx.Node, place: int, index: int | None) -> None:
        sizes = node.args[place]
        if index is None or not isinstance(sizes, list | tuple):
            return
        literal = sizes[index]
        if not isinstance(literal, int) or literal < 0:
            return
        multiple = literal // self.batch
        node.update_arg(place, [*sizes[:index], self._size(multiple), *sizes[index + 1 :]])

    def _reshaped(self, node: fx.Node) -> int | None:
        """Return where the batch stands in the new shape: in the first size that it divides, if the value has it at all."""
        source = node.args[0]
        if not isinstance(source, fx.Node) or not any(isinstance(size, torch.SymInt) for size in self._value(source).shape):
            return None
        return next((index for index, size in enumerate(node.meta["val"].shape) if size % self.batch == 0), None)

    def _expanded(self, node: fx.Node) -> int | None:
        source, sizes = node.args[0], node.args[1]
        assert isinstance(source, fx.Node)
        assert isinstance(sizes, list | tuple)
        shape = self._value(source).shape
        offset = len(sizes) - len(shape)
        for index, size in enumerate(sizes):
            old = shape[index - offset] if index >= offset else 1
            has_batch = isinstance(old, torch.SymInt) and packet(node) != "repeat"
            if has_batch or (size == self.batch and (index == 0 or self.batch > 1) and old == 1):
                return index
        return None

    def _made_new(self, sizes: Any) -> int | None:
        """Return where the batch stands in the shape of a new tensor; recurrent states have it second, hence the last try."""
        if not isinstance(sizes, list | tuple):
            return None
        exact = [index for index, size in enumerate(sizes[:2]) if isinstance(size, int) and size == self.batch]
        if exact:
            return exact[-1] if len(sizes) == 3 and len(exact) > 1 else exact[0]
        return next((i for i, size in enumerate(sizes[:1]) if isinstance(size, int) and size and size % self.batch == 0), None)

    def _is_whole_batch(self, node: fx.Node) -> bool:
        source = node.args[0]
        is_batch = isinstance(source, fx.Node) and isinstance(self._value(source).shape[node.args[1]], torch.SymInt)
        return is_batch and isinstance(node.args[3], int) and node.args[3] >= self.batch

    def _size(self, multiple: int) -> fx.Node:
        self.num_replaced += 1
        if multiple not in self.sizes:
            batch = self.sizes[1]
            with self.graph.inserting_after(batch):
                value = batch.meta["val"] * multiple
                self.sizes[multiple] = self._size_node(operator.mul, (batch, multiple), value)
        return self.sizes[multiple]

    def _size_node(self, target: Any, arguments: tuple[Any, ...], value: Any) -> fx.Node:
        node = self.graph.call_function(target, arguments)
        node.meta = {"val": value, "path": ""}
        self.values[node] = value
        return node
