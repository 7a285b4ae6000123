"""Attention and embeddings: the members folded into the batch, the tables laid one after another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional as F

from fusion.stacking.arguments import argument
from fusion.stacking.dispatch import MEMBER_DRAWS, Rule, StackMode, name_of
from fusion.stacking.rules_pointwise import aligned
from fusion.stacking.rules_random import masks
from fusion.stacking.stacked_tensor import StackedTensor


def _attention(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Scaled dot-product attention over (members x batch); with dropout by its formula, each member's own mask drawn."""
    names = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    mask, dropout, is_causal, scale, gqa = (
        argument(args, kwargs, 3 + i, name, default=default)
        for i, (name, default) in enumerate(zip(names, (None, 0.0, False, None, False), strict=True))
    )
    operands = args[:3] if len(args) >= 3 else (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))
    if any(type(each) is not StackedTensor or each.dim() < 3 for each in operands):
        return mode.each(func, args, kwargs)
    query, key, value = (each.merged() for each in operands)
    if mask is not None:
        mask = aligned(mask, query.dim() - 1)
    if dropout > 0.0:
        if gqa or query.device.type != "cpu":
            return mode.each(func, args, kwargs, way=MEMBER_DRAWS)
        return StackedTensor.of(_by_formula(mode, query, key, value, mask, dropout, is_causal=is_causal, scale=scale))
    if mask is not None:
        mask = _folded_mask(mask, query, key)
    settings = {"is_causal": is_causal, "scale": scale, "enable_gqa": gqa}

    def folded(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        fold = [each.reshape(-1, *each.shape[2:]) for each in (query, key, value)]
        out = F.scaled_dot_product_attention(*fold, attn_mask=mask, **settings)  # type: ignore[arg-type]
        return out.view(*query.shape[:-1], value.shape[-1])

    def loop(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = zip(query.unbind(0), key.unbind(0), value.unbind(0), strict=True)
        return torch.stack([F.scaled_dot_product_attention(*row, **settings) for row in rows])  # type: ignore[arg-type]

    variants = {"folded into the batch": folded} | ({"loop": loop} if mask is None else {})
    way = mode.choices.pick("scaled_dot_product_attention", variants, (query, key, value), tuple(map(str, settings.values())))
    mode.ways[name_of(func), way] += 1
    return StackedTensor.of(variants[way](query, key, value))


def _folded_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return a mask that fits the folded batch."""
    if mask.dim() == query.dim():  # of all members
        return mask.expand(*query.shape[:2], *mask.shape[2:]).reshape(-1, *mask.shape[2:])
    if mask.dim() < query.dim() - 1 or mask.shape[0] == 1:
        return mask
    return mask.unsqueeze(0).expand(query.shape[0], *mask.shape).reshape(-1, *mask.shape[1:])


def _by_formula(  # noqa: PLR0913 - the operator's own arguments
    mode: StackMode,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    p: float,
    *,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """Softmax(q k^T x scale + mask) v with dropout on the weights, as PyTorch computes it where there is dropout."""
    scores = query @ key.transpose(-1, -2) * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        below = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~below, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
    weights = torch.ops.aten._safe_softmax(scores, -1) if mask is not None else scores.softmax(-1)
    return (weights * masks(mode, weights[0], p)) @ value


def _embedding(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """One table of all members' rows; each member's numbers point to its own."""
    is_functional = not isinstance(func, OpOverload) and getattr(func, "__module__", None) == F.__name__
    first, second = args[0] if args else kwargs["input"], argument(args, kwargs, 1, "weight", "indices")
    ids, table = (first, second) if is_functional else (second, first)
    padding = argument(args, kwargs, 2, "padding_idx", default=None)
    rest = [value for value in (*args[3:], *kwargs.values()) if value is not padding]
    is_special = any(isinstance(value, float | bool) and value not in (False, 2.0) for value in rest)
    if type(table) is not StackedTensor or is_special:
        if type(table) is not StackedTensor and type(ids) is StackedTensor and not is_special:
            return StackedTensor.of(func(*(ids.merged() if each is ids else each for each in args), **kwargs))
        return mode.each(func, args, kwargs)
    rows = table.merged()
    M, V, _ = rows.shape  # noqa: N806 - members, vocabulary
    flat = rows.reshape(M * V, -1)
    if padding is not None and (padding >= 0 or is_functional) and flat.requires_grad:
        flat = _without_gradient_at(flat, padding % V, V)
    offsets = torch.arange(0, M * V, V, device=flat.device).view(M, *[1] * ids.dim())
    return StackedTensor.of(F.embedding(aligned(ids, ids.dim()) + offsets, flat))


def _without_gradient_at(flat: Tensor, padding: int, vocabulary: int) -> Tensor:
    """Return the table; no gradient reaches the members' rows of padding."""
    flat = flat.view_as(flat)  # a tensor of its own: another use of a tied table keeps its gradient

    def clear(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[padding::vocabulary] = 0
        return gradient

    flat.register_hook(clear)
    return flat


def _attention_module(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    return mode.run_body(func, args, kwargs)  # type: ignore[arg-type]  # a Python function


def _encoder_layer(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """PyTorch's fused encoder layer for evaluation: its parts, one by one."""
    if len(args) != 20 or args[18] is not None or type(args[0]) is not StackedTensor:
        return mode.each(func, args, kwargs)
    with mode:
        return _encoder_layer_parts(*args[:18])


def _encoder_layer_parts(  # noqa: PLR0913, PLR0917 - the operator's own arguments
    x: Tensor, width: int, heads: int, qkv_w: Tensor, qkv_b: Tensor, out_w: Tensor, out_b: Tensor, use_gelu: bool,
    norm_first: bool, eps: float, norm1_w: Tensor, norm1_b: Tensor, norm2_w: Tensor, norm2_b: Tensor, ff1_w: Tensor,
    ff1_b: Tensor,
    ff2_w: Tensor, ff2_b: Tensor,
) -> Tensor:  # fmt: skip
    def attended(x: Tensor) -> Tensor:
        B, T, _ = x.shape  # noqa: N806 - batch, time
        q, k, v = F.linear(x, qkv_w, qkv_b).view(B, T, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, width)
        return F.linear(out, out_w, out_b)

    def fed_forward(x: Tensor) -> Tensor:
        hidden = F.linear(x, ff1_w, ff1_b)
        return F.linear(F.gelu(hidden) if use_gelu else F.relu(hidden), ff2_w, ff2_b)

    if norm_first:
        x = x + attended(F.layer_norm(x, (width,), norm1_w, norm1_b, eps))
        return x + fed_forward(F.layer_norm(x, (width,), norm2_w, norm2_b, eps))
    x = F.layer_norm(x + attended(x), (width,), norm1_w, norm1_b, eps)
    return F.layer_norm(x + fed_forward(x), (width,), norm2_w, norm2_b, eps)


RULES: dict[str, Rule] = {
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
    "multi_head_attention_forward": _attention_module,
    "_transformer_encoder_layer_fwd": _encoder_layer,
}
