"""Layers of a network whose features may skip some (*Pruning-Aware Merging*, section 3.1, Algorithm 1).

Where each layer reads only the one before, this is the paper's algorithm. With other connections that one goes wrong: beside
h1 -> h2 -> h3 -> Y, a connection h1 -> h3 gives it the layers {X}, {h1}, {h2, h3}, {Y, h3}. Here a vertex's first layer is the
length of the longest path to it, and it stays in every later layer until its last consumer has come, so that no layer can
be bypassed (the Markov property that the paper's theorems need); outputs are the last layer and no hidden one.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TypeVar

from fusion.merging.layers import MAKERS, Kind, Layer, Network
from fusion.merging.union import Node, Union

V = TypeVar("V", bound=Hashable)


def layering(sources: Mapping[V, Collection[V]], outputs: Collection[V]) -> list[list[V]]:
    """Put the vertices of a directed acyclic graph into layers.

    Args:
        sources: What each vertex reads; every vertex comes after those that it reads.
        outputs: Vertices of the last layer.

    Returns:
        Layers from that of the vertices that read nothing to that of the outputs, each in the order of ``sources``.

    Example:
        >>> layering({"X": [], "h1": ["X"], "h2": ["h1"], "h3": ["h1", "h2"], "Y": ["h3"]}, ["Y"])
        [['X'], ['h1'], ['h1', 'h2'], ['h3'], ['Y']]
    """
    first: dict[V, int] = {}
    for vertex, read in sources.items():
        first[vertex] = 1 + max((first[source] for source in read), default=-1)
    end = max((first[output] for output in outputs), default=0)
    first |= dict.fromkeys(outputs, end)
    last = dict(first)
    for vertex, read in sources.items():
        for source in read:
            last[source] = max(last[source], first[vertex] - 1)
    return [[vertex for vertex in sources if first[vertex] <= number <= last[vertex]] for number in range(end + 1)]


def layers_of(network: Network | Union) -> list[list[int]]:
    """Return the spaces of each layer of a network, or of several put together, from the input's to the outputs'.

    A vertex is a feature that is read; the stream of a residual network is one space, so that it comes again in several layers,
    beside the inner layers of its blocks.
    """
    parts: Sequence[Layer | Node] = network.layers if isinstance(network, Network) else network.nodes
    outputs = {network.output} if isinstance(network, Network) else set(network.outputs.values())
    read = {source for part in parts if part.kind in MAKERS | {Kind.OPAQUE} for source in part.inputs}
    vertices = read | outputs
    reads: dict[int, set[int]] = {}  # the features that are read which a part is computed from
    for position, part in enumerate(parts):
        reads[position] = {found for source in part.inputs for found in ({source} if source in vertices else reads[source])}
    found = layering({position: reads[position] for position in sorted(vertices)}, outputs)
    return [list(dict.fromkeys(parts[position].space for position in layer)) for layer in found]


def spaces_in_order(network: Network | Union) -> list[int]:
    """Return all spaces in the order of the layers that they first come in."""
    return list(dict.fromkeys(space for layer in layers_of(network) for space in layer))
