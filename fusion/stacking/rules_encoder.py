"""PyTorch's fused transformer encoder layer, which an exported model holds in evaluation mode, taken apart again.

The operator does a whole layer and has no merged counterpart; what it is made of has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from fusion.stacking.arguments import argument
from fusion.stacking.dispatch import Rule, StackMode
from fusion.stacking.stacked_tensor import StackedTensor

_NAMES = (
    "src", "embed_dim", "num_heads", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias", "use_gelu", "norm_first", "eps",
    "norm_weight_1", "norm_bias_1", "norm_weight_2", "norm_bias_2",
    "ffn_weight_1", "ffn_bias_1", "ffn_weight_2", "ffn_bias_2",
)  # fmt: skip


def _encoder_layer(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    mask = argument(args, kwargs, len(_NAMES), "mask", default=None)
    given = {name: argument(args, kwargs, i, name) for i, name in enumerate(_NAMES)}
    if mask is not None or given["src"].dim() != 3 or type(given["qkv_weight"]) is not StackedTensor:
        return mode.each(func, args, kwargs)
    with mode:
        return _layer(given)


def _layer(given: dict[str, Any]) -> Tensor:
    """Compute the layer from ordinary operators, ``src`` of shape ``(batch, time, features)``."""

    def norm(x: Tensor, number: int) -> Tensor:
        shape = (given["embed_dim"],)
        return F.layer_norm(x, shape, given[f"norm_weight_{number}"], given[f"norm_bias_{number}"], given["eps"])

    def feed(x: Tensor) -> Tensor:
        inner = F.linear(x, given["ffn_weight_1"], given["ffn_bias_1"])
        return F.linear(F.gelu(inner) if given["use_gelu"] else F.relu(inner), given["ffn_weight_2"], given["ffn_bias_2"])

    x = given["src"]
    if given["norm_first"]:
        x = x + _attention(norm(x, 1), given)
        return x + feed(norm(x, 2))
    x = norm(x + _attention(x, given), 1)
    return norm(x + feed(x), 2)


def _attention(x: Tensor, given: dict[str, Any]) -> Tensor:
    B, T, C = x.shape  # noqa: N806 - batch, time, features
    heads = given["num_heads"]
    qkv = F.linear(x, given["qkv_weight"], given["qkv_bias"]).reshape(B, T, 3, heads, C // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v)
    return F.linear(out.transpose(1, 2).reshape(B, T, C), given["proj_weight"], given["proj_bias"])


RULES: dict[str, Rule] = {"_transformer_encoder_layer_fwd": _encoder_layer}
