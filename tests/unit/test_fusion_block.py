"""Blocks: their graphs, sizes and devices, the switches of training, keys."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from fusion.graph.block import Signature, register
from fusion.graph.capture import capture
from fusion.graph.errors import FusionError
from fusion.graph.feature import Feature, Layout
from fusion.graph.layout import layout_of
from fusion.graph.normalize import normalize
from fusion.graph.operators import packet
from fusion.graph.parse import parse
from fusion.graph.program import Program
from fusion.graph.toggles import align, get_argument, set_argument, switched_on
from tests.unit import parsed_models as models


def captured_twice(model: nn.Module, inputs: Tensor):
    found = [capture(model, (inputs,), None, training=mode, label="X") for mode in (False, True)]
    for captured in found:
        normalize(captured)
    return found


def node_of(graph: fx.Graph, name: str) -> fx.Node:
    return next(node for node in graph.nodes if packet(node) == name)


class Switched(nn.Module):
    """Every operator with a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=1)
        self.batch = nn.BatchNorm1d(4)
        self.instance = nn.InstanceNorm1d(4, track_running_stats=True)
        self.lstm = nn.LSTM(4, 4, 2, batch_first=True, dropout=0.2)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.instance(self.batch(self.conv(x)))
        y = self.drop(self.lstm(y.transpose(1, 2))[0])
        y = nn.functional.scaled_dot_product_attention(y, y, y, dropout_p=0.4 if self.training else 0.0)
        return self.head(y.mean(1))


def test_switches_are_found_by_their_names_in_the_schema():
    evaluation, training = captured_twice(Switched(), torch.randn(4, 3, 6))
    with_pairs, alone = switched_on(evaluation, training).graph, switched_on(evaluation, None).graph
    for graph in (with_pairs, alone):
        assert get_argument(node_of(graph, "batch_norm"), "training") is True
        assert get_argument(node_of(graph, "instance_norm"), "use_input_stats") is True
        assert get_argument(node_of(graph, "lstm"), "train") is True
        assert get_argument(node_of(graph, "lstm"), "dropout") == 0
        assert get_argument(node_of(graph, "dropout"), "train") is False
        assert get_argument(node_of(graph, "scaled_dot_product_attention"), "dropout_p") == 0
    assert get_argument(node_of(evaluation.graph, "batch_norm"), "training") is False  # the graph given is not changed
    assert sum(packet(node) == "add_" for node in with_pairs.nodes) == 1  # the counter of batches


def test_an_argument_is_set_where_it_stands():
    graph = fx.Graph()
    x = graph.placeholder("x")
    by_place = graph.call_function(torch.ops.aten.dropout.default, (x, 0.5, True))
    by_name = graph.call_function(torch.ops.aten.dropout.default, (x, 0.5), {"train": True})
    for node in (by_place, by_name):
        set_argument(node, "train", value=False)
        assert get_argument(node, "train") is False
    assert by_place.args == (x, 0.5, False)
    with pytest.raises(KeyError):
        get_argument(by_place, "training")


def test_a_frozen_norm_stays_frozen_in_training():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.frozen, self.free, self.head = (
                nn.Linear(6, 6),
                nn.BatchNorm1d(6),
                nn.BatchNorm1d(6),
                nn.Linear(6, 2),
            )

        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self.frozen.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.free(torch.relu(self.frozen(self.linear(x)))))

    sequence = copy.deepcopy(parse(Frozen(), models.rows())).train()
    sequence(models.rows())
    state = sequence.state_dict()
    assert (state["frozen.num_batches_tracked"], state["free.num_batches_tracked"]) == (0, 1)


def test_graphs_of_both_modes_are_aligned_past_what_only_one_has():
    evaluation, training = captured_twice(models.StochasticDepth(), models.rows())
    pairs = align(training, evaluation)
    assert len(pairs) == sum(node.op == "call_function" for node in evaluation.graph.nodes)
    assert all(left.target == right.target for left, right in pairs.items())


def test_constants_follow_the_device_of_the_feature():
    class MakesNew(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x + torch.arange(6, device=x.device) + torch.zeros(x.shape[0], 1, device=x.device))

    sequence = parse(MakesNew(), models.rows()).to("meta")
    assert sequence(models.rows().to("meta")).device.type == "meta"
    devices = [
        value for node in sequence.blocks[1].graph.nodes for value in node.kwargs.values() if isinstance(value, torch.device)
    ]
    assert devices == []


def test_sizes_are_told_from_the_blocks_own_input():
    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            batch = x.shape[0]
            y = torch.relu(self.first(x))
            folded = y.reshape(batch * 2, 3).repeat(2, 1)[: batch * 3 - batch]
            return self.second(folded.reshape(batch, 6) * ((batch + 5) // 2))

    model = Sizes()
    sequence = parse(model, models.rows())
    assert len(sequence.blocks) == 2
    for batch in (1, 2, 7):
        assert torch.equal(sequence(models.rows(batch)), model(models.rows(batch)))
    assert sequence.blocks[1].needs == ()


def test_layouts_are_told_by_who_takes_the_value():
    class Layouts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.seq = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Conv1d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.conv(x))  # chw
            z = self.linear(y.permute(0, 2, 3, 1) + 1)  # hwc
            tokens = self.linear(z.flatten(1, 2))  # tok
            return self.seq(tokens.transpose(1, 2)).mean(2)

    captured, _ = captured_twice(Layouts(), torch.randn(2, 3, 5, 5))
    found = {node.name: layout_of(node) for node in captured.graph.nodes if isinstance(node.meta.get("val"), Tensor)}
    inputs = captured.inputs[0].name
    assert (found[inputs], found["permute"], found["flatten"]) == (Layout.CHW, Layout.HWC, Layout.TOK)
    assert (found["transpose"], found["mean"]) == (Layout.OTHER, Layout.VEC)


def test_a_program_runs_on_the_tensors_of_whichever_module_it_is_called_for():
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("a.weight")
    graph.output(graph.call_function(torch.ops.aten.mul.Tensor, (x, weight)))
    program = Program(graph, {})
    homes = [nn.Module(), nn.Module()]
    for factor, home in zip((2.0, 3.0), homes, strict=True):
        register(home, "a.weight", nn.Parameter(torch.full((2,), factor)), is_persistent=True)
    assert [program(home, (torch.ones(2),))[0].item() for home in homes] == [2.0, 3.0]
    assert copy.deepcopy(program) is program


def test_buffers_outside_of_the_state_dict_stay_outside():
    home = nn.Module()
    register(home, "a.table", torch.ones(2), is_persistent=False)
    register(home, "a.mean", torch.ones(2), is_persistent=True)
    assert list(home.state_dict()) == ["a.mean"]
    assert dict(home.named_buffers()).keys() == {"a.table", "a.mean"}


def test_inputs_are_put_in_order():
    vector = Feature((2,), Layout.VEC)
    by_name = Signature(names=("a", "b"), features=(vector, vector), primary=0)
    one, two = torch.ones(1), torch.zeros(1)
    assert by_name.flatten({"b": two, "a": one}) == (one, two)
    assert by_name.flatten((one, two)) == (one, two)
    by_place = Signature(names=None, features=(vector,), primary=0)
    assert by_place.flatten(one) == (one,)
    with pytest.raises(FusionError, match="expected 1 positional inputs, got 2"):
        by_place.flatten((one, two))
    with pytest.raises(FusionError, match="expected 1 positional inputs, got the inputs a"):
        by_place.flatten({"a": one})


def test_a_sequence_can_be_exported():
    model, _, sequence = models.taken_apart("vit")
    shapes = (({0: torch.export.Dim.AUTO},),)
    program = torch.export.export(sequence, (models.images(),), dynamic_shapes=shapes, strict=False)
    assert torch.equal(program.module()(models.images(3)), model(models.images(3)))
