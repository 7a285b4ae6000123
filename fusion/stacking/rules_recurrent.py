"""Recurrent layers: PyTorch's own kernel for each member, or one cell for all members at each time step, as measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion.stacking.arguments import argument
from fusion.stacking.dispatch import MEMBER_DRAWS, Rule, StackMode, name_of
from fusion.stacking.rules_random import masks
from fusion.stacking.stacked_tensor import StackedTensor

LOOP, AS_ONE = "loop", "one cell for all members"
NUM_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layers:
    """How a recurrent network is built; the operator's own arguments."""

    kind: str
    has_biases: bool
    num_layers: int
    dropout: float
    is_training: bool
    is_bidirectional: bool
    batch_first: bool

    @property
    def num_directions(self) -> int:
        return 2 if self.is_bidirectional else 1

    @property
    def num_weights(self) -> int:
        """Weights of one layer and direction."""
        return 4 if self.has_biases else 2

    @property
    def drops(self) -> bool:
        return self.is_training and self.dropout > 0 and self.num_layers > 1


def _recurrent(mode: StackMode, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    layers = _layers_of(func, args, kwargs)
    if layers is None:
        return mode.each(func, args, kwargs)
    x, state, weights = args[0], args[1], args[2]
    states = list(state) if isinstance(state, tuple | list) else [state]
    num_states = len(states)
    everything = [x, *states, *weights]
    example = [each.merged() if type(each) is StackedTensor else each for each in everything]

    def loop(*tensors: Tensor) -> list[Tensor]:
        return _measured_loop(func, layers, tensors, num_states, everything)

    def as_one(*tensors: Tensor) -> list[Tensor]:
        x, states, weights = _for_all(tensors, everything, num_states, mode.num_members)
        return list(_run(layers, x, states, weights, lambda out: out))

    way = mode.choices.pick(layers.kind, {AS_ONE: as_one, LOOP: loop}, example, (str(layers),))
    mode.ways[name_of(func), way] += 1
    if way == LOOP:
        return mode.each(func, args, kwargs, way=MEMBER_DRAWS if layers.drops else LOOP)
    x, merged_states, merged_weights = _for_all(example, everything, num_states, mode.num_members)

    def drop(out: Tensor) -> Tensor:
        return out * masks(mode, out[0], layers.dropout, out.shape[1:]) if layers.drops else out

    results = _run(layers, x, merged_states, merged_weights, drop)
    return tuple(map(StackedTensor.of, results))


def _layers_of(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> _Layers | None:
    """Read the operator's arguments; None for packed sequences, projections and whatever else has no rule."""
    if len(args) < 3 or (isinstance(args[1], Tensor) and not isinstance(args[2], tuple | list)):
        return None
    names = ("has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
    values = [argument(args, kwargs, 3 + i, name) for i, name in enumerate(names)]
    layers = _Layers(
        kind=name_of(func),
        has_biases=values[0],
        num_layers=values[1],
        dropout=values[2],
        is_training=values[3],
        is_bidirectional=values[4],
        batch_first=values[5],
    )
    fits = len(args[2]) == layers.num_layers * layers.num_directions * layers.num_weights
    are_own = all(type(weight) is StackedTensor for weight in args[2])
    return layers if fits and are_own and args[0].dim() == 3 else None


def _measured_loop(
    func: Callable[..., Any], layers: _Layers, tensors: Sequence[Tensor], num_states: int, originals: Sequence[Tensor]
) -> list[Tensor]:
    """What the loop does, without dropout: measuring draws nothing."""
    num_members = next(tensor.shape[0] for tensor, each in zip(tensors, originals, strict=True) if type(each) is StackedTensor)
    rows = [
        tensor.unbind(0) if type(each) is StackedTensor else [tensor] * num_members
        for tensor, each in zip(tensors, originals, strict=True)
    ]
    settings = (layers.has_biases, layers.num_layers, 0.0, layers.is_training, layers.is_bidirectional, layers.batch_first)
    outputs = []
    for x, *rest in zip(*rows, strict=True):
        state = rest[:num_states] if layers.kind == "lstm" else rest[0]
        outputs.append(func(x, state, rest[num_states:], *settings)[0])
    return outputs


def _for_all(
    tensors: Sequence[Tensor], originals: Sequence[Tensor], num_states: int, num_members: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return input, states and weights of all members; what they share is everybody's."""
    spread = [
        tensor if type(each) is StackedTensor else tensor.unsqueeze(0).expand(num_members, *tensor.shape)
        for tensor, each in zip(tensors, originals, strict=True)
    ]
    return spread[0], spread[1 : 1 + num_states], spread[1 + num_states :]


def _run(
    layers: _Layers, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], drop: Callable[[Tensor], Tensor]
) -> tuple[Tensor, ...]:
    """Run all layers on ``x``, ``(members, batch, time, in)``, or time first; return output and last states."""
    if layers.batch_first:
        x = x.transpose(1, 2)
    last: list[list[Tensor]] = [[] for _ in states]
    for layer in range(layers.num_layers):
        outputs = []
        for direction in range(layers.num_directions):
            index = layer * layers.num_directions + direction
            own = weights[index * layers.num_weights : (index + 1) * layers.num_weights]
            begin = [state[:, index] for state in states]
            out, end = _direction(layers, x.flip(1) if direction else x, begin, own)
            outputs.append(out.flip(1) if direction else out)
            for where, value in zip(last, end, strict=True):
                where.append(value)
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if layer + 1 < layers.num_layers:
            x = drop(x)
    if layers.batch_first:
        x = x.transpose(1, 2)
    return (x, *(torch.stack(values, dim=1) for values in last))


def _direction(
    layers: _Layers, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in one direction over ``x``, ``(members, time, batch, in)``."""
    M, T, B, _ = x.shape  # noqa: N806 - members, time, batch
    of_input, of_state = weights[0].transpose(1, 2), weights[1].transpose(1, 2)
    flat = x.reshape(M, T * B, -1)
    is_gru = layers.kind == "gru"
    if layers.has_biases:
        # a GRU's new gate takes the state's bias apart from the input's
        bias = weights[2] if is_gru else weights[2] + weights[3]
        gates = torch.baddbmm(bias.unsqueeze(1), flat, of_input)
    else:
        gates = torch.bmm(flat, of_input)
    state_bias = weights[3].unsqueeze(1) if layers.has_biases and is_gru else None
    steps, outputs = gates.view(M, T, B, -1).unbind(1), []
    for step in steps:
        states = _cell(layers.kind, step, states, of_state, state_bias)
        outputs.append(states[0])
    return torch.stack(outputs, dim=1), tuple(states)


def _cell(kind: str, gates: Tensor, states: Sequence[Tensor], of_state: Tensor, state_bias: Tensor | None) -> Sequence[Tensor]:
    """One time step of all members."""
    hidden = states[0]
    if kind == "gru":
        own = torch.bmm(hidden, of_state) if state_bias is None else torch.baddbmm(state_bias, hidden, of_state)
        reset, update, new = gates.chunk(3, dim=-1)
        own_reset, own_update, own_new = own.chunk(3, dim=-1)
        update = torch.sigmoid(update + own_update)
        new = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
        return (torch.lerp(new, hidden, update),)
    total = torch.baddbmm(gates, hidden, of_state)
    if kind == "lstm":
        into, forget, new, out = total.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * states[1] + torch.sigmoid(into) * torch.tanh(new)
        return torch.sigmoid(out) * torch.tanh(cell), cell
    return (torch.tanh(total) if kind == "rnn_tanh" else torch.relu(total),)


RULES: dict[str, Rule] = dict.fromkeys(NUM_GATES, _recurrent)
