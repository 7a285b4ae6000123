"""Trained weights back into the owner's own class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from separator.result import SAFETENSORS_NAME, read_weights
from unified.errors import UnifiedError
from unified.fusing.examples import umodel_example
from unified.results import Result
from unified.submission.umodel_read import load_umodel
from unified.submission.umodel_write import Inputs

_MAX_TOLD = 10


def restore(
    model: nn.Module,
    result: Result | str | Path,
    *,
    pt2: str | Path | None = None,
    example_inputs: Inputs | None = None,
) -> nn.Module:
    """Copy a job's trained weights into a module of its owner's, strictly, and return it.

    Args:
        model: A module of the class that was handed in; its parameters and buffers are overwritten.
        result: The result of a job, the folder it was written to, or a ``.umodel``.
        pt2: Also write the restored module, in evaluation mode, as a ``torch.export`` archive with a free batch size.
        example_inputs: Inputs to export with; None: of the shapes that the result's ``model.umodel`` takes.

    Returns:
        ``model``.

    Raises:
        UnifiedError: If names, shapes or types differ: then nothing was copied; or if the module cannot be exported.
        JobFailedError: If the job did not finish.

    Example:
        >>> import tempfile, torch, unified
        >>> trained, fresh = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = unified.export(trained, torch.zeros(2, 4), f"{folder}/model.umodel")
        ...     torch.equal(unified.restore(fresh, path).weight, trained.weight)
        True
    """
    restore_weights(model, _weights(result))
    if pt2 is not None:
        _export(model, example_inputs if example_inputs is not None else example_of_result(result), Path(pt2))
    return model


def restore_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Copy weights into ``model``, strictly, and return it.

    Raises:
        UnifiedError: With everything that does not fit; then nothing was copied.
    """
    faults = _faults(model.state_dict(), weights)
    if faults:
        more = f"\n… and {len(faults) - _MAX_TOLD} more" if len(faults) > _MAX_TOLD else ""
        raise UnifiedError(f"the weights do not fit {type(model).__name__}:\n" + "\n".join(faults[:_MAX_TOLD]) + more)
    model.load_state_dict(weights, strict=True)
    return model


def _weights(result: Result | str | Path) -> Mapping[str, Tensor]:
    if isinstance(result, Result):
        return result.state_dict
    path = Path(result)
    if path.suffix == ".umodel":
        return load_umodel(path, finite=False).state_dict()
    if not (path / SAFETENSORS_NAME).is_file():
        raise UnifiedError(f"{path}: expected the folder of a finished job, with {SAFETENSORS_NAME} in it, or a .umodel")
    return read_weights(path)


def _faults(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Say what does not fit, a line each."""
    found = [f"{name}: trained, but the class has no such tensor" for name in weights if name not in own]
    found += [f"{name}: of the class, but not in the result" for name in own if name not in weights]
    for name, tensor in weights.items():
        other = own.get(name)
        if other is not None and (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
            given = f"{tensor.dtype} of {tuple(tensor.shape)}"
            found.append(f"{name}: expected {other.dtype} of {tuple(other.shape)}, as the class has it, got {given}")
    return found


def example_of_result(result: Result | str | Path) -> Any:
    """Return inputs of the shapes that a result's ``model.umodel`` takes.

    Raises:
        UnifiedError: If it has none.
    """
    folder = result.folder if isinstance(result, Result) else Path(result)
    path = folder if folder is None or folder.suffix == ".umodel" else folder / "model.umodel"
    if path is None or not path.is_file():
        raise UnifiedError("the result has no model.umodel that says what the model takes; give example inputs (--input)")
    return umodel_example(path, 2)


def _export(model: nn.Module, inputs: Any, path: Path) -> None:
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    free = {0: torch.export.Dim.AUTO}
    shapes = dict.fromkeys(kwargs, free) if kwargs else tuple(free for _ in args)
    was_training = model.training
    try:
        program = torch.export.export(model.eval(), args, kwargs or None, dynamic_shapes=shapes)
        torch.export.save(program, path)
    except Exception as error:
        raise UnifiedError(f"{type(model).__name__} cannot be exported to {path.name}: {error}") from error
    finally:
        model.train(was_training)
