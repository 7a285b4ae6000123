"""What an operator costs that its outputs do not show: hidden workspaces, temporaries and floating-point operations.

PyTorch's own formulas (``torch.utils.flop_counter``) and the shapes that fake tensors give leave out recurrent layers fused
into one operator, attention kernels of the CPU, and copies: the blocked ones that oneDNN makes around a convolution, that of
BatchNorm, the tiles of bfloat16 products. The sizes are those of oneDNN 3.x, checked against the allocator in the tests;
cuDNN's are an estimate from its layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from unified import recurrent_costs
from unified.workspace import Workspace, copied_bytes, is_channels_last, nbytes, round_up

aten = torch.ops.aten

Args = tuple[Any, ...]
_WIDEST_KERNEL = 14  # oneDNN convolves wider ones by matrix products


_NONE = Workspace()


def workspace(func: torch._ops.OpOverload, args: Args, output: Any) -> Workspace:
    """Return what ``func``, called with ``args``, used beyond ``output``."""
    rule = _WORKSPACES.get(func.overloadpacket)
    return _NONE if rule is None else rule(args, output)


def count_flops(func: torch._ops.OpOverload, args: Args, kwargs: dict[str, Any], output: Any) -> int:
    """Return the floating-point operations of one call; 0 for operators that have no products in them."""
    packet = func.overloadpacket
    if packet in _FLOPS:
        return _FLOPS[packet](args, output)
    formula = flop_registry.get(packet)
    return 0 if formula is None else formula(*args, **kwargs, out_val=output)


# ---- oneDNN convolution: input, weight and output are copied to and from a layout blocked by channels


def _convolution_workspace(args: Args, output: torch.Tensor) -> Workspace:
    x, weight, _, stride, _, _, is_transposed, _, groups = args
    if x.device.type != "cpu":
        return _NONE
    if not _is_onednn(x):
        return Workspace(temporary_bytes=_columns_bytes(weight, output))
    if is_channels_last(x) or is_channels_last(weight):
        return Workspace(temporary_bytes=nbytes(weight))
    blocked = _blocked_bytes(output)
    computing = _blocked_input_bytes(x) + nbytes(weight) + blocked - nbytes(output)
    scattering = _scattered_bytes(blocked, stride, groups) if is_transposed else blocked
    return Workspace(temporary_bytes=max(computing, scattering))


def _convolution_backward_workspace(args: Args, output: Sequence[torch.Tensor | None]) -> Workspace:
    grad, x, weight, _, stride, _, _, is_transposed, _, groups, _ = args
    grad_input, grad_weight, _ = output
    if x.device.type != "cpu":
        return _NONE
    copied = copied_bytes(grad)
    if not _is_onednn(x):
        return Workspace(temporary_bytes=copied + _columns_bytes(weight, grad))
    if is_channels_last(x) or is_channels_last(weight):
        return Workspace(temporary_bytes=copied + 2 * nbytes(weight) + _grouped_weight_bytes(weight, groups))
    blocked, peaks = _blocked_bytes(grad), [0]
    if grad_input is not None:
        # Where inputs go to several places, channels that fill no block are left as they are.
        is_scattered = groups == 1 and max(stride) > 1 and not is_transposed
        blocked_input = nbytes(grad_input) if is_scattered else _blocked_bytes(grad_input)
        scattering = blocked_input if is_transposed else _scattered_bytes(blocked_input, stride, groups)
        peaks += [blocked + nbytes(weight) + blocked_input, nbytes(grad_input) + scattering]
    if grad_weight is not None:
        kept = 0 if grad_input is None else nbytes(grad_input)
        if weight.shape[-1] > _WIDEST_KERNEL and groups == 1:
            peaks += [kept + nbytes(weight) + _product_bytes(weight, grad, stride)]
        else:
            peaks += [kept + blocked + _blocked_input_bytes(x) + nbytes(weight)]
    made = sum(nbytes(t) for t in output if t is not None)
    return Workspace(temporary_bytes=copied + max(peaks) - made)


def _product_bytes(weight: torch.Tensor, grad: torch.Tensor, stride: Sequence[int]) -> int:
    """What the gradient of a large kernel takes, done as a matrix product: columns and parts of it, for each thread."""
    columns = weight[0].numel() * math.prod(grad.shape[2:]) * weight.element_size()
    is_of_patches = stride[-1] >= weight.shape[-1]
    at_once = min(torch.get_num_threads(), grad.shape[0]) if is_of_patches else 1
    return at_once * (4 * nbytes(weight) + columns)


def _grouped_weight_bytes(weight: torch.Tensor, groups: int) -> int:
    """Size of a gradient by groups, each a block of its own, in which most is empty; 3 x 3 by channel has its own way."""
    outer, inner, *kernel = weight.shape
    is_by_channel = inner == 1 and outer == groups
    if groups == 1 or (is_by_channel and set(kernel) == {3}):
        return 0
    block = _channel_block()
    wide = groups * round_up(outer // groups, block) * round_up(inner, block)
    return wide * math.prod(kernel) * weight.element_size()


def _batch_norm_backward_workspace(args: Args, _: Any) -> Workspace:
    return Workspace(temporary_bytes=nbytes(args[1]) if args[1].device.type == "cpu" else 0)


def _is_onednn(x: torch.Tensor) -> bool:
    if x.dtype is torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return x.dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()


def _blocked_bytes(tensor: torch.Tensor) -> int:
    """Size of ``(batch, channels, ...)`` with channels in blocks of a vector register."""
    channels, block = tensor.shape[1], _channel_block()
    return nbytes(tensor) // max(1, channels) * round_up(channels, block)


def _blocked_input_bytes(x: torch.Tensor) -> int:
    # An image's few channels are read as they are.
    return _blocked_bytes(x) if x.shape[1] >= _channel_block() else 0


def _channel_block() -> int:
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def _scattered_bytes(blocked: int, stride: Sequence[int], groups: int) -> int:
    """What a result of ``blocked`` bytes takes besides it where inputs go to several places a stride apart."""
    return 2 * blocked if groups == 1 and max(stride) > 1 else blocked


def _columns_bytes(weight: torch.Tensor, output: torch.Tensor) -> int:
    """Size of the unfolded input of a convolution done as a matrix product; none for a 1 x 1 kernel."""
    kernel = math.prod(weight.shape[2:])
    if kernel == 1:
        return 0
    return output.shape[0] * weight.shape[1] * kernel * math.prod(output.shape[2:]) * output.element_size()


# ---- bfloat16 products on a CPU: each thread packs a tile of the second factor and sums in float32


def _bfloat16_product_workspace(args: Args, output: torch.Tensor) -> Workspace:
    if output.dtype is not torch.bfloat16 or output.device.type != "cpu":
        return _NONE
    rows, columns = output.shape
    inner = args[-1].shape[0]
    tile = min(columns, 64)
    return Workspace(temporary_bytes=torch.get_num_threads() * tile * (4 * min(rows, 256) + 2 * min(inner, 1024)))


# ---- attention on a CPU: scores are computed in tiles, one buffer per thread


def _attention_workspace(args: Args, _: Any) -> Workspace:
    query, key = args[0], args[1]
    return Workspace(temporary_bytes=_tiles_bytes(query, key))


def _attention_backward_workspace(args: Args, _: Any) -> Workspace:
    return Workspace(temporary_bytes=2 * _tiles_bytes(args[1], args[2]))


def _tiles_bytes(query: torch.Tensor, key: torch.Tensor) -> int:
    num_queries, width = query.shape[-2:]
    rows = min(num_queries, 256 if num_queries >= 768 else 64 if num_queries >= 192 else 32)
    columns = min(512, key.shape[-2])
    return 4 * torch.get_num_threads() * rows * (columns + 2 + width)


# ---- losses: values of each element before they are summed up, some of which the sum keeps; reduced ones only


def _loss_workspace(*, num_temporaries: int, is_kept: bool) -> Callable[[Args, Any], Workspace]:
    def rule(args: Args, output: torch.Tensor) -> Workspace:
        if output.dim() == args[0].dim():
            return _NONE
        own = nbytes(args[0])
        return Workspace(
            temporary_bytes=num_temporaries * own, hidden_output=0 if is_kept else -1, hidden_bytes=own if is_kept else 0
        )

    return rule


# ---- resized images on a CPU: copied with channels innermost, there and back


def _resized_workspace(args: Args, output: torch.Tensor) -> Workspace:
    x = args[0]
    if x.device.type != "cpu" or is_channels_last(x):
        return _NONE
    return Workspace(temporary_bytes=nbytes(x) + nbytes(output))


# ---- whole layers in one operator, as evaluation runs them: projections thrice the input, then scores, then a wide layer


def _encoder_layer_workspace(args: Args, output: torch.Tensor) -> Workspace:
    x, norm_first, hidden, mask = args[0], args[8], args[14].shape[0], _optional(args, 18)
    own = nbytes(x)
    wide = 2 * own + nbytes(x) // x.shape[-1] * hidden
    peak = max(_attention_layer_bytes(x, args[2], mask), wide) + (own if norm_first else 0)
    return Workspace(temporary_bytes=peak - nbytes(output))


def _attention_layer_workspace(args: Args, output: tuple[torch.Tensor, torch.Tensor | None]) -> Workspace:
    x, num_heads, mask = args[0], args[4], _optional(args, 9)
    made = sum(nbytes(tensor) for tensor in output if tensor is not None)
    peak = _attention_layer_bytes(x, num_heads, mask)
    if len(args) <= 10 or args[10]:  # scores that are asked for are held to the end
        peak = max(peak, 4 * nbytes(x) + _scores_bytes(x, num_heads) + made)
    return Workspace(temporary_bytes=peak - made)


def _attention_layer_bytes(x: torch.Tensor, num_heads: int, mask: object) -> int:
    own, scores = nbytes(x), _scores_bytes(x, num_heads)
    return max(6 * own, 3 * own + scores * (1 if mask is None else 2))


def _scores_bytes(x: torch.Tensor, num_heads: int) -> int:
    batch, length, _ = x.shape
    return batch * num_heads * length * length * x.element_size()


def _attention_layer_flops(x: torch.Tensor) -> int:
    """Four projections, and two products of all positions with all."""
    batch, length, width = x.shape
    return 2 * batch * length * width * (4 * width + 2 * length)


def _encoder_layer_flops(args: Args, _: Any) -> int:
    x, wide = args[0], args[14]
    return _attention_layer_flops(x) + 2 * 2 * math.prod(x.shape[:-1]) * wide.numel()


def _optional(args: Args, position: int) -> Any:
    return args[position] if len(args) > position else None


_WORKSPACES: dict[torch._ops.OpOverloadPacket, Callable[[Args, Any], Workspace]] = {
    **recurrent_costs.WORKSPACES,
    aten.convolution: _convolution_workspace,
    aten.convolution_backward: _convolution_backward_workspace,
    aten.native_batch_norm_backward: _batch_norm_backward_workspace,
    aten.mm: _bfloat16_product_workspace,
    aten.addmm: _bfloat16_product_workspace,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_workspace,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_workspace,
    aten._transformer_encoder_layer_fwd: _encoder_layer_workspace,
    aten._native_multi_head_attention: _attention_layer_workspace,
    aten.mse_loss: _loss_workspace(num_temporaries=1, is_kept=True),
    aten.smooth_l1_loss: _loss_workspace(num_temporaries=1, is_kept=True),
    aten.binary_cross_entropy: _loss_workspace(num_temporaries=0, is_kept=True),
    aten.soft_margin_loss: _loss_workspace(num_temporaries=0, is_kept=True),
    aten.huber_loss: _loss_workspace(num_temporaries=1, is_kept=False),
    aten.binary_cross_entropy_with_logits: _loss_workspace(num_temporaries=2, is_kept=False),
    aten.upsample_bilinear2d: _resized_workspace,
    aten.upsample_nearest2d: _resized_workspace,
    aten._upsample_nearest_exact2d: _resized_workspace,
}

_FLOPS: dict[torch._ops.OpOverloadPacket, Callable[[Args, Any], int]] = {
    **recurrent_costs.FLOPS,
    aten._transformer_encoder_layer_fwd: _encoder_layer_flops,
    aten._native_multi_head_attention: lambda args, _: _attention_layer_flops(args[0]),
    aten._scaled_dot_product_flash_attention_for_cpu: lambda args, _: sdpa_flop_count(
        args[0].shape, args[1].shape, args[2].shape
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda args, _: sdpa_backward_flop_count(
        args[0].shape, args[1].shape, args[2].shape, args[3].shape
    ),
}
