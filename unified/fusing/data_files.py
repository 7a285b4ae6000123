"""Data for fusion from one file or folder: inputs, and labels for all tasks, some or none."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unified.dataset_problems import READ_ERRORS, Inputs, blamed_on, form_problems, reason, refusal, value_problems
from unified.errors import InvalidSubmission
from unified.fusing.rows import Rows, make_rows
from unified.tensor_files import SUFFIXES

PARTS = ("train", "validation", "test")
_FORM = "inputs, or (inputs, targets), or {'inputs': …, 'targets': …} where targets may be a dict by task"
_REMEDY = "save torch.save({'inputs': inputs, 'targets': {'task': labels}}, path)"


def read_data(source: Path, tasks: tuple[str, ...] | None) -> dict[str, Rows]:
    """Read a data file, or a folder with ``train``, and perhaps ``validation`` and ``test``, as such files.

    Args:
        source: ``.pt``, ``.pth`` or ``.safetensors``, or a folder of them.
        tasks: Names of the tasks; targets that are one tensor are the labels of each. None: all that targets name.

    Returns:
        Rows by part; ``train`` is always there.

    Raises:
        InvalidSubmission: With what is wrong with the data.
    """
    with blamed_on("--data", str(source)):
        return {name: _rows(_read_file(path), tasks) for name, path in _files(source).items()}


def from_objects(data: Any, tasks: tuple[str, ...] | None) -> dict[str, Rows]:
    """Return the rows of what a caller holds in Python: as in a file, or such by ``"train"``, ``"validation"``, ``"test"``.

    Raises:
        InvalidSubmission: With what is wrong with the data.
    """
    parts = data if isinstance(data, Mapping) and data and set(data) <= set(PARTS) else {"train": data}
    with blamed_on("fuse", "data"):
        if "train" not in parts:
            raise refusal("the part 'train'", f"only {', '.join(parts)}", "add it: models are distilled on it")
        return {name: _rows(part, tasks) for name, part in parts.items()}


def _files(source: Path) -> dict[str, Path]:
    if source.is_file():
        if source.suffix.lower() in SUFFIXES:
            return {"train": source}
        raise refusal(f"a file that ends in {', '.join(SUFFIXES)}, or a folder of such", repr(source.name), _REMEDY)
    found = {name: path for name in PARTS for suffix in SUFFIXES if (path := source / f"{name}{suffix}").is_file()}
    if "train" not in found:
        given = "nothing there" if not source.exists() else "a folder without it"
        wanted = f"a data file, or a folder with train{SUFFIXES[0]} (or {', '.join(SUFFIXES[1:])})"
        raise refusal(wanted, given, "check the path; docs/fusion.md says what such a file holds")
    return found


def _read_file(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, *READ_ERRORS) as error:
        raise refusal("a file of tensors only", reason(error), _REMEDY, field=path.name) from None


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, *READ_ERRORS) as error:
        raise refusal("a safetensors file", reason(error), "write it with safetensors.torch.save_file") from None
    content: dict[str, Any] = {}
    for name, tensor in tensors.items():
        kind, dot, own = name.partition(".")
        if kind not in ("inputs", "targets"):
            expected = "the tensors 'inputs' or 'inputs.<name>', and 'targets' or 'targets.<task>'"
            raise refusal(expected, f"a tensor {name!r}", "rename it or leave it out", field=path.name)
        if dot:
            content.setdefault(kind, {})[own] = tensor
        else:
            content[kind] = tensor
    return content


def _rows(content: Any, tasks: tuple[str, ...] | None) -> Rows:
    inputs, targets = _pair(content)
    labels = _labels(targets, tasks)
    for task, values in (labels or {"": torch.zeros(_length(inputs))}).items():
        problems = form_problems(inputs, values)
        if problems:
            raise InvalidSubmission(problems)
        if task and not isinstance(values, Tensor):
            raise refusal("a tensor of labels", type(values).__name__, _REMEDY, field=f"targets of {task}")
    problems = value_problems(inputs, torch.zeros(1))
    if problems:
        raise InvalidSubmission(problems)
    return make_rows(inputs, labels)


def _pair(content: Any) -> tuple[Inputs, Any]:
    """Return inputs, and targets of whatever kind or None."""
    targets = None
    inputs = content
    if isinstance(content, Mapping) and "inputs" in content and set(content) <= {"inputs", "targets"}:
        inputs, targets = content["inputs"], content.get("targets")
    elif isinstance(content, tuple | list) and len(content) == 2:
        inputs, targets = content
    if isinstance(inputs, Tensor):
        return inputs.detach(), targets
    if isinstance(inputs, Mapping) and inputs and all(isinstance(value, Tensor) for value in inputs.values()):
        return {str(name): value.detach() for name, value in inputs.items()}, targets
    raise refusal(_FORM, f"a {type(inputs).__name__} for inputs", _REMEDY)


def _labels(targets: Any, tasks: tuple[str, ...] | None) -> dict[str, Tensor]:
    if targets is None:
        return {}
    if isinstance(targets, Tensor) and tasks is not None:
        return dict.fromkeys(tasks, targets)
    if tasks is None and isinstance(targets, Mapping):
        tasks = tuple(targets)
    if tasks is None or not isinstance(targets, Mapping):
        expected = "a dict of tensors by task" if tasks is None else "a tensor or a dict of tensors by task"
        raise refusal(expected, f"a {type(targets).__name__}", _REMEDY, field="targets")
    found = {task: targets[task] for task in tasks if task in targets}
    if targets and not found:
        given = ", ".join(map(repr, list(targets)[:8]))
        raise refusal(f"labels by task: {', '.join(tasks)}", given, "name them as the jobs are named", field="targets")
    return found


def _length(inputs: Inputs) -> int:
    return len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))
