"""Weights in files that are there whole, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors; a tensor under several names is written once."""
    tensors, ties = _untied(state)
    replace_file(path, lambda temporary: save_file(tensors, temporary, {"ties": json.dumps(ties)}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict; tensors that were one when they were saved are one again."""
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the reader is no mapping
        ties = json.loads(file.metadata()["ties"])
    return state | {alias: state[name] for alias, name in ties.items()}


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place, bring it to disk, then put it there."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state dict into tensors that share no storage, and names of tensors that are there under another name."""
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        known = first.setdefault(place, name)
        if known != name:
            ties[name] = known
        else:
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, ties
