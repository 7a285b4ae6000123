"""Verification: what differs is named, work is not done twice, and the notes say what a user should know."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from fusion.graph.capture import capture
from fusion.graph.captured import plain
from fusion.graph.cuts import analyze
from fusion.graph.errors import CaptureError
from fusion.graph.extract import spans
from fusion.graph.kinds import Kind
from fusion.graph.normalize import normalize
from fusion.graph.operators import packet
from fusion.graph.parse import parse
from fusion.graph.verify import Plan, check_outputs, check_partition
from tests.unit import parsed_models as models


def plan_of(model: nn.Module, inputs: Tensor) -> Plan:
    """Cut a model behind each heavy operator's activation."""
    captured = capture(model, (inputs,), None, training=False, label="X")
    normalize(captured)
    analysis = analyze(captured, 0)
    chosen = [cut for cut in analysis.cuts[:-1] if packet(cut) != "linear"]
    return Plan(analysis=analysis, spans=spans(analysis, chosen))


def test_equal_blocks_pass_and_the_first_that_differs_is_named():
    torch.manual_seed(0)
    model = models.small_mlp()
    sequence = parse(model, models.rows(), name="X")
    plan = plan_of(model, models.rows())
    check_outputs(lambda batch: plain(model(*batch)), sequence, (models.rows(),), plan, is_exact=True)
    other = models.small_mlp()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other[2].weight.add_(1)
    changed = parse(other, models.rows(), name="X")
    with pytest.raises(CaptureError, match=r"differs from model 'X' by [\d.]+ at output 0; first differing block: 2"):
        check_outputs(lambda batch: model(*batch), changed, (models.rows(),), plan, is_exact=True)


def test_work_that_is_done_twice_is_refused_even_if_outputs_are_equal():
    torch.manual_seed(0)
    model = models.small_mlp()
    sequence = parse(model, models.rows(), name="X")
    plan = plan_of(model, models.rows())

    def wasteful(batch: tuple[Tensor, ...]) -> Tensor:
        model(*batch)
        return model(*batch)

    with pytest.raises(CaptureError, match=r"the blocks of model 'X' make \d+ FLOPs where it makes \d+; partition rejected"):
        check_outputs(wasteful, sequence, (models.rows(),), plan, is_exact=True)


def test_a_heavy_operator_in_two_blocks_is_refused_by_name():
    class Conditioned(nn.Module):
        """What is looked up for a raw input is used by both layers."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.other = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(5, 6)

        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            other = self.other(table)
            return self.second(torch.relu(self.first(x) + other)) + other

    captured = capture(Conditioned(), (models.rows(), models.rows(width=5)), None, training=False, label="X")
    normalize(captured)
    analysis = analyze(captured, 0)
    shared = next(node for node in analysis.order if node.meta["path"] == "other")
    assert analysis.last_use[shared] == len(analysis.order) - 1
    assert len(analysis.cuts) == 2  # before it and behind its last use
    middle = next(node for node in analysis.order if packet(node) == "relu")
    # taken for a cheap value beside the path, it would be computed in both blocks
    kinds = {**analysis.kinds, shared: Kind.SIDE}
    order = [node for node in analysis.order if node is not shared]
    wrong = dataclasses.replace(analysis, kinds=kinds, order=order)
    with pytest.raises(CaptureError, match=r"parameter other\.\w+ is used by blocks a and b but once in the model"):
        check_partition(Plan(analysis=wrong, spans=spans(wrong, [middle])), ["a", "b"])


def test_tables_of_positions_may_be_looked_up_in_several_blocks():
    class Relative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.table = nn.Embedding(3, 6)

        def forward(self, x: Tensor) -> Tensor:
            bias = self.table(torch.arange(3)).mean(0)
            return self.second(torch.relu(self.first(x) + bias)) + bias

    torch.manual_seed(0)
    model = Relative()
    sequence = parse(model, models.rows())
    assert [sorted(dict(block.named_parameters())) for block in sequence.blocks] == [
        ["first.bias", "first.weight", "table.weight"],
        ["second.bias", "second.weight", "table.weight"],
    ]
    gradients = []
    for module in (model, sequence):
        model.zero_grad()
        module(models.rows()).square().sum().backward()
        gradients.append(model.table.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])  # the blocks' shares are added in another order


def test_few_boundaries_and_what_stays_alive_are_told():
    (note,) = models.taken_apart("lstm")[2].notes
    assert note == "model 'lstm': only 2 shareable boundaries (largest block 100% of FLOPs: lstm)"

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.last = nn.Linear(6, 8), models_chain(), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            return self.last(torch.cat([self.middle(x), x], 1))

    def models_chain() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())

    note = parse(Skips(), models.rows(), name="X").notes[0]
    assert note == (
        "model 'X': only 2 shareable boundaries (largest block 62% of FLOPs: middle) because values forward.relu stay alive"
    )


def test_values_that_fold_the_batch_are_told():
    notes = parse(models.Folding(), torch.randn(4, 5, 6), name="X").notes
    assert "value linear folds the batch into other dimensions; not shareable" in notes
    assert sum("folds the batch" in note for note in notes) == 3  # where one does, all behind it do


def test_a_model_that_writes_into_its_input_does_not_write_into_the_users():
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2.0)
            x[:, 0] = 1.0
            return self.head(torch.relu(self.first(x)))

    model = Writes()
    example = models.rows()
    sequence = parse(model, example)
    assert torch.equal(example, models.rows())
    found = sequence(example)
    assert torch.equal(example, models.rows())
    assert torch.equal(found, model(models.rows()))
