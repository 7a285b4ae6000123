"""Convolutions, pools, norms, attention, embeddings, recurrent layers and losses: for :mod:`tests.unit.stacked_calls`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.stacked_calls import Case, Make, case, inner, numbers, positive, real, truths

ATEN = torch.ops.aten
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {}, "strided": {"stride": 2, "padding": 1}, "dilated": {"dilation": 2, "padding": 2}, "same": {"padding": "same"},
    "grouped": {"groups": 2}, "depthwise": {"groups": 4, "padding": 1}, "valid": {"padding": "valid"},
}  # fmt: skip


CONVOLUTIONS = "filters side by side", "grouped", "loop", "grouped, channels-last"
RECURRENCES = "one cell for all members", "loop"


def _conv(num_dims: int, settings: dict[str, Any], *, is_transposed: bool = False) -> Case:
    groups, sides = settings.get("groups", 1), (6, 5, 5)[:num_dims]
    kernel = (3,) * num_dims
    function = getattr(F, f"conv_transpose{num_dims}d" if is_transposed else f"conv{num_dims}d")
    weight = (4, 4 // groups, *kernel)
    return case(
        lambda x, w, b: (function(x, w, b, **settings), function(x, w, **settings)),
        real(2, 4, *sides),
        real(*weight),
        real(4),
        ways=CONVOLUTIONS,
    )


def _pools(num_dims: int) -> Case:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        of = {
            name: getattr(F, name.format(num_dims))
            for name in ("max_pool{}d", "avg_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d")
        }
        highest, average, adaptive, adaptive_highest = of.values()
        one = highest(x, 2), highest(x, 3, 2, 1), average(x, 2), adaptive(x, 1), adaptive(x, 2), adaptive_highest(x, 2)
        indexed = *highest(x, 2, return_indices=True), average(x, 3, stride=1, padding=1, count_include_pad=False)
        return (*one, *indexed, *(highest(each, 2) for each in x.unbind(0)))

    return case(function, real(2, 3, *(6, 6, 4)[:num_dims]))


def _resized(num_dims: int, modes: tuple[str, ...]) -> Case:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        one = [F.interpolate(x, scale_factor=2, mode=mode) for mode in modes]
        smooth = [mode for mode in modes if "linear" in mode or mode == "bicubic"]
        two = [F.interpolate(x, size=(3,) * num_dims, mode=mode, align_corners=True) for mode in smooth]
        return (*one, *two, F.interpolate(x, (7,) * num_dims))

    return case(function, real(2, 3, *(4, 5, 3)[:num_dims]))


def _pads(x: Tensor) -> tuple[Tensor, ...]:
    one = F.pad(x, (1, 2)), F.pad(x, (1, 0, 2, 1), value=0.5), F.pad(x, (0, 1, 0, 1), mode="constant"), F.pad(x, (-1, 0, 0, 0))
    other = [F.pad(x, (1, 2, 2, 1), mode=mode) for mode in ("reflect", "replicate", "circular")]
    return (*one, *other, F.pad(x, (0, 0, 0, 0, 1, 1)), F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)), nn.ZeroPad2d(1)(x))


def _batch_norm(**settings: Any):
    def function(x: Tensor, mean: Tensor, variance: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        mean, variance = mean.detach().clone(), variance.detach().clone()
        out = F.batch_norm(x, mean, variance, w, b, **settings)
        return out, F.batch_norm(x, mean, variance, **settings), mean * 1, variance * 1

    return function


def _norms(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    one = F.layer_norm(x, (4,), w, b), F.layer_norm(x, (4,), w), F.layer_norm(x, (4,)), F.layer_norm(x, [3, 4], eps=1e-3)
    return (*one, F.rms_norm(x, (4,), w), F.rms_norm(x, (4,)), F.rms_norm(x, (4,), w, eps=1e-3), F.layer_norm(x, (4,), None, b))


def _group_norms(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return F.group_norm(x, 2, w, b), F.group_norm(x, 4), F.group_norm(x, 1, w, b, 1e-3), F.group_norm(x, num_groups=2, weight=w)


def _instance_norms(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return F.instance_norm(x), F.instance_norm(x, weight=w, bias=b), F.instance_norm(x, eps=1e-2), F.local_response_norm(x, 2)


def _embeddings(ids: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    return (
        F.embedding(ids, table),
        F.embedding(ids, table, padding_idx=1),
        F.embedding(ids, table, padding_idx=-1),
        F.embedding(ids, table, scale_grad_by_freq=True),
    )


def _attention(**settings: Any):
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **settings)


HEADS = real(2, 3, 4, 8), real(2, 3, 5, 8), real(2, 3, 5, 6)


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _seen(*shape: int) -> Make:
    """A mask in which every query sees the first key."""

    def make(generator: torch.Generator) -> Tensor:
        mask = torch.rand(shape, generator=generator) > 0.4
        mask[..., 0] = True
        return mask

    return make


def _multi_head(x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> tuple[Tensor, ...]:
    parts = (8, 2, w_in, b_in, None, None, False, 0.0, w_out, b_out)
    hidden = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    one = (
        F.multi_head_attention_forward(x, x, x, *parts, need_weights=False)[0],
        *F.multi_head_attention_forward(x, x, x, *parts),
    )
    return (*one, *F.multi_head_attention_forward(x, x, x, *parts, attn_mask=hidden, average_attn_weights=False))


def _recurrent(
    kind: str, *, layers: int = 1, both: bool = False, batch_first: bool = False, bias: bool = True, dropout: float = 0.0
) -> Case:
    """All weights are operands of their own."""
    gates, size, into = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}[kind], 3, 4
    directions, shapes = 2 if both else 1, []
    for layer in range(layers):
        for _ in range(directions):
            shapes += [(gates * size, into if layer == 0 else size * directions), (gates * size, size)]
            shapes += [(gates * size,)] * 2 if bias else []

    def function(x: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        state: Any = (h, h * 0.5) if kind == "lstm" else h
        return getattr(torch, kind)(x, state, list(weights), bias, layers, dropout, True, both, batch_first)

    x = real(2, 5, 4) if batch_first else real(5, 2, 4)
    weights = [real(*shape) for shape in shapes]
    return case(
        function,
        x,
        real(layers * directions, 2, size),
        *weights,
        owned=tuple(range(2, 2 + len(weights))),
        is_traced=False,
        ways=RECURRENCES,
    )


def _losses(*names: str, **settings: Any):
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        every = [getattr(F, name) for name in names]
        return tuple(each(x, y, reduction=how, **settings) for each in every for how in ("mean", "sum", "none"))

    return function


def _cross_entropies(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    weight = weight.detach()
    one = [F.cross_entropy(x, y, reduction=how) for how in ("mean", "sum", "none")]
    two = [F.cross_entropy(x, y, weight, reduction=how) for how in ("mean", "sum", "none")]
    three = [F.cross_entropy(x, y, ignore_index=1, label_smoothing=smooth) for smooth in (0.0, 0.1)]
    four = [
        F.cross_entropy(x, y, weight, ignore_index=1, label_smoothing=0.2, reduction=how) for how in ("mean", "sum", "none")
    ]
    logs = x.log_softmax(1)
    five = [F.nll_loss(logs, y, reduction=how) for how in ("mean", "sum", "none")]
    return (*one, *two, *three, *four, *five, F.nll_loss(logs, y, weight, ignore_index=2), nn.CrossEntropyLoss()(x, y))


def _other_losses(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    sign, share = y.detach().sign(), y.detach().exp()[0]
    one = (
        F.kl_div(x.log_softmax(-1), y.softmax(-1), reduction="batchmean"),
        F.kl_div(x.log_softmax(-1), y.log_softmax(-1), log_target=True, reduction="sum"),
    )
    two = (
        F.poisson_nll_loss(x, y),
        F.gaussian_nll_loss(x, y, y.exp()),
        F.hinge_embedding_loss(x, sign),
        F.soft_margin_loss(x, sign),
    )
    three = (
        F.cosine_embedding_loss(x, y, sign[:, 0]),
        F.margin_ranking_loss(x[:, 0], y[:, 0], sign[:, 0]),
        F.triplet_margin_loss(x, y, x.flip(0)),
    )
    four = (
        F.multilabel_soft_margin_loss(x, (y > 0).double()),
        F.binary_cross_entropy_with_logits(x, (y > 0).double(), pos_weight=share),
    )
    five = F.binary_cross_entropy_with_logits(x, (y > 0).double(), weight=torch.arange(1.0, 5.0, dtype=torch.float64))
    return (
        *one,
        *two,
        *three,
        *four,
        five,
        F.mse_loss(x, y, reduction="sum") / x.shape[0],
        nn.MSELoss()(x, y),
        F.pairwise_distance(x, y),
    )


CASES: dict[str, Case] = (
    {f"conv{n}d {name}": _conv(n, kind) for n in (1, 2, 3) for name, kind in SETTINGS.items()}
    | {
        f"conv_transpose{n}d {name}": _conv(n, kind, is_transposed=True)
        for n in (1, 2, 3)
        for name, kind in (("plain", {}), ("strided", {"stride": 2, "padding": 1, "output_padding": 1}))
    }
    | {"conv_transpose2d grouped": _conv(2, {"groups": 2, "dilation": 2}, is_transposed=True)}
    | {f"pool{n}d": _pools(n) for n in (1, 2, 3)}
    | {
        f"batch_norm {text}": case(
            _batch_norm(**kind), real(4, 3, 2), real(3), positive(3), real(3), real(3), owned=(0, 1, 2, 3, 4)
        )
        for text, kind in {
            "train": {"training": True},
            "eval": {},
            "slow": {"training": True, "momentum": 0.5, "eps": 1e-2},
        }.items()
    }
    | {
        f"scaled dot product {text}": case(_attention(**kind), *HEADS)
        for text, kind in {
            "plain": {},
            "causal": {"is_causal": True},
            "scaled": {"scale": 0.3},
            "dropout": {"dropout_p": 0.3},
            "causal dropout": {"is_causal": True, "dropout_p": 0.3},
        }.items()
    }
    | {
        f"masked attention {shape}": case(_masked_attention, *HEADS, make(*shape))
        for shape in ((4, 5), (2, 1, 4, 5), (2, 3, 4, 5), (1, 1, 1, 5), (1, 4, 5))
        for make in (_seen,)
    }
    | {f"recurrent {kind}": _recurrent(kind) for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
    | {
        "interpolate 1d": _resized(1, ("nearest", "linear", "nearest-exact", "area")),
        "interpolate 2d": _resized(2, ("nearest", "bilinear", "bicubic", "nearest-exact", "area")),
        "interpolate 3d": _resized(3, ("nearest", "trilinear")),
        "antialiased": case(lambda x: F.interpolate(x, size=(2, 2), mode="bilinear", antialias=True), real(2, 3, 4, 4)),
        "conv2d of a sample": case(lambda x, w: F.conv2d(x, w), real(4, 5, 5), real(3, 4, 3, 3), ways=CONVOLUTIONS),
        "conv2d chain": case(
            lambda x, w: F.conv2d(F.relu(F.conv2d(x, w, padding=1)), w, padding=1).flatten(1),
            real(2, 4, 5, 5),
            real(4, 4, 3, 3),
            ways=CONVOLUTIONS,
        ),
        "aten conv": case(
            lambda x, w, b: ATEN.convolution.default(x, w, b, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
            real(2, 4, 5, 5),
            real(3, 4, 3, 3),
            real(3),
            ways=CONVOLUTIONS,
        ),
        "lp_pool": case(lambda x: (F.lp_pool2d(x, 2, 2), F.lp_pool1d(x[0], 2, 2)), positive(2, 3, 4, 4)),
        "pads": case(_pads, real(2, 3, 4, 4)),
        "pixel_shuffle": case(
            lambda x: (F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2), F.channel_shuffle(x, 2)), real(2, 4, 4, 4)
        ),
        "unfold": case(lambda x: (F.unfold(x, 2), F.fold(F.unfold(x, 2, stride=2), (4, 4), 2, stride=2)), real(2, 3, 4, 4)),
        "grid_sample": case(
            lambda x, t: F.grid_sample(x, F.affine_grid(t, [2, 3, 4, 4], align_corners=False), align_corners=False),
            real(2, 3, 4, 4),
            real(2, 2, 3),
        ),
        "norms": case(_norms, real(2, 3, 4), real(4), real(4)),
        "group norms": case(_group_norms, real(2, 4, 3, 3), real(4), real(4)),
        "group norm of features": case(lambda x, w, b: F.group_norm(x, 2, w, b), real(3, 4), real(4), real(4)),
        "instance norms": case(_instance_norms, real(2, 4, 3, 3), real(4), real(4)),
        "embeddings": case(_embeddings, numbers(6, 2, 4), real(6, 3)),
        "embedding of one": case(F.embedding, numbers(6), real(6, 3)),
        "embedding bag": case(
            lambda i, t: (F.embedding_bag(i, t), F.embedding_bag(i, t, mode="sum")), numbers(6, 2, 4), real(6, 3)
        ),
        "tied embedding": case(lambda i, t: F.linear(F.embedding(i, t, padding_idx=0), t), numbers(6, 2, 4), real(6, 3)),
        "aten embedding": case(
            lambda t, i: (ATEN.embedding.default(t, i), ATEN.embedding.default(t, i, 2)), real(6, 3), numbers(6, 2, 4)
        ),
        "attention with weights as mask": case(_masked_attention, *HEADS, real(4, 5)),
        "attention of 3 dims": case(_attention(), real(2, 4, 8), real(2, 5, 8), real(2, 5, 6)),
        "attention of 2 dims": case(_attention(), real(4, 8), real(5, 8), real(5, 6)),
        "grouped queries": case(_attention(enable_gqa=True), real(2, 4, 4, 8), real(2, 2, 5, 8), real(2, 2, 5, 6)),
        "masked dropout": case(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m, 0.2), *HEADS, _seen(2, 1, 1, 5)),
        "multi head": case(_multi_head, real(5, 2, 8), real(24, 8), real(24), real(8, 8), real(8), owned=(1, 2, 3, 4)),
        "recurrent deep lstm": _recurrent("lstm", layers=2, both=True, batch_first=True),
        "recurrent deep gru": _recurrent("gru", layers=2, both=True),
        "recurrent without bias": _recurrent("gru", bias=False),
        "recurrent lstm dropout": _recurrent("lstm", layers=3, dropout=0.4, batch_first=True),
        "recurrent rnn dropout": _recurrent("rnn_tanh", layers=2, both=True, dropout=0.4),
        "losses": case(_losses("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"), real(3, 4), real(3, 4)),
        "binary losses": case(_losses("binary_cross_entropy"), inner(3, 4), inner(3, 4)),
        "logit losses": case(_losses("binary_cross_entropy_with_logits"), real(3, 4), inner(3, 4)),
        "betas": case(lambda x, y: (F.smooth_l1_loss(x, y, beta=0.3), F.huber_loss(x, y, delta=0.2)), real(3, 4), real(3, 4)),
        "cross entropies": case(_cross_entropies, real(5, 4), numbers(4, 5), positive(4)),
        "cross entropies of places": case(_cross_entropies, real(2, 4, 3), numbers(4, 2, 3), positive(4)),
        "cross entropy of shares": case(
            lambda x, y: (F.cross_entropy(x, y.softmax(1)), F.cross_entropy(x, y.softmax(1), label_smoothing=0.1)),
            real(5, 4),
            real(5, 4),
        ),
        "cross entropy of one": case(F.cross_entropy, real(4), numbers(4)),
        "other losses": case(_other_losses, real(3, 4), real(3, 4), is_traced=False),
        "aten losses": case(
            lambda x, y: (
                ATEN.cross_entropy_loss.default(x, y),
                ATEN.cross_entropy_loss.default(x, y, None, 2),
                ATEN.cross_entropy_loss.default(x, y, None, 1, 1, 0.1),
            ),
            real(5, 4),
            numbers(4, 5),
        ),
        "aten pad": case(lambda x: ATEN.constant_pad_nd.default(x, [1, 0, 0, 2], 0.5), real(2, 3, 4)),
        "aten safe softmax": case(lambda x: ATEN._safe_softmax.default(x, -1), real(2, 3, 4)),
        "aten mse": case(
            lambda x, y: (ATEN.mse_loss.default(x, y), ATEN.mse_loss.default(x, y, 2), ATEN.mse_loss.default(x, y, 0)),
            real(3, 4),
            real(3, 4),
        ),
        "weights of truths": case(lambda x, m: (x * m).sum() / m.sum(), real(3, 4), truths(3, 4)),
    }
)
