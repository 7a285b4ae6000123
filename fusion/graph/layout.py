"""What the dimensions of a feature mean, told by the operators that take it (design 2.5)."""

from __future__ import annotations

from torch import Tensor, fx

from fusion.graph.feature import Feature, Layout
from fusion.graph.operators import CONV, packet

_CHANNELS_FIRST = CONV | frozenset(
    [
        "batch_norm",
        "group_norm",
        "instance_norm",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "pixel_shuffle",
        "feature_dropout",
        "_native_batch_norm_legit_no_training",
        "native_group_norm",
        "max_pool2d_with_indices",
        "_adaptive_avg_pool2d",
    ]
)
_CHANNELS_LAST = frozenset(["linear", "layer_norm", "rms_norm", "native_layer_norm", "addmm", "lstm", "gru", "matmul"])
# these leave dimensions where they are, so that the question passes to whoever takes their result
_TRANSPARENT = frozenset(
    [
        "relu",
        "relu_",
        "relu6",
        "gelu",
        "silu",
        "silu_",
        "hardswish",
        "hardswish_",
        "hardtanh",
        "hardtanh_",
        "leaky_relu",
        "elu",
        "mish",
        "tanh",
        "sigmoid",
        "softplus",
        "dropout",
        "add",
        "mul",
        "sub",
        "div",
        "clone",
        "contiguous",
        "to",
        "detach",
        "pad",
    ]
)


def feature_of(node: fx.Node) -> Feature:
    """Return shape (without the batch), layout and dtype of the value of a node that was captured."""
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    shape = tuple(_hint(size) for size in value.shape[1:])
    return Feature(shape, layout_of(node), str(value.dtype).removeprefix("torch."))


def layout_of(node: fx.Node) -> Layout:
    """Return the layout of a node's value, told by the first operator behind it that decides."""
    value = node.meta["val"]
    if not value.is_floating_point():
        return Layout.OTHER
    if value.ndim == 2:
        return Layout.VEC
    first = _first_deciding(node)
    if value.ndim == 4:
        return Layout.HWC if first in _CHANNELS_LAST else Layout.CHW
    if value.ndim == 3 and first not in _CHANNELS_FIRST:
        return Layout.TOK
    return Layout.OTHER


def _first_deciding(node: fx.Node) -> str:
    queue = [node]
    seen = {node}
    while queue:
        current = queue.pop(0)
        for user in current.users:
            name = packet(user)
            if name in _CHANNELS_FIRST | _CHANNELS_LAST:
                return name
            if name in _TRANSPARENT and user not in seen:
                seen.add(user)
                queue.append(user)
    return ""


def _hint(size: object) -> int:
    return size if isinstance(size, int) else int(size.node.hint)  # type: ignore[attr-defined]
