"""From a module of the user's to layers of neurons, over the graph that ``fusion.graph`` captures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fusion.graph.capture import capture
from fusion.graph.captured import Captured
from fusion.graph.errors import FusionError
from fusion.graph.normalize import normalize
from fusion.graph.operators import packet
from fusion.graph.rebatch import rebatch
from fusion.merging.channelwise import ARITHMETIC, FLATTENS, JOINS, by_name_alone, has_no_effect, keeps_apart, plain, shape_of
from fusion.merging.checking import check_reading
from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS, OWNING, Constant, Kind, Layer, Network, Slot


def read_network(model: nn.Module, example: Tensor, *, name: str, private: Collection[str] = ()) -> Network:
    """Read a network as layers of neurons.

    Args:
        model: Takes one tensor, gives one; it is not changed, and its tensors are taken as they are.
        example: Inputs ``(N, …)``, at least one.
        name: Of the task, also in messages.
        private: Paths of modules that may hold operators which are not understood (attention, recurrent layers); they are run
            as they are, and what they read stays as it is.

    Raises:
        MergeError: If it cannot be read; the message names all layers that are not understood. Also if the layers do not
            answer as the network does, on the example and on a batch of another size.
    """
    try:
        captured = capture(model, (example,), None, training=False, label=name)
        static = captured.static_batch
        normalize(captured)
        if static is not None:
            captured, _ = rebatch(captured, name)
    except FusionError as error:
        raise MergeError(f"{name}: {error}") from error
    network = _Reader(captured, name, tuple(private)).network(example)
    check_reading(network, captured)
    return network


class _Reader:
    """Turns nodes into layers one by one."""

    def __init__(self, captured: Captured, name: str, private: tuple[str, ...]) -> None:
        self.captured = captured
        self.name = name
        self.private = private
        self.layers: list[Layer] = []
        self.position: dict[fx.Node, int] = {}
        self.same: list[int] = []  # union-find over spaces
        self.held: set[int] = set()
        self.problems: list[str] = []
        self.names: set[str] = set()

    def network(self, example: Tensor) -> Network:
        for node in self.captured.graph.nodes:
            if node.op == "placeholder":
                self._add_input(node)
            elif node.op == "call_function":
                self._add(node)
        output = self._output()
        if self.problems:
            raise MergeError("\n".join(self.problems))
        self._check_output(output)
        self.held |= {self.layers[0].space, self.layers[output].space}
        layers = tuple(self._settled(layer) for layer in self.layers)
        frozen = frozenset(self._root(space) for space in self.held)
        return Network(name=self.name, layers=layers, output=output, frozen=frozen, example=example)

    def _add_input(self, node: fx.Node) -> None:
        if self.layers:
            self.problems.append(f"{self.name}: takes several inputs; expected one tensor")
            return
        value = node.meta["val"]
        shape = shape_of(value)
        if not value.is_floating_point() or not shape:
            self.problems.append(
                f"{self.name}: takes {value.dtype} of shape (N, {', '.join(map(str, shape))}); expected floating point, "
                "(N, features) or (N, channels, height, width)"
            )
        self._append(node, Kind.INPUT, (), None, (), {}, space=self._new_space())

    def _add(self, node: fx.Node) -> None:
        features = [source for source in node.all_input_nodes if source in self.position]
        if not features and not self._is_private(node):
            if node.all_input_nodes and not all(source.op == "get_attr" for source in node.all_input_nodes):
                return  # arithmetic of sizes
            self._refuse(node, "is made of parameters alone")
            return
        if packet(node) == "sym_size":
            return  # the batch; what uses it is checked by shape
        if not self._is_private(node) and has_no_effect(node, features[0]):
            self.position[node] = self.position[features[0]]
            return
        if len(features) == 1 and not self._is_private(node) and self._adds_positions(node, features[0]):
            return
        if any(source.op == "get_attr" and str(source.target) not in self.captured.tensors for source in node.all_input_nodes):
            self._refuse(node, "takes functions")
            return
        kind = self._kind(node, features)
        if kind is not None:
            self._append_kind(node, kind, features)

    def _kind(self, node: fx.Node, features: list[fx.Node]) -> Kind | None:
        """Return the kind of a node; None if it changes nothing, or after noting why there is none."""
        if self._is_private(node):
            return Kind.OPAQUE
        name, source = packet(node), self.layers[self.position[features[0]]]
        shape = shape_of(node.meta["val"]) if isinstance(node.meta.get("val"), Tensor) else ()
        known = {"conv2d": self._conv, "linear": self._linear, "batch_norm": self._norm}
        if name in known and len(features) == 1:
            return known[name](node, source)
        if name in JOINS and len(features) == 2:
            return self._pair(node, features)
        if len(features) == 1 and (keeps_apart(node, name, source, shape) or (name in ARITHMETIC and self._fits(node, source))):
            return Kind.FLATTEN if name in FLATTENS and shape != source.shape else Kind.EACH
        return self._refuse(node, "is not known to keep neurons apart")

    def _pair(self, node: fx.Node, features: list[fx.Node]) -> Kind | None:
        widths = {self.layers[self.position[feature]].width for feature in features}
        if len(widths) == 1 and len({len(shape_of(feature.meta["val"])) for feature in features}) == 1:
            return Kind.JOIN
        return self._refuse(node, f"joins features of {' and '.join(map(str, sorted(widths)))} channels")

    def _adds_positions(self, node: fx.Node, source: fx.Node) -> bool:
        """Read ``view(N, C, 1, 1)`` of ``(N, C)`` as layers that do not name the width; returns whether it is one."""
        value, layer = node.meta.get("val"), self.layers[self.position[source]]
        if packet(node) not in FLATTENS or not isinstance(value, Tensor) or layer.shape != (layer.width,):
            return False
        shape = shape_of(value)
        if len(shape) < 2 or shape != (layer.width, *[1] * (len(shape) - 1)):
            return False
        inputs, unsqueeze = (self.position[source],), torch.ops.aten.unsqueeze.default
        for count in range(1, len(shape)):
            self._append(node, Kind.EACH, inputs, unsqueeze, (Slot(0), -1), {}, space=layer.space)
            self.layers[-1] = replace(self.layers[-1], shape=shape[: count + 1])
            inputs = (self.position[node],)
        return True

    def _conv(self, node: fx.Node, source: Layer) -> Kind | None:
        args = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), node.args, strict=False))
        groups = args.get("groups", 1)
        if groups == 1:
            return Kind.CONV
        if groups == source.width == node.meta["val"].shape[1]:
            return Kind.DEPTHWISE
        return self._refuse(node, f"is a convolution of {groups} groups")

    def _linear(self, node: fx.Node, source: Layer) -> Kind | None:
        return Kind.LINEAR if len(source.shape) == 1 else self._refuse(node, "reads something other than (N, features)")

    def _norm(self, node: fx.Node, source: Layer) -> Kind | None:
        if not all(isinstance(node.args[position], fx.Node) for position in (3, 4)):
            return self._refuse(node, "normalizes by the batch at hand, without statistics")
        if source.shape[0] != source.width:
            return self._refuse(node, "normalizes the positions of a neuron apart")
        return Kind.NORM

    def _fits(self, node: fx.Node, source: Layer) -> bool:
        """Return whether the other operand is a number, or a constant over the input."""
        others = [value for value in node.args if isinstance(value, fx.Node) and value not in self.position]
        values = [self.captured.tensors.get(str(other.target)) if other.op == "get_attr" else None for other in others]
        if any(value is None or isinstance(value, nn.Parameter) for value in values):
            return False
        over_input = self._root(source.space) == self._root(self.layers[0].space)
        return all(value is not None and (value.numel() == 1 or over_input) for value in values)

    def _is_private(self, node: fx.Node) -> bool:
        path = node.meta.get("path") or node.name
        return any(path == name or path.startswith(f"{name}.") for name in self.private)

    def _refuse(self, node: fx.Node, why: str) -> None:
        path = node.meta.get("path") or node.name
        self.problems.append(
            f"{self.name}: unsupported layer {path!r} ({packet(node) or node.name}) {why}: "
            f"keep it private with private=[{path!r}], on the command line --private {path}"
        )
        # later layers are read as if it were a layer of its own, so that all problems are found
        if isinstance(node.meta.get("val"), Tensor):
            self._append(node, Kind.OPAQUE, (), None, (), {}, space=self._new_space())

    def _add_number(self, node: fx.Node) -> None:
        """Read a size of the batch, or arithmetic with it, as a layer that gives a number."""
        if packet(node) == "sym_size":
            self.held.add(self._new_space())
            size = torch.ops.aten.sym_size.int
            self._append(node, Kind.OPAQUE, (0,), size, (Slot(0), 0), {}, space=len(self.same) - 1)
        else:
            self._append_kind(node, Kind.OPAQUE, [])

    def _append_kind(self, node: fx.Node, kind: Kind, features: list[fx.Node]) -> None:
        if kind is Kind.OPAQUE:
            for source in node.all_input_nodes:
                if source.op == "call_function" and source not in self.position:
                    self._add_number(source)
            features = [source for source in node.all_input_nodes if source in self.position]
        inputs = tuple(self.position[feature] for feature in features)
        spaces = [self.layers[position].space for position in inputs]
        tensors: dict[str, Tensor] = {}
        args: tuple[Any, ...]
        if kind in MAKERS or kind is Kind.DEPTHWISE:
            tensors, args = self._named(node, {1: "weight", 2: "bias"}), tuple(node.args[3:])
        elif kind is Kind.NORM:
            slots = {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"}
            tensors, args = self._named(node, slots), (node.args[6], node.args[7])
        else:
            numbers = {feature: index for index, feature in enumerate(features)}
            args = self._arguments(node, numbers)
        if kind is Kind.OPAQUE:
            self.held |= set(spaces)
        if kind in MAKERS | {Kind.OPAQUE}:
            space = self._new_space()
        else:
            space = spaces[0]
            for other in spaces[1:]:
                self._join(space, other)
        if kind is Kind.OPAQUE:
            self.held.add(space)
        target = node.target
        assert callable(target)
        if named := by_name_alone(node):
            target = functools.partial(target, **named)
        self._append(node, kind, inputs, target, args, tensors, space=space)

    def _arguments(self, node: fx.Node, numbers: dict[fx.Node, int]) -> tuple[Any, ...]:
        named = [*node.args]
        schema = node.target._schema.arguments if isinstance(node.target, OpOverload) else []
        schema = [argument for argument in schema if not argument.kwarg_only]
        for argument in schema[len(node.args) :]:  # keywords in the order of the schema
            if argument.name in node.kwargs:
                named.append(node.kwargs[argument.name])
            elif any(later.name in node.kwargs for later in schema[len(named) :]):
                named.append(argument.default_value)
        return tuple(plain(fx.map_arg(value, lambda n: self._stand_in(n, numbers))) for value in named)

    def _stand_in(self, node: fx.Node, numbers: dict[fx.Node, int]) -> Any:
        if node in numbers:
            return Slot(numbers[node])
        if node.op == "get_attr":
            return Constant(self.captured.tensors[str(node.target)])
        value = node.meta.get("val")
        return -1 if isinstance(value, torch.SymInt) else value  # only the batch is unknown

    def _named(self, node: fx.Node, slots: dict[int, str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for position, name in slots.items():
            value = node.args[position] if position < len(node.args) else None
            if isinstance(value, fx.Node):
                found[name] = self.captured.tensors[str(value.target)]
        return found

    def _append(
        self,
        node: fx.Node,
        kind: Kind,
        inputs: tuple[int, ...],
        target: Callable[..., Any] | None,
        args: tuple[Any, ...],
        tensors: dict[str, Tensor],
        *,
        space: int,
    ) -> None:
        value = node.meta.get("val")
        shape = shape_of(value) if isinstance(value, Tensor) else ()
        width = shape[0] if shape else 0
        if kind is Kind.FLATTEN or (kind not in MAKERS | {Kind.INPUT, Kind.OPAQUE} and inputs):
            width = self.layers[inputs[0]].width
        self.position[node] = len(self.layers)
        layer = Layer(
            name=self._name(node, kind), kind=kind, inputs=inputs, target=target, args=args, tensors=tensors, shape=shape,
            width=width, space=space,
        )  # fmt: skip
        self.layers.append(layer)

    def _name(self, node: fx.Node, kind: Kind) -> str:
        path = node.meta.get("path", "")
        base = path or node.name
        if kind is Kind.INPUT:
            base = "input"
        elif path and kind not in OWNING:
            base = f"{path}.{packet(node)}"
        name = base
        number = 1
        while name in self.names:
            name = f"{base}_{number}"
            number += 1
        self.names.add(name)
        return name

    def _output(self) -> int:
        (leaves,) = self.captured.graph.output_node().args
        assert isinstance(leaves, list | tuple)
        nodes = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
        if len(nodes) != 1 or nodes[0] not in self.position:
            self.problems.append(f"{self.name}: gives {len(nodes)} tensors; expected one, made of the input")
            return 0
        return self.position[nodes[0]]

    def _check_output(self, output: int) -> None:
        if self._root(self.layers[output].space) == self._root(self.layers[0].space):
            raise MergeError(f"{self.name}: has no convolution or linear layer between input and output; nothing can be merged")

    def _settled(self, layer: Layer) -> Layer:
        return replace(layer, space=self._root(layer.space))

    def _new_space(self) -> int:
        self.same.append(len(self.same))
        return len(self.same) - 1

    def _root(self, space: int) -> int:
        while self.same[space] != space:
            space = self.same[space]
        return space

    def _join(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        self.same[second] = first
