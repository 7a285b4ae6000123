"""Normalized graphs: in-place writes that may go and those that must stay, gradients switched off, dead code."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fusion.graph.capture import capture
from fusion.graph.captured import Captured
from fusion.graph.normalize import Aliases, normalize, written
from fusion.graph.operators import packet
from tests.unit.parsed_models import ResNet, images, rows


class Does(nn.Module):
    """A model that does what it is told, between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


def normalized(model: nn.Module, inputs: Tensor, *, training: bool = False) -> Captured:
    captured = capture(model, (inputs,), None, training=training, label="X")
    normalize(captured)
    return captured


def names(captured: Captured) -> list[str]:
    return [packet(node) for node in captured.graph.nodes if packet(node)]


def writes(captured: Captured) -> list[str]:
    return [packet(node) for node in captured.graph.nodes if written(node)]


def clamped_twice(x: Tensor) -> Tensor:
    return x.mul_(2).add_(1).relu_()


def read_after_write(x: Tensor) -> Tensor:
    y = x.relu_()
    return x + y


def written_through_a_view_that_is_not_read(x: Tensor) -> Tensor:
    return x.reshape(-1, 3, 2).relu_().reshape(-1, 6)


def assigned(x: Tensor) -> Tensor:
    x[:, :2] *= 0.5
    return x


def view_read_after_write(x: Tensor) -> Tensor:
    view = x[:, :3]
    x.relu_()
    return torch.cat([view, view], 1)


def masked(x: Tensor) -> Tensor:
    return x.masked_fill_(x > 1, 0)


@pytest.mark.parametrize(
    "function", [clamped_twice, read_after_write, written_through_a_view_that_is_not_read, masked], ids=lambda f: f.__name__
)
def test_writes_that_nobody_else_sees_become_functional(function):
    assert writes(normalized(Does(function), rows())) == []


@pytest.mark.parametrize(("function", "left"), [(assigned, ["mul_", "copy_"]), (view_read_after_write, ["relu_"])])
def test_writes_that_a_view_sees_stay(function, left):
    assert writes(normalized(Does(function), rows())) == left


def test_a_read_comes_after_the_writes_to_its_memory():
    captured = normalized(Does(assigned), rows())
    aliases = Aliases(captured.graph)
    (second,) = [node for node in captured.graph.nodes if node.meta.get("path") == "second"]
    assert [packet(node) for node in aliases.effects[second]] == ["mul_", "copy_"]


def test_residual_networks_lose_all_writes_but_those_to_their_counters():
    captured = normalized(ResNet(), images(), training=True)
    assert writes(captured) == ["add_"] * 8  # num_batches_tracked
    assert writes(normalized(ResNet(), images())) == []


def test_views_become_reshapes_so_that_features_of_other_tasks_fit():
    captured = normalized(Does(lambda x: x.view(-1, 3, 2).view(-1, 6)), rows())
    assert "view" not in names(captured)
    assert names(captured).count("reshape") == 2


def test_operators_without_gradient_are_put_in_line_over_detached_values():
    def frozen(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.tanh(x * 2)

    captured = normalized(Does(frozen), rows())
    assert names(captured) == ["linear", "detach", "mul", "tanh", "linear"]


def test_dead_code_and_asserts_are_dropped_but_not_what_keeps_state():
    def wasteful(x: Tensor) -> Tensor:
        torch.exp(x)
        torch._assert_async(torch.ones((), dtype=torch.bool))
        return x.to(torch.float32)

    assert {"exp", "_assert_async", "_assert_tensor_metadata"}.isdisjoint(names(normalized(Does(wasteful), rows())))
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    assert "add_" in names(normalized(model, rows(), training=True))
