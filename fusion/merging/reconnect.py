"""Wire networks into one by the groups of their neurons (PAM, section 5.1, step 4; figure 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusion.merging.layers import MAKERS, OWNING, Constant, Kind, Layer, Network
from fusion.merging.merged import Held, MergedNetwork, Part, Step, input_neurons
from fusion.merging.neurons import INPUT, Neurons, bits_of, in_order
from fusion.merging.union import Node, Union, unite

_NORM_START = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def reconnect(union: Union, groups: Mapping[int, Neurons] | None = None) -> MergedNetwork:
    """Make one network of several.

    An edge between neurons of one network keeps its weight where it may stay; every other starts at zero. Biases, weights and
    statistics of normalization go along with their neuron. Edges from exclusive to shared neurons are cut, which the paper
    does not mention, and which costs accuracy until the network is trained.

    Args:
        union: The networks put together; they are copied, not changed.
        groups: Neurons by space, in any order; those that are missing there are left out. None, or a space that is missing:
            every neuron is its own task's alone.

    Returns:
        A network in evaluation mode, nothing of it trained yet.
    """
    tasks = union.tasks
    neurons = {space: own_groups(union, space) for space in union.spaces} | dict(groups or {})
    neurons[0] = input_neurons(next(iter(union.spaces[0].widths.values())), len(tasks))
    neurons |= {space: in_order(found, len(tasks)) for space, found in neurons.items() if space}
    constants: dict[str, Tensor] = {}
    steps = tuple(_step(union, position, node, constants) for position, node in enumerate(union.nodes))
    parts = {
        position: Part(_tensors(union, node, step, steps, neurons))
        for position, (node, step) in enumerate(zip(union.nodes, steps, strict=True))
        if node.kind in OWNING
    }
    merged = MergedNetwork(
        tasks=tasks,
        steps=steps,
        outputs=union.outputs,
        neurons=neurons,
        parts=parts,
        constants=constants,
        frozen={number: bits_of(space.frozen, tasks) for number, space in union.spaces.items()},
    )
    device = next(iter(union.networks.values())).example.device
    return merged.to(device).eval()


def own_groups(union: Union, space: int) -> Neurons:
    """Return the neurons of a space, each its own task's alone."""
    origin, index = [], []
    for task, width in union.spaces[space].widths.items():
        origin += [union.tasks.index(task)] * width
        index += range(width)
    origins = torch.tensor(origin, dtype=torch.int64)
    return Neurons(origin=origins, index=torch.tensor(index, dtype=torch.int64), group=1 << origins)


def alone(network: Network) -> MergedNetwork:
    """Return one network as a merged network of one task; its steps are the network's layers, in their order."""
    return reconnect(unite([network]))


def _step(union: Union, position: int, node: Node, constants: dict[str, Tensor]) -> Step:
    layer = node.layer
    args = layer.args if node.kind is not Kind.FLATTEN else ()
    return Step(
        name=node.name,
        kind=node.kind,
        inputs=node.inputs,
        target=layer.target,
        args=_holding(args, f"c{position}", constants),
        space=node.space,
        tasks=bits_of(node.layers, union.tasks),
        shape=_shape(layer),
        is_read=position in union.spaces[node.space].readers,
    )


def _shape(layer: Layer) -> tuple[int, ...]:
    """Return the shape at one neuron's width: of ``(neurons * positions,)``, after flattening, the positions."""
    is_flat = layer.kind is Kind.FLATTEN or layer.shape[:1] not in ((), (layer.width,))
    return (layer.positions,) if is_flat else tuple(layer.shape[1:])


def _holding(args: Any, prefix: str, constants: dict[str, Tensor]) -> Any:
    """Return arguments with names in place of tensors, which are put into ``constants``."""
    if isinstance(args, Constant):
        name = f"{prefix}_{len(constants)}"
        constants[name] = args.tensor
        return Held(name)
    if isinstance(args, list | tuple):
        return type(args)(_holding(value, prefix, constants) for value in args)
    return args


def _tensors(
    union: Union, node: Node, step: Step, steps: tuple[Step, ...], neurons: Mapping[int, Neurons]
) -> dict[str, Tensor]:
    """Return the tensors of a node for all its neurons."""
    mine = neurons[node.space].take(neurons[node.space].of(step.tasks))
    found: dict[str, Tensor] = {}
    for name, example in node.layer.tensors.items():
        if name == "weight" and node.kind in MAKERS:
            source = steps[node.inputs[0]]
            theirs = neurons[source.space].take(neurons[source.space].of(source.tasks))
            found[name] = _weight(union, node, mine, theirs, source.positions)
        else:
            start = _NORM_START.get(name, 0.0) if node.kind is Kind.NORM else 0.0
            rows = example.new_full((len(mine), *example.shape[1:]), start)
            for task, layer in node.layers.items():
                places = _rows_of(mine, union.tasks.index(task))
                rows[places] = layer.tensors[name].detach()[mine.index[places]]
            found[name] = rows
    return found


def _weight(union: Union, node: Node, mine: Neurons, theirs: Neurons, positions: int) -> Tensor:
    example = node.layer.tensors["weight"]
    is_linear = node.kind is Kind.LINEAR
    tail = (positions,) if is_linear else tuple(example.shape[2:])
    weight = example.new_zeros((len(mine), len(theirs), *tail))
    for task, layer in node.layers.items():
        number = union.tasks.index(task)
        rows, columns = _rows_of(mine, number), _rows_of(theirs, number)
        weight[rows[:, None], columns] = _by_neuron(layer, tail)[mine.index[rows][:, None], theirs.index[columns]]
    return weight.flatten(1) if is_linear else weight


def _rows_of(neurons: Neurons, number: int) -> Tensor:
    """Return the positions of the neurons that a network has: those that came from it, or the input's."""
    return ((neurons.origin == number) | (neurons.origin == INPUT)).nonzero().flatten()


def _by_neuron(layer: Layer, tail: tuple[int, ...]) -> Tensor:
    weight = layer.tensors["weight"].detach()
    return weight.reshape(len(weight), -1, *tail)
