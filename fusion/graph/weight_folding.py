"""Rewrite one block so that it does the same with fewer operators: batch norms and channel maps folded into weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fusion.graph.block import Block, BlockInfo
from fusion.graph.feature import Feature, Layout
from fusion.graph.program import Program
from fusion.graph.resample import with_channels
from fusion.graph.rescale import Rescale

_CONVS = frozenset({"conv1d", "conv2d", "conv3d"})
_TRANSPOSED = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})


def fold_batch_norms(block: Block) -> tuple[Block, int]:
    """Fold every batch norm into the convolution or linear layer before it, where nothing else takes that one's result.

    Args:
        block: in evaluation mode; it is not changed.

    Returns:
        A block for evaluation alone, which shares the tensors that stayed as they were, and the number of norms folded.
    """
    edit = _Edit(block)
    num_folded = 0
    for norm in [node for node in edit.graph.nodes if _op(node) == "batch_norm"]:
        layer = _argument(norm, "input")
        statistics = [_argument(norm, name) for name in ("running_mean", "running_var")]
        if _can_hold_norm(edit, layer) and not _argument(norm, "training") and all(map(edit.holds, statistics)):
            _fold_norm(edit, layer, norm)
            num_folded += 1
    return (edit.block() if num_folded else block), num_folded


def fold_channel_map(adapter: Rescale, block: Block) -> Block | None:
    """Fold the channel map of an adapter into the layers of the block behind it, if all that take the feature can hold it.

    A linear layer can; a convolution if it has one group and no padding, or the map no bias (padding comes behind the map).

    Args:
        adapter: takes the feature to the block; nothing else takes its result.
        block: in evaluation mode; it is not changed.

    Returns:
        A block for evaluation alone that takes the feature resampled but with its own channels, or None.
    """
    edit = _Edit(block)
    feature = next(node for node in edit.graph.nodes if node.op == "placeholder")
    layers = [node for node in feature.users if not _reads_size(node, block.input)]
    if adapter.weight is None or adapter.bias is None or adapter.prefix is not None or not layers:
        return None
    if not all(_can_hold_map(edit, layer, feature, adapter) for layer in layers):
        return None
    weight, bias = adapter.weight.detach().double(), adapter.bias.detach().double()
    for layer in layers:
        old = edit.tensor(_argument(layer, "weight")).double()
        own = _argument(layer, "bias")
        shift = old.reshape(*old.shape[:2], -1).sum(2) @ bias
        new_bias = shift if own is None else edit.tensor(own).double() + shift
        edit.set_weights(layer, torch.einsum("oc...,ci->oi...", old, weight), new_bias)
    shape = with_channels(block.input, adapter.source.channels)
    return edit.block(Feature(shape, block.input.layout, block.input.dtype))


class _Edit:
    """A copy of a block's evaluation graph and the tensors it takes, to be changed."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._program = block.programs[0]
        self.graph = fx.Graph()
        self.graph.output(self.graph.graph_copy(self._program.graph, {}))
        self._tensors = {
            **dict(block.named_parameters(remove_duplicate=False)),
            **dict(block.named_buffers(remove_duplicate=False)),
        }
        self._persistent = set(block.state_dict())

    def holds(self, node: Any) -> bool:
        """Whether a node is a tensor of the block."""
        return isinstance(node, fx.Node) and node.op == "get_attr" and node.target in self._tensors

    def tensor(self, node: fx.Node) -> Tensor:
        return self._tensors[str(node.target)].detach()

    def set_weights(self, layer: fx.Node, weight: Tensor, bias: Tensor) -> None:
        """Give a layer weights of its own; a tied layer keeps the old ones."""
        old = _argument(layer, "weight")
        own_bias = _argument(layer, "bias")
        prefix = str(old.target).rpartition(".")[0]
        names = [str(old.target), str(own_bias.target) if own_bias is not None else f"{prefix}.bias".lstrip(".")]
        for position, (name, value) in enumerate(zip(names, (weight, bias), strict=True)):
            node = self._replacement(name, layer, value.to(self.tensor(old).dtype))
            layer.args = (*layer.args, None)[: position + 2] if len(layer.args) < position + 2 else layer.args
            layer.args = (*layer.args[: position + 1], node, *layer.args[position + 2 :])
        layer.kwargs = {key: value for key, value in layer.kwargs.items() if key not in ("weight", "bias")}

    def block(self, source: Feature | None = None) -> Block:
        """Make the block; `source` is what it takes, if not what it took."""
        for node in [node for node in self.graph.nodes if node.op == "get_attr" and not node.users]:
            self.graph.erase_node(node)
        program = Program(self.graph, self._program.parts, self._program.output)
        info = BlockInfo(
            index=self._block.index,
            name=self._block.name,
            op_type=self._block.op_type,
            needs=self._block.needs,
            input=source or self._block.input,
            output=self._block.output,
        )
        return Block(info, (program, program), self._tensors, self._persistent).eval()

    def _replacement(self, name: str, layer: fx.Node, value: Tensor) -> fx.Node:
        users = {user for node in self.graph.nodes if node.op == "get_attr" and node.target == name for user in node.users}
        while name in self._tensors and not users <= {layer}:
            name, users = f"{name}_folded", set()
        self._tensors[name] = nn.Parameter(value, requires_grad=False)
        self._persistent.add(name)
        with self.graph.inserting_before(layer):
            return self.graph.create_node("get_attr", name)


def _can_hold_norm(edit: _Edit, layer: Any) -> bool:
    if not isinstance(layer, fx.Node) or len(layer.users) != 1 or not _has_own_weights(edit, layer):
        return False
    if _op(layer) in _TRANSPOSED:
        return _argument(layer, "groups") == 1
    return _op(layer) in _CONVS or _op(layer) == "linear"


def _can_hold_map(edit: _Edit, layer: fx.Node, feature: fx.Node, adapter: Rescale) -> bool:
    if not _has_own_weights(edit, layer) or _argument(layer, "input") is not feature:
        return False
    if adapter.target.layout is not Layout.CHW:
        return _op(layer) == "linear"
    assert adapter.bias is not None
    is_unpadded = _op(layer) in _CONVS and _argument(layer, "padding") in ([0], [0, 0], [0, 0, 0], 0, "valid")
    return _op(layer) in _CONVS and _argument(layer, "groups") == 1 and (is_unpadded or not bool(adapter.bias.any()))


def _has_own_weights(edit: _Edit, layer: fx.Node) -> bool:
    if _op(layer) not in _CONVS | _TRANSPOSED | {"linear"}:
        return False
    bias = _argument(layer, "bias")
    return edit.holds(_argument(layer, "weight")) and (bias is None or edit.holds(bias))


def _reads_size(node: fx.Node, feature: Feature) -> bool:
    """Whether a node asks for a size of the feature that is not its number of channels."""
    channel_dim = 1 if feature.layout is Layout.CHW else len(feature.shape)
    return _op(node) == "sym_size" and _argument(node, "dim") != channel_dim


def _fold_norm(edit: _Edit, layer: fx.Node, norm: fx.Node) -> None:
    mean, variance = (edit.tensor(_argument(norm, name)).double() for name in ("running_mean", "running_var"))
    gain, shift = (_argument(norm, name) for name in ("weight", "bias"))
    scale = torch.rsqrt(variance + float(_argument(norm, "eps")))
    scale = scale if gain is None else scale * edit.tensor(gain).double()
    own_bias = _argument(layer, "bias")
    bias = (-mean if own_bias is None else edit.tensor(own_bias).double() - mean) * scale
    bias = bias if shift is None else bias + edit.tensor(shift).double()
    weight = edit.tensor(_argument(layer, "weight")).double()
    output_dim = 1 if _op(layer) in _TRANSPOSED else 0
    shape: Sequence[int] = [-1 if dim == output_dim else 1 for dim in range(weight.ndim)]
    edit.set_weights(layer, weight * scale.view(shape), bias)
    norm.replace_all_uses_with(layer)
    edit.graph.erase_node(norm)


def _op(node: Any) -> str:
    if not isinstance(node, fx.Node) or not isinstance(node.target, OpOverload):
        return ""
    return node.target._schema.name.split("::")[1]


def _argument(node: fx.Node, name: str) -> Any:
    """Return an argument by its name in the operator's schema."""
    assert isinstance(node.target, OpOverload)
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.name in (name, "self" if name == "input" else name):
            return node.args[position] if position < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
    raise KeyError(name)
