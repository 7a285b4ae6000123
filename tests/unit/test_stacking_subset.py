"""Some members of a stack: they answer and train as they do among all, and the others cost nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fusion.stacking.choices import Choices
from fusion.stacking.member_random import MemberRandom
from fusion.stacking.stack import Stack, stack
from tests.unit.answering_models import alone, another, assert_near, make_members, rows

NUM = 6
SUBSETS = [[2], [1, 2, 3], [4, 0], [5, 3, 1], [0, 1, 2, 3, 4, 5]]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers)


def six(*, training: bool = False) -> list[nn.Module]:
    return [another(network(), seed).train(training) for seed in range(NUM)]


def batch() -> Tensor:
    return torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("members", SUBSETS, ids=str)
def test_a_subset_answers_as_each_model_alone_and_in_the_order_asked_for(members):
    models = six()
    many = stack(models)
    with torch.no_grad():
        found = many(batch(), members=members)
        again = many(batch(), members=members)
    wanted = torch.stack(alone([models[index] for index in members], [batch()] * len(members)))
    assert_near(found, wanted)
    assert torch.equal(found, again)


@pytest.mark.parametrize("name", ["lenet", "lstm", "encoder", "bert"])
def test_a_subset_with_inputs_of_their_own(name):
    models, case = make_members(name, 4)
    members = [3, 1]
    inputs = [rows(case.inputs, 3, shift) for shift in (0, 1)]
    with torch.no_grad():
        found = stack(models).each(inputs, members=members)
    found = found["logits"] if name == "bert" else found
    assert_near(found, torch.stack(alone([models[index] for index in members], inputs)))


@pytest.mark.parametrize("members", [[], [0, 0], [6], [-1]], ids=str)
def test_members_that_are_not_there_are_refused(members):
    with pytest.raises(ValueError, match=r"members 0 to 5, each once"):
        stack(six())(batch(), members=members)


def test_an_input_for_each_of_the_subset():
    with pytest.raises(ValueError, match="an input for each of 2 members, got 6"):
        stack(six()).each([batch()] * NUM, members=[1, 2])


# ---- cost


def test_a_subset_costs_its_share_of_operations():
    many = stack(six())
    flops = {}
    for members in (None, [1, 2, 3], [5, 3, 1]):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            many(batch(), members=members)
        flops[str(members)] = counter.get_total_flops()
    assert flops["[1, 2, 3]"] == flops["[5, 3, 1]"] == flops["None"] / 2


class Elements(TorchDispatchMode):
    """Counts calls and the elements of what operators make; views make nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.made = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        if isinstance(result, Tensor) and not func.is_view:
            self.made += result.numel()
        return result


def counted(many: Stack, members: list[int] | None) -> Elements:
    x = batch()
    with torch.no_grad():
        many(x, members=members)  # what is measured or copied once
        with Elements() as counter:
            many(x, members=members)
    return counter


@pytest.mark.parametrize("members", [[2, 3], [0, 5]], ids=str)
def test_a_subset_makes_its_share_of_values_with_no_more_operators(members):
    many = stack(six(), choices=Choices(("filters side by side",)))
    everybody, some = counted(many, None), counted(many, members)
    assert some.made <= everybody.made * len(members) / NUM
    assert some.calls <= everybody.calls + 2 * len(list(many.template.value.homes))  # views of the parameters


# ---- copies are kept until weights change


def test_copies_are_kept_and_renewed_when_weights_change():
    models, other = six(), another(network(), 99)
    many = stack(models)
    members = [4, 1]

    def answer() -> Tensor:
        with torch.no_grad():
            return many(batch(), members=members)

    def kept() -> list[int]:
        return [copy.rows.data_ptr() for copy in many._subsets[4, 1]._copies.values()]

    before = answer()
    first = kept()
    answer()
    assert kept() == first
    many.set_member(1, other.state_dict())
    assert_near(answer()[1], alone([other.eval()], [batch()])[0])
    assert torch.equal(answer()[0], before[0])
    with torch.no_grad():
        many.get_parameter("5/bias").add_(1.0)
    assert_near(answer()[0], before[0] + 1.0)


def test_changes_of_the_members_and_their_type_are_seen():
    models = six()
    many = stack(models)
    with torch.no_grad():
        many(batch(), members=[4, 1])
        many.double()
        assert many(batch().double(), members=[4, 1]).dtype is torch.float64
        many.float()
        many.select([5, 4, 3, 2, 1])
        assert_near(many(batch(), members=[1, 4]), torch.stack(alone([models[4], models[1]], [batch()] * 2)))
        many.append([models[0]], MemberRandom.seeded([9], torch.device("cpu")))
        assert_near(many(batch(), members=[5, 0]), torch.stack(alone([models[0], models[5]], [batch()] * 2)))


def test_few_subsets_are_kept():
    many = stack(six())
    with torch.no_grad():
        for first in range(NUM):
            many(batch(), members=[first, (first + 2) % NUM])
    assert len(many._subsets) == 4


def test_inference_mode_does_not_spoil_what_is_kept():
    many = stack(six())
    with torch.inference_mode():
        first = many(batch(), members=[3, 0])
    many.train()
    many(batch(), members=[3, 0])
    many.eval()
    assert first.shape == many(batch(), members=[3, 0]).shape


# ---- training


@pytest.mark.parametrize("members", [[1, 2, 3], [4, 0, 2]], ids=str)
def test_training_a_subset_is_training_each_of_it_alone(members):
    models = six(training=True)
    many = stack(copy.deepcopy(models))
    target = torch.tensor([0, 1, 2, 0, 1])
    before = {name: value.clone() for name, value in many.state_dict().items()}
    optimizer = torch.optim.SGD(many.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        with many.running(members) as module:
            losses = F.cross_entropy(module(batch()), target)
        losses.merged().sum().backward()
        optimizer.step()
    for index in members:
        train_alone(models[index], index, target)
        own = many.member_tensors(index)
        for name, value in models[index].state_dict().items():
            torch.testing.assert_close(own[name], value, rtol=1e-5, atol=1e-6)  # 3 steps, rounded in float32
    for index in set(range(NUM)) - set(members):
        for name, value in many.state_dict().items():
            assert torch.equal(value[index], before[name][index])


def test_statistics_that_all_wrote_are_those_of_a_subset_that_was_asked_before():
    many = stack(six())
    with torch.no_grad():
        for members in ([4, 1], [1, 4, 0]):
            before = many(batch(), members=members)
            many.train()
            many(batch() + 1)
            many(batch() + 2, members=[4, 0])
            many.eval()
            after = many(batch(), members=members)
            assert not torch.equal(before, after)
            assert torch.equal(after, many(batch())[members])


def train_alone(model: nn.Module, seed: int, target: Tensor) -> None:
    """Make three steps with the member's own random numbers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(batch()), target).backward()
            optimizer.step()


def test_only_the_random_state_of_the_subset_moves_on():
    many = stack(six(training=True))
    before = [state.clone() for state, _ in many.random.states()]
    many(batch(), members=[5, 1])
    moved = [not torch.equal(old, new) for old, (new, _) in zip(before, many.random.states(), strict=True)]
    assert moved == [False, True, False, False, False, True]


@pytest.mark.parametrize("index", [-1, 3])
def test_weights_go_to_a_member_that_there_is(index: int) -> None:
    many = stack([nn.Linear(2, 2) for _ in range(3)])
    with pytest.raises(ValueError, match="members 0 to 2"):
        many.set_member(index, nn.Linear(2, 2).state_dict())
