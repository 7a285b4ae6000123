"""The tensors of a merged network by name, a layer's weight as one for each group without the edges that there are not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusion.merging.layers import MAKERS, OWNING, Kind
from fusion.merging.lowering import spread
from fusion.merging.manifest import held_names, require
from fusion.merging.merged import MergedNetwork, Part, Step, edges
from fusion.merging.neurons import Neurons

_CONSTANT = re.compile(r"c[0-9]+_[0-9]+")


def tensors_of(merged: MergedNetwork) -> dict[str, Tensor]:
    """Return copies of its tensors, on the CPU.

    ``LAYER/weight.GROUP`` (the group as bits) has a row for each neuron of the group and a column for each that it may read,
    ``LAYER/bias`` and the like a row for each neuron; ``constants/NAME`` are those in arguments.
    """
    found = {f"constants/{name}": value for name, value in merged.constants.state_dict().items()}
    for position, step in enumerate(merged.steps):
        if step.kind not in OWNING:
            continue
        for name, value in merged.part(position).state_dict().items():
            if name != "weight" or step.kind not in MAKERS:
                found[f"{step.name}/{name}"] = value
                continue
            for group, rows, columns in _blocks(merged.neurons, step, merged.steps[step.inputs[0]]):
                found[_block_name(step, group)] = value[rows.to(value.device)].index_select(1, columns.to(value.device))
    return {name: value.detach().cpu().clone().contiguous() for name, value in found.items()}


def constants_of(kinds: Mapping[str, str], steps: Sequence[Step], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors in arguments out of ``tensors``, by their names."""
    missing = sorted(set().union(*(held_names(step.args) for step in steps)) - set(kinds))
    require(not missing and all(map(_CONSTANT.fullmatch, kinds)), f"constants {sorted(kinds)}, used but not there {missing}")
    found = {name: _taken(tensors, f"constants/{name}") for name in kinds}
    return {name: nn.Parameter(value) if kinds[name] == "parameter" else value for name, value in found.items()}


def parts_of(
    entries: Sequence[Mapping[str, Any]], steps: Sequence[Step], neurons: Mapping[int, Neurons], tensors: dict[str, Tensor]
) -> dict[int, Part]:
    """Take the tensors of steps out of ``tensors``: the inverse of :func:`tensors_of`.

    Args:
        entries: Of the steps; ``tensors`` in each says which it has.
        steps: Of the network.
        neurons: By space.
        tensors: Shrinks.

    Raises:
        MergeError: If one is missing, or of another shape than the neurons say.
    """
    return {
        place: Part(_part(neurons, step, steps, entry["tensors"], tensors))
        for place, (step, entry) in enumerate(zip(steps, entries, strict=True))
        if step.kind in OWNING
    }


def _part(
    neurons: Mapping[int, Neurons], step: Step, steps: Sequence[Step], names: Sequence[str], tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a step, checked to have a row for each neuron."""
    known = {"weight", "bias"} | ({"running_mean", "running_var"} if step.kind is Kind.NORM else set())
    needed = known - {"weight", "bias"} if step.kind is Kind.NORM else {"weight"}
    require(needed <= set(names) <= known, f"step {step.name!r} has the tensors {names}")
    num_rows = len(_groups(neurons, step))
    found: dict[str, Tensor] = {}
    for name in names:
        if name == "weight" and step.kind in MAKERS:
            found[name] = _whole(neurons, step, steps[step.inputs[0]], tensors)
            continue
        found[name] = _taken(tensors, f"{step.name}/{name}")
        tail = 3 if name == "weight" and step.kind is Kind.DEPTHWISE else 0
        require(
            found[name].ndim == 1 + tail and len(found[name]) == num_rows, f"{step.name}/{name}: {tuple(found[name].shape)}"
        )
    return found


def _whole(neurons: Mapping[int, Neurons], step: Step, source: Step, tensors: dict[str, Tensor]) -> Tensor:
    """Return a weight from its blocks, with zeros where there are no edges."""
    num_columns = len(_groups(neurons, source)) * (source.positions if step.kind is Kind.LINEAR else 1)
    blocks = [
        (rows, columns, _taken(tensors, _block_name(step, group))) for group, rows, columns in _blocks(neurons, step, source)
    ]
    require(blocks, f"step {step.name!r} has no neurons")
    tail = blocks[0][2].shape[2:]
    require(len(tail) == (0 if step.kind is Kind.LINEAR else 2), f"step {step.name!r}: kernel {tuple(tail)}")
    whole = blocks[0][2].new_zeros((len(_groups(neurons, step)), num_columns, *tail))
    for rows, columns, block in blocks:
        wanted = (len(rows), len(columns), *tail)
        require(
            block.shape == wanted, f"step {step.name!r}: expected a block of shape {tuple(wanted)}, got {tuple(block.shape)}"
        )
        whole[rows[:, None], columns] = block
    return whole


def _blocks(neurons: Mapping[int, Neurons], step: Step, source: Step) -> list[tuple[int, Tensor, Tensor]]:
    """Return for each group of a layer its bits, its rows, and the columns of the weight that it may read."""
    rows, columns = _groups(neurons, step), _groups(neurons, source)
    positions = source.positions if step.kind is Kind.LINEAR else 1
    blocks = []
    for group in sorted(set(rows.tolist())):
        read = edges(torch.tensor([group]), columns)[0].nonzero().flatten()
        blocks.append((group, (rows == group).nonzero().flatten(), spread(read, positions)))
    return blocks


def _block_name(step: Step, group: int) -> str:
    return f"{step.name}/weight.{group}"


def _groups(neurons: Mapping[int, Neurons], step: Step) -> Tensor:
    mine = neurons[step.space]
    return mine.group[mine.of(step.tasks)] & step.tasks


def _taken(tensors: dict[str, Tensor], name: str) -> Tensor:
    require(name in tensors, f"there are no weights {name!r}")
    return tensors.pop(name)
