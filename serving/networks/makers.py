"""One operator with its weights as a layer of ``torch.nn`` that does the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fusion.graph.operators import packet
from fusion.graph.toggles import get_argument

Tensors = Mapping[str, Tensor | None]
#: Gives the layer that does what a node does with these tensors; None if there is none.
Maker = Callable[[fx.Node, Tensors], nn.Module | None]

_CONVOLUTIONS: Mapping[str, Any] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_TRANSPOSED: Mapping[str, Any] = {
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_STATISTICS = ("running_mean", "running_var")
_AFFINE = ("weight", "bias")


def held_by(node: fx.Node) -> tuple[str, ...]:
    """Return the names of the arguments that a layer holds; none if the operator is no layer with weights."""
    name = packet(node)
    if name not in MAKERS:
        return ()
    if name in ("embedding", "prelu", "rms_norm"):
        return ("weight",)
    return (*_AFFINE, *_STATISTICS) if name == "batch_norm" else _AFFINE


def input_of(node: fx.Node) -> fx.Node:
    """Return what a layer is called with."""
    return setting(node, {"embedding": "indices", "prelu": "self"}.get(packet(node), "input"))


def setting(node: fx.Node, name: str) -> Any:
    """Return the value of an operator's argument."""
    return get_argument(node, name)


def _filled(module: nn.Module, tensors: Tensors) -> nn.Module:
    for name, tensor in tensors.items():
        if name in _STATISTICS:
            module._buffers[name] = tensor
        elif tensor is None or isinstance(tensor, nn.Parameter):
            module._parameters[name] = tensor
        else:
            module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    return module


def _each(node: fx.Node, name: str, dims: int) -> Any:
    """Return a setting for each of the dimensions."""
    value = setting(node, name)
    return tuple(value) * dims if not isinstance(value, str) and len(value) == 1 else value


def _convolution(node: fx.Node, tensors: Tensors) -> nn.Module | None:
    weight, groups = tensors["weight"], setting(node, "groups")
    assert weight is not None, "a convolution has a weight"
    kind, is_transposed = packet(node), packet(node) in _TRANSPOSED
    names = ("stride", "padding", "dilation", *(("output_padding",) if is_transposed else ()))
    settings = {name: _each(node, name, weight.ndim - 2) for name in names}
    channels = weight.shape[0], weight.shape[1] * groups
    if is_transposed:
        make = _TRANSPOSED[kind]
    else:
        make, channels = _CONVOLUTIONS[kind], channels[::-1]
    bias = tensors["bias"] is not None
    module = make(*channels, tuple(weight.shape[2:]), groups=groups, bias=bias, device="meta", **settings)
    return _filled(module, tensors)


def _linear(node: fx.Node, tensors: Tensors) -> nn.Module | None:
    weight = tensors["weight"]
    if weight is None or weight.ndim != 2:
        return None
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=tensors["bias"] is not None, device="meta"), tensors)


def _batch_norm(node: fx.Node, tensors: Tensors) -> nn.Module | None:
    given = next((tensor for tensor in tensors.values() if tensor is not None), None)
    kind = _BATCH_NORMS.get(input_of(node).meta["val"].ndim)
    is_affine, has_statistics = tensors["weight"] is not None, tensors["running_mean"] is not None
    if given is None or kind is None or is_affine != (tensors["bias"] is not None):
        return None
    # in evaluation, torch gives the momentum 0 where the average is cumulative
    momentum = setting(node, "momentum") or None
    module = kind(
        len(given), setting(node, "eps"), momentum, affine=is_affine, track_running_stats=has_statistics, device="meta"
    )
    if has_statistics:
        module.num_batches_tracked = torch.zeros((), dtype=torch.int64)
    return _filled(module, tensors)


def _layer_norm(node: fx.Node, tensors: Tensors) -> nn.Module | None:
    if tensors["weight"] is None:
        return None
    bias = tensors["bias"] is not None
    return _filled(nn.LayerNorm(setting(node, "normalized_shape"), setting(node, "eps"), bias=bias, device="meta"), tensors)


def _rms_norm(node: fx.Node, tensors: Tensors) -> nn.Module | None:
    return _filled(nn.RMSNorm(setting(node, "normalized_shape"), setting(node, "eps"), device="meta"), tensors)


def _group_norm(node: fx.Node, tensors: Tensors) -> nn.Module | None:
    weight = tensors["weight"]
    if weight is None or tensors["bias"] is None:
        return None
    return _filled(nn.GroupNorm(setting(node, "num_groups"), len(weight), setting(node, "eps"), device="meta"), tensors)


def _embedding(node: fx.Node, tensors: Tensors) -> nn.Module | None:
    weight, padding = tensors["weight"], setting(node, "padding_idx")
    assert weight is not None, "an embedding has a weight"
    module = nn.Embedding(
        *weight.shape,
        padding_idx=None if padding < 0 else padding,
        scale_grad_by_freq=setting(node, "scale_grad_by_freq"),
        sparse=setting(node, "sparse"),
        device="meta",
    )
    return _filled(module, tensors)


def _prelu(node: fx.Node, tensors: Tensors) -> nn.Module | None:
    weight = tensors["weight"]
    assert weight is not None, "PReLU has a weight"
    return _filled(nn.PReLU(weight.numel(), device="meta"), tensors)


#: By the operator's name.
MAKERS: Mapping[str, Maker] = {
    **dict.fromkeys((*_CONVOLUTIONS, *_TRANSPOSED), _convolution),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "embedding": _embedding,
    "prelu": _prelu,
}
