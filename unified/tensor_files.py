"""Datasets as files of tensors, ``.pt``, ``.pth`` and ``.safetensors``: mapped into memory, and written."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import pickletools
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unified.dataset_problems import READ_ERRORS, Inputs, named_tensors, reason, refusal, row_chunks

SUFFIXES = (".pt", ".pth", ".safetensors")

#: Metadata key under which the order of several inputs is kept, which the format itself does not keep.
_INPUT_ORDER = "input_order"

_MAX_PICKLE_BYTES = 16 << 20  #: of the structure of a ``.pt``, its tensors aside
_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"})
_GETS = frozenset({"BINGET", "LONG_BINGET", "GET"})
_CONTAINERS = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "EMPTY_DICT", "DICT", "EMPTY_SET"})


def unfinished_prefix(pid: int) -> str:
    """Return how the names begin of what a process is still writing to a folder of converted data."""
    return f"unfinished-{pid}-"


def remove_unfinished(folder: Path, pid: int) -> None:
    """Remove what a process that is gone has left unfinished in a folder of converted data."""
    for path in folder.glob(f"{unfinished_prefix(pid)}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_legacy(path: Path) -> bool:
    """Whether a ``.pt`` is of the format before PyTorch 1.6, which cannot be mapped."""
    with path.open("rb") as file:
        return path.suffix.lower() != ".safetensors" and file.read(4) != b"PK\x03\x04"


def map_tensors(path: Path) -> tuple[Inputs, torch.Tensor]:
    """Return ``(inputs, targets)`` of a tensor file, mapped: pages are read when touched, and shared.

    The mapping is private: a write to it would stay in this process. A legacy ``.pt`` is read instead.

    Raises:
        InvalidSubmission: The file is damaged, holds anything but tensors, or not this structure.
    """
    if path.suffix.lower() == ".safetensors":
        return _map_safetensors(path)
    legacy = is_legacy(path)
    if not legacy:
        _refuse_bombs(path)
    return _as_pair(_load_pt(path, mapped=not legacy))


def content_key(inputs: Inputs, targets: torch.Tensor) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values: equal for equal tensors in any container."""
    digest = hashlib.sha256(b"unified tensors 1\n")
    for name, tensor in named_tensors(inputs, targets).items():
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        for chunk in row_chunks(tensor):
            digest.update(chunk.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, inputs: Inputs, targets: torch.Tensor, metadata: Mapping[str, str]) -> None:
    """Write a ``.safetensors`` tensor file: at once or, if anything fails, not at all."""
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in named_tensors(inputs, targets).items():
        dense = tensor.detach().contiguous()
        # an autoencoder's targets are its inputs; safetensors writes no storage twice
        shared = dense.untyped_storage().data_ptr() in storages
        tensors[name] = dense.clone() if shared else dense
        storages.add(dense.untyped_storage().data_ptr())
    order = {_INPUT_ORDER: json.dumps(list(inputs))} if isinstance(inputs, dict) else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=unfinished_prefix(os.getpid()), suffix=".partial")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={**metadata, **order})
        with Path(temporary).open("rb") as file:
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that :func:`write_tensors` was given; empty for any other file."""
    if path.suffix.lower() != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _map_safetensors(path: Path) -> tuple[Inputs, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            order = json.loads((file.metadata() or {}).get(_INPUT_ORDER, "[]"))
    except (SafetensorError, *READ_ERRORS) as error:
        remedy = "write it with safetensors.torch.save_file({'inputs': …, 'targets': …}, path)"
        raise refusal("a safetensors file", reason(error), remedy) from None
    targets = tensors.pop("targets", None)
    single = tensors.get("inputs")
    if targets is not None and single is not None and len(tensors) == 1:
        return single, targets
    several = {name.removeprefix("inputs."): tensor for name, tensor in tensors.items()}
    if targets is None or not several or not all(name.startswith("inputs.") for name in tensors):
        names = sorted([*tensors, *(["targets"] if targets is not None else [])])
        expected = "the tensors 'inputs' (or 'inputs.<name>' for each of several) and 'targets'"
        raise refusal(expected, f"the tensors {names}", "rename them and leave out the others")
    names = order if isinstance(order, list) and sorted(map(str, order)) == sorted(several) else sorted(several)
    return {name: several[name] for name in names}, targets


def _refuse_bombs(path: Path) -> None:
    """Refuse an archive with compressed parts, which cannot be mapped, and one whose structure would be endless."""
    remedy = "save it again with torch.save((inputs, targets), path)"
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(p.compress_type != zipfile.ZIP_STORED or p.file_size != p.compress_size for p in parts):
                raise refusal(
                    "an uncompressed archive", "compressed parts", "write it with torch.save, which does not compress"
                )
            structures = [part for part in parts if part.filename.lower().endswith(".pkl")]
            if sum(part.file_size for part in structures) > _MAX_PICKLE_BYTES:
                raise refusal("a file of tensors only", f"a structure of over {_MAX_PICKLE_BYTES} bytes", remedy)
            repeats = any(_repeats_containers(archive.read(part)) for part in structures)
    except (zipfile.BadZipFile, *READ_ERRORS) as error:
        raise refusal("a whole file written by torch.save", reason(error), remedy) from None
    if repeats:
        raise refusal("a file of tensors only", "a tuple, list or dict that stands in several places", remedy)


def _repeats_containers(content: bytes) -> bool:
    """Whether a pickle uses a container again: one of itself twice, many times over, has more parts than can be counted."""
    made, num_kept = "", 0
    containers: set[object] = set()
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in _PUTS:
            index = num_kept if operation.name == "MEMOIZE" else argument
            num_kept += 1
            if made in _CONTAINERS:
                containers.add(index)
            continue
        made = operation.name
        if made in _GETS and argument in containers:
            return True
    return False


def _load_pt(path: Path, *, mapped: bool) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, zipfile.BadZipFile, *READ_ERRORS) as error:
        expected = "a file of tensors only, as torch.load(weights_only=True) reads it"
        remedy = "save plain tensors with torch.save((inputs, targets), path)"
        raise refusal(expected, reason(error), remedy) from None


def _as_pair(loaded: object) -> tuple[Inputs, torch.Tensor]:
    """Return ``(inputs, targets)`` from what a ``.pt`` held."""
    expected = "(inputs, targets) or {'inputs': …, 'targets': …}"
    remedy = "save torch.save((inputs, targets), path)"
    if isinstance(loaded, Mapping) and set(loaded) == {"inputs", "targets"}:
        inputs, targets = loaded["inputs"], loaded["targets"]
    elif isinstance(loaded, (tuple, list)) and len(loaded) == 2:
        inputs, targets = loaded
    else:
        raise refusal(expected, _describe(loaded), remedy)
    if not isinstance(targets, torch.Tensor):
        raise refusal("a tensor", _describe(targets), remedy, field="targets")
    if isinstance(inputs, torch.Tensor):
        return inputs.detach(), targets.detach()
    if not isinstance(inputs, Mapping) or not inputs:
        raise refusal("a tensor or a dict of tensors", _describe(inputs), remedy, field="inputs")
    for name, tensor in inputs.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise refusal("a tensor under a name", _describe(tensor), remedy, field=f"inputs.{name}"[:80])
    return {name: tensor.detach() for name, tensor in inputs.items()}, targets.detach()


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict with the keys {[str(key)[:40] for key in list(value)[:8]]}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} elements"
    return f"a value of type {type(value).__name__}"
