"""Captures: both modes, any batch, the texts of refusals, and models that are hard to copy."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from fusion.graph.capture import at_batch, capture
from fusion.graph.captured import from_program, kept_apart, plain
from fusion.graph.errors import CaptureError
from fusion.graph.parse import parse
from tests.unit import parsed_models as models


def operators(model: nn.Module, inputs: Tensor, *, training: bool = False) -> list[str]:
    captured = capture(model, (inputs,), None, training=training, label="X")
    return [str(node.target) for node in captured.graph.nodes if node.op == "call_function"]


def test_each_mode_is_captured_whatever_the_mode_of_the_model():
    model = models.StochasticDepth()
    for mode in (True, False):
        model.train(mode)
        assert "aten.bernoulli_.float" in operators(model, models.rows(), training=True)
        assert "aten.bernoulli_.float" not in operators(model, models.rows())
        assert model.training is mode


def test_tensors_are_the_models_under_its_names_and_inputs_come_in_order():
    model = models.TextModel()
    captured = capture(model, tuple(models.sentences().values()), tuple(models.sentences()), training=False, label="X")
    assert captured.tensors["words.weight"] is model.words.weight
    assert len(captured.inputs) == 2
    assert captured.output == {"logits": 0}  # what holds no tensor is left out
    paths = {node.meta["path"] for node in captured.graph.nodes if node.op == "call_function"}
    assert "layers.1.mlp.0" in paths  # the names of our wrapper are gone


def test_a_branch_on_values_is_refused_with_its_line():
    source = Path(models.__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if "the line that the message names" in text)
    with pytest.raises(CaptureError) as caught:
        capture(models.Branching(), (models.rows(),), None, training=False, label="X")
    assert str(caught.value) == (
        f"model 'X': forward branches on a tensor value at {models.__file__}:{line}; torch.export cannot capture it. "
        "Use torch.where or torch.cond, or move it out of forward"
    )


def test_an_error_of_the_model_is_told_with_its_line():
    with pytest.raises(CaptureError, match=r"model 'X': torch.export cannot capture its forward at .*: RuntimeError"):
        capture(models.small_mlp(), (models.rows(width=5),), None, training=False, label="X")


def test_inputs_without_a_batch_are_refused():
    with pytest.raises(CaptureError, match="no batch dimension"):
        capture(models.small_mlp(), (torch.tensor(1.0),), None, training=False, label="X")


def test_batches_are_made_of_the_samples_in_turn_and_other_inputs_stay():
    first, table = at_batch((torch.arange(3)[:, None], torch.ones(7, 2)), 5)
    assert first.flatten().tolist() == [0, 1, 2, 0, 1]
    assert table.shape == (7, 2)


def test_a_model_that_cannot_be_copied_is_still_left_as_it_was():
    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock, self.calls, self.last = threading.Lock(), 0, None
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = self.first(x)
            return self.second(torch.relu(self.last))

    model = Locked().train()
    sequence = parse(model, models.rows())
    assert (model.calls, model.last, model.training) == (0, None, True)
    assert torch.equal(sequence(models.rows()), model(models.rows()))


def test_a_module_that_is_reached_past_the_model_keeps_its_parameters():
    class Past(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = nn.Linear(6, 6)
            self.inner = inner
            self.apply_inner = lambda x: torch.relu(inner(x))  # no copy of the model reaches a copy of it
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.apply_inner(x))

    model = Past()
    sequence = parse(model, models.rows())
    assert sequence.blocks[0].capacity == 42
    assert sequence.blocks[0].inner.weight is model.inner.weight


def test_buffers_that_forward_replaces_are_updated_in_training():
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.head = nn.Linear(6, 6), nn.Linear(6, 2)
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            return self.head(torch.relu(x - self.mean))

    model = Average().train()
    sequence = copy.deepcopy(parse(model, models.rows()))
    assert torch.equal(model.mean, torch.zeros(6))
    for module in (model, sequence):
        for batch in (3, 4):
            module(models.rows(batch))
    assert torch.equal(sequence.state_dict()["mean"], model.mean)
    sequence.eval()(models.rows())
    assert torch.equal(sequence.state_dict()["mean"], model.mean)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # torch says so when it is captured
def test_lost_gradients_are_noticed():
    class Checkpointed(nn.Module):
        def __init__(self, *, always: bool) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.always = always

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            is_checkpointed = self.always or self.training
            x = checkpoint(self.second, x, use_reentrant=True) if is_checkpointed else self.second(x)
            return self.head(x)

    with pytest.raises(CaptureError, match=r"gives no gradient to first\.weight, the model does; .*use_reentrant=False"):
        parse(Checkpointed(always=True), models.rows(), name="X")
    (note,) = [note for note in parse(Checkpointed(always=False), models.rows(), name="X").notes if "train()" in note]
    assert note.startswith("train() forward of 'X' gives no gradient to first.bias; using the eval graph")


def test_a_frozen_part_gets_no_gradient_and_its_own_parameters_neither():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = models.small_mlp(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.body(x)
            return self.head(x)

    sequence = parse(Frozen(), models.rows())
    assert len(sequence.blocks) == 4
    sequence(models.rows()).sum().backward()
    assert {name for name, parameter in sequence.named_parameters() if parameter.grad is not None} == {
        "blocks.3.head.weight",
        "blocks.3.head.bias",
    }


def test_a_model_that_is_bound_to_its_batch_is_set_free():
    torch.manual_seed(0)
    model = models.BoundToBatch().eval()
    x = torch.randn(4, 5, 6)
    sequence = parse(model, x, name="X")
    assert "captured for batch 4; generalised 2 literals; check at batch 8 passed" in sequence.notes
    both = torch.cat([x, x.flip(0)])
    torch.testing.assert_close(sequence(both), torch.cat([model(x), model(x.flip(0))]))  # other sums in larger products


def test_a_model_whose_result_depends_on_the_batch_is_refused():
    with pytest.raises(CaptureError, match=r"block sequence differs from model 'X' by .* at output 0; first differing block"):
        parse(models.KnowsItsBatch(), models.rows(), name="X")


def test_constants_of_the_two_modes_do_not_mix():
    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = x * torch.tensor([2.0] * 6)
            return self.head(torch.relu(self.first(x)) + torch.tensor([0.5] * 6))

    captures = [capture(Constants(), (models.rows(),), None, training=mode, label="X") for mode in (False, True)]
    assert not captures[0].tensors.keys() >= kept_apart(captures[1], captures[0]).tensors.keys()
    torch.manual_seed(0)
    model = Constants()
    sequence = parse(model, models.rows())
    for mode in (True, False):
        assert torch.equal(sequence.train(mode)(models.rows()), model.train(mode)(models.rows()))


def test_plain_outputs_hold_only_tensors():
    class Record(dict[str, Any]):
        pass

    one = torch.ones(1)
    assert plain(Record(a=one, b=None, c={"d": object()})) == {"a": one}
    assert plain((one, None, [3])) == (one, None, None)
    assert plain("nothing") is None


def test_a_program_keeps_its_names_and_its_own_tensors():
    program = torch.export.export(models.small_mlp(), (models.rows(),), strict=False)
    captured = from_program(program)
    assert captured.static_batch == 4
    assert captured.tensors["0.weight"] is program.state_dict["0.weight"]
    assert isinstance(captured.graph, fx.Graph)
