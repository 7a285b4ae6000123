"""Which operators a stored program may name: functions of tensors and numbers that do nothing else.

An operator is on the list by its name; by its schema, its overload must also give tensors, write to nothing and draw no random
numbers. So a program reads and writes no files, runs no code of its own and keeps nothing between calls; it can take time and
memory, as any network can.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional as F

_WEIGHTED = """
    conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d linear addmm addmv addbmm baddbmm mm mv
    bmm matmul dot outer einsum bilinear embedding one_hot scaled_dot_product_attention gru lstm rnn_tanh rnn_relu gru_cell
    lstm_cell rnn_tanh_cell rnn_relu_cell _weight_norm
"""
_NORMS = """
    batch_norm layer_norm group_norm instance_norm rms_norm norm linalg_vector_norm cosine_similarity
"""
_SHAPES = """
    reshape view _unsafe_view view_as flatten unflatten squeeze unsqueeze transpose t permute movedim swapaxes swapdims mT mH
    expand expand_as broadcast_to repeat repeat_interleave tile cat concat stack hstack vstack dstack split split_with_sizes
    chunk unbind select slice narrow index index_select gather take_along_dim scatter scatter_add index_put masked_fill
    where flip roll rot90 tril triu diagonal diag_embed pad constant_pad_nd reflection_pad1d reflection_pad2d
    unfold im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle contiguous clone
    alias detach lift_fresh_copy to _to_copy type_as meshgrid
"""
_MADE = """
    zeros ones full arange linspace eye scalar_tensor zeros_like ones_like full_like new_zeros new_ones new_full
"""
_POOLS = """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d
    upsample_trilinear3d
"""
_POINTWISE = """
    add sub rsub mul div floor_divide remainder fmod pow square sqrt rsqrt reciprocal neg abs sign exp exp2 expm1 log log2 log10
    log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh erf erfc erfinv sigmoid logit relu relu6 leaky_relu
    prelu elu selu celu gelu silu mish softplus hardtanh hardsigmoid hardswish hardshrink softshrink
    threshold log_sigmoid softmax log_softmax _safe_softmax _softmax _log_softmax glu clamp clamp_min clamp_max maximum minimum
    fmax fmin floor ceil round trunc frac lerp addcmul addcdiv eq ne lt le gt ge logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_not bitwise_xor isnan isinf isfinite nan_to_num positive
"""
_REDUCED = """
    sum mean prod std var var_mean std_mean amax amin aminmax max min argmax argmin any all cumsum cumprod cummax cummin
    logsumexp logcumsumexp median topk sort argsort bucketize searchsorted count_nonzero
"""

#: Operators of ``aten`` by name.
ALLOWED = frozenset(" ".join((_WEIGHTED, _NORMS, _SHAPES, _MADE, _POOLS, _POINTWISE, _REDUCED)).split())
#: Those that draw at random if they drop something, by the argument that has to be 0.
DROPPING = {**dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "dropout"), "scaled_dot_product_attention": "dropout_p"}
#: Overloads that are refused although their namesakes are allowed: the first reads bytes of one type as another, the rest
#: trust the lengths of packed sequences.
_REFUSED = frozenset({"aten.view.dtype", *(f"aten.{name}.data" for name in DROPPING)})
_ATEN = re.compile(r"aten\.([a-z_A-Z0-9]{1,60})\.([a-z_A-Z0-9]{1,60})")


def size_of(tensor: Tensor, dim: int) -> int:
    """Return the size of a dimension."""
    return tensor.shape[dim]


#: Arithmetic of sizes, and picking one of several results.
NUMBERS: Mapping[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "truediv": operator.truediv,
    "mod": operator.mod,
    "neg": operator.neg,
    "getitem": operator.getitem,
    "max": max,
    "min": min,
}
_SPELLINGS: Mapping[Any, str] = {
    **{function: name for name, function in NUMBERS.items()},
    torch.sym_max: "max",
    torch.sym_min: "min",
}

# torch's own functions cost less per call than the operators, and do the same; the commonest ones
_SIZE = "aten.sym_size.int"
_COMMON = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm layer_norm group_norm embedding relu
    sigmoid tanh flatten reshape transpose permute squeeze unsqueeze select cat mean sum amax add sub mul div matmul bmm softmax
    max_pool2d exp
"""
_EAGER: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(torch._C._VariableFunctions, name) for name in _COMMON.split()},
    "linear": F.linear,
    "gelu": torch._C._nn.gelu,
    "avg_pool2d": torch._C._nn.avg_pool2d,
    "adaptive_avg_pool2d": torch._C._nn.adaptive_avg_pool2d,
    "scaled_dot_product_attention": F.scaled_dot_product_attention,
}


@lru_cache(maxsize=4096)
def resolve(name: str) -> tuple[Callable[..., Any], OpOverload | None]:
    """Return the function of an operator as a program names it, and the operator whose schema it keeps.

    Raises:
        ValueError: If a program may not name it.
    """
    if name.startswith("number."):
        if name.removeprefix("number.") in NUMBERS:
            return NUMBERS[name.removeprefix("number.")], None
        raise ValueError(f"{name!r} is no arithmetic of sizes")
    if name == _SIZE:
        return size_of, torch.ops.aten.sym_size.int
    match = _ATEN.fullmatch(name)
    if match is None or match[1] not in ALLOWED:
        raise ValueError(f"a stored network may not use the operator {name!r}")
    packet = getattr(torch.ops.aten, match[1], None)
    overload = getattr(packet, match[2], None) if packet is not None and match[2] in packet.overloads() else None
    if overload is None:
        raise ValueError(f"PyTorch {torch.__version__} has no operator {name!r}")
    is_random = torch.Tag.nondeterministic_seeded in overload.tags and match[1] not in DROPPING
    gives_tensors = all("Tensor" in str(result.type) for result in overload._schema.returns)
    if overload._schema.is_mutable or is_random or not gives_tensors or name in _REFUSED:
        raise ValueError(f"a stored network may not use the operator {name!r}: it does more than compute tensors")
    return _EAGER.get(match[1], overload), overload


def name_of(target: Any) -> str:
    """Return how a program names the target of a node; raises ValueError if it may not."""
    if isinstance(target, OpOverload):
        name = f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
        if target._schema.is_mutable:
            raise ValueError(
                f"a stored network may not use {name!r}, which writes into a tensor: take torch.where or torch.cat"
            )
        resolve(name)
        return name
    if target in _SPELLINGS:
        return f"number.{_SPELLINGS[target]}"
    raise ValueError(f"a stored network may not use {getattr(target, '__name__', target)!r}")
