"""Models and their blocks: outputs, training steps, names, ties; what a user model looks like afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

import unified
from fusion.graph.block import BlockSequence
from fusion.graph.errors import CaptureError
from fusion.graph.feature import Layout
from fusion.graph.parse import parse
from tests.unit import parsed_models as models


@pytest.fixture(scope="module", params=models.ZOO)
def case(request) -> tuple[nn.Module, Callable[[int], Any], BlockSequence]:
    """A model, a maker of inputs, and its blocks; not to be changed."""
    return models.taken_apart(request.param)


def call(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def steps(model: nn.Module, inputs: Any, number: int = 2) -> None:
    """Train as a user would."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for seed in range(number):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        torch.stack([output.square().mean() for output in tensors(call(model, inputs))]).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_blocks_give_what_the_model_gives_at_any_batch(case, batch):
    model, inputs, sequence = case
    expected, found = call(model, inputs(batch)), call(sequence, inputs(batch))
    assert len(tensors(expected)) == len(tensors(found))
    for left, right in zip(tensors(expected), tensors(found), strict=True):
        assert torch.equal(left, right)  # the same operators in the same order


def test_training_steps_move_parameters_and_buffers_as_in_the_model(case):
    model, inputs, sequence = case
    alone, taken_apart = copy.deepcopy(model).train(), copy.deepcopy(sequence).train()
    steps(alone, inputs(4))
    steps(taken_apart, inputs(4))
    state = taken_apart.state_dict()
    for name, value in alone.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_state_dict_is_the_models(case):
    model, inputs, sequence = case
    own = model.state_dict()
    assert list(sequence.state_dict()) == list(own)
    other = copy.deepcopy(sequence)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(own)
    for left, right in zip(tensors(call(model, inputs(3))), tensors(call(other, inputs(3))), strict=True):
        assert torch.equal(left, right)


def test_parameters_are_the_models_own_and_stand_under_their_names(case):
    model, _, sequence = case
    named = dict(model.named_parameters(remove_duplicate=False))
    assert {id(parameter) for parameter in sequence.parameters()} == {id(parameter) for parameter in model.parameters()}
    for block in sequence.blocks:
        for name, parameter in block.named_parameters():
            assert named[name] is parameter
        assert block.capacity == sum(parameter.numel() for parameter in block.parameters())


def test_features_are_what_flows_between_the_blocks(case):
    _, inputs, sequence = case
    flat = sequence.signature.flatten(inputs(3))
    features = sequence.features(flat)
    assert len(features) == len(sequence.blocks)
    for index, (block, feature) in enumerate(zip(sequence.blocks, features, strict=True)):
        assert tuple(feature.shape[1:]) == block.input.shape
        assert str(feature.dtype) == f"torch.{block.input.dtype}"
        assert block.index == index
    value = sequence.blocks[-1](features[-1], *(flat[need] for need in sequence.blocks[-1].needs))
    for left, right in zip(tensors(value), tensors(sequence.run(flat)), strict=True):
        assert torch.equal(left, right)


def test_a_block_does_not_write_into_what_it_takes(case):
    _, inputs, sequence = case
    flat = sequence.signature.flatten(inputs(3))
    for mode in (False, True):
        chain = copy.deepcopy(sequence).train(mode)
        for block, feature in zip(chain.blocks, chain.features(flat), strict=True):
            before = feature.clone()
            block(feature, *(flat[need] for need in block.needs))
            assert torch.equal(feature, before), block.name


def test_copies_keep_ties_and_hold_no_fake_tensors(case):
    model, _, sequence = case
    for original in (sequence, sequence.blocks[0]):
        twin = copy.deepcopy(original)
        assert len(list(twin.parameters())) == len(list(original.parameters()))
        assert not any(isinstance(tensor, FakeTensor) for tensor in [*twin.parameters(), *twin.buffers()])
        assert not {id(parameter) for parameter in twin.parameters()} & {id(parameter) for parameter in model.parameters()}
    nodes = [node for block in sequence.blocks for program in block.programs for node in program.graph.nodes]
    assert all(not node.meta for node in nodes)


def test_residual_blocks_are_blocks_and_attention_and_mlp_are_two():
    _, _, resnet = models.taken_apart("resnet")
    assert [block.name for block in resnet.blocks] == ["stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc"]
    assert [block.op_type for block in resnet.blocks] == ["conv"] * 5 + ["linear"]
    assert {block.input.layout for block in resnet.blocks} == {Layout.CHW, Layout.VEC}
    _, _, vit = models.taken_apart("vit")
    assert [block.op_type for block in vit.blocks] == ["conv", *["attention", "linear"] * 2, "linear"]
    assert [block.input.layout for block in vit.blocks[1:-1]] == [Layout.TOK] * 4


def test_masks_are_needed_beside_and_tied_weights_count_once():
    _, _, sequence = models.taken_apart("text")
    needs = {block.op_type: block.needs for block in sequence.blocks}
    assert needs["attention"] == (1,)
    assert sequence.blocks[0].needs == ()
    assert sequence.signature.names == ("input_ids", "attention_mask")
    assert sequence.signature.primary == 0
    assert sequence.blocks[0].words.weight is sequence.blocks[-1].head.weight


def test_the_users_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = models.StochasticDepth().train()
    model.layers[0].eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = {name: id(value) for name, value in vars(model).items()}
    random_state = torch.get_rng_state()
    sequence = parse(model, models.rows(1))
    assert sequence.training
    assert (model.training, model.layers[0].training, model.layers[1].training) == (True, False, True)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert {name: id(value) for name, value in vars(model).items()} == attributes
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_model_with_other_outputs_in_training_keeps_those_of_evaluation():
    model = models.AuxiliaryHead()
    sequence = parse(model, models.images(), name="X")
    assert any(note.startswith("train() forward of 'X' has other outputs; using the eval graph") for note in sequence.notes)
    assert any("does not use its parameters aux.weight, aux.bias" in note for note in sequence.notes)
    norm = model.body[1]
    output = sequence.train()(models.images())
    assert isinstance(output, Tensor)
    assert norm.num_batches_tracked == 1  # batch norm still trains
    torch.testing.assert_close(norm.running_mean, 0.1 * model.body[0](models.images()).mean((0, 2, 3)))  # another kernel's sum


def test_several_float_inputs_need_a_primary_one():
    inputs = {"picture": models.rows(), "table": models.rows(width=5)}
    with pytest.raises(CaptureError, match=r"ambiguous primary input of 'X'; pass primary=<name>.*picture, table"):
        parse(models.TwoTowers(), inputs, name="X")
    with pytest.raises(CaptureError, match="primary='sound' is no input"):
        parse(models.TwoTowers(), inputs, primary="sound")
    sequence = parse(models.TwoTowers(), tuple(inputs.values()), primary=1)
    assert [block.needs for block in sequence.blocks][:3] == [(), (), (0,)]  # the other tower runs where it is needed


def test_blocks_are_joined_down_to_the_number_wanted():
    model = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)) for _ in range(6)])
    assert len(parse(model, models.rows()).blocks) == 12
    sequence = parse(model, models.rows(), max_blocks=8)
    assert [block.name for block in sequence.blocks] == ["0", "1", "2", "3", "4", "5"]
    assert torch.equal(sequence(models.rows()), model(models.rows()))


def test_a_model_of_the_archive_can_be_taken_apart(tmp_path):
    torch.manual_seed(0)
    model = models.ResNet().eval()
    unified.export(model, models.images(), tmp_path / "model.umodel")
    loaded = unified.load_umodel(tmp_path / "model.umodel").eval()
    sequence = parse(loaded, models.images())
    assert [block.name for block in sequence.blocks] == ["stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc"]
    assert torch.equal(sequence(models.images(3)), model(models.images(3)))
    alone, taken_apart = copy.deepcopy(model).train(), copy.deepcopy(sequence).train()
    steps(alone, models.images())
    steps(taken_apart, models.images())
    assert all(torch.equal(value, taken_apart.state_dict()[name]) for name, value in alone.state_dict().items())


@pytest.mark.parametrize("is_dynamic", [True, False])
def test_an_exported_program_can_be_taken_apart_whatever_its_batch(is_dynamic):
    torch.manual_seed(0)
    model = models.ViT().eval()
    shapes = ({0: torch.export.Dim.AUTO},) if is_dynamic else None
    program = torch.export.export(model, (models.images(),), dynamic_shapes=shapes, strict=False)
    sequence = parse(program, models.images(), name="X").eval()
    assert torch.equal(sequence(models.images(7)), model(models.images(7)))
    note = "captured for batch 4; generalised 5 literals; check at batch 8 passed"
    assert (note in sequence.notes) is not is_dynamic
    assert list(sequence.state_dict()) == list(model.state_dict())


def test_names_of_a_users_modules_may_be_ours():
    class Clashing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input, self.output, self.name, self.forward_ = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.forward_(self.name(self.output(self.input(x))))

    model = Clashing()
    sequence = parse(model, models.rows())
    assert list(sequence.state_dict()) == list(model.state_dict())
    assert [block.name for block in sequence.blocks] == ["input", "output", "name", "forward_"]
    assert torch.equal(sequence(models.rows()), model(models.rows()))


def test_inputs_that_do_not_fit_the_signature_are_refused():
    _, _, sequence = models.taken_apart("text")
    with pytest.raises(ValueError, match="expected the inputs input_ids, attention_mask, got the inputs input_ids"):
        sequence(input_ids=models.sentences()["input_ids"])
    with pytest.raises(ValueError, match="expected the inputs input_ids, attention_mask, got 1"):
        sequence(models.sentences()["input_ids"])
