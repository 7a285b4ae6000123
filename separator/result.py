"""A separated model on disk: ``model.safetensors`` and ``state_dict.pt``, either of which is enough to have it back."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from separator.separate import Separated, SeparationError

SAFETENSORS_NAME = "model.safetensors"
STATE_DICT_NAME = "state_dict.pt"


def write_weights(separated: Separated, folder: Path) -> None:
    """Write ``state_dict.pt`` (for ``torch.load``, tensors only) and ``model.safetensors`` under ``folder``.

    Each file is on the disk, whole, when this returns; after a crash there is the new file, or what was there before.
    Names, order and ties are kept: safetensors cannot tie, so a tied tensor is stored once, under the first of its
    names, and the file's metadata say which names stand for it (``"ties"``, JSON) and how the names are ordered
    (``"order"``, JSON).

    Raises:
        SeparationError: If a dtype has no place in a safetensors file; ``state_dict.pt`` is there all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(folder / STATE_DICT_NAME) as partial:
        torch.save(separated.state_dict, partial)
    stored_under = {alias: names[0] for names in separated.ties for alias in names[1:]}
    tensors = {name: tensor.contiguous() for name, tensor in separated.state_dict.items() if name not in stored_under}
    metadata = {
        "format": "pt",
        "order": json.dumps(list(separated.state_dict)),
        "ties": json.dumps(stored_under),
    }
    with _replacing(folder / SAFETENSORS_NAME) as partial:
        _save_tensors(tensors, partial, metadata)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors`` under ``folder`` back as ``write_weights`` was given it.

    Returns:
        The state dict in its order, with its ties, in memory of its own: the file may go.

    Raises:
        FileNotFoundError: If there is no such file.
        safetensors.SafetensorError: If it is damaged.
    """
    with safe_open(folder / SAFETENSORS_NAME, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
    stored_under = json.loads(metadata.get("ties", "{}"))
    order = json.loads(metadata["order"]) if "order" in metadata else list(tensors)
    return {name: tensors[stored_under.get(name, name)] for name in order}


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata)
    except KeyError as error:  # its table of dtypes, which grows from version to version
        names = [name for name, tensor in tensors.items() if tensor.dtype in error.args]
        raise SeparationError(
            f"{', '.join(names)}: a safetensors file cannot hold {error}; {STATE_DICT_NAME} in {path.parent} has all tensors"
        ) from error
    _order_metadata(path)


def _order_metadata(path: Path) -> None:
    """Put the metadata in order of their names: safetensors writes them in any, so equal weights would differ as files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same content in another order is no longer"
        file.seek(8)
        file.write(text.ljust(size))


@contextmanager
def _replacing(path: Path) -> Generator[Path, None, None]:
    """Hand out a name to write to; what was written there takes the place of ``path``, or is gone after an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
