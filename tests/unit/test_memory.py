"""The estimate against what PyTorch's own allocator hands out while the same steps really run."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.allocator import allocated
from tests.zoo import ZOO, images, tokens
from unified import memory
from unified.device import MemorySize
from unified.errors import DoesNotFitError, SlowEstimateError
from unified.memory import count_parameters, estimate


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def sgd_with_momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def cross_entropy(output, target):
    """Of one class a sample, or one a token."""
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


class Recurrent(nn.Module):
    def __init__(self, kind, *, features=16, hidden=32, num_layers=2, batch_first=True, **options):
        super().__init__()
        self.recurrent = getattr(nn, kind)(features, hidden, num_layers, batch_first=batch_first, **options)
        self.head = nn.Linear(options.get("proj_size", hidden) * (1 + options.get("bidirectional", False)), 4)

    def forward(self, x):
        x = x if self.recurrent.batch_first else x.transpose(0, 1)
        out = self.recurrent(x)[0]
        return self.head(out[:, -1] if self.recurrent.batch_first else out[-1])


def sequences(size):
    return torch.randn(size, 20, 16), torch.randint(4, (size,))


def mlp():
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))


def mlp_batch(size):
    return torch.randn(size, 32), torch.randint(10, (size,))


def of_zoo(name):
    """A model of the zoo and its batches, repeated to the wanted size."""
    found = ZOO[name]()
    inputs, targets = found.batches[1]

    def draw(size):
        index = torch.arange(size) % len(targets)
        if isinstance(inputs, dict):
            return {key: value[index] for key, value in inputs.items()}, targets[index]
        return inputs[index], targets[index]

    return found.model, draw


MODELS: dict[str, Callable[[], tuple[nn.Module, Callable]]] = {
    "mlp": lambda: (mlp(), mlp_batch),
    "gru": lambda: (Recurrent("GRU"), sequences),
    "lstm one way": lambda: (Recurrent("LSTM"), sequences),
    **{name: (lambda name=name: of_zoo(name)) for name in ZOO if name != "mlp"},
}


def truth(module, batch, optimizer_factory, dtype=None):
    """Return what the allocator hands out in two real steps and an evaluation."""
    return allocated(copy.deepcopy(module), cross_entropy, optimizer_factory, batch, autocast_dtype=dtype)


@pytest.mark.parametrize("name", MODELS)
def test_peak_is_what_the_allocator_hands_out(name):
    module, draw = MODELS[name]()
    for optimizer_factory in (adam, sgd_with_momentum):
        for batch_size in (8, 40):
            found = estimate(module, cross_entropy, optimizer_factory, draw(2), batch_size=batch_size)
            true = truth(module, draw(batch_size), optimizer_factory)
            case = f"{name}, {optimizer_factory.__name__}, batch {batch_size}"
            assert found.peak_bytes == pytest.approx(true.peak_bytes, rel=0.1), case
            assert found.eval_peak_bytes == pytest.approx(true.eval_peak_bytes, rel=0.1), case


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.bfloat16) for name in MODELS] + [(name, torch.float16) for name in ("mlp", "lenet", "encoder")],
)
def test_peak_is_right_under_autocast(name, dtype):
    module, draw = MODELS[name]()
    found = estimate(module, cross_entropy, adam, draw(1), batch_size=40, autocast_dtype=dtype)
    true = truth(module, draw(40), adam, dtype)
    assert found.peak_bytes == pytest.approx(true.peak_bytes, rel=0.1)


RECURRENT = {
    "lstm": ("LSTM", {"num_layers": 1}),
    "lstm, both ways": ("LSTM", {"bidirectional": True, "dropout": 0.2}),
    "lstm, projected": ("LSTM", {"proj_size": 8}),
    "lstm, projected, both ways": ("LSTM", {"proj_size": 8, "bidirectional": True}),
    "lstm, time first": ("LSTM", {"batch_first": False, "num_layers": 3}),
    "lstm, without biases": ("LSTM", {"bias": False}),
    "gru": ("GRU", {"num_layers": 1, "dropout": 0.0}),
    "gru, both ways": ("GRU", {"bidirectional": True, "dropout": 0.2}),
    "rnn": ("RNN", {"nonlinearity": "relu"}),
    "rnn, both ways": ("RNN", {"bidirectional": True, "batch_first": False}),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("batch_size", [4, 48])
def test_recurrent_layers_of_any_kind_are_estimated(name, batch_size):
    kind, options = RECURRENT[name]
    module = Recurrent(kind, **options)
    found = estimate(module, cross_entropy, adam, sequences(2), batch_size=batch_size)
    true = truth(module, sequences(batch_size), adam)
    assert found.peak_bytes == pytest.approx(true.peak_bytes, rel=0.1)
    assert found.eval_peak_bytes == pytest.approx(true.eval_peak_bytes, rel=0.1)
    assert found.flops_per_step > 3 * found.eval_flops * 0.8 > 0


def test_peak_covers_an_evaluation_batch_that_is_larger():
    module = mlp()
    small = estimate(module, cross_entropy, adam, mlp_batch(2), batch_size=4)
    large = estimate(module, cross_entropy, adam, mlp_batch(2), batch_size=4, eval_batch_size=100_000)
    assert large.peak_bytes > 100_000 * (32 + 64) * 4 > small.peak_bytes
    assert large.flops_per_step == small.flops_per_step


@settings(max_examples=10, deadline=None)
@given(widths=st.lists(st.integers(1, 40), min_size=2, max_size=4), batch_size=st.integers(1, 50))
def test_resident_memory_of_linear_layers_is_their_closed_form(widths, batch_size):
    module = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    batch = torch.zeros(1, widths[0]), torch.zeros(1, widths[-1])
    found = estimate(module, nn.MSELoss(), sgd_with_momentum, batch, batch_size=batch_size)
    num_parameters = sum((a + 1) * b for a, b in pairwise(widths))
    assert found.num_parameters == num_parameters
    assert found.resident_bytes == 3 * 4 * num_parameters  # weights, gradients, momentum
    data_bytes = 4 * batch_size * (widths[0] + widths[-1])
    assert found.peak_bytes >= found.resident_bytes + data_bytes


OPTIMIZERS = (
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_any_optimizer_is_counted(name, monkeypatch):
    monkeypatch.setattr(memory, "_extrapolate_real", None)  # fake tensors must do
    module = mlp()

    def factory(parameters):
        return getattr(torch.optim, name)(parameters, lr=1e-3)

    found = estimate(module, cross_entropy, factory, mlp_batch(2), batch_size=8)
    true = truth(module, mlp_batch(8), factory)
    batch_bytes = sum(tensor.nbytes for tensor in mlp_batch(8))
    assert found.resident_bytes == true.final_bytes - batch_bytes
    assert found.peak_bytes == pytest.approx(true.peak_bytes, rel=0.1)


def test_frozen_parameters_have_neither_gradient_nor_state():
    module = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    module[0].requires_grad_(False)
    batch = torch.zeros(1, 8), torch.zeros(1, 4)
    found = estimate(module, nn.MSELoss(), sgd_with_momentum, batch, batch_size=2)
    assert found.resident_bytes == 4 * (8 * 16 + 16) + 3 * 4 * (16 * 4 + 4)


def test_tied_parameters_count_once():
    module, draw = MODELS["gpt2"]()
    assert module.lm_head.weight is module.transformer.wte.weight
    found = estimate(module, cross_entropy, sgd_with_momentum, draw(2), batch_size=2)
    own = {id(p): p.numel() for p in module.parameters()}
    assert found.num_parameters == count_parameters(module) == sum(own.values())
    assert found.resident_bytes == 3 * 4 * sum(own.values()) + sum(b.nbytes for b in module.buffers())


def test_flops_are_those_of_the_real_step():
    module, draw = MODELS["lenet"]()
    found = estimate(module, cross_entropy, adam, draw(1), batch_size=4)
    inputs, targets = draw(4)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(module(inputs), targets).backward()
    assert found.flops_per_step == counter.get_total_flops()


def test_flops_of_a_fused_recurrent_layer_are_its_products():
    found = estimate(Recurrent("LSTM"), cross_entropy, adam, sequences(1), batch_size=6)
    per_step = 4 * 32 * (16 + 32) + 4 * 32 * (32 + 32)  # two layers, four gates each
    expected = 3 * 2 * 6 * 20 * per_step + 3 * 2 * 6 * 32 * 4
    assert found.flops_per_step == expected


class Model8TB(nn.Module):
    """A million features to two million: 8 TB of weights."""

    def __init__(self):
        super().__init__()
        self.huge = nn.Linear(1_000_000, 2_000_000, bias=False, device="meta")

    def forward(self, x):
        return self.huge(x)


def test_terabytes_are_measured_without_being_allocated():
    batch = torch.zeros(1, 1_000_000), torch.zeros(1, 2_000_000)
    before = psutil.Process().memory_info().rss
    found = estimate(Model8TB(), nn.MSELoss(), adam, batch, batch_size=1_000)
    large_batch = estimate(mlp(), cross_entropy, adam, mlp_batch(1), batch_size=10**10)
    assert psutil.Process().memory_info().rss - before < 200e6
    assert found.resident_bytes == pytest.approx(4 * 8e12, rel=1e-6)
    assert large_batch.peak_bytes > 4 * 10**10 * (32 + 64 + 10)


class Endless(nn.Module):
    """A loop that is longer than anybody waits for."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x):
        for _ in range(10**9):
            x = torch.tanh(self.linear(x))
        return x


def test_a_model_that_takes_too_long_to_trace_is_told_so(monkeypatch):
    monkeypatch.setattr(memory, "MAX_SECONDS", 0.5)
    with pytest.raises(SlowEstimateError, match=r"within 0\.5 s, only their first \d+ operators; .*fewer turns of its loops"):
        estimate(Endless(), cross_entropy, adam, mlp_batch(2), batch_size=8)


class Remembering(nn.Module):
    """Changes itself and draws random numbers in every way a user's forward may."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 10)
        self.norm = nn.BatchNorm1d(10)
        self.register_buffer("seen", torch.zeros(()))
        self.table = torch.arange(10.0)  # neither parameter nor buffer
        self.num_calls = 0
        self.last = None
        self.functional = nn.functional  # what deepcopy refuses
        self.lock = threading.Lock()
        self.generator = torch.Generator()
        self.linear.register_forward_hook(lambda _module, _inputs, output: output * 2)

    def forward(self, x):
        self.num_calls += 1
        self.seen += 1
        noise = random.random() + np.random.rand() + torch.rand((), generator=self.generator)  # noqa: NPY002
        self.last = self.norm(self.functional.dropout(self.linear(x) + self.table)) * noise
        return self.last


def test_nothing_given_and_no_generator_is_changed():
    module = Remembering().eval()
    reference = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    estimate(module, cross_entropy, adam, mlp_batch(2), batch_size=8)
    assert (module.num_calls, module.last, module.training, module.norm.training) == (0, None, False, False)
    torch.testing.assert_close(module.state_dict(), reference, rtol=0, atol=0)
    assert all(parameter.grad is None and type(parameter) is nn.Parameter for parameter in module.parameters())


def test_generators_stay_where_they_are():
    module = Remembering()
    batch = mlp_batch(2)
    torch_state, own_state = torch.get_rng_state(), module.generator.get_state()
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    estimate(module, cross_entropy, adam, batch, batch_size=8)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.equal(module.generator.get_state(), own_state)
    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


class Deciding(nn.Module):
    """Looks at values, which fake tensors do not have."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        hidden = self.body(x)
        return self.head(torch.tanh(hidden) if hidden.abs().sum() > 0 else hidden)


@pytest.mark.parametrize("batch_size", [3, 40, 1000])
def test_a_model_that_needs_values_is_extrapolated_from_small_real_steps(batch_size):
    module = Deciding()
    found = estimate(module, cross_entropy, adam, mlp_batch(3), batch_size=batch_size)
    true = truth(module, mlp_batch(batch_size), adam)
    assert found.peak_bytes == pytest.approx(true.peak_bytes, rel=0.1)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_real_steps_are_not_taken_when_the_model_alone_would_not_fit(monkeypatch):
    monkeypatch.setattr(memory, "host_memory", lambda: MemorySize(total_bytes=10_000, available_bytes=1_000))
    with pytest.raises(DoesNotFitError, match="1000 B are available"):
        estimate(Deciding(), cross_entropy, adam, mlp_batch(2), batch_size=8)


def test_a_model_that_needs_values_and_has_none_is_refused():
    with pytest.raises(RuntimeError):
        estimate(Deciding().to("meta"), cross_entropy, adam, mlp_batch(2), batch_size=8)


def test_a_mistake_of_the_model_is_told_in_its_own_words():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        estimate(nn.Linear(7, 2), cross_entropy, adam, mlp_batch(2), batch_size=8)


def test_sparse_gradients_are_counted():
    """Fake tensors cannot: real steps must."""
    module = nn.Sequential(nn.Embedding(1000, 16, sparse=True), nn.Flatten())

    def sparse_adam(parameters):
        return torch.optim.SparseAdam(list(parameters), lr=0.1)

    inputs, targets = tokens(5, 1000, 80)(2)
    found = estimate(module, cross_entropy, sparse_adam, (inputs, targets), batch_size=8)
    table_bytes = 4 * 1000 * 16
    gradient_bytes = 8 * 5 * (8 + 4 * 16)  # an index and a row for each token
    assert found.resident_bytes == 3 * table_bytes + gradient_bytes


def test_views_of_one_storage_count_once():
    module = nn.Conv2d(3, 4, 3)
    storage = torch.zeros(1000)
    module.register_buffer("left", storage[:500])
    module.register_buffer("whole", storage)
    inputs, _ = images(3, 8)(1)
    found = estimate(module, nn.MSELoss(), sgd_with_momentum, (inputs, torch.zeros(1, 4, 6, 6)), batch_size=2)
    assert found.resident_bytes == 3 * 4 * (4 * 27 + 4) + 4 * 1000
