"""A merged network on disk: weights as safetensors, without the edges that there are not, and a manifest in JSON; no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fusion.merging.blocks import constants_of, parts_of, tensors_of
from fusion.merging.errors import MergeError
from fusion.merging.flops import flops
from fusion.merging.layers import OWNING
from fusion.merging.manifest import integers, require, step_to_json, steps_from_json
from fusion.merging.merged import MergedNetwork
from fusion.merging.neurons import INPUT, Neurons, names_of, subsets

MANIFEST_NAME = "merged.json"
FORMAT, VERSION = "merged network", 1
_WEIGHTS = re.compile(r"weights-[0-9a-f]{16}\.safetensors")


def save(merged: MergedNetwork, folder: Path, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a merged network under ``folder``.

    ===================================  ===============================================================================
    ``merged.json``                      format version, tasks, neurons with their origin and tasks, steps, FLOPs of every
                                         subset, metadata
    ``weights-….safetensors``            a layer's weight as one tensor for each group, of the columns that the group may
                                         read; named by its content
    ===================================  ===============================================================================

    Both are read back and compared first. The manifest takes its place last and in one move, so that there is the earlier
    network or this one, whole, whenever writing ends.

    Args:
        merged: It is not changed.
        folder: Made if need be; an earlier save there is replaced.
        metadata: JSON to keep with it: alpha, seeds, accuracy and whatever else tells how it came about.

    Raises:
        MergeError: If a private layer has an operator that a file cannot name, or ``metadata`` is no JSON.
    """
    folder = Path(folder)
    manifest = _manifest(merged, dict(metadata or {}))
    partial = folder / f".partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        tensors = tensors_of(merged)
        save_file(tensors, partial / "weights")
        digest = _digest(partial / "weights")
        name = f"weights-{digest[:16]}.safetensors"
        (partial / "weights").replace(partial / name)
        manifest["weights"] = {"file": name, "sha256": digest}
        (partial / MANIFEST_NAME).write_text(_json(manifest))
        again = tensors_of(load(partial))
        different = [name for name, value in tensors.items() if not _same(again[name], value)]
        if different:
            raise MergeError(f"read back, these tensors differ: {', '.join(different)}")
        (partial / name).replace(folder / name)
        (partial / MANIFEST_NAME).replace(folder / MANIFEST_NAME)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for path in folder.iterdir():
        if _WEIGHTS.fullmatch(path.name) and path.name != name:
            path.unlink()


def load(folder: Path) -> MergedNetwork:
    """Read back what :func:`save` wrote; nothing in the files is run.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        MergeError: If there is none, its version is unknown, or the manifest does not match the weights.
    """
    manifest = read_manifest(folder)
    try:
        require(
            len(manifest["flops"]) == 2 ** len(manifest["tasks"]) - 1, "not a number of FLOPs for every subset of its tasks"
        )
        merged = _network(manifest, _weights(Path(folder), manifest["weights"]))
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError, ValueError) as error:
        if isinstance(error, MergeError):
            raise
        raise MergeError(
            f"not the manifest of a merged network, or damaged: {folder}/{MANIFEST_NAME}: {type(error).__name__}: {error}"
        ) from error
    require(_flops(merged) == manifest["flops"], "the FLOPs of its subsets are not those that it tells")
    return merged.eval()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a saved network, ``metadata`` among it.

    Raises:
        MergeError: If there is none, or of another version.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise MergeError(f"expected {MANIFEST_NAME} in {folder}, there is none; was a merged network saved there?")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise MergeError(f"{path} is no JSON: {error}") from error
    require(isinstance(manifest, dict) and manifest.get("format") == FORMAT, f"{path} does not say {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise MergeError(f"{path} is of version {manifest.get('version')!r}; this release reads version {VERSION}")
    return manifest


def _manifest(merged: MergedNetwork, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "torch": torch.__version__,
        "tasks": list(merged.tasks),
        "outputs": merged.outputs,
        "spaces": [
            {
                "number": number,
                "frozen": merged.frozen.get(number, 0),
                "origin": neurons.origin.tolist(),
                "index": neurons.index.tolist(),
                "group": neurons.group.tolist(),
            }
            for number, neurons in merged.neurons.items()
        ],
        "steps": [
            step_to_json(step) | {"tensors": sorted(merged.part(place).state_dict()) if step.kind in OWNING else []}
            for place, step in enumerate(merged.steps)
        ],
        "constants": {
            name: "parameter" if isinstance(value, nn.Parameter) else "buffer"
            for name, value in merged.constants.state_dict(keep_vars=True).items()
        },
        "flops": _flops(merged),
        "metadata": metadata,
    }


def _flops(merged: MergedNetwork) -> list[dict[str, Any]]:
    every = (names_of(bits, merged.tasks) for bits in subsets(len(merged.tasks)))
    return [{"tasks": list(tasks), "flops": flops(merged, tasks)} for tasks in every]


def _json(manifest: Mapping[str, Any]) -> str:
    try:
        return json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise MergeError(f"metadata must be JSON, without infinite numbers: {error}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())


def _weights(folder: Path, entry: Mapping[str, str]) -> dict[str, Tensor]:
    name = entry["file"]
    require(_WEIGHTS.fullmatch(name), f"{name!r} is no name of a file of weights")
    path = folder / name
    require(path.is_file(), f"there is no file {name} beside it")
    require(_digest(path) == entry["sha256"], f"{name} is not the file that was written with it")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise MergeError(f"{path} is no file of safetensors: {error}") from error


def _network(manifest: Mapping[str, Any], tensors: dict[str, Tensor]) -> MergedNetwork:
    tasks = manifest["tasks"]
    require(tasks and len(set(tasks)) == len(tasks) and all(isinstance(task, str) for task in tasks), f"tasks {tasks!r}")
    entries = manifest["spaces"]
    neurons = {entry["number"]: _neurons(entry, len(tasks)) for entry in entries}
    require(len(neurons) == len(entries) and 0 in neurons, "spaces that occur twice, or none for the input")
    steps = steps_from_json(manifest["steps"], neurons, len(tasks))
    outputs = manifest["outputs"]
    require(list(outputs) == tasks, f"outputs of {list(outputs)}")
    for number, task in enumerate(tasks):
        (place,) = integers([outputs[task]], 0, len(steps))
        require(steps[place].tasks >> number & 1, f"the output of {task!r} does not serve it")
    constants = constants_of(manifest["constants"], steps, tensors)
    parts = parts_of(manifest["steps"], steps, neurons, tensors)
    require(not tensors, f"weights that belong to no layer: {sorted(tensors)[:5]}")
    frozen = {entry["number"]: integers([entry["frozen"]], 0, 1 << len(tasks))[0] for entry in entries}
    return MergedNetwork(
        tasks=tasks, steps=steps, outputs=outputs, neurons=neurons, parts=parts, constants=constants, frozen=frozen
    )


def _neurons(entry: Mapping[str, Any], num_tasks: int) -> Neurons:
    number = entry["number"]
    require(type(number) is int, f"space {number!r}")
    origin = integers(entry["origin"], INPUT, num_tasks)
    index, group = integers(entry["index"], 0), integers(entry["group"], 1, 1 << num_tasks)
    require(len(origin) == len(index) == len(group) > 0, f"space {number}: {len(origin)}, {len(index)}, {len(group)} neurons")
    return Neurons(
        **{
            name: torch.tensor(value, dtype=torch.int64)
            for name, value in (("origin", origin), ("index", index), ("group", group))
        }
    )
