"""Several networks as one graph: the layers that correspond are one node, from the input on.

Two layers correspond if they do the same (operator, kernel, stride, size of the feature) to features that correspond. The
output layers never do (PAM, section 5.1, steps 1 to 3), and what changes the input's channels (normalization, say) only if its
values are the same. Networks that part ways, or end, at different depths therefore share what comes before; of three networks
two may share more than all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusion.merging.errors import MergeError
from fusion.merging.layers import MAKERS, OWNING, Constant, Kind, Layer, Network


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """A layer of one network, or corresponding layers of several.

    Attributes:
        name: Unique.
        kind: What it does.
        inputs: Positions of the nodes whose features it takes.
        layers: The layers by task.
        space: Number of its space.
    """

    name: str
    kind: Kind
    inputs: tuple[int, ...]
    layers: Mapping[str, Layer]
    space: int

    @property
    def tasks(self) -> frozenset[str]:
        """Tasks that need it."""
        return frozenset(self.layers)

    @property
    def layer(self) -> Layer:
        """Any of the layers; they are alike but for weights and width."""
        return next(iter(self.layers.values()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """A layer of neurons.

    Attributes:
        number: Its own.
        name: Of the first node that makes its neurons; ``input`` for the input.
        widths: Neurons by task, in the order of the tasks.
        frozen: Tasks whose neurons must all stay as they are, for themselves.
        readers: Nodes whose features are read by what makes other neurons or gives an output: where a neuron has its value.
    """

    number: int
    name: str
    widths: Mapping[str, int]
    frozen: frozenset[str]
    readers: tuple[int, ...] = ()

    @property
    def is_input(self) -> bool:
        """Whether it is the input's, which all networks have in common."""
        return self.number == 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Union:
    """Networks put together.

    Attributes:
        networks: By task.
        nodes: In the order of execution; the first is the input.
        spaces: By number, in the order in which they are made; 0 is the input's.
        outputs: Position of the node that answers each task.
        notes: Where and why networks do not correspond.
    """

    networks: Mapping[str, Network]
    nodes: tuple[Node, ...]
    spaces: Mapping[int, Space]
    outputs: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks."""
        return tuple(self.networks)


def unite(networks: Sequence[Network], *, apart: Collection[str] = ()) -> Union:
    """Put networks together; what corresponds becomes one node.

    Args:
        networks: Of different names, over the same input.
        apart: Names of layers that correspond to none, whatever they are like.

    Raises:
        MergeError: If the inputs differ.
    """
    _check_inputs(networks)
    nodes: dict[object, _Draft] = {}
    places: dict[str, list[int]] = {}
    for network in networks:
        places[network.name] = _insert(network, nodes, frozenset(apart))
    drafts, moved = _in_order(list(nodes.values()), alone=len(networks) == 1)
    places = {task: [moved[place] for place in own] for task, own in places.items()}
    numbers = _spaces(networks, drafts, places)
    finished = tuple(
        Node(
            name=draft.name, kind=draft.kind, inputs=tuple(moved[place] for place in draft.inputs), layers=draft.layers,
            space=numbers[position],
        )
        for position, draft in enumerate(drafts)
    )  # fmt: skip
    outputs = {network.name: places[network.name][network.output] for network in networks}
    return Union(
        networks={network.name: network for network in networks},
        nodes=_named_apart(finished),
        spaces=_described(networks, finished, outputs),
        outputs=outputs,
        notes=tuple(_partings(networks, finished)),
    )


@dataclass(slots=True, kw_only=True, eq=False)
class _Draft:
    """A node in the making."""

    name: str
    kind: Kind
    inputs: tuple[int, ...]
    depth: int
    layers: dict[str, Layer] = field(default_factory=dict)


def _check_inputs(networks: Sequence[Network]) -> None:
    first = networks[0]
    for network in networks[1:]:
        if network.layers[0].shape != first.layers[0].shape:
            raise MergeError(
                f"networks must take the same input: {first.name} takes {first.layers[0].shape}, {network.name} "
                f"{network.layers[0].shape} (without the batch)"
            )


def _insert(network: Network, nodes: dict[object, _Draft], apart: frozenset[str]) -> list[int]:
    """Add a network's layers; returns the place of each."""
    order = {id(draft): number for number, draft in enumerate(nodes.values())}
    places: list[int] = []
    seen: dict[object, int] = {}
    ending = network.layers[network.output].space
    for layer in network.layers:
        inputs = tuple(places[position] for position in layer.inputs)
        own = layer.kind is Kind.OPAQUE or layer.name in apart or (layer.kind in MAKERS and layer.space == ending)
        content = _content(layer) if layer.space == network.layers[0].space else ()  # the input's channels are one for all
        signature: object = (_signature(layer), inputs, network.name if own else None, content)
        seen[signature] = seen.get(signature, 0) + 1  # parallel branches that are alike stay apart
        key = (signature, seen[signature])
        if key not in nodes:
            depth = 1 + max((list(nodes.values())[place].depth for place in inputs), default=-1)
            nodes[key] = _Draft(name=layer.name, kind=layer.kind, inputs=inputs, depth=depth)
            order[id(nodes[key])] = len(nodes) - 1
        nodes[key].layers[network.name] = layer
        places.append(order[id(nodes[key])])
    return places


def _signature(layer: Layer) -> object:
    """Return what must be alike for two layers to correspond: all but weights and width."""
    weight = layer.tensors.get("weight")
    kernel = tuple(weight.shape[2:]) if weight is not None and layer.kind in (Kind.CONV, Kind.DEPTHWISE) else None
    shape = layer.shape[1:] if layer.kind is not Kind.FLATTEN else layer.positions
    args = _frozen(_spelled(layer))
    return (layer.kind, str(layer.target), kernel, shape, args, "bias" in layer.tensors or layer.kind not in OWNING)


def _content(layer: Layer) -> object:
    return tuple((name, Constant(tensor)) for name, tensor in sorted(layer.tensors.items()))


_CONV_DEFAULTS = ((1, 1), (0, 0), (1, 1), 1)


def _spelled(layer: Layer) -> tuple[Any, ...]:
    """Return the arguments with defaults written out, and without what is the layer's own width."""
    if layer.kind is Kind.FLATTEN:
        return ()
    if layer.kind in (Kind.CONV, Kind.DEPTHWISE):
        given = tuple(_frozen(value) for value in layer.args)
        return (*given, *_CONV_DEFAULTS[len(given) :])[:3]
    return layer.args


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _in_order(drafts: list[_Draft], *, alone: bool) -> tuple[list[_Draft], dict[int, int]]:
    """Return the nodes by depth, those of one network in its own order, and which place became which."""
    order = sorted(range(len(drafts)), key=lambda place: 0 if alone else drafts[place].depth)
    return [drafts[place] for place in order], {place: number for number, place in enumerate(order)}


def _spaces(networks: Sequence[Network], drafts: list[_Draft], places: Mapping[str, list[int]]) -> list[int]:
    """Return the space of each node: nodes share one if any network says so."""
    same = list(range(len(drafts)))

    def root(place: int) -> int:
        while same[place] != place:
            place = same[place]
        return place

    for network in networks:
        first: dict[int, int] = {}
        for layer, place in zip(network.layers, places[network.name], strict=True):
            low, high = sorted((root(first.setdefault(layer.space, place)), root(place)))
            same[high] = low
    roots = [root(place) for place in range(len(drafts))]
    numbers = {place: number for number, place in enumerate(sorted(set(roots)))}
    return [numbers[place] for place in roots]


def _described(networks: Sequence[Network], nodes: Sequence[Node], outputs: Mapping[str, int]) -> dict[int, Space]:
    frozen = {network.name: network.frozen for network in networks}
    read = set(outputs.values())
    for node in nodes:
        if node.kind in MAKERS | {Kind.OPAQUE}:
            read |= set(node.inputs)
    found: dict[int, Space] = {}
    for node in nodes:
        if node.space in found:
            continue
        mine = [other for other in nodes if other.space == node.space]
        widths: dict[str, int] = {}
        held: set[str] = set()
        for network in networks:
            own = [other.layers[network.name] for other in mine if network.name in other.layers]
            if own:
                widths[network.name] = own[0].width
                held |= {network.name} if any(layer.space in frozen[network.name] for layer in own) else set()
        readers = tuple(position for position, other in enumerate(nodes) if other.space == node.space and position in read)
        found[node.space] = Space(
            number=node.space, name=node.name, widths=widths, frozen=frozenset(held), readers=readers
        )  # fmt: skip
    return found


def _named_apart(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """Give nodes of the same name the names of their tasks."""
    names = [node.name for node in nodes]
    return tuple(
        node
        if names.count(node.name) == 1
        else Node(
            name=f"{node.name}@{'+'.join(node.layers)}", kind=node.kind, inputs=node.inputs, layers=node.layers,
            space=node.space,
        )
        for node in nodes
    )  # fmt: skip


def _partings(networks: Sequence[Network], nodes: Sequence[Node]) -> list[str]:
    """Say for each network which of its layers of neurons first corresponds to no other network's."""
    notes: list[str] = []
    for network in networks:
        shared = [node for node in nodes if node.kind in MAKERS and network.name in node.layers and len(node.layers) > 1]
        alone = [node for node in nodes if node.kind in MAKERS and node.tasks == {network.name}]
        hidden = [node for node in alone if node.layers[network.name].space != network.layers[network.output].space]
        if hidden:
            where = "from the start" if not shared else f"after {shared[-1].name!r}"
            what = f"layer {hidden[0].name!r} ({_told(hidden[0].layers[network.name])})"
            notes.append(f"{network.name}: {where}, {what} corresponds to none of another network; it stays private")
    return notes


def _told(layer: Layer) -> str:
    """Say what a layer is, as far as that decides what it corresponds to."""
    if layer.kind is not Kind.CONV:
        return layer.kind.value
    kernel, stride = layer.tensors["weight"].shape[2:], _spelled(layer)[0]
    sizes = {"kernel": kernel, "stride": stride, "feature": layer.shape[1:]}
    return "conv, " + ", ".join(f"{name} {' x '.join(map(str, size))}" for name, size in sizes.items())
