"""Teach a block a new coordinate system of its input: a linear map over channels goes into the weights that read it.

Two models of one architecture that were trained apart have the same features in another order and mixture. A block that is to
take another model's feature of equal shape starts best with that mixture undone, and where its input goes straight into
convolutions or linear layers this costs nothing: W(Mx + b) = (WM)x + Wb.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, fx, nn

from fusion.graph.block import Block
from fusion.graph.feature import Layout, can_rescale

aten = torch.ops.aten
_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv2d.padding, aten.conv1d.padding)
_GROUPS_AT = 6


def readers(block: Block, *, shared: Collection[int] = ()) -> list[tuple[str, str | None]] | None:
    """Return the weights, and their biases, that read a block's input; None if something else reads it too.

    Only weights that map the channels of the input linearly count: of ungrouped convolutions and, where channels come last, of
    linear layers; and only if nothing else uses them.

    Args:
        block: Whose.
        shared: Parameters that other blocks use too, as :func:`shared_parameters` gives them; they do not count.
    """
    found: list[tuple[str, str | None]] = []
    graph = block.programs[False].graph
    own = {name: tensor for name, tensor in _own_parameters(block).items() if id(tensor) not in shared}
    source = next(node for node in graph.nodes if node.op == "placeholder")
    for user in source.users:
        if user.target is aten.sym_size.int:
            continue
        entry = _reader(user, source, block, own)
        if entry is None:
            return None
        found.append(entry)
    return found or None


def shared_parameters(blocks: Iterable[nn.Module]) -> frozenset[int]:
    """Return the ``id`` of every parameter that two of some blocks, or more, have."""
    counts = Counter(number for block in blocks for number in {id(parameter) for parameter in block.parameters()})
    return frozenset(number for number, count in counts.items() if count > 1)


def realign(block: Block, weight: Tensor, bias: Tensor, *, shared: Collection[int] = ()) -> bool:
    """Let a block take x where it took ``weight @ x + bias``, over channels.

    A bias in front of a convolution with zero padding is only right away from the border, and one in front of a layer without
    a bias of its own is lost; a BatchNorm behind that is calibrated anew makes up for it.

    Args:
        block: Its weights are changed in place.
        weight: ``(channels, channels)``.
        bias: ``(channels,)``.
        shared: As in :func:`readers`.

    Returns:
        Whether it could be done; nothing has changed otherwise.
    """
    entries = readers(block, shared=shared)
    if entries is None:
        return False
    tensors = _own_parameters(block)
    with torch.no_grad():
        for name, shift in entries:
            old = tensors[name]
            kernel = old.double().flatten(2) if old.ndim > 2 else old.double().unsqueeze(2)  # (out, in, positions)
            if shift is not None:
                tensors[shift].add_((kernel.sum(2) @ bias.double()).to(old.dtype))
            mixed = torch.einsum("oip,ij->ojp", kernel, weight.double())
            old.copy_(mixed.reshape(old.shape).to(old.dtype))
    return True


def needs_stitch(block: nn.Module, *, shared: Collection[int] = ()) -> bool:
    """Whether a block can take another model's feature of equal shape through an adapter only."""
    return (
        isinstance(block, Block)
        and block.input.is_float
        and block.input.layout is not Layout.OTHER
        and can_rescale(block.input, block.input)
        and readers(block, shared=shared) is None
    )


def _reader(user: fx.Node, source: fx.Node, block: Block, own: dict[str, nn.Parameter]) -> tuple[str, str | None] | None:
    """Return the weight and the bias of a node that maps ``source`` linearly over its channels."""
    if user.op != "call_function" or not user.args or user.args[0] is not source or source in user.args[1:]:
        return None
    if user.target in _CONVOLUTIONS:
        groups = user.kwargs.get("groups", user.args[_GROUPS_AT] if len(user.args) > _GROUPS_AT else 1)
        fits = groups == 1 and block.input.layout is Layout.CHW
    else:
        fits = user.target is aten.linear.default and block.input.layout in (Layout.TOK, Layout.VEC, Layout.HWC)
    if not fits:
        return None
    weight, bias = ([*user.args, *(None,) * 3][place] for place in (1, 2))
    name, shift = _parameter(weight, own), _parameter(bias, own)
    if name is None or (shift is None and bias is not None):
        return None
    return name, shift


def _parameter(node: object, own: dict[str, nn.Parameter]) -> str | None:
    """Return the name of a parameter that is used at one place only."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or str(node.target) not in own:
        return None
    wanted = own[str(node.target)]
    uses = [other for other in node.graph.nodes if other.op == "get_attr" and own.get(str(other.target)) is wanted]
    return str(node.target) if len(uses) == 1 and len(node.users) == 1 else None


def _own_parameters(block: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by name, tied ones under each of theirs."""
    return dict(block.named_parameters(remove_duplicate=False))
