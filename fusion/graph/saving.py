"""A fused model on disk: files that need torch alone, proved by reading them back before they count."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import os
import shutil
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from fusion.graph.errors import FusionError
from fusion.graph.onnx_file import check_onnx, write_onnx
from fusion.graph.task_model import TaskModel

if TYPE_CHECKING:
    from fusion.graph.block import Inputs
    from fusion.graph.tree import FusedTree

PROGRAM_NAME = "model.pt2"
WEIGHTS_NAME = "model.safetensors"
ONNX_NAME = "model.onnx"
STEPS_NAME = "tree.json"
TASKS_NAME = "tasks"
_TRACED_ROWS = 2  # at 1 torch.export would take the batch for a constant
_CHECKED_ROWS = (3, 1)


def save(tree: FusedTree, folder: Path, example_inputs: Inputs, *, onnx: bool = False) -> None:
    """Write ``tree``, in evaluation mode, under ``folder``.

    ===================================  ===============================================================================
    ``model.pt2``                        all tasks: ``torch.export`` archive with any batch size; its output is a dict
    ``tasks/NAME.pt2``                   one task alone; its output is that of the task's model
    ``model.safetensors``                the state dict of the tree
    ``tasks/NAME.safetensors``           the weights that answer one task, under the names of its model
    ``tree.json``                        the steps of the tree and what the inputs are
    ``model.onnx``                       all tasks, if asked for
    ===================================  ===============================================================================

    Each archive is read back and must answer bitwise as the tree does, at batch sizes other than the traced one, before
    any file takes its place in ``folder``.

    Args:
        tree: It is not changed. The archives are for its device.
        folder: Made if need be; files of an earlier save are replaced.
        example_inputs: As the fused models take them; each tensor ``(batch, ...)``, batch >= 1.
        onnx: Also write ``model.onnx``; needs the extra ``onnx``.

    Raises:
        FusionError: If the example inputs are not such, a task's name is no file name, ``onnx`` lacks its extra, or a file
            does not answer as the tree does.
    """
    _check_names(tree.tasks)
    _check_rows(tree.signature.flatten(example_inputs))
    if onnx:
        check_onnx()
    whole = copy.deepcopy(tree).eval()
    partial = folder / f".partial-{os.getpid()}"
    try:
        (partial / TASKS_NAME).mkdir(parents=True)
        program = write_program(whole, example_inputs, partial / PROGRAM_NAME)
        write_weights(whole.state_dict(), partial / WEIGHTS_NAME)
        (partial / STEPS_NAME).write_text(json.dumps(_description(tree), indent=1) + "\n")
        for task in tree.tasks:
            model = TaskModel(whole.only(task))
            write_program(model, example_inputs, partial / TASKS_NAME / f"{task}.pt2")
            write_weights(model.state_dict(), partial / TASKS_NAME / f"{task}.safetensors")
        if onnx:
            write_onnx(program, whole, partial / ONNX_NAME, *_call(example_inputs, _CHECKED_ROWS[0]))
        _move_into(folder, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(folder: Path, *, task: str | None = None) -> nn.Module:
    """Read back what ``save`` wrote, as a module of torch alone.

    Read only what you trust: an archive of ``torch.export`` may hold pickles.

    Args:
        folder: Given to ``save``.
        task: Only this one's model; None for all.

    Returns:
        A module in evaluation mode, which it cannot leave. It takes its inputs as the example inputs were given, by
        position or by name.

    Raises:
        FusionError: If there is no such file.
    """
    path = folder / PROGRAM_NAME if task is None else folder / TASKS_NAME / f"{task}.pt2"
    if not path.is_file():
        raise FusionError(f"expected {path.relative_to(folder)} in {folder}, there is none; was it written by save()?")
    return torch.export.load(path).module()


def write_weights(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors.

    The format cannot tie. A tied tensor is stored once, under the first of its names, and the metadata say which names
    stand for it (``ties``, JSON) and how the names are ordered (``order``, JSON).
    """
    first_names: dict[Hashable, str] = {}
    ties: dict[str, str] = {}
    for name, tensor in state_dict.items():
        first = first_names.setdefault(_identity(tensor), name)
        if first != name:
            ties[name] = first
    # clones: tensors that overlap but are not the same are stored each on its own
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state_dict.items() if name not in ties}
    metadata = {"format": "pt", "order": json.dumps(list(state_dict)), "ties": json.dumps(ties)}
    save_file(tensors, path, metadata)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read what ``write_weights`` wrote: in its order, and names that were tied hold the same tensor."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    ties = json.loads(metadata.get("ties", "{}"))
    order = json.loads(metadata["order"]) if "order" in metadata else list(tensors)
    return {name: tensors[ties.get(name, name)] for name in order}


def write_program(module: nn.Module, example_inputs: Inputs, path: Path) -> ExportedProgram:
    """Write a module as a ``torch.export`` archive for any batch size, and read it back.

    Args:
        module: In evaluation mode.
        example_inputs: Each tensor ``(batch, ...)``; none of their values is in the archive.
        path: The file.

    Raises:
        FusionError: If it does not answer bitwise as the module does, at batch sizes other than the traced one.
    """
    # zeros: the archive keeps what it was traced with, and nobody's samples shall be in it
    args, kwargs = pytree.tree_map(torch.zeros_like, _call(example_inputs, _TRACED_ROWS))
    callee = _Callee(module, num_positional=len(args), names=tuple(kwargs))
    shapes = {name: {0: Dim.AUTO} for name in callee.names}
    with torch.no_grad(), _deterministic():
        program = torch.export.export(callee, args, kwargs, dynamic_shapes=shapes, strict=False)
        _check_batch(program, path)
        torch.export.save(program, path)
        reloaded = torch.export.load(path).module()
        for rows in _CHECKED_ROWS:
            args, kwargs = _call(example_inputs, rows)
            difference = _difference(module(*args, **kwargs), reloaded(*args, **kwargs))
            if difference is not None:
                raise FusionError(f"{path.name}: read back, it answers otherwise at batch size {rows}: {difference}")
    return program


def _check_batch(program: ExportedProgram, path: Path) -> None:
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    fixed = [node.name for node in inputs if is_concrete_int(node.meta["val"].shape[0])]
    if fixed:
        raise FusionError(
            f"{path.name}: the batch size of {', '.join(fixed)} would be fixed at {_TRACED_ROWS}; "
            "some block computes with the number of samples as if it were a constant"
        )


class _Callee(nn.Module):
    """A module under a signature of its own: torch.export cannot give shapes to what goes in through ``**kwargs``."""

    def __init__(self, module: nn.Module, *, num_positional: int, names: tuple[str, ...]) -> None:
        super().__init__()
        positional = ("input",) if num_positional == 1 else tuple(f"input_{i}" for i in range(num_positional))
        self.names = positional + names
        self._modules.update(module._modules)  # the weights keep their names

        def forward(*args: Any, **kwargs: Any) -> Any:
            return module.forward(*args, **kwargs)

        kinds = dict.fromkeys(positional, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        kinds |= dict.fromkeys(names, inspect.Parameter.KEYWORD_ONLY)
        signature = inspect.Signature([inspect.Parameter(name, kind) for name, kind in kinds.items()])
        vars(forward)["__signature__"] = signature  # what torch.export reads
        self.forward = forward


def _call(inputs: Inputs, rows: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return positional inputs and inputs by name with that many rows, repeated if there are fewer."""

    def take(tensor: Tensor) -> Tensor:
        return tensor.detach()[torch.arange(rows, device=tensor.device) % len(tensor)]

    if isinstance(inputs, Mapping):
        return (), {name: take(tensor) for name, tensor in inputs.items()}
    return tuple(take(tensor) for tensor in ((inputs,) if isinstance(inputs, Tensor) else inputs)), {}


def _deterministic() -> AbstractContextManager[None]:
    """Keep CUDA from choosing another kernel the second time."""
    return torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True)


def _difference(expected: Any, got: Any) -> str | None:
    wanted, structure = pytree.tree_flatten_with_path(expected)
    found, found_structure = pytree.tree_flatten_with_path(got)
    if structure != found_structure:
        return f"expected {structure}, got {found_structure}"
    for (path, value), (_, other) in zip(wanted, found, strict=True):
        if not isinstance(value, Tensor):
            is_equal = value == other
        else:
            is_equal = value.shape == other.shape and torch.allclose(value, other, rtol=0, atol=0, equal_nan=True)
        if not is_equal:
            return f"output {pytree.keystr(path)}"
    return None


def _check_rows(inputs: Sequence[Tensor]) -> None:
    bad = [tuple(tensor.shape) for tensor in inputs if not tensor.ndim or not len(tensor)]
    if bad:
        raise FusionError(f"expected at least one sample in each example input, got shapes {', '.join(map(str, bad))}")


def _check_names(tasks: Sequence[str]) -> None:
    bad = [task for task in tasks if task in ("", ".", "..") or any(mark in task for mark in "/\\\0")]
    if bad:
        raise FusionError(f"a task's files bear its name; these cannot be file names: {', '.join(map(repr, bad))}")


def _description(tree: FusedTree) -> dict[str, Any]:
    signature = tree.signature
    return {
        "format": 1,
        "torch": torch.__version__,
        "tasks": list(tree.tasks),
        "inputs": {
            "names": None if signature.names is None else list(signature.names),
            "primary": signature.primary,
            "features": [feature.to_json() for feature in signature.features],
        },
        "steps": [dataclasses.asdict(step) for step in tree.steps],
    }


def _identity(tensor: Tensor) -> Hashable:
    if tensor.numel() == 0:  # has no address
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _move_into(folder: Path, partial: Path) -> None:
    (folder / TASKS_NAME).mkdir(exist_ok=True)
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            path.replace(folder / path.relative_to(partial))
