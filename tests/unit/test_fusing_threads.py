"""How many threads a fusion uses: by a clock that only the models move, so that nothing depends on the machine."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from unified.fusing.threads import choose_threads, recorded_threads, threads_kept


class World:
    """A machine on which a pass takes as long as is said for each number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.used = seconds, 0.0, list[int]()

    def clock(self) -> float:
        return self.now

    def use(self, count: int) -> None:
        self.used.append(count)

    def choose(self, model: nn.Module, inputs: Tensor, batch_size: int = 8) -> int:
        return choose_threads([model], inputs, batch_size, most=max(self.seconds), clock=self.clock, use=self.use)


class Ticking(nn.Module):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.layer, self.norm = world, nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.sizes: list[int] = []

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        self.sizes.append(len(inputs))
        self.world.now += self.world.seconds[self.world.used[-1]]
        return {"logits": self.norm(nn.functional.dropout(self.layer(inputs), training=self.training))}


INPUTS = torch.ones(5, 3)


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ({1: 0.008, 2: 0.005, 4: 0.003}, 4, [1, 2, 4]),
        ({1: 0.005, 2: 0.9, 4: 0.001}, 1, [1, 2]),  # it stops at the first that is slower
        ({1: 0.100, 2: 0.097, 4: 0.096}, 1, [1, 2, 4]),  # within 5 %
        ({1: 0.2, 2: 0.1, 4: 0.098, 6: 0.097}, 2, [1, 2, 4, 6]),
        ({1: 0.2}, 1, [1]),
    ],
)
def test_the_fastest_number_is_used_and_the_smaller_of_two_alike(seconds, chosen, tried):
    world = World(seconds)
    assert world.choose(Ticking(world), INPUTS) == chosen
    assert world.used == [*tried, chosen]


def test_a_number_costs_about_half_a_second_at_most():
    world = World({1: 0.3, 2: 0.6, 4: 0.1})
    model = Ticking(world)
    world.choose(model, INPUTS)
    assert len(model.sizes) == 2 + 1  # one to warm up and one; then one that took too long


def test_measuring_leaves_the_models_as_they_were():
    world = World({1: 0.01, 2: 0.02})
    model = Ticking(world).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    world.choose(model, INPUTS)
    assert model.training
    assert model.sizes == [8] * 8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_cannot_run_is_left_to_the_search():
    world = World({1: 0.01, 2: 0.02})
    assert world.choose(Ticking(world), torch.ones(5, 4)) == 1


def test_a_search_that_is_gone_on_with_keeps_its_number(tmp_path):
    assert recorded_threads(tmp_path) is None
    (tmp_path / "table.json").write_text(json.dumps({"conditions": {"num_threads": 3}}))
    assert recorded_threads(tmp_path) == 3
    (tmp_path / "table.json").write_text('{"conditions"')
    assert recorded_threads(tmp_path) is None


def test_the_number_of_before_comes_back():
    before = torch.get_num_threads()
    with threads_kept():
        torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before
