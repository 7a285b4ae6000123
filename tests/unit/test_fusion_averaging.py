"""The running average of weights: what it is in closed form, and that a module comes back from it bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fusion.search.averaging import ETA, Average


def make(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer, Average]:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    return module, optimizer, Average(module, optimizer)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
    optimizer.zero_grad()
    module(inputs).square().mean().backward()
    optimizer.step()


def closed_form_weights(num_steps: int) -> list[float]:
    """Share of step k: (eta + 1) / (k + eta) times what later steps leave of it."""
    shares = []
    for number in range(1, num_steps + 1):
        share = (ETA + 1) / (number + ETA)
        for later in range(number + 1, num_steps + 1):
            share *= 1 - (ETA + 1) / (later + ETA)
        shares.append(share)
    return shares


@pytest.mark.parametrize("num_steps", [1, 2, 7, 30])
def test_it_is_the_polynomial_decay_average_of_parameters_and_buffers(num_steps):
    module, optimizer, average = make()
    seen = []
    for number in range(num_steps):
        step(module, optimizer, number)
        seen.append(copy.deepcopy(module.state_dict()))
    shares = closed_form_weights(num_steps)
    assert sum(shares) == pytest.approx(1)
    with average.in_place():
        got = copy.deepcopy(module.state_dict())
    for name, value in got.items():
        if value.is_floating_point():
            wanted = sum(share * state[name].double() for share, state in zip(shares, seen, strict=True))
            assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)  # float32 sums of up to 30 terms
        else:
            assert torch.equal(value, seen[-1][name])  # a count of batches is no weight


def test_what_was_there_comes_back_bit_for_bit_even_after_an_exception():
    module, optimizer, average = make()
    for number in range(5):
        step(module, optimizer, number)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="shapes"), average.in_place():
        module(torch.zeros(2, 99 * int(not torch.equal(module[0].weight, before["0.weight"]))))
    assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_training_goes_on_as_if_nobody_had_looked():
    looked_at, optimizer, average = make()
    left_alone, other, _ = make()
    for number in range(6):
        step(looked_at, optimizer, number)
        step(left_alone, other, number)
        with average.in_place():
            looked_at(torch.zeros(2, 3))
            looked_at.eval()
        looked_at.train()
    left = {name: value for name, value in left_alone.state_dict().items() if "running" not in name and "num_" not in name}
    assert_close({name: looked_at.state_dict()[name] for name in left}, left, rtol=0, atol=0)


def test_before_the_first_step_it_is_the_module_itself():
    module, _, average = make()
    before = copy.deepcopy(module.state_dict())
    with average.in_place():
        assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_what_does_not_change_is_its_own_average_exactly():
    module, _, _ = make()
    optimizer = torch.optim.SGD(module[2].parameters(), lr=0.3)
    average = Average(module, optimizer)
    module[1].eval()
    for number in range(40):
        step(module, optimizer, number)
    before = copy.deepcopy(module[0].state_dict())
    with average.in_place():
        assert_close(module[0].state_dict(), before, rtol=0, atol=0)


def test_tied_weights_are_averaged_once():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    average = Average(module, optimizer)
    for number in range(3):
        step(module, optimizer, number)
    before = module[0].weight.detach().clone()
    with average.in_place():
        assert module[1].weight is module[0].weight
        assert not torch.equal(module[0].weight, before)
    assert torch.equal(module[0].weight, before)
