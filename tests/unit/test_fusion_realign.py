"""A block's input in other coordinates: into the weights that read it, exactly where they can take it, refused elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from fusion.graph.block import Block
from fusion.graph.parse import parse
from fusion.graph.realign import needs_stitch, readers, realign, shared_parameters

CHANNELS = 6
PICTURE = (3, 12, 12)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """Its input goes on beside the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class TwoReaders(nn.Module):
    """Two convolutions read one input."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.left(x)) * torch.sigmoid(self.right(x))


class TiedInside(nn.Module):
    """One bias under two names, used twice in one block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.first(x)) + self.second(torch.tanh(self.first(x)))


class BiasAgain(nn.Module):
    """The bias of the convolution is added once more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + self.conv.bias[None, :, None, None])


def chained(*bodies: nn.Module) -> list[Block]:
    """Each body as a block of one model over maps, with weights of its own: one capture for all of them."""
    parts = [part for body in bodies for part in (body, nn.Tanh())]
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), nn.ReLU(), *parts, nn.Flatten(), nn.LazyLinear(2))
    images = drawn(2, *PICTURE)
    model(images)
    seeded(model)
    blocks = {block.name.split(".")[0]: block for block in parse(model.eval(), images).blocks}
    return [blocks[str(2 + 2 * number)] for number in range(len(bodies))]


def seeded(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def mixed(x: Tensor, weight: Tensor, bias: Tensor, dim: int) -> Tensor:
    return (x.movedim(dim, -1) @ weight.T + bias).movedim(-1, dim)


def errors_of(block: Block, dim: int = 1, *, bias_scale: float = 1.0) -> Tensor:
    """What the realigned block makes of x, less what the block makes of the mixed x."""
    x = drawn(4, *block.input.shape, seed=2)
    weight, bias = drawn(CHANNELS, CHANNELS, seed=3), drawn(CHANNELS, seed=4) * bias_scale
    changed = copy.deepcopy(block)
    assert realign(changed, weight, bias)
    with torch.no_grad():
        return changed(x) - block(mixed(x, weight, bias, dim))


EXACTLY = 1e-4  # sums of float32 in another order, over values of up to some tens
CONVOLUTIONS = {
    "conv": nn.Conv2d(CHANNELS, CHANNELS, 3),
    "strided": nn.Conv2d(CHANNELS, CHANNELS, (1, 2), stride=(1, 2), dilation=(1, 2)),
    "conv and norm": nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3), nn.BatchNorm2d(CHANNELS), nn.ReLU()),
    "named padding": nn.Conv2d(CHANNELS, CHANNELS, 2, padding="valid"),
    "two readers": TwoReaders(),
}


def test_convolutions_without_padding_take_any_mixture_of_channels_exactly():
    for name, block in zip(CONVOLUTIONS, chained(*CONVOLUTIONS.values()), strict=True):
        assert errors_of(block).abs().max() < EXACTLY, name


def test_padding_spoils_the_constant_at_the_border_only_and_a_missing_bias_loses_it():
    padded, bare = chained(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3, bias=False))
    errors = errors_of(padded)
    assert errors[..., 1:-1, 1:-1].abs().max() < EXACTLY
    assert errors.abs().max() > 0.1  # zeros around the map do not take part in the constant
    assert errors_of(bare).abs().max() > 0.1
    for block in (padded, bare):
        assert errors_of(block, bias_scale=0.0).abs().max() < EXACTLY


@pytest.mark.parametrize("shape", [(CHANNELS,), (9, CHANNELS), (5, 7, CHANNELS)], ids=["vector", "tokens", "map"])
def test_linear_layers_take_any_mixture_of_the_last_dimension_exactly(shape):
    model = nn.Sequential(nn.Linear(4, CHANNELS), nn.ReLU(), nn.Linear(CHANNELS, 5), nn.ReLU(), nn.Linear(5, 2))
    seeded(model)
    block = parse(model.eval(), drawn(2, *shape[:-1], 4)).blocks[1]
    assert errors_of(block, -1).abs().max() < EXACTLY


REFUSED = {
    "residual": Residual(),
    "grouped": nn.Conv2d(CHANNELS, CHANNELS, 3, groups=2),
    "depthwise": nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS),
    "transposed": nn.ConvTranspose2d(CHANNELS, CHANNELS, 3),
    "bias tied within": TiedInside(),
    "bias added again": BiasAgain(),
}


def test_what_cannot_take_a_mixture_is_refused_and_left_as_it_was():
    for name, block in zip(REFUSED, chained(*REFUSED.values()), strict=True):
        before = copy.deepcopy(block.state_dict())
        assert readers(block) is None, name
        assert needs_stitch(block), name
        assert not realign(block, drawn(CHANNELS, CHANNELS), drawn(CHANNELS)), name
        assert_close(block.state_dict(), before, rtol=0, atol=0)


def test_weights_that_another_block_uses_too_are_left_alone():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.second(F.relu(self.first(x)))))

    blocks = [*parse(Tied().eval(), drawn(2, 6)).blocks]
    tied = shared_parameters(blocks)
    assert len(tied) == 1
    assert [readers(block, shared=tied) is None for block in blocks] == [True, True, False]
    assert [needs_stitch(block, shared=tied) for block in blocks] == [True, True, False]
    before = copy.deepcopy(blocks[1].state_dict())
    assert not realign(blocks[1], drawn(6, 6), drawn(6), shared=tied)
    assert_close(blocks[1].state_dict(), before, rtol=0, atol=0)
    assert realign(blocks[2], drawn(6, 6), drawn(6), shared=tied)


def test_realigning_by_the_identity_changes_nothing():
    [block] = chained(nn.Conv2d(CHANNELS, CHANNELS, 3))
    before = copy.deepcopy(block.state_dict())
    assert realign(block, torch.eye(CHANNELS), torch.zeros(CHANNELS))
    assert_close(block.state_dict(), before, rtol=0, atol=0)
