"""What comes after flattening: each neuron has several values side by side, and sizes may be written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fusion.merging.errors import MergeError
from fusion.merging.gates import Gates
from fusion.merging.reading import read_network
from fusion.merging.reconnect import alone, reconnect
from fusion.merging.resizing import resize
from fusion.merging.union import unite


class Net(nn.Module):
    """A convolution, what is done to its features, a linear layer."""

    def __init__(self, between: nn.Module, num_features: int) -> None:
        super().__init__()
        self.conv, self.between, self.head = nn.Conv2d(1, 6, 3, padding="same"), between, nn.Linear(num_features, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.conv(x)))


class Pooled(nn.Module):
    """Flattens by a view that changes nothing, and writes out the width or the rest."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).view(*(self.sizes or (len(x), -1))).relu()


def models(between: nn.Module, num_features: int) -> list[Net]:
    torch.manual_seed(0)
    return [Net(between, num_features).eval() for _ in range(2)]


@pytest.mark.parametrize(
    ("between", "num_features"),
    [(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Dropout()), 96), (Pooled(), 6), (Pooled(-1, 6), 6)],
    ids=["activation", "rest", "width"],
)
def test_flattened_features_keep_their_neurons(between, num_features):
    inputs = torch.randn(3, 1, 4, 4)
    both = models(between, num_features)
    merged = reconnect(unite([read_network(model, inputs, name=name) for name, model in zip("AB", both, strict=True)]))
    for name, model in zip("AB", both, strict=True):
        torch.testing.assert_close(merged(inputs)[name], model(inputs))
        torch.testing.assert_close(merged.specialize(name)(inputs)[name], model(inputs))


def test_a_gate_at_zero_is_the_removal_of_a_neuron_read_after_flattening():
    inputs = torch.randn(3, 1, 4, 4)
    (model, _) = models(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Dropout()), 96)
    merged = alone(read_network(model, inputs, name="A"))
    (space,) = merged.prunable
    kept = torch.tensor([0, 2, 3, 5])
    gated = merged(inputs, gate=Gates(merged, {space: torch.zeros(6).index_fill(0, kept, 1.0)}))["A"]
    resize(merged, {space: kept})
    torch.testing.assert_close(merged(inputs)["A"], gated)


def test_normalization_of_flattened_features_is_refused():
    (model, _) = models(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(96)), 96)
    with pytest.raises(MergeError, match=r"'between.1' \(batch_norm\) normalizes the positions of a neuron apart"):
        read_network(model, torch.randn(3, 1, 4, 4), name="A")
