"""Cuts: the test against all paths, node classes and known cuts of models drawn by hand, segments and their levels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fusion.graph.capture import capture
from fusion.graph.coarsen import Segment, coarsen, segments
from fusion.graph.cuts import Analysis, analyze, dominating
from fusion.graph.kinds import Kind, find_primary
from fusion.graph.normalize import normalize
from fusion.graph.operators import packet
from tests.unit import parsed_models as models


def analysis_of(model: nn.Module, *inputs: Tensor, training: bool = False) -> Analysis:
    captured = capture(model, inputs, None, training=training, label="X")
    normalize(captured)
    return analyze(captured, find_primary(captured, "X", None))


def cuts(analysis: Analysis) -> list[str]:
    return [packet(node) for node in analysis.cuts]


def paths(successors: dict[int, list[int]], node: int, sink: int) -> Iterator[list[int]]:
    if node == sink:
        yield [node]
    for following in successors.get(node, []):
        yield from ([node, *rest] for rest in paths(successors, following, sink))


@given(st.integers(1, 8), st.data())
def test_cuts_are_the_nodes_on_every_path(size, data):
    pairs = [(source, target) for source in range(-1, size) for target in range(source + 1, size + 1)]
    edges = set(data.draw(st.lists(st.sampled_from(pairs), max_size=24)))
    for node in range(size):  # every node lies on some path
        edges.add((data.draw(st.integers(-1, node - 1)), node))
        edges.add((node, data.draw(st.integers(node + 1, size))))
    successors: dict[int, list[int]] = {}
    for source, target in edges:
        successors.setdefault(source, []).append(target)
    on_all = set(range(size))
    for path in paths(successors, -1, size):
        on_all &= set(path)
    assert dominating(size, sorted(edges)) == sorted(on_all)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.third(torch.cat([x, torch.relu(self.second(x))], 1))


def test_a_chain_can_be_cut_behind_every_operator():
    assert cuts(analysis_of(models.small_mlp(), models.rows())) == ["linear", "tanh", "linear", "tanh", "linear"]


def test_a_residual_is_closed_before_the_next_cut():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return torch.relu(x + torch.tanh(self.second(x)))

    assert cuts(analysis_of(Residual(), models.rows())) == ["linear", "add", "relu"]


def test_what_is_used_again_later_stays_alive():
    assert cuts(analysis_of(Dense(), models.rows())) == ["linear", "cat", "linear"]


def test_two_outputs_end_the_cuts_where_they_part():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.left, self.right = nn.Linear(6, 4), nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.relu(self.body(x))
            return self.left(x), self.right(x)

    assert cuts(analysis_of(Heads(), models.rows())) == ["linear", "relu"]


def test_the_path_of_ids_starts_at_their_embedding_and_masks_are_beside():
    analysis = analysis_of(models.TextModel(), *models.sentences().values())
    kinds = {kind: [packet(node) for node, found in analysis.kinds.items() if found is kind and packet(node)] for kind in Kind}
    assert packet(analysis.order[0]) == "embedding"
    assert kinds[Kind.CONST].count("embedding") == 1  # the table of positions
    assert {"gt", "unsqueeze"} <= set(kinds[Kind.SIDE])
    assert "embedding" not in kinds[Kind.SIDE]


def test_a_mask_joined_with_a_learned_bias_does_not_start_the_path():
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(30, 4), nn.Linear(4, 2)
            self.bias = nn.Parameter(torch.zeros(1))

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            weights = mask * self.bias
            return self.head(self.words(ids) * weights[..., None])

    ids, mask = models.sentences().values()
    analysis = analysis_of(Biased(), ids, mask)
    assert analysis.primary == 0
    assert cuts(analysis) == ["embedding", "mul", "linear"]


def test_a_batch_folded_into_other_dimensions_is_no_feature():
    analysis = analysis_of(models.Folding(), torch.randn(4, 5, 6))
    assert cuts(analysis) == ["reshape", "mean", "linear"]
    assert analysis.folded[0] == "linear"
    assert all(node.meta["val"].shape[0].node.expr.is_Symbol for node in analysis.cuts)


def test_random_draws_are_never_repeated_and_block_cuts_between_their_uses():
    class OneMask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.rand(6)
            return self.second(self.first(x) * mask) * mask

    analysis = analysis_of(OneMask(), models.rows())
    (draw,) = [node for node in analysis.kinds if packet(node) == "rand"]
    assert analysis.kinds[draw] is Kind.MAIN
    assert cuts(analysis) == ["mul"]


def test_a_second_tower_waits_until_it_is_needed():
    captured = capture(models.TwoTowers(), (models.rows(), models.rows(width=5)), None, training=False, label="X")
    normalize(captured)
    for primary, tower in ((0, "left"), (1, "right")):
        analysis = analyze(captured, primary)
        assert [node.meta["path"].split(".")[0] for node in analysis.cuts][:3] == [tower] * 3


def segment(path: str) -> Segment:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.ops.aten.linear.default, (x, x))
    return Segment(nodes=(node,), path=tuple(path.split(".")))


def test_light_segments_join_the_heavy_one_before():
    analysis = analysis_of(models.small_cnn(), models.images())
    fine = segments(analysis, analysis.cuts)
    assert [packet(part.nodes[-1]) for part in fine][:4] == ["conv2d", "batch_norm", "relu", "max_pool2d"]
    assert [part.name for part in coarsen(fine, 24)] == ["0", "4", "8"]


@pytest.mark.parametrize(
    ("num_layers", "max_blocks", "names"),
    [
        (3, 24, ["embed", *[f"layers.{index}.{part}" for index in range(3) for part in ("attention", "mlp")], "head"]),
        (12, 24, ["embed", *[f"layers.{index}" for index in range(12)], "head"]),
        (30, 24, ["embed", *["layers"] * 15, "head"]),
    ],
)
def test_levels_are_whole(num_layers, max_blocks, names):
    fine = [segment(f"layers.{index}.{part}") for index in range(num_layers) for part in ("attention", "mlp")]
    found = coarsen([segment("embed"), *fine, segment("head")], max_blocks)
    assert [part.name for part in found] == names
    assert len({len(part.nodes) for part in found[1:-1]}) == 1  # equal layers end as equal blocks


def test_a_flat_model_is_joined_in_equal_groups():
    found = coarsen([segment(str(index)) for index in range(50)], 24)
    assert [len(part.nodes) for part in found] == [3] * 16 + [2]
