"""A ``.umodel`` is the model: it trains bit for bit as the eager model does, for the whole zoo and at any batch size."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.zoo import ZOO, Case, LeNet, call, lenet, loss_of
from unified.errors import UnifiedError
from unified.submission.umodel_read import load_umodel, read_manifest
from unified.submission.umodel_write import export, rewrite_weights


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that exports a zoo model once per test session and gives (case, path)."""
    folder, made = tmp_path_factory.mktemp("zoo"), {}

    def get(name: str) -> tuple[Case, Path]:
        if name not in made:
            case = ZOO[name]()
            made[name] = case, export(case.model, case.inputs, folder / f"{name}.umodel")
        return made[name]

    return get


def train(model: nn.Module, case: Case, optimizer: str) -> list[Tensor]:
    """Train over the batches; return losses, then evaluation outputs' losses."""
    torch.manual_seed(7)
    chosen = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01)
    model.train()
    seen = []
    for inputs, target in case.batches:
        chosen.zero_grad()
        loss = loss_of(call(model, inputs), target)
        loss.backward()
        chosen.step()
        seen.append(loss.detach())
    model.eval()
    with torch.no_grad():
        return seen + [loss_of(call(model, inputs), target) for inputs, target in case.batches]


def assert_equal_tensors(one: nn.Module, other: nn.Module) -> None:
    for kind in ("state_dict", "named_parameters", "named_buffers"):
        ours, theirs = (dict(getattr(model, kind)()) for model in (one, other))
        assert list(ours) == list(theirs)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), kind
    assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in other.parameters()]


@pytest.mark.parametrize("name", ZOO)
def test_trains_bit_for_bit_as_the_eager_model(name, exported):
    case, path = exported(name)
    for optimizer in ("SGD", "Adam"):
        eager, loaded = copy.deepcopy(case.model), load_umodel(path)
        assert_equal_tensors(eager, loaded)
        expected, got = train(eager, case, optimizer), train(loaded, case, optimizer)
        assert all(torch.equal(*pair) for pair in zip(expected, got, strict=True))
        assert_equal_tensors(eager, loaded)


@pytest.mark.parametrize("name", ["bert", "lenet", "encoder"])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_equals_the_eager_model_under_autocast(name, precision, exported):
    case, path = exported(name)
    outcomes = []
    for model in (copy.deepcopy(case.model), load_umodel(path)):
        with torch.autocast("cpu", dtype=precision):
            outcomes.append(train(model, case, "SGD"))
    assert all(torch.equal(*pair) for pair in zip(*outcomes, strict=True))


def test_loads_into_the_original_class_and_back(exported):
    case, path = exported("lenet")
    loaded = load_umodel(path)
    train(loaded, case, "SGD")
    eager = LeNet()
    assert str(eager.load_state_dict(loaded.state_dict(), strict=True)) == "<All keys matched successfully>"
    fresh = load_umodel(path)
    fresh.load_state_dict(eager.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(case.inputs), eager.eval()(case.inputs))


def test_tensors_own_fresh_aligned_memory(exported):
    _, path = exported("gpt2")
    one, other = load_umodel(path), load_umodel(path)
    seen = set()
    for parameter in one.parameters():
        assert parameter.data_ptr() % 64 == 0
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        seen.add(parameter.data_ptr())
    assert len(seen) == len(list(one.parameters()))
    assert seen.isdisjoint(parameter.data_ptr() for parameter in other.parameters())


def test_ties_survive_training(exported):
    case, path = exported("gpt2")
    loaded = load_umodel(path)
    train(loaded, case, "Adam")
    assert loaded.get_parameter("lm_head.weight") is loaded.get_parameter("transformer.wte.weight")
    assert sum("lm_head.weight" in name for name in loaded.state_dict()) == 1


def test_a_manifest_tells_without_building(exported):
    case, path = exported("bert")
    manifest = read_manifest(path)
    assert [(i.name, i.shape, i.dtype) for i in manifest.inputs] == [
        ("input_ids", (12,), "int64"),
        ("attention_mask", (12,), "int64"),
    ]
    assert manifest.num_parameters == sum(p.numel() for p in case.model.parameters())
    assert manifest.torch == torch.__version__


def test_huggingface_outputs_become_dicts(exported):
    case, path = exported("gpt2")
    output = call(load_umodel(path), case.inputs)
    assert type(output) is dict
    assert list(output) == ["logits"]  # the cache, which is no tensor, stays behind


def test_export_is_deterministic_and_its_weights_are_safetensors(exported, tmp_path):
    case, path = exported("lenet")
    again = export(case.model, case.inputs, tmp_path / "again.umodel")
    assert again.read_bytes() == path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        stored = load_safetensors(archive.read("weights.safetensors"))
    expected = case.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stored.items())


def test_export_leaves_model_and_random_state_alone(tmp_path):
    case = lenet()
    case.model.eval()
    case.model.bn1.train()
    case.model.fc1.weight.grad = torch.ones_like(case.model.fc1.weight)
    before = copy.deepcopy(case.model)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    export(case.model, case.inputs, tmp_path / "lenet.umodel")
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    assert_equal_tensors(before, case.model)
    assert [m.training for m in before.modules()] == [m.training for m in case.model.modules()]
    assert (case.model.fc1.weight.grad == 1).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lenet.umodel"]


def test_rewritten_weights_keep_the_graphs(exported, tmp_path):
    case, path = exported("gpt2")
    trained = load_umodel(path)
    train(trained, case, "Adam")
    again = load_umodel(rewrite_weights(path, trained.state_dict(), tmp_path / "trained.umodel"))
    assert_equal_tensors(trained, again)
    expected, got = (train(model, case, "SGD") for model in (trained, again))
    assert all(torch.equal(*pair) for pair in zip(expected, got, strict=True))


def test_rewriting_refuses_what_does_not_fit(exported, tmp_path):
    _, path = exported("gpt2")
    state = load_umodel(path).state_dict()
    wrong = {
        "same names": {name: tensor for name, tensor in state.items() if "ln_f" not in name},
        "expected float32 of shape": state | {"transformer.ln_f.bias": torch.zeros(3)},
        "tied": state | {"lm_head.weight": state["lm_head.weight"] + 1},
    }
    for message, each in wrong.items():
        with pytest.raises(UnifiedError, match=message):
            rewrite_weights(path, each, tmp_path / "wrong.umodel")
    assert list(tmp_path.iterdir()) == []


class Shared(nn.Module):
    """Buffers that are shared, not persistent, and updated by assignment; a constant that is no buffer; a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.inner = nn.Sequential(nn.Linear(6, 6), self.norm, nn.Linear(6, 6))
        self.inner[0].requires_grad_(False)
        self.register_buffer("scale", torch.full((6,), 2.0), persistent=False)
        self.register_buffer("average", torch.zeros(6))
        self.same = nn.Module()
        self.same.register_buffer("average", self.average)
        self.offset = torch.arange(6.0)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.inner(self.norm(x)) * self.scale + self.offset + self.average
        if self.training:
            self.average.mul_(0.9).add_(hidden.detach().mean(0), alpha=0.1)
        return {"logits": hidden, "features": (hidden.tanh(), [x, None])}


def test_buffers_of_every_kind(tmp_path):
    torch.manual_seed(0)
    eager = Shared()
    path = export(eager, torch.randn(4, 6), tmp_path / "shared.umodel")
    loaded = load_umodel(path)
    assert_equal_tensors(eager, loaded)
    assert loaded.get_buffer("same.average") is loaded.get_buffer("average")
    assert loaded.get_buffer("norm.running_mean") is loaded.get_buffer("inner.1.running_mean")
    for size in (5, 2, 7, 3, 2):
        inputs = torch.randn(size, 6)
        outputs = []
        for model in (eager, loaded):
            model.zero_grad()
            output = model(inputs)
            (output["logits"].square().sum() + output["features"][0].sum()).backward()
            with torch.no_grad():
                for parameter in filter(lambda p: p.grad is not None, model.parameters()):
                    parameter -= 0.01 * parameter.grad
            outputs.append(output)
        assert torch.equal(outputs[0]["logits"], outputs[1]["logits"])
        assert type(outputs[1]["features"]) is tuple
        assert outputs[1]["features"][1][1] is None
        assert_equal_tensors(eager, loaded)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Embedding(5, 2)

    def forward(self, x: Tensor, *, ids: Tensor | None = None, scale: float = 2.0) -> tuple[Tensor, int]:
        return self.left(x) * scale + (0 if ids is None else self.right(ids)), x.size(0)


def test_inputs_are_given_as_to_the_original(tmp_path):
    model = TwoInputs()
    x, ids = torch.randn(4, 3), torch.randint(0, 5, (4,))
    loaded = load_umodel(export(model, {"x": x, "ids": ids}, tmp_path / "two.umodel"))
    expected = model(x, ids=ids)
    for output in (loaded(x, ids=ids), loaded(x=x, ids=ids), loaded(ids=ids, x=x)):
        assert torch.equal(output[0], expected[0])
        assert output[1] == 4
    for args, kwargs in [((x,), {}), ((x, ids), {}), ((), {"x": x, "id": ids}), ((x,), {"x": x, "ids": ids})]:
        with pytest.raises(TypeError, match="the inputs x, ids"):
            loaded(*args, **kwargs)
    with pytest.raises(ValueError, match=r"input 'x': expected shape \(batch, 3\), got \(4, 4\)"):
        loaded(torch.randn(4, 4), ids=ids)


def test_positional_inputs_in_a_tuple(tmp_path):
    bilinear = nn.Bilinear(3, 4, 2)
    inputs = torch.randn(4, 3), torch.randn(4, 4)
    loaded = load_umodel(export(bilinear, inputs, tmp_path / "bilinear.umodel"))
    assert torch.equal(loaded(*inputs), bilinear(*inputs))
    assert torch.equal(loaded(inputs[0], input2=inputs[1]), bilinear(*inputs))


def test_memory_formats_and_types_survive(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 2))
    model = model.to(memory_format=torch.channels_last).double()
    loaded = load_umodel(export(model, torch.randn(4, 3, 8, 8).double(), tmp_path / "last.umodel"))
    assert loaded.get_parameter("0.weight").stride() == model[0].weight.stride()
    assert loaded.get_parameter("0.weight").dtype == torch.float64


def test_a_loaded_module_can_be_copied_pickled_and_called_functionally(exported, tmp_path):
    case, path = exported("lenet")
    loaded = load_umodel(path).eval()
    expected = loaded(case.inputs)
    twin = copy.deepcopy(loaded)
    torch.save(loaded, tmp_path / "whole.pt")
    assert torch.equal(torch.load(tmp_path / "whole.pt", weights_only=False)(case.inputs), expected)
    with torch.no_grad():
        loaded.get_parameter("fc2.bias").add_(1)
    assert torch.equal(twin(case.inputs), expected)
    state = {name: torch.zeros_like(tensor) for name, tensor in twin.state_dict().items()}
    assert functional_call(twin, state, (case.inputs,)).abs().max() == 0
    assert torch.equal(twin(case.inputs), expected)


def test_to_moves_constants_and_what_is_created(tmp_path):
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.constant = torch.ones(3)

        def forward(self, x: Tensor) -> Tensor:
            made = torch.zeros(x.size(0), 3) + torch.arange(3, device=x.device) + torch.tensor([1.0, 2.0, 3.0])
            return self.linear(x) * self.constant + made

    loaded = load_umodel(export(Places(), torch.randn(2, 3), tmp_path / "places.umodel")).to("meta")
    assert loaded(torch.randn(5, 3, device="meta")).device.type == "meta"


def test_memory_is_let_go_as_early_as_in_the_eager_model(exported):
    class Alive(TorchDispatchMode):
        """Counts the bytes of tensors that live at once."""

        def __init__(self) -> None:
            super().__init__()
            self.now = self.peak = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, Tensor):
                    self.now += tensor.nbytes
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(tensor, self.free, tensor.nbytes)
            return result

        def free(self, size: int) -> None:
            self.now -= size

    case, path = exported("resnet18")
    peaks = []
    for model in (case.model, load_umodel(path)):
        model.eval()
        with torch.no_grad(), Alive() as alive:
            model(case.inputs)
        peaks.append(alive.peak)
    assert 0 < peaks[1] <= peaks[0]


def test_batch_normalisation_refuses_one_value_as_ever(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    loaded = load_umodel(export(model, torch.randn(4, 3), tmp_path / "norm.umodel"))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        loaded(torch.randn(1, 3))
    assert F.mse_loss(loaded.eval()(torch.ones(1, 3)), model.eval()(torch.ones(1, 3))) == 0


def test_reading_imports_neither_sympy_nor_the_compiler(exported):
    _, path = exported("gpt2")
    code = (
        "import sys, torch; from unified.submission.umodel_read import load_umodel\n"
        f"load_umodel({str(path)!r})(torch.zeros(2, 8, dtype=torch.long))\n"
        "print([m for m in sys.modules if m in {'sympy', 'torch._dynamo', 'torch._inductor', 'transformers'}])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
