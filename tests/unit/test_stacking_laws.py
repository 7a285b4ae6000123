"""Whatever small network is built of ordinary layers, a stack trains it as each member would train alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.unit.stacked_training import Pair, varied

SIDE = 4
TOLERANCE = 1e-11  # norms over few numbers multiply rounding, 3 steps of them some thousand times; measured 1e-13

Layer = tuple[str, int]


class Residual(nn.Module):
    def __init__(self, channels: int, *, is_in_place: bool) -> None:
        super().__init__()
        self.conv, self.is_in_place = nn.Conv2d(channels, channels, 3, padding=1), is_in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        if self.is_in_place:
            out += x
            return F.relu_(out)
        return F.relu(out + x)


class Shuffled(nn.Module):
    """Channels dealt out anew, by views."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        return x.view(B, self.groups, C // self.groups, H, W).transpose(1, 2).reshape(B, C, H, W)


class Turned(nn.Module):
    """Channels last for a layer over features, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(F.gelu(self.norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Squeezed(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, dim=1)
        one = torch.cat((one * torch.tanh(other), other), dim=1)
        one[:, 0] = one[:, 0] * 0.5
        return one


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "conv": lambda c: nn.Conv2d(c, c, 3, padding=1),
    "conv 1": lambda c: nn.Conv2d(c, c, 1, bias=False),
    "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c),
    "transposed": lambda c: nn.ConvTranspose2d(c, c, 3, padding=1),
    "batch norm": lambda c: nn.BatchNorm2d(c),
    "group norm": lambda c: nn.GroupNorm(2, c),
    "instance norm": lambda c: nn.InstanceNorm2d(c, affine=True),
    "relu": lambda c: nn.ReLU(),
    "relu in place": lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
    "silu in place": lambda c: nn.Sequential(nn.Conv2d(c, c, 1), nn.SiLU(inplace=True)),
    "gelu": lambda c: nn.GELU(),
    "prelu": lambda c: nn.PReLU(c),
    "dropout": lambda c: nn.Dropout(0.3),
    "dropout in place": lambda c: nn.Sequential(nn.Conv2d(c, c, 1), nn.Dropout(0.3, inplace=True)),
    "dropout of channels": lambda c: nn.Dropout2d(0.3),
    "max pool": lambda c: nn.MaxPool2d(3, 1, 1),
    "average pool": lambda c: nn.AvgPool2d(3, 1, 1),
    "pool and grow": lambda c: nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)),
    "pad": lambda c: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3)),
    "residual": lambda c: Residual(c, is_in_place=False),
    "residual in place": lambda c: Residual(c, is_in_place=True),
    "shuffled": lambda c: Shuffled(2),
    "turned": Turned,
    "squeezed": Squeezed,
    "halved": lambda c: Halved(),
}
VARIANTS = ("loop", "grouped", "grouped, channels-last")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6),
    variant=st.sampled_from(VARIANTS),
    optimizer=st.sampled_from(("sgd", "adam")),
    width=st.sampled_from((1, 2, 3)),
    is_flat=st.booleans(),
)
def test_networks_of_ordinary_layers_train_alike(
    layers: list[str], variant: str, optimizer: str, width: int, *, is_flat: bool
) -> None:
    torch.manual_seed(0)
    channels = 4
    body = [nn.Conv2d(3, channels, 3, padding=1), *(LAYERS[name](channels) for name in layers)]
    head = (
        [nn.Flatten(), nn.Linear(channels * SIDE**2, 3)]
        if is_flat
        else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    )
    models = varied(nn.Sequential(*body, *head), 3, torch.float64)

    def draw(size: int) -> tuple[Tensor, Tensor]:
        return torch.randn(size, 3, SIDE, SIDE, dtype=torch.float64), torch.randint(0, 3, (size,))

    pair = Pair(models, draw, optimizer, forced=(variant,), width=width)
    for _ in range(3):
        pair.step()
    assert pair.worst_loss <= TOLERANCE
    assert pair.difference() <= TOLERANCE
