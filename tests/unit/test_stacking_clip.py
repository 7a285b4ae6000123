"""Clipping each member of a stack by its own norm, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

from fusion.stacking.stacked_parameter import StackedParameter
from fusion.stacking.vector_optimizer import VectorOptimizer


def test_clipping_leaves_members_without_a_norm_as_they_are_whatever_they_hold() -> None:
    parameters = [StackedParameter(name=name, tensor=nn.Parameter(torch.zeros(3, 2))) for name in "ab"]
    optimizer = VectorOptimizer(parameters, [optim.SGD([nn.Parameter(torch.zeros(2)) for _ in "ab"]) for _ in range(3)])
    parameters[0].tensor.grad = torch.tensor([[float("inf"), 1.0], [3.0, 0.0], [0.5, 0.0]])
    parameters[1].tensor.grad = torch.tensor([[7.0, 1.0], [0.0, 4.0], [0.0, 0.0]])
    optimizer.clip_([None, 1.0, 1.0])
    assert parameters[0].tensor.grad[0].tolist() == [float("inf"), 1.0]
    assert parameters[1].tensor.grad[0].tolist() == [7.0, 1.0]
    torch.testing.assert_close(parameters[0].tensor.grad[1], torch.tensor([0.6, 0.0]))  # of norm 5, float32's own tolerance
    torch.testing.assert_close(parameters[1].tensor.grad[1], torch.tensor([0.0, 0.8]))
    assert parameters[0].tensor.grad[2].tolist() == [0.5, 0.0]
    with pytest.raises(ValueError, match="expected 3 norms"):
        optimizer.clip_([1.0])
