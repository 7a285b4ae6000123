"""Every member of a stack draws what it would draw alone, bit for bit, whoever is beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.stacking.choices import Choices
from fusion.stacking.member_random import MemberRandom
from fusion.stacking.stack import Stack, stack

MEMBERS = 3
SEEDS = (5, 6, 7)
CPU = torch.device("cpu")


class Body(nn.Module):
    """A convolution that makes the layout, if it is wanted, and then what is tried."""

    def __init__(self, function: Callable[[Tensor], Tensor], *, has_convolution: bool = False) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3) if has_convolution else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def stochastic_depth(x: Tensor) -> Tensor:
    kept = torch.empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(0.5)
    return x * kept / 0.5


def drop_path(x: Tensor) -> Tensor:
    kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.7)
    kept.div_(0.7)
    return x * kept


def attention(x: Tensor) -> Tensor:
    q = x.flatten(2)
    return F.scaled_dot_product_attention(q, q, q, dropout_p=0.4)


def sampled(x: Tensor) -> Tensor:
    weights = x.flatten(1).abs() + 0.1
    noise = F.gumbel_softmax(weights, hard=True)
    return torch.cat(
        [torch.multinomial(weights, 2).float(), torch.bernoulli(weights.clamp(0, 1)), torch.normal(weights, 0.1), noise], 1
    )


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": F.dropout,
    "dropout of a transposition": lambda x: F.dropout(x.transpose(1, 3), 0.3),
    "dropout of a copy of one": lambda x: F.dropout(x.transpose(1, 3).contiguous(), 0.3),
    "dropout of arithmetic on one": lambda x: F.dropout(x.permute(0, 2, 3, 1) * 2 + 1, 0.3),
    "dropout of a slice": lambda x: F.dropout(x[:, 1:], 0.3),
    "dropout of a flat one": lambda x: F.dropout(x.transpose(1, 2).flatten(1), 0.3),
    "dropout of a channels-last one": lambda x: F.dropout(x.to(memory_format=torch.channels_last), 0.3),
    "dropout of pooled ones": lambda x: F.dropout(F.max_pool2d(F.relu(x), 2), 0.3),
    "dropout of split heads": lambda x: F.dropout(x.flatten(2).unflatten(2, (2, -1)).transpose(1, 2).softmax(-1), 0.1),
    "dropout of a product": lambda x: F.dropout(x.flatten(2) @ x.flatten(2).transpose(1, 2), 0.3),
    "dropout in place": lambda x: F.dropout(x * 1, 0.3, inplace=True),
    "dropout of all": lambda x: F.dropout(x, 1.0),
    "dropout1d": lambda x: F.dropout1d(x.flatten(2), 0.3),
    "dropout2d": lambda x: F.dropout2d(x, 0.3),
    "dropout3d": lambda x: F.dropout3d(x.unsqueeze(2), 0.3),
    "dropout2d of a transposition": lambda x: F.dropout2d(x.transpose(0, 1), 0.3),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.3, training=True),
    "attention": attention,
    "rand_like": lambda x: x + torch.rand_like(x) * torch.randn_like(x),
    "randint_like": lambda x: x + torch.randint_like(x, 5),
    "new ones": lambda x: (
        x + torch.rand(x.shape) + torch.randn(4, 1, 1, 1) + torch.randint(5, (1,)) + torch.randperm(x.shape[-1])
    ),
    "written": lambda x: x + torch.zeros_like(x).normal_() + torch.empty_like(x).uniform_(-1, 1) + (x * 1).exponential_(),
    "stochastic depth": stochastic_depth,
    "drop path": drop_path,
    "rrelu": lambda x: F.rrelu(x, training=True),
    "sampled": sampled,
    "noise of a size": lambda x: x + torch.normal(0.0, 1.0, x.shape),
    "fractional pool": lambda x: F.fractional_max_pool2d(x, 2, output_size=3),
}


def alone(model: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model(x).detach(), torch.get_rng_state()


@pytest.mark.parametrize("variant", ["no convolution", "loop", "grouped", "grouped, channels-last"])
@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_bit_for_bit_those_of_each_member_alone(name: str, variant: str) -> None:
    torch.manual_seed(0)
    has_convolution = variant != "no convolution"
    models = [Body(DRAWS[name], has_convolution=has_convolution).train() for _ in range(MEMBERS)]
    inputs = torch.randn(MEMBERS, 4, 3, 8, 8)
    random = MemberRandom.seeded(SEEDS, CPU)
    many = stack(models, random=random, choices=Choices(forced=(variant,)))
    before = torch.get_rng_state()
    found = many(Stack.wrap(inputs))
    assert torch.equal(torch.get_rng_state(), before), "the default generator was drawn from"
    for index, (model, seed) in enumerate(zip(models, SEEDS, strict=True)):
        expected, state = alone(model, inputs[index], seed)
        assert torch.equal(random.generators[index].get_state(), state)
        if has_convolution:  # whose sums may be added in another order
            torch.testing.assert_close(found[index], expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(found[index] == 0, expected == 0)
        elif name not in {"attention", "dropout of a product", "dropout of split heads"}:
            assert torch.equal(found[index], expected)
        else:
            torch.testing.assert_close(found[index], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["loop", "one cell for all members"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_drop_what_each_member_drops_alone(kind: type[nn.RNNBase], variant: str) -> None:
    torch.manual_seed(0)

    def made() -> nn.Module:
        return nn.Sequential(kind(3, 4, num_layers=3, dropout=0.5, bidirectional=True, batch_first=True)).train()

    models, inputs, random = [made() for _ in range(MEMBERS)], torch.randn(MEMBERS, 2, 5, 3), MemberRandom.seeded(SEEDS, CPU)
    many = stack(models, random=random, choices=Choices(forced=(variant,)))
    with many.running() as module:
        found = module(Stack.wrap(inputs))[0].merged()
    for index, (model, seed) in enumerate(zip(models, SEEDS, strict=True)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = model(inputs[index])[0]
            assert torch.equal(random.generators[index].get_state(), torch.get_rng_state())
        torch.testing.assert_close(found[index], expected, rtol=1e-5, atol=1e-6)


def test_a_member_draws_the_same_whoever_is_beside_it() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train() for _ in range(MEMBERS)]
    x = torch.randn(5, 4)
    together = stack(models, random=MemberRandom.seeded(SEEDS, CPU))(x)
    for index, seed in enumerate(SEEDS):
        company = [copy.deepcopy(models[index]), models[(index + 1) % MEMBERS]]
        found = stack(company, random=MemberRandom.seeded((seed, 99), CPU))(x)
        torch.testing.assert_close(found[0], together[index], rtol=1e-5, atol=1e-6)
        assert torch.equal(found[0] == 0, together[index] == 0)


def test_evaluation_draws_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)).eval()
    many = stack([model, copy.deepcopy(model)])
    states = many.random.states()
    with torch.no_grad():
        many(torch.randn(3, 2, 4))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(states, many.random.states(), strict=True))


def test_a_generator_of_the_models_own_is_left_to_it() -> None:
    generator = torch.Generator().manual_seed(3)
    many = stack([Body(lambda x: x + torch.rand(2, generator=generator)) for _ in range(1)])
    assert torch.equal(many(torch.zeros(2))[0], torch.rand(2, generator=torch.Generator().manual_seed(3)))
