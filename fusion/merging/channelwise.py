"""What operators do to the values of neurons: which leave each neuron's own, and which do nothing at all."""

from __future__ import annotations

import math
import sys
from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload

from fusion.graph.operators import packet
from fusion.merging.layers import Layer

ACTIVATIONS = frozenset(
    {
        *("relu", "relu6", "gelu", "silu", "elu", "celu", "selu", "leaky_relu", "sigmoid", "tanh", "hardtanh", "hardswish"),
        *("hardsigmoid", "softplus", "mish", "logsigmoid", "clamp", "clamp_min", "clamp_max", "neg", "abs", "square", "sqrt"),
        *("exp", "log", "detach", "clone", "contiguous", "dropout", "feature_dropout", "alpha_dropout"),
    }
)
POOLS = frozenset(
    ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d"]
)
JOINS = frozenset(["add", "sub", "mul"])
ARITHMETIC = JOINS | {"div", "pow", "rsub"}  # over one feature and numbers
_OVER_POSITIONS = (([2, 3],), ([3, 2],), ([-2, -1],), ([-1, -2],))
FLATTENS = frozenset(["flatten", "view", "reshape", "_unsafe_view", "squeeze"])
_WITHOUT_EFFECT = FLATTENS | {"unsqueeze", "slice", "expand", "alias"}  # where the shape stays what it is


def keeps_apart(node: fx.Node, name: str, source: Layer, shape: tuple[int, ...]) -> bool:
    """Return whether an operator over one feature leaves each neuron's values its own."""
    if name in ACTIVATIONS:
        return True
    if name in POOLS:
        return len(source.shape) == 3
    if name in ("mean", "amax"):
        return len(source.shape) == 3 and node.args[1:2] in _OVER_POSITIONS
    if name in ("squeeze", "unsqueeze") and shape[:1] == source.shape[:1] == (source.width,) and len(shape) > 1:
        return True  # of the positions
    if name in FLATTENS:
        return bool(source.shape) and shape == (math.prod(source.shape),)
    return False


def has_no_effect(node: fx.Node, source: fx.Node) -> bool:
    """Return whether an operator gives its feature as it is; its arguments may then name the width, which can change."""
    value, given = node.meta.get("val"), source.meta.get("val")
    if packet(node) in ("expand", "expand_as") and _is_repeated_by_join(node, source):
        return True
    if packet(node) not in _WITHOUT_EFFECT or not isinstance(value, Tensor) or not isinstance(given, Tensor):
        return False
    if packet(node) == "slice" and node.args[1:2] in ((), (0,)):  # of the batch
        return len(node.args) < 3 or (node.args[2] in (None, 0) and (len(node.args) < 4 or _is_open(node.args[3])))
    return shape_of(value) == shape_of(given)


def _is_repeated_by_join(node: fx.Node, source: fx.Node) -> bool:
    """Return whether a feature is only repeated over positions for joins, which do that by themselves."""
    shape = shape_of(node.meta["val"])
    if len(shape) != len(shape_of(source.meta["val"])) or shape[:1] != shape_of(source.meta["val"])[:1]:
        return False
    return all(
        packet(user) in JOINS
        and any(
            isinstance(other.meta.get("val"), Tensor)
            and shape_of(other.meta["val"]) == shape
            and packet(other) not in ("expand", "expand_as")
            for other in user.all_input_nodes
        )
        for user in node.users
    )


def shape_of(value: Tensor) -> tuple[int, ...]:
    """Return a shape without the batch."""
    return tuple(int(size) for size in value.shape[1:])


def by_name_alone(node: fx.Node) -> dict[str, Any]:
    """Return the arguments that an operator takes by name only, such as the type of what it makes."""
    if not isinstance(node.target, OpOverload):
        return {}
    return {
        item.name: node.kwargs[item.name]
        for item in node.target._schema.arguments
        if item.kwarg_only and item.name in node.kwargs
    }


def _is_open(end: Any) -> bool:
    """Return whether a slice runs to the end."""
    return end is None or (isinstance(end, int) and end >= sys.maxsize)


def plain(value: Any) -> Any:
    """Return fx's immutable collections as plain ones."""
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value) if isinstance(value, tuple) else [plain(item) for item in value]
    return value
