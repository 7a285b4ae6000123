"""What export accepts and stores without in-place writes, and what it refuses, naming PyTorch's reason and the user's line."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from unified.errors import ExportError
from unified.submission.operators import COUNTER, STATISTICS
from unified.submission.umodel_read import load_umodel
from unified.submission.umodel_write import export


class Model(nn.Module):
    """A linear layer, two buffers, and a ``forward`` made of a function of (model, x)."""

    def __init__(self, body: Callable[[Model, Tensor], object]) -> None:
        super().__init__()
        self.body = body
        self.linear = nn.Linear(6, 6)
        self.register_buffer("average", torch.zeros(6))
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


def updates_average(m: Model, x: Tensor) -> Tensor:
    y = m.linear(x) + m.average
    with torch.no_grad():
        m.average.mul_(0.9).add_(y.mean(0), alpha=0.1)
        m.count += 1
    return y + m.average


def assigns_buffers(m: Model, x: Tensor) -> Tensor:
    y = m.linear(x) * m.average  # the backward pass needs what the buffer held
    m.average = 0.9 * m.average + 0.1 * y.detach().mean(0)
    m.count = m.count + 1
    m.count += 1
    return y


def sets_items(m: Model, x: Tensor) -> Tensor:
    y = m.linear(x).clone()
    y[:, 0] = 1.0
    y[:, 1:3] = y[:, 3:5]
    y[y > 0.5] = 0.25
    return torch.cat([y, y.t()[:2].t()], dim=1)


def writes_through_views(m: Model, x: Tensor) -> Tensor:
    y = torch.zeros(x.size(0), 6) + torch.arange(6)
    whole = y.view(-1, 2, 3)
    whole.permute(2, 0, 1)[0].add_(1)
    first, second = y.split(3, dim=1)
    second *= 2
    first.unsqueeze(1).transpose(0, 1).neg_()
    y.t_()
    return m.linear(x) * y.t() + whole.flatten(1)


def draws_in_place(m: Model, x: Tensor) -> Tensor:
    y = m.linear(x)
    if m.training:
        keep = x.new_empty((x.shape[0], 1)).bernoulli_(0.5).div_(0.5)
        y = y * keep + torch.empty_like(y).uniform_(-0.1, 0.1) + torch.empty(6).normal_()
    return F.dropout(y, 0.3, m.training, inplace=True)


def keeps_an_alias(m: Model, x: Tensor) -> Tensor:
    y = m.linear(x)
    z = F.dropout(y, 0.5, m.training)  # in evaluation, y itself
    z += 1
    return y + z


def mixes_types(m: Model, x: Tensor) -> Tensor:
    y = m.linear(x)
    mask = (y > 0) & (y < 1) | (y > 2)
    mask &= y > 0.1
    y = y + 0
    y += torch.arange(6)
    y.mul_(mask.double())
    return y * ~mask


def checks_its_sizes(m: Model, x: Tensor) -> Tensor:
    torch._check(x.size(0) * 2 - 1 >= 1)
    return m.linear(x)


def runs_regions(m: Model, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.linear(x)
    with torch.no_grad():
        z = m.linear(y.float())
    with torch.autocast("cpu", enabled=False):
        return m.linear(y.float()) + z


def reckons_with_sizes(m: Model, x: Tensor) -> Tensor:
    half = max(x.size(0) // 2, 1)
    return m.linear(x).view(x.size(0), 2, -1).sum(1).repeat(1, 2) * (half / 2) + x.new_zeros(6)


def discards_a_draw(m: Model, x: Tensor) -> Tensor:
    F.dropout(x, 0.5, m.training)
    return F.dropout(m.linear(x), 0.5, m.training)


BODIES = [
    updates_average,
    assigns_buffers,
    sets_items,
    writes_through_views,
    draws_in_place,
    keeps_an_alias,
    mixes_types,
    checks_its_sizes,
    runs_regions,
    reckons_with_sizes,
    discards_a_draw,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_stored_without_in_place_writes(body, tmp_path):
    torch.manual_seed(0)
    eager = Model(body)
    loaded = load_umodel(export(eager, torch.randn(4, 6), tmp_path / "model.umodel"))
    for graph in loaded._umodel.graphs.values():
        written = [node.op for node in graph.nodes if node.op.split(".")[1].endswith("_")]
        assert set(written) <= {COUNTER}
    for size in (4, 7, 1, 2, 4):
        x, outcomes = torch.randn(size, 6), []
        for model in (eager.train(), loaded.train()):
            torch.manual_seed(size)
            model.zero_grad()
            output = model(x)
            output.sum().backward()
            buffers = [buffer.clone() for buffer in model.buffers()]
            outcomes.append([output, model.get_parameter("linear.weight").grad, *buffers])
        assert all(torch.equal(*pair) for pair in zip(*outcomes, strict=True))
        assert torch.equal(eager.eval()(x), loaded.eval()(x))


WRITES: list[Callable[[Tensor], object]] = [
    lambda t: t.mul_(2),
    lambda t: t.add_(1),
    lambda t: t.neg_(),
    lambda t: t.zero_(),
    lambda t: t.fill_(3),
    lambda t: t.copy_(torch.ones(())),
    lambda t: t.clamp_(-8, 8),
]
VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t[0],
    lambda t: t[-1:],
    lambda t: t[::2],
    lambda t: t.transpose(0, -1),
    lambda t: t.unsqueeze(0),
    lambda t: t.flatten() if t.is_contiguous() else t,
    lambda t: t.chunk(2)[0],
    lambda t: t.unbind()[0],
    lambda t: t.diagonal() if t.ndim == 2 else t,
    lambda t: t.detach(),
    lambda t: t.permute(*reversed(range(t.ndim))),
    lambda t: t.clone(),
]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 99), st.integers(0, 99)), min_size=2, max_size=8))
def test_any_program_of_views_and_writes_gives_what_it_gives_in_place(tmp_path_factory, program):
    def body(m: Model, x: Tensor) -> Tensor:
        values = [torch.arange(24.0).view(4, 6) + 1]
        for is_write, which, target in program:
            value = values[target % len(values)]
            if is_write or value.ndim == 0 or 1 in value.shape:
                WRITES[which % len(WRITES)](value)
            else:
                values.append(VIEWS[which % len(VIEWS)](value))
        return m.linear(x) + torch.stack([value.sum() + value.flatten()[0] for value in values]).sum()

    eager = Model(body)
    x = torch.randn(3, 6)
    loaded = load_umodel(export(eager, x, tmp_path_factory.mktemp("views") / "model.umodel"))
    assert torch.equal(loaded(x), eager(x))


def branches(m: Model, x: Tensor) -> Tensor:
    y = m.linear(x)
    if y.sum() > 0:
        return y
    return -y


def reads_a_value(m: Model, x: Tensor) -> Tensor:
    return m.linear(x) * x.sum().item()


def fixes_the_batch(m: Model, x: Tensor) -> Tensor:
    return m.linear(x).reshape(4, -1)


def branches_on_one(m: Model, x: Tensor) -> Tensor:
    return m.linear(x) if x.size(0) > 1 else -m.linear(x)


def branches_on_many(m: Model, x: Tensor) -> Tensor:
    return m.linear(x) if x.size(0) < 100 else -m.linear(x)


def clamps_its_weight(m: Model, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.linear.weight.clamp_(-1, 1)
    return m.linear(x)


def draws_in_python(m: Model, x: Tensor) -> Tensor:
    return m.linear(x) * random.random()


def draws_in_numpy(m: Model, x: Tensor) -> Tensor:
    return m.linear(x) * np.random.rand()  # noqa: NPY002


def shuffles(m: Model, x: Tensor) -> Tensor:
    order = list(range(40))
    random.shuffle(order)
    return m.linear(x) * order[0]


def finds_nonzero(m: Model, x: Tensor) -> Tensor:
    found = torch.nonzero(x > 0)
    return m.linear(x) + found.sum()


def returns_an_object(m: Model, x: Tensor) -> object:
    return object()


def returns_no_tensor(m: Model, x: Tensor) -> object:
    return {"size": 3}


def has_an_error(m: Model, x: Tensor) -> Tensor:
    return m.linear(x[:, :3])


class Tripled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


def has_its_own_gradient(m: Model, x: Tensor) -> Tensor:
    return Tripled.apply(m.linear(x))


REFUSED = {
    branches: r"data-dependent(.|\n)*test_umodel_export\.py:\d+ in branches: if y\.sum\(\) > 0:(.|\n)*torch\.where",
    reads_a_value: r"aten\.item\.default.* does not return tensors(.|\n)*\.py:\d+ in forward: return self\.body",
    finds_nonzero: r"aten\.nonzero\.default.* size depends on the data(.|\n)*\.py:\d+ in forward: return self\.body",
    fixes_the_batch: r"specialized it to be a constant \(4\)(.|\n)*batch size must stay free",
    branches_on_one: r"a batch of 1, output 0 differs",
    branches_on_many: r"a batch of 100, output 0 differs",
    clamps_its_weight: r"writes to parameter 'linear\.weight' with aten\.clamp_",
    draws_in_python: r"output 0 differs(.|\n)*Python or NumPy at .*\.py:\d+ in draws_in_python: return m\.linear",
    draws_in_numpy: r"output 0 differs(.|\n)*Python or NumPy at .*\.py:\d+ in draws_in_numpy: return m\.linear",
    shuffles: r"output 0 differs(.|\n)*random numbers of Python or NumPy at .*\.py:\d+ in shuffles: random\.shuffle",
    returns_an_object: r"forward returns a object; return tensors",
    returns_no_tensor: r"returns no tensor",
    has_an_error: r"test_umodel_export\.py:\d+ in has_an_error: return m\.linear",
    has_its_own_gradient: r"weight differs(.|\n)*a custom torch\.autograd\.Function at .*return Tripled\.apply",
}


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: body.__name__)
def test_refused_with_its_reason(body, tmp_path):
    with pytest.raises(ExportError, match=REFUSED[body]):
        export(Model(body), torch.randn(4, 6), tmp_path / "model.umodel")
    assert list(tmp_path.iterdir()) == []


def overlapping() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    return model


def badly_named() -> nn.Module:
    model = nn.Linear(4, 4)
    model.register_parameter("grüße", nn.Parameter(torch.zeros(1)))
    return model


def with_nan() -> nn.Module:
    model = nn.Linear(4, 4)
    nn.init.constant_(model.bias, float("nan"))
    return model


def complex_buffer() -> nn.Module:
    model = nn.Linear(4, 4)
    model.register_buffer("phases", torch.zeros(2, dtype=torch.complex64))
    return model


class ExtraState(nn.Linear):
    def get_extra_state(self) -> int:
        return 3

    def set_extra_state(self, state: int) -> None:
        pass


MODELS = {
    "share memory but are not the same": overlapping,
    "name 'grüße' cannot be stored": badly_named,
    "of finite values": with_nan,
    "not just its parameters and persistent buffers.*_extra_state": lambda: ExtraState(4, 4),
    "no shape yet: call the model once": lambda: nn.LazyLinear(4),
    "is of type torch.complex64": complex_buffer,
}


@pytest.mark.parametrize("message", MODELS)
def test_models_that_cannot_be_stored(message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(MODELS[message](), torch.randn(4, 4), tmp_path / "model.umodel")


EXAMPLES = {
    "no example inputs": (),
    "is a float; only tensors": (torch.randn(4, 4), 3.0),
    r"has shape \(\); its first dimension must be a batch": torch.tensor(1.0),
    "different batch sizes": {"input": torch.randn(4, 4), "other": torch.randn(3, 4)},
    "is of type torch.complex64": torch.randn(4, 4).to(torch.complex64),
}


@pytest.mark.parametrize("message", EXAMPLES)
def test_examples_that_are_no_batches(message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(nn.Linear(4, 4), EXAMPLES[message], tmp_path / "model.umodel")


def test_a_single_sample_is_example_enough(tmp_path):
    loaded = load_umodel(export(nn.Linear(4, 4), torch.randn(1, 4), tmp_path / "model.umodel"))
    assert loaded(torch.randn(9, 4)).shape == (9, 4)


def test_padded_nested_tensors_are_explained(tmp_path):
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=mask)

    mask = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
        with pytest.raises(ExportError, match="enable_nested_tensor=False"):
            export(Padded(), (torch.randn(3, 5, 8), mask), tmp_path / "model.umodel")


@pytest.mark.parametrize("need_weights", [True, False])
def test_fused_attention_of_evaluation_is_kept(need_weights, tmp_path):
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
            return self.attention(x, x, x, need_weights=need_weights)

    eager, x = Attention(), torch.randn(3, 5, 8)
    loaded = load_umodel(export(eager, x, tmp_path / "model.umodel")).eval()
    assert "aten._native_multi_head_attention.default" in [node.op for node in loaded._umodel.graphs["eval"].nodes]
    with torch.no_grad():
        expected, got = eager.eval()(x), loaded(x)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1]) if need_weights else got[1] is None


def test_statistics_are_the_only_operators_that_write(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    loaded = load_umodel(export(model, torch.randn(4, 1, 5, 5), tmp_path / "model.umodel"))
    ops = [node.op for node in loaded._umodel.graphs["train"].nodes]
    assert ops == ["aten.conv2d.default", COUNTER, next(iter(STATISTICS)), "aten.relu.default"]
