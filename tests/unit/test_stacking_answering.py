"""Stacks that answer: equal to each model alone, as they are and as exported modules that PyTorch alone runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fusion.stacking.answering import answering, export, set_member
from fusion.stacking.choices import Choices, Repeated
from fusion.stacking.errors import NotStackableError
from fusion.stacking.stack import stack
from tests.unit.answering_models import CASES, NUM_MEMBERS, alone, another, assert_near, logits, make_members, rows
from tests.zoo import Inputs, call

NAMES = sorted(CASES)


def own_inputs(inputs: Inputs, count: int) -> tuple[list[Inputs], Inputs]:
    """Return other samples for each member, apart and in one tensor each."""
    apart = [rows(inputs, count, shift) for shift in range(NUM_MEMBERS)]
    return apart, torch.utils._pytree.tree_map(lambda *each: torch.stack(each), *apart)


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_answers_as_each_model_alone(name):
    models, case = make_members(name)
    many = stack(models)
    apart, _ = own_inputs(case.inputs, 4)
    with torch.no_grad():
        for _ in range(2):  # the second time nothing is measured
            assert_near(logits(many.each(apart)), torch.stack(alone(models, apart)))
            shared = case.inputs
            found = many(**shared) if isinstance(shared, dict) else many(shared)
            assert_near(logits(found), torch.stack(alone(models, [shared] * NUM_MEMBERS)))


@pytest.mark.parametrize("one_input", [True, False], ids=["one input", "own inputs"])
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_stack_read_back_answers_as_each_model_alone_at_any_batch_size(name, one_input, tmp_path):
    models, case = make_members(name)
    samples = case.inputs[:, :5] if name == "lstm" else case.inputs  # each time step is traced
    _, together = own_inputs(samples, 4)
    choices = Choices(("loop",) if one_input else ("grouped", "one cell for all members"))  # both ways, nothing measured
    exported = export(stack(models, choices=choices), samples if one_input else together, one_input=one_input)
    torch.export.save(exported.program, tmp_path / "stack.pt2")
    module = torch.export.load(tmp_path / "stack.pt2").module()
    assert exported.batch is None
    for count in (4, 7, 1):
        apart, together = own_inputs(samples, count)
        if one_input:
            apart, together = [apart[0]] * NUM_MEMBERS, apart[0]
        with torch.no_grad():
            found = call(module, together)
        assert_near(logits(found), torch.stack(alone(models, apart)))


#: Loads an archive where nothing but PyTorch can be imported.
TORCH_ALONE = """
import sys
import torch
module = torch.export.load(sys.argv[1]).module()
inputs, wanted = torch.load(sys.argv[2])
torch.testing.assert_close(module(**inputs)["logits"], wanted, rtol=1e-5, atol=1e-5)
assert not {"fusion", "unified", "transformers"} & set(sys.modules)
"""


def test_the_archive_needs_torch_alone(tmp_path: Path):
    models, case = make_members("bert")
    torch.export.save(export(stack(models), case.inputs, one_input=True).program, tmp_path / "stack.pt2")
    torch.save((case.inputs, torch.stack(alone(models, [case.inputs] * NUM_MEMBERS))), tmp_path / "wanted.pt")
    command = [sys.executable, "-P", "-c", TORCH_ALONE, str(tmp_path / "stack.pt2"), str(tmp_path / "wanted.pt")]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_archive_holds_nobodys_samples():
    models, case = make_members("mlp")
    program = export(stack(models), case.inputs, one_input=True).program
    (args, kwargs) = program.example_inputs
    assert all(not tensor.any() for tensor in (*args, *kwargs.values()))


def test_a_member_of_an_exported_stack_gets_other_weights():
    models, case = make_members("lenet")
    module, other = answering(stack(models), case.inputs, one_input=True), another(models[0], 50)
    assert dict(module.state_dict()).keys() == models[0].state_dict().keys()
    set_member(module, 1, other.state_dict())
    models[1] = other.eval()
    with torch.no_grad():
        assert_near(module(case.inputs), torch.stack(alone(models, [case.inputs] * NUM_MEMBERS)))
    with pytest.raises(KeyError, match=r"missing .*conv1.bias.* unknown .*x"):
        set_member(module, 1, {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"fc2.bias has shape \(2,\), not \(10,\)"):
        set_member(module, 1, {**other.state_dict(), "fc2.bias": torch.zeros(2)})


def test_an_exported_stack_can_be_exported_again_and_copied():
    models, case = make_members("lenet")
    module = answering(stack(models), case.inputs, one_input=True)
    again = torch.export.export(module, (case.inputs,), strict=False).module()
    with torch.no_grad():
        assert torch.equal(again(case.inputs), module(case.inputs))


def test_exporting_changes_nothing_and_takes_the_measured_ways():
    models, case = make_members("plain convolutions")
    many = stack([model.train() for model in models], choices=Choices(("loop",)))
    states = [state.clone() for state, _ in many.random.states()]
    exported = export(many, case.inputs, one_input=True)
    assert many.training
    assert many.template.value.module.training
    assert all(torch.equal(old, new) for old, (new, _) in zip(states, many.random.states(), strict=True))
    targets = [str(node.target) for node in exported.program.graph.nodes]
    assert targets.count("aten.conv2d.default") == 2 * NUM_MEMBERS
    assert ("conv2d", "loop", 2) in exported.ways


def test_what_was_chosen_is_chosen_again_and_the_first_where_it_is_not_there():
    repeated = Repeated(Choices(("fast",)))
    variants = {"plain": torch.relu, "fast": torch.relu}
    assert repeated.pick("relu", variants, [torch.zeros(2)]) == "fast"
    repeated.repeat()
    assert repeated.pick("tanh", variants, [torch.zeros(2)]) == "plain"
    assert repeated.pick("relu", variants, [torch.zeros(2)]) == "fast"
    assert repeated.pick("relu", variants, [torch.zeros(2)]) == "plain"
    repeated.repeat()
    assert repeated.pick("relu", {"plain": torch.relu}, [torch.zeros(2)]) == "plain"


class Odd(nn.Module):
    """Does what cannot be exported with any batch size, or not at all."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(3, 3)
        self.register_buffer("table", torch.arange(4.0).unsqueeze(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.kind == "draws":
            return x + torch.randn(3)
        if self.kind == "fixed":
            return x + self.table
        if self.kind == "branches" and bool(self.linear.weight.sum() > -1e9):
            return x.relu()
        return x


def odd(kind: str) -> list[nn.Module]:
    torch.manual_seed(0)
    return [Odd(kind).eval() for _ in range(NUM_MEMBERS)]


def test_a_model_of_one_batch_size_is_exported_with_that():
    models, x = odd("fixed"), torch.randn(4, 3)
    exported = export(stack(models), x, one_input=True)
    assert exported.batch == 4
    assert list(exported.program.module().state_dict()) == ["linear.weight", "linear.bias"]
    assert_near(exported.program.module()(x), torch.stack(alone(models, [x] * NUM_MEMBERS)))


def test_what_cannot_be_exported_says_why():
    x = torch.randn(4, 3)
    with pytest.raises(NotStackableError, match="draws random numbers"):
        export(stack(odd("draws")), x, one_input=True)
    with pytest.raises(NotStackableError, match="PyTorch cannot trace the model"):
        export(stack(odd("branches")), x, one_input=True)


def test_tied_weights_stay_tied_and_are_swapped_under_both_names():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids))

    torch.manual_seed(0)
    models = [Tied().eval() for _ in range(NUM_MEMBERS)]
    ids, other = torch.randint(0, 7, (4, 5)), Tied().eval()
    module = answering(stack(models), ids, one_input=True)
    assert list(module.state_dict()) == ["embed.weight", "head.weight"]
    set_member(module, 2, other.state_dict())
    assert_near(module(ids), torch.stack(alone([*models[:2], other], [ids] * NUM_MEMBERS)))


@pytest.mark.parametrize("is_shared", [True, False], ids=["one input", "own inputs"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["norm first", "norm last"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_pytorchs_fused_encoder_layer_runs_once_for_all(activation, norm_first, is_shared):
    """What an exported model in evaluation mode calls, on the very operator."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, activation=activation, norm_first=norm_first)
    models: list[nn.Module] = [Fused(another(layer, seed).eval()) for seed in range(NUM_MEMBERS)]
    inputs = [torch.randn(4, 5, 8) for _ in range(NUM_MEMBERS)]
    inputs = [inputs[0]] * NUM_MEMBERS if is_shared else inputs
    many = stack([model.eval() for model in models])
    with torch.no_grad():
        found = many(inputs[0]) if is_shared else many.each(inputs)
    assert_near(found, torch.stack(alone(models, inputs)))
    assert is_shared or "_transformer_encoder_layer_fwd" not in {name for name, _, _ in many.explain()}


class Fused(nn.Module):
    """An encoder layer as one call of PyTorch's fused operator."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer, attention = self.layer, self.layer.self_attn
        return torch._transformer_encoder_layer_fwd(
            x, attention.embed_dim, attention.num_heads,
            attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias,
            layer.activation_relu_or_gelu == 2, layer.norm_first, layer.norm1.eps,
            layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias,
            layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias, None, None,
        )  # fmt: skip
