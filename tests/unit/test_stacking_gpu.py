"""Stacks on a GPU against each model alone there, and passes replayed as CUDA graphs against passes that are not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.stacking.stack import Stack
from fusion.stacking.training import StackedTraining

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
NUM_MODELS, NUM_STEPS = 4, 8


def make_models(device: str) -> list[nn.Module]:
    torch.manual_seed(0)
    layers = [
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU()),
            *(nn.LayerNorm(8), nn.Linear(8, 3)),
        )
    ]
    return [layers[0]().double().to(device) for _ in range(NUM_MODELS)]


def make_batches(device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_STEPS, NUM_MODELS, 6, 1, 8, 8, generator=generator, dtype=torch.float64)
    return inputs.to(device), torch.randint(3, (NUM_STEPS, NUM_MODELS, 6), generator=generator).to(device)


def optimizers_of(models: list[nn.Module]) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(each.parameters(), lr=0.1 / (1 + index), momentum=0.9) for index, each in enumerate(models)]


def loss_of(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(module(inputs), targets)


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_a_stack_trains_as_its_members_would_alone(device: str, captures: bool) -> None:
    alone, together = make_models(device), make_models(device)
    inputs, targets = make_batches(device)
    training = StackedTraining(together, optimizers_of(together), captures=captures)
    optimizers = optimizers_of(alone)
    for step in range(NUM_STEPS):
        losses = training.step(lambda rows, at=step: (Stack.wrap(inputs[at][rows]), Stack.wrap(targets[at][rows])), loss_of)
        for index, (model, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            optimizer.zero_grad()
            loss = loss_of(model, inputs[step, index], targets[step, index])
            loss.backward()
            optimizer.step()
            torch.testing.assert_close(losses[index], loss.detach(), rtol=1e-10, atol=0)
    training.settle_all()
    for model, member in zip(alone, together, strict=True):
        for name, value in model.state_dict().items():
            # float64 rounding over a few steps; a GPU's sums run in yet another order
            torch.testing.assert_close(member.state_dict()[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_a_captured_stack_goes_on_when_a_member_leaves(device: str) -> None:
    models = make_models(device)
    inputs, targets = make_batches(device)
    copies = copy.deepcopy(models)
    trainings = [
        StackedTraining(models, optimizers_of(models), captures=True),
        StackedTraining(copies, optimizers_of(copies)),
    ]
    for training in trainings:
        for step in range(NUM_STEPS):
            if step == 5:
                training.settle(1)
                training.remove(1)
            kept = [0, 1, 2, 3] if step < 5 else [0, 2, 3]
            x, y = inputs[step][kept], targets[step][kept]
            training.step(lambda rows, x=x, y=y: (Stack.wrap(x[rows]), Stack.wrap(y[rows])), loss_of)
        training.settle_all()
    for model, member in zip(models, copies, strict=True):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(member.state_dict()[name], value, rtol=1e-9, atol=1e-12)
