"""The separated copy equals its source bit for bit and is its owner's own."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from separator.separate import Separated, SeparationError, separate
from separator.verify import differing_outputs, verify, verify_outputs
from tests.unit.separable_models import MODULES, Net, Oddities, conv_net, language_model, snapshot

each_module = pytest.mark.parametrize("build", MODULES)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# ---- separate ----


@each_module
def test_the_copy_equals_the_state_dict_bit_for_bit_in_names_and_order(build):
    module = build()
    separated = separate(module)
    assert list(separated.state_dict) == list(module.state_dict())
    assert snapshot(separated.state_dict) == snapshot(module.state_dict())
    assert verify(separated, module) == []


@each_module
def test_nothing_that_happens_to_the_module_reaches_the_copy(build):
    module = build()
    separated = separate(module)
    before = snapshot(separated.state_dict)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.untyped_storage().fill_(0)
    assert snapshot(separated.state_dict) == before


@each_module
def test_the_module_is_left_as_it_was(build):
    module = build()
    before = snapshot(module.state_dict())
    own = [(id(tensor), tensor.requires_grad, tensor.grad) for tensor in module.parameters()]
    random_state = torch.get_rng_state()
    separated = separate(module)
    for tensor in separated.state_dict.values():
        tensor.zero_()
    assert snapshot(module.state_dict()) == before
    assert [(id(tensor), tensor.requires_grad, tensor.grad) for tensor in module.parameters()] == own
    assert torch.equal(torch.get_rng_state(), random_state)


@each_module
def test_copies_share_storage_only_where_names_are_tied(build):
    separated = separate(build())
    tied = {name for names in separated.ties for name in names[1:]}
    storages = [t.untyped_storage().data_ptr() for n, t in separated.state_dict.items() if n not in tied and t.numel()]
    assert len(set(storages)) == len(storages)
    for tensor in separated.state_dict.values():  # no slice keeps a bigger storage alive
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_tied_names_hold_the_same_tensor():
    separated = separate(language_model())
    assert separated.ties == (("wte.weight", "again.weight", "head.weight"),)
    assert separated.state_dict["head.weight"] is separated.state_dict["wte.weight"]
    # what merely overlaps, the transpose of a weight or a row of it, is not tied
    assert separate(Oddities()).ties == (("count", "also_count", "view_of_count"),)


def test_the_copy_has_no_gradients_and_no_hooks():
    module = conv_net()
    calls = []
    module.head.weight.register_hook(calls.append)
    separated = separate(module)
    for tensor in separated.state_dict.values():
        assert type(tensor) is Tensor
        assert not tensor.requires_grad
        assert tensor.grad is None
    separated.state_dict["head.weight"].requires_grad_().sum().backward()
    assert calls == []


def test_a_fresh_module_takes_the_copy_and_gives_the_same_outputs():
    for build, inputs in ((conv_net, torch.randn(2, 3, 6, 6)), (language_model, torch.randint(11, (2, 4)))):
        module = build()
        fresh = type(module)()
        fresh.load_state_dict(separate(module).state_dict, strict=True)
        assert verify_outputs(module, fresh, inputs) == []


def test_one_member_of_many_is_copied_alone():
    hybrid = nn.ModuleDict({"a": conv_net(), "b": language_model()})
    separated = separate(hybrid["a"])
    assert list(separated.state_dict) == list(Net().state_dict())


class WithExtraState(nn.Linear):
    def get_extra_state(self):
        return {"anything": 1}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (WithExtraState(1, 1), "'_extra_state': expected a dense tensor with data, got a dict"),
        (nn.Linear(1, 1, device="meta"), "'weight': expected a dense tensor with data, got a tensor on meta"),
    ],
)
def test_what_is_not_a_dense_tensor_with_data_is_refused_by_name(module, message):
    with pytest.raises(SeparationError) as caught:
        separate(module)
    assert message in str(caught.value)


def test_sparse_buffers_are_refused_by_name():
    module = nn.Module()
    module.register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(SeparationError, match=r"'graph': expected a dense tensor .*sparse_coo"):
        separate(module)


# ---- verify ----


def spoiled(separated: Separated, name: str, tensor: Tensor) -> Separated:
    return replace(separated, state_dict={**separated.state_dict, name: tensor})


def test_every_kind_of_difference_is_found():
    module = conv_net()
    separated = separate(module)
    weight, bias = separated.state_dict["head.weight"], separated.state_dict["head.bias"]
    changed = weight.clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(9.0))
    assert verify(spoiled(separated, "head.weight", changed), module) == ["head.weight: 1 of 32 elements differ"]
    assert verify(spoiled(separated, "head.weight", weight.t()), module) == ["head.weight: expected shape (4, 8), got (8, 4)"]
    assert verify(spoiled(separated, "head.bias", bias.double()), module) == [
        "head.bias: expected torch.float32, got torch.float64"
    ]
    assert verify(spoiled(separated, "head.bias", module.head.bias.detach()), module) == [
        "head.bias: shares storage with the module"
    ]
    assert verify(spoiled(separated, "head.bias", nn.Parameter(bias)), module) == ["head.bias: not a plain tensor on the CPU"]
    assert verify(spoiled(separated, "more", bias.clone()), module) == ["more: unexpected"]
    fewer = {name: tensor for name, tensor in separated.state_dict.items() if name != "head.bias"}
    assert verify(replace(separated, state_dict=fewer), module) == ["head.bias: missing"]
    backwards = dict(reversed(separated.state_dict.items()))
    [problem] = verify(replace(separated, state_dict=backwards), module)
    assert problem.startswith("order: expected ['conv.weight', 'conv.bias'")


def test_bits_are_compared_not_values():
    module = nn.Module()
    module.register_buffer("x", torch.tensor([float("nan"), 0.0]))
    separated = separate(module)
    assert verify(separated, module) == []
    separated.state_dict["x"][1] = -0.0
    assert verify(separated, module) == ["x: 1 of 2 elements differ"]


def test_lost_and_invented_ties_are_found():
    module = language_model()
    separated = separate(module)
    untied = spoiled(separated, "head.weight", separated.state_dict["head.weight"].clone())
    assert [problem.partition(":")[0] for problem in verify(untied, module)] == ["ties"]
    twins = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm1d(3)])
    invented = spoiled(copies := separate(twins), "1.weight", copies.state_dict["0.weight"])
    assert [problem.partition(":")[0] for problem in verify(invented, twins)] == ["ties"]


class Restless(nn.Module):
    """Draws numbers in eval mode, counts its calls in a buffer, replaces another, and writes to its input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("latest", torch.zeros(3))

    def forward(self, x):
        self.calls += 1
        self.latest = x.mean(0)
        x.add_(1)
        return self.frozen(self.layer(x)) + torch.rand(3) + self.calls


def test_comparing_outputs_leaves_everything_as_it_was():
    original = Restless()
    restored = copy.deepcopy(original)
    inputs, buffers = torch.randn(4, 3), dict(original.named_buffers())
    before, random_state, given = snapshot(original.state_dict()), torch.get_rng_state(), inputs.clone()
    assert verify_outputs(original, restored, inputs) == []
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(inputs, given)
    assert snapshot(original.state_dict()) == before
    assert all(buffer is buffers[name] for name, buffer in original.named_buffers())
    assert (original.training, original.layer.training, original.frozen.training) == (True, True, False)
    assert all(parameter.grad is None for parameter in original.parameters())


def test_outputs_that_differ_are_found():
    original = conv_net()
    restored = copy.deepcopy(original)
    inputs = torch.randn(2, 3, 6, 6)
    assert verify_outputs(original, restored, inputs) == []
    assert verify_outputs(original, restored, (inputs,)) == verify_outputs(original, restored, {"x": inputs}) == []
    with torch.no_grad():
        restored.head.bias[3] += 1e-3
    assert verify_outputs(original, restored, inputs) == ["output: 2 of 8 elements differ"]


def test_modules_are_compared_in_eval_mode():
    layer = nn.Linear(3, 64)
    assert verify_outputs(nn.Sequential(layer, nn.Dropout(0.5)), nn.Sequential(layer, nn.Dropout(0.1)), torch.ones(3)) == []


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None


class Cache:
    def __init__(self, *layers: Tensor):
        self.layers = list(layers)
        self.itself = self


@pytest.mark.parametrize(
    ("expected", "given", "problems"),
    [
        (Output(torch.ones(2)), Output(torch.ones(2)), []),
        (
            Output(torch.ones(2)),
            Output(torch.ones(2), ()),
            ["output.hidden: missing", "output.hidden (type): unexpected"],
        ),
        ({"a": [torch.zeros(1)]}, {"a": [torch.ones(1)]}, ["output['a'][0]: 1 of 1 elements differ"]),
        (Cache(torch.ones(1)), Cache(torch.zeros(1)), ["output.layers[0]: 1 of 1 elements differ"]),
        (Cache(torch.ones(1)), Cache(torch.ones(1)), []),
        (
            (torch.ones(1),),
            [torch.ones(1)],
            ["output (type): expected 'builtins.tuple', got 'builtins.list'"],
        ),
        ((torch.ones(1), 2), (torch.ones(1),), ["output[1]: missing"]),
        ({"loss": float("nan"), "n": 3}, {"loss": float("nan"), "n": 3}, []),
        ({"n": 3}, {"n": 4}, ["output['n']: expected 3, got 4"]),
        (0.0, -0.0, ["output: expected 0.0, got -0.0"]),
        (None, torch.ones(1), ["output: expected a NoneType, got a Tensor"]),
        (torch.eye(2).to_sparse(), torch.eye(2).to_sparse(), []),
        (torch.eye(2).to_sparse(), torch.ones(2, 2).to_sparse(), ["output: 2 of 4 elements differ"]),
    ],
)
def test_outputs_of_any_structure_are_compared(expected, given, problems):
    assert differing_outputs(expected, given) == problems


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_separated_to_the_cpu():
    module = language_model().cuda()
    module.body.flatten_parameters()
    separated = separate(module)
    assert {tensor.device.type for tensor in separated.state_dict.values()} == {"cpu"}
    assert verify(separated, module) == []
    assert verify_outputs(module, copy.deepcopy(module), torch.randint(11, (2, 4)).cuda()) == []
