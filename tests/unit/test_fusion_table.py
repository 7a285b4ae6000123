"""The cost table: sums of what was measured once, and the model that stands in for what was not."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given

from fusion.graph.errors import FusionError
from fusion.graph.feature import Layout, adapter_capacity, adapter_flops
from fusion.graph.rescale import Rescale
from fusion.search.absgraph import AdapterId, BlockId, Graph, Space, capacities, flops, original
from fusion.search.build import build, space_of
from fusion.search.linear_model import fit_linear
from fusion.search.measuring import AdapterTimer, measure_table
from fusion.search.mutation import Pair, mutate
from fusion.search.table import AdapterKind, Conditions, Cost, CostTable
from fusion.search.working_memory import working_bytes
from tests.unit.fused_trees import PlainSequence, small_cnn
from tests.unit.fusion_graphs import SIZES, a_space, graphs, wander

CONDITIONS = Conditions(device="cpu", num_threads=1, dtype="float32", batch_size=2)


def cost(seconds: float, working: int = 0) -> Cost:
    return Cost(seconds=seconds, iqr_seconds=0.0, working_bytes=working)


def block_seconds(block: BlockId) -> float:
    return 1e-3 * (1 + block.task) + 1e-5 * block.op


def law(kind: AdapterKind) -> float:
    """What an adapter takes on a machine whose cost is a fixed one, one per operation and one per byte."""
    moved = 2 * (math.prod(kind.source.shape) + math.prod(kind.target.shape)) + adapter_capacity(*kind)
    return 2e-6 + 2 * adapter_flops(*kind) * 3e-11 + moved * 4 * 5e-10


def table_of(space: Space, *, kinds: dict[AdapterKind, Cost] | None = None, step_seconds: float = 0.0) -> CostTable:
    known = [BlockId(task, op) for task, ops in enumerate(space.blocks) for op in range(len(ops))]
    blocks = {block: cost(block_seconds(block)) for block in known}
    return CostTable(space, conditions=CONDITIONS, blocks=blocks, adapters=kinds or {}, step_seconds=step_seconds)


def all_kinds() -> list[AdapterKind]:
    return [AdapterKind(source, target) for source in SIZES for target in SIZES if source != target]


@given(graphs())
def test_a_graph_costs_the_sum_of_its_nodes(graph: Graph) -> None:
    table = table_of(graph.space, step_seconds=1e-6)
    table.attach(lambda kind: cost(law(kind)))
    expected = 0.0
    for node in graph.nodes():
        if isinstance(node.id, BlockId):
            expected += block_seconds(node.id) + 1e-6
        elif isinstance(node.id, AdapterId):
            expected += table.adapter(node.id).seconds + 1e-6
    assert table.predict(graph) == pytest.approx(expected, rel=1e-9)  # the order of the sum differs
    assert table.flops(graph) == flops(graph)
    assert table.parameters(graph) == capacities(graph).total


def test_an_adapter_is_measured_once_and_when_it_is_first_asked_for() -> None:
    space = a_space(3, 3)
    graph, _ = wander(original(space), random.Random(3), 2)
    while not graph.adapters():
        graph, _ = wander(graph, random.Random(4), 1)
    asked: list[AdapterKind] = []

    def measure(kind: AdapterKind) -> Cost:
        asked.append(kind)
        return cost(0.25)

    table = table_of(space)
    table.attach(measure)
    table.predict(original(space))
    assert asked == []
    seconds = table.predict(graph)
    assert len(asked) == len(set(asked)) > 0
    assert table.predict(graph) == seconds == table_of(space, kinds=table.adapters).predict(graph)
    assert len(asked) == len(table.adapters)


def test_a_table_that_is_read_back_predicts_the_same_and_measures_nothing(tmp_path: Path) -> None:
    space = a_space(3, 4)
    table = table_of(space, kinds={kind: cost(law(kind), 7) for kind in all_kinds()[::2]}, step_seconds=2e-6)
    table.save(tmp_path / "table.json")
    read = CostTable.load(tmp_path / "table.json")
    assert read.to_json() == table.to_json()
    for seed in range(20):
        graph, _ = wander(original(space), random.Random(seed), 3)
        assert read.predict(graph) == table.predict(graph)
        assert read.predicted_adapters(graph) == table.predicted_adapters(graph)


def test_an_adapter_that_was_not_measured_is_predicted_by_the_others_and_named() -> None:
    space = a_space(4, 4)
    known, unknown = all_kinds()[::2], all_kinds()[1::2]
    table = table_of(space, kinds={kind: cost(law(kind)) for kind in known})
    checked = 0
    for seed in range(40):
        graph, _ = wander(original(space), random.Random(seed), 3)
        for adapter in graph.adapters():
            kind = AdapterKind(space.boundary(adapter.source), space.info(adapter.target).input)
            if kind.source == kind.target:
                continue
            assert (adapter in table.predicted_adapters(graph)) == (kind in unknown)
            assert table.adapter(adapter).seconds == pytest.approx(law(kind), rel=1e-6)  # the law is one that the model can be
            checked += kind in unknown
    assert checked > 0


def test_without_any_adapter_blocks_say_what_work_costs() -> None:
    space = a_space(3, 3)
    graph = mutate(original(space), Pair(BlockId(0, 1), BlockId(1, 2)))
    [adapter] = graph.adapters()
    seconds = table_of(space).adapter(adapter).seconds
    assert 0 < seconds < 10 * block_seconds(BlockId(1, 2))  # the blocks' costs follow no law; it is of their order
    assert table_of(space).predicted_adapters(graph) == [adapter]


def test_fitted_costs_are_never_negative() -> None:
    model = fit_linear([(1.0, 5.0), (2.0, 3.0), (3.0, 1.0)], [3.0, 2.0, 1.0])  # the first kind of work seems to save time
    assert model.fixed >= 0
    assert all(slope >= 0 for slope in model.slopes)
    assert model((0.0, 4.0)) == pytest.approx(2.5, rel=0.2)


def test_a_table_without_the_cost_of_a_block_is_refused() -> None:
    with pytest.raises(FusionError, match=r"BlockId\(task=0, op=1\) has none"):
        CostTable(a_space(2), conditions=CONDITIONS, blocks={BlockId(0, 0): cost(1.0)}, adapters={})


def test_a_table_of_another_format_is_refused() -> None:
    data = table_of(a_space(2, 2)).to_json() | {"format": 99}
    with pytest.raises(FusionError, match="format 1, got 99; measure it anew"):
        CostTable.from_json(data)


def test_memory_is_parameters_and_the_largest_moment() -> None:
    space = a_space(2, 2, features=[SIZES[0], SIZES[1]])
    sizes = {BlockId(0, 0): 50_000, BlockId(0, 1): 300, BlockId(1, 0): 20_000, BlockId(1, 1): 40_000}
    table = CostTable(
        space, conditions=CONDITIONS, blocks={block: cost(1.0, size) for block, size in sizes.items()}, adapters={}
    )
    boundary = 2 * 8 * 16 * 16 * 4  # two samples between the blocks of a model
    first = original(space)
    assert table.memory(first) == 4 * capacities(first).total + boundary + 40_000
    shared = mutate(first, Pair(BlockId(0, 1), BlockId(1, 1)))  # the second answer after the first, the feature kept for it
    assert table.memory(shared) == 4 * capacities(shared).total + boundary + 40_000


def models() -> tuple[list[PlainSequence], Space, list[torch.Tensor]]:
    sequences = [small_cnn("age", 0), small_cnn("mood", 1)]
    inputs = [torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))]
    return sequences, space_of(sequences, [[10] * len(sequence.blocks) for sequence in sequences]), inputs


def measured(batch_size: int = 2, stored: dict | None = None) -> tuple[CostTable, torch.Generator]:
    sequences, space, inputs = models()
    generator = torch.Generator().manual_seed(0)
    table = measure_table(space, sequences, inputs, batch_size=batch_size, max_seconds=0.5, generator=generator, stored=stored)
    return table, generator


def test_the_measured_table_gives_the_time_of_the_original_back() -> None:
    table, _ = measured()
    assert table.original_seconds is not None
    assert table.predict(original(table.space)) == pytest.approx(table.original_seconds, rel=1e-6)  # by construction
    assert table.blocks.keys() == {BlockId(task, op) for task in (0, 1) for op in range(5)}
    assert all(entry.seconds > 0 and entry.working_bytes > 0 for entry in table.blocks.values())
    assert table.adapters
    assert all(entry.seconds > 0 for entry in table.adapters.values())
    assert table.conditions == replace(CONDITIONS, batch_size=2)


def test_a_stored_table_is_taken_where_it_holds_and_measured_anew_where_not() -> None:
    table, _ = measured()
    stored = json.loads(json.dumps(table.to_json()))
    again, generator = measured(stored=stored)
    assert again.to_json() == table.to_json()
    untouched = torch.Generator().manual_seed(0).get_state()
    assert torch.equal(generator.get_state(), untouched)  # nothing was made to be measured
    other, generator = measured(batch_size=5, stored=stored)
    assert other.conditions.batch_size == 5
    assert not torch.equal(generator.get_state(), untouched)


def test_measuring_leaves_models_and_random_states_alone() -> None:
    sequences, space, inputs = models()
    sequences[0].train()
    modes = [part.training for sequence in sequences for part in sequence.modules()]
    before = [parameter.clone() for sequence in sequences for parameter in sequence.parameters()]
    state = torch.get_rng_state()
    measure_table(space, sequences, inputs, batch_size=1, max_seconds=0.2, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for sequence in sequences for part in sequence.modules()] == modes
    after = [parameter for sequence in sequences for parameter in sequence.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def adapter_bytes(kind: AdapterKind, batch_size: int) -> int:
    adapter = Rescale(*kind, generator=torch.Generator(), has_map=kind.source == kind.target or None)
    with torch.no_grad():
        return working_bytes(adapter, [torch.zeros(batch_size, *kind.source.shape)])[1]


def test_an_adapter_can_be_measured_when_it_is_asked_for() -> None:
    kind = AdapterKind(SIZES[1], SIZES[2])
    found = AdapterTimer(batch_size=3, device=torch.device("cpu"), generator=torch.Generator())(kind)
    assert found.seconds > 0
    assert found.working_bytes == adapter_bytes(kind, 3)


def test_predicted_memory_is_what_a_tree_takes() -> None:
    sequences, space, inputs = models()
    table = measure_table(space, sequences, inputs, batch_size=3, max_seconds=0.3, generator=torch.Generator())
    table.attach(lambda kind: cost(1.0, adapter_bytes(kind, 3)))
    for seed in range(12):
        graph, _ = wander(original(space), random.Random(seed), 2)
        tree = build(graph, sequences, seed=0).eval()
        with torch.no_grad():
            outputs, peak = working_bytes(tree, inputs)
        activations = table.memory(graph) - 4 * capacities(graph).total
        answers = sum(4 * output.numel() for output in outputs.values())  # those that are there already are not counted
        assert peak - answers <= activations
        if all(space.boundary(adapter.source).layout is not Layout.VEC for adapter in graph.adapters()):
            assert activations <= peak  # a map that is made of a vector takes no room of its own


def test_no_sample_to_measure_with_is_refused() -> None:
    sequences, space, inputs = models()
    with pytest.raises(FusionError, match="at least one sample"):
        measure_table(space, sequences, [inputs[0][:0]], batch_size=1, max_seconds=0.2, generator=torch.Generator())
