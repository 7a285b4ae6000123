"""A network as layers of neurons: which operators make new neurons, and which only pass them on.

A *neuron* is an output channel of a convolution or an output unit of a linear layer. What follows it channel by channel
(normalization, activation, pooling, flattening) belongs to it, and where features are added up, channel ``c`` of one and
channel ``c`` of the other are one neuron. The neurons between two makers of neurons
lie in one *space*: a layer in the sense of PAM, section 3.1, and in residual networks the stream of a stage (section 5.3).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload


class Kind(StrEnum):
    """What a layer does to neurons."""

    INPUT = "input"
    CONV = "conv"  # makes neurons: every output channel reads all input channels
    LINEAR = "linear"  # makes neurons
    DEPTHWISE = "depthwise"  # has weights, one filter for each neuron
    NORM = "norm"  # has weights and statistics, some for each neuron
    EACH = "each"  # channel by channel, without weights: activations, pooling, dropout
    JOIN = "join"  # two features neuron by neuron
    FLATTEN = "flatten"  # (N, C, H, W) to (N, C * H * W)
    OPAQUE = "opaque"  # anything else, over whole features of one network


MAKERS = frozenset({Kind.CONV, Kind.LINEAR})
OWNING = MAKERS | {Kind.DEPTHWISE, Kind.NORM}  # have tensors with a row for each neuron


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands in arguments for the feature that is the layer's input number ``index``."""

    index: int


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """Stands in arguments for a tensor; two are equal if their values are."""

    tensor: Tensor
    digest: str = field(default="")

    def __post_init__(self) -> None:
        content = self.tensor.detach().cpu().contiguous()
        digest = hashlib.blake2b(content.reshape(-1).view(torch.uint8).numpy().tobytes(), digest_size=12).hexdigest()
        object.__setattr__(self, "digest", f"{content.dtype}{tuple(content.shape)}{digest}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """One operator of a network.

    Attributes:
        name: Path of its module, or the operator's name; unique in the network.
        kind: What it does to neurons.
        inputs: Positions of the layers whose features it takes.
        target: The operator; None for the input.
        args: Its arguments, with :class:`Slot` for features and :class:`Constant` for other tensors; those of ``tensors``
            are left out.
        tensors: ``weight``, ``bias``, ``running_mean``, ``running_var``, as far as it has them.
        shape: Of the feature that it makes, without the batch; empty for numbers.
        width: Neurons of that feature.
        space: Number of the space that its neurons lie in.
    """

    name: str
    kind: Kind
    inputs: tuple[int, ...]
    target: OpOverload | None
    args: tuple[Any, ...]
    tensors: dict[str, Tensor]
    shape: tuple[int, ...]
    width: int
    space: int

    @property
    def positions(self) -> int:
        """Values of the feature for each neuron."""
        return torch.Size(self.shape).numel() // max(self.width, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """A network as layers in the order of their execution.

    Attributes:
        name: Of its task.
        layers: The first is the input.
        output: Position of the layer whose feature is the output.
        frozen: Spaces whose neurons must all stay, in their order: the input's, the output's, those of opaque layers.
        example: Input that it was read with, ``(N, …)``.
    """

    name: str
    layers: tuple[Layer, ...]
    output: int
    frozen: frozenset[int]
    example: Tensor
