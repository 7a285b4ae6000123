"""Files of a store: whole or not there, tensors without code, and folders that belong to somebody while they are written."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fusion.search.weight_files import replace_file
from serving.data import TaskData
from serving.errors import ServingError
from serving.networks.programs import GRAPH_NAME, WEIGHTS_NAME

RECORD = "variant.json"
_NEW = ".new-"


@contextmanager
def new_folder(store: Path) -> Iterator[Path]:
    """Give a folder in the store that nobody else takes for rubbish; what is still in it at the end is removed.

    To be entered while nobody sweeps. It is locked as long as this process lives and has not left.
    """
    folder = Path(tempfile.mkdtemp(prefix=_NEW, dir=store))
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(store: Path, families: Mapping[str, AbstractSet[str]]) -> None:
    """Remove what interrupted processes have left; to be called by the only writer.

    Args:
        store: The folder.
        families: Ids of the variants of each family, which stay.
    """
    for folder in store.glob(f"{_NEW}*"):
        with suppress(OSError), _unlocked(folder):
            shutil.rmtree(folder, ignore_errors=True)
    for family, ids in families.items():
        home = store / family
        for folder in () if home.is_symlink() else home.glob("*/"):  # what a link leads to is somebody else's
            if folder.name not in ids and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _unlocked(folder: Path) -> Iterator[None]:
    """Raise OSError if somebody holds a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Raise ServingError where files cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors says in its own words that a disk is full
        raise ServingError(f"{path} cannot be written ({error}); make room, or make it writable") from error


def settle(folder: Path) -> None:
    """Bring a folder and the files in it to disk."""
    for path in (*folder.iterdir(), folder):
        sync(path)


def put_folder(source: Path, target: Path) -> None:
    """Bring a folder that has settled to its place; what is there, which no process counts, is removed."""
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Bring a file or the names in a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def identify(folder: Path, tasks: Sequence[str]) -> tuple[str, str]:
    """Return the id of the variant in a folder that answers these tasks, and the SHA-256 of its weights.

    Raises:
        ServingError: If a file is missing or cannot be read.
    """
    graph, weights = (_sha256(folder / name) for name in (GRAPH_NAME, WEIGHTS_NAME))
    return hashlib.sha256(json.dumps([graph, weights, list(tasks)]).encode()).hexdigest()[:16], weights


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ServingError(f"{path} cannot be read ({error.strerror}); build the variant again") from None


def save_inputs(path: Path, inputs: Sequence[Tensor]) -> None:
    """Write tensors in their order."""
    tensors = {f"inputs.{place}": _plain(tensor) for place, tensor in enumerate(inputs)}
    replace_file(path, lambda temporary: save_file(tensors, temporary))


def save_data(path: Path, data: TaskData) -> None:
    """Write samples and labels."""
    tensors = {f"inputs.{place}": _plain(tensor) for place, tensor in enumerate(data.inputs)}
    tensors |= {f"labels.{task}": _plain(labels) for task, labels in data.labels.items()}
    replace_file(path, lambda temporary: save_file(tensors, temporary))


def load_inputs(path: Path) -> tuple[Tensor, ...]:
    """Read what :func:`save_inputs` wrote; raises ServingError if it is missing or damaged."""
    return load_data(path).inputs


def load_data(path: Path) -> TaskData:
    """Read what :func:`save_data` wrote; raises ServingError if it is missing or damaged."""
    try:
        tensors = load_file(path)
        inputs = [name for name in tensors if name.startswith("inputs.")]
        labels = {name.removeprefix("labels."): tensors[name] for name in tensors if name.startswith("labels.")}
        return TaskData(inputs=tuple(tensors[f"inputs.{place}"] for place in range(len(inputs))), labels=labels)
    except (OSError, SafetensorError, KeyError) as error:
        raise ServingError(f"{path} is missing or damaged ({error}); build the store again") from None


def _plain(tensor: Tensor) -> Tensor:
    # a copy: safetensors writes no storage twice, and labels may be views of inputs
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
