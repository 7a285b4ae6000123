"""Layers of networks: the paper's algorithm on chains, the longest path where layers are skipped."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fusion.merging.layering import layering, layers_of, spaces_in_order
from fusion.merging.reading import read_network
from fusion.merging.union import unite
from tests.unit.merging_networks import ResNet, inputs_of, united


def literal(sources: dict[int, list[int]], outputs: set[int]) -> list[set[int]]:
    """Algorithm 1 of the paper, word for word."""
    follows = {vertex: {each for each, read in sources.items() if vertex in read} for vertex in sources}

    def after(layer: set[int]) -> set[int]:
        return {each for vertex in layer for each in follows[vertex]}

    layers = [{vertex for vertex, read in sources.items() if not read}]
    while after(layers[-1]) != outputs:
        kept = {vertex for vertex in layers[-1] if follows[vertex] & outputs}
        layers.append(kept | (after(layers[-1]) - layers[-1]))
    return [*layers, outputs]


@settings(deadline=None, max_examples=50)
@given(widths=st.lists(st.integers(1, 3), min_size=2, max_size=5), draw=st.data())
def test_on_plain_chains_the_layers_are_those_of_the_paper(widths: list[int], draw: st.DataObject) -> None:
    layers, total = [], 0
    for width in widths:
        layers.append(list(range(total, total + width)))
        total += width
    sources: dict[int, list[int]] = {vertex: [] for vertex in layers[0]}
    for before, layer in pairwise(layers):
        for vertex in layer:
            sources[vertex] = draw.draw(st.lists(st.sampled_from(before), min_size=1, unique=True))
        for unread in set(before) - {each for vertex in layer for each in sources[vertex]}:
            sources[layer[0]].append(unread)  # in the paper every hidden neuron has a consumer
    found = layering(sources, layers[-1])
    assert [set(layer) for layer in found] == literal(sources, set(layers[-1]))
    assert found == layers


def test_a_vertex_that_skips_layers_stays_until_its_last_consumer() -> None:
    sources = {"X": [], "h1": ["X"], "h2": ["h1"], "h3": ["h1", "h2"], "Y": ["h3"]}
    assert layering(sources, ["Y"]) == [["X"], ["h1"], ["h1", "h2"], ["h3"], ["Y"]]
    sources["Y"] = ["h1", "h3"]
    assert layering(sources, ["Y"]) == [["X"], ["h1"], ["h1", "h2"], ["h1", "h3"], ["Y"]]


def test_outputs_of_unequal_depth_are_the_last_layer_alone() -> None:
    sources = {"X": [], "a": ["X"], "b": ["a"], "YA": ["a"], "YB": ["b"]}
    assert layering(sources, ["YA", "YB"]) == [["X"], ["a"], ["a", "b"], ["YA", "YB"]]


def test_the_stream_of_a_residual_network_stays_beside_the_layers_of_its_blocks() -> None:
    network = read_network(ResNet(), inputs_of(ResNet), name="A")
    names = {layer.space: layer.name for layer in reversed(network.layers) if layer.kind in ("conv", "linear", "input")}
    found = [[names[space] for space in layer] for layer in layers_of(network)]
    assert found == [["input"], ["stem"], ["stem", "inner"], ["stem"], ["down"], ["head"]]


def test_the_order_of_spaces_of_networks_put_together_has_each_once() -> None:
    union = united(ResNet, 2)
    assert sorted(spaces_in_order(union)) == sorted(union.spaces)
    assert spaces_in_order(union)[0] == 0


class Deep(nn.Module):
    """Linear layers, as many as asked for."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def test_networks_of_unequal_depth_share_as_many_layers_as_the_shallower_hides() -> None:
    example = torch.randn(3, 4)
    union = unite([read_network(Deep(depth), example, name=name) for name, depth in (("A", 3), ("B", 5))])
    shared = [union.spaces[space].name for space in spaces_in_order(union) if len(union.spaces[space].widths) == 2]
    assert shared == ["input", "layers.0", "layers.1"]
