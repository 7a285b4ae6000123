"""What recurrent layers cost that are fused into one operator. The sizes of oneDNN are tested; cuDNN's are guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from unified.workspace import Workspace, copied_bytes, nbytes, round_up

aten = torch.ops.aten

Args = tuple[Any, ...]
_PAGE = 4096  # oneDNN starts each part of a recurrent workspace on a page
_GATES = {0: 1, 1: 1, 2: 4, 3: 3}  # by the operator's `mode`: RNN with ReLU, with tanh, LSTM, GRU


def _onednn_rnn_workspace(args: Args, _: Any) -> Workspace:
    x, hidden, is_training = args[0], args[10], args[15]
    return Workspace(
        temporary_bytes=_onednn_training_bytes(args) if is_training else _onednn_inference_bytes(args),
        hidden_output=3,
        hidden_bytes=_onednn_kept_bytes(x, hidden) if is_training else 0,
    )


def _onednn_training_bytes(args: Args) -> int:
    """Gates, weights whose rows are padded, a bias, and the cell of one step."""
    x, hidden = args[0], args[10]
    size = x.element_size()
    weights = (x.shape[2] + hidden) * _row(4 * hidden, size)
    cell = 2 * _paged(x.shape[1] * _row(hidden, size)) + _PAGE
    return _onednn_gates_bytes(x, hidden) + weights + 4 * hidden * size + cell


def _onednn_inference_bytes(args: Args) -> int:
    """The same in blocks of columns; what training keeps of its states is here a few temporaries of one step."""
    x, hidden = args[0], args[10]
    steps, batch, features = x.shape
    size = x.element_size()
    gates = _paged(steps * batch * round_up(3 * hidden + round_up(hidden, 16), 64 // size) * size)
    weights = (features + hidden) * 4 * round_up(hidden, 32) * size
    cell = _paged(9 * batch * hidden * size) + 3 * _PAGE
    states = _paged((steps + 1) * batch * _row(features, size)) if features > hidden else 0
    return gates + weights + 4 * hidden * size + cell + states


def _onednn_rnn_backward_workspace(args: Args, _: Any) -> Workspace:
    x, grad, hidden = args[0], args[10], args[15]
    weights = 2 * (nbytes(args[1]) + nbytes(args[2]))
    return Workspace(temporary_bytes=copied_bytes(grad) + _onednn_gates_bytes(x, hidden) + weights)


def _onednn_gates_bytes(x: torch.Tensor, hidden: int) -> int:
    """One row per step and sample, of four gates."""
    steps, batch = x.shape[:2]
    return _paged(steps * batch * _row(4 * hidden, x.element_size()))


def _onednn_kept_bytes(x: torch.Tensor, hidden: int) -> int:
    """Gates, hidden states, and states of one more step and one more layer, some in rows wide enough for the input."""
    steps, batch, features = x.shape
    size, widest = x.element_size(), max(features, hidden)
    # Cell states and differences are float32 whatever the type of the rest.
    per_state = (_row(widest, 4), _row(widest, 4), _row(widest, size), hidden * 4, hidden * size)
    states = sum(_paged(2 * (steps + 1) * batch * row) for row in per_state)
    return _onednn_gates_bytes(x, hidden) + states + _paged(steps * batch * _row(hidden, size))


def _row(width: int, size: int) -> int:
    """Return the bytes of a row: whole cache lines, but no multiple of 256 elements, which would collide in the cache."""
    line = 64 // size
    padded = round_up(width, line)
    return (padded + line if padded % 256 == 0 else padded) * size


def _paged(nbytes: int) -> int:
    return round_up(nbytes, _PAGE)


def _cudnn_rnn_workspace(args: Args, _: Any) -> Workspace:
    x, mode, hidden, layers, is_training, is_bidirectional = (
        args[0],
        args[6],
        args[7],
        args[9],
        args[12],
        args[13],
    )
    rows = math.prod(x.shape[:-1]) * layers * (2 if is_bidirectional else 1)
    # Per step: the gates, their state, and the output that the next layer reads.
    kept = rows * (_GATES[mode] + 2) * hidden * x.element_size()
    return Workspace(temporary_bytes=kept, hidden_output=3, hidden_bytes=kept if is_training else 0)


def _cudnn_rnn_backward_workspace(args: Args, _: Any) -> Workspace:
    x, mode, hidden, layers, is_bidirectional = args[0], args[10], args[11], args[13], args[17]
    rows = math.prod(x.shape[:-1]) * layers * (2 if is_bidirectional else 1)
    return Workspace(temporary_bytes=rows * (_GATES[mode] + 2) * hidden * x.element_size())


def _rnn_flops(weights: Sequence[torch.Tensor], x: torch.Tensor) -> int:
    """Each weight matrix multiplies one column per step and sample."""
    return sum(2 * math.prod(x.shape[:-1]) * weight.numel() for weight in weights if weight.dim() == 2)


WORKSPACES: dict[torch._ops.OpOverloadPacket, Callable[[Args, Any], Workspace]] = {
    aten.mkldnn_rnn_layer: _onednn_rnn_workspace,
    aten.mkldnn_rnn_layer_backward: _onednn_rnn_backward_workspace,
    aten._cudnn_rnn: _cudnn_rnn_workspace,
    aten._cudnn_rnn_backward: _cudnn_rnn_backward_workspace,
}

FLOPS: dict[torch._ops.OpOverloadPacket, Callable[[Args, Any], int]] = {
    aten.mkldnn_rnn_layer: lambda args, _: _rnn_flops(args[1:5], args[0]),
    aten.mkldnn_rnn_layer_backward: lambda args, _: 2 * _rnn_flops(args[1:5], args[0]),
    aten._cudnn_rnn: lambda args, _: _rnn_flops(args[1], args[0]),
    aten._cudnn_rnn_backward: lambda args, _: 2 * _rnn_flops(args[1], args[0]),
}
