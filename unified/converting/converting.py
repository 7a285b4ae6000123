"""A model file of the caller's own to a ``.umodel``, which others accept: the file's code runs, here, where it is trusted."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unified.admission import ModelForm, ModelRef
from unified.converting.own_code import importable_from
from unified.converting.restoring import restore_weights
from unified.errors import InvalidSubmission, UnifiedError
from unified.submission.models import load_model, recognise
from unified.submission.trusted import example_of_pt2
from unified.submission.umodel_write import Inputs, export


def convert(src: str | Path, dst: str | Path, *, example_inputs: Inputs | None = None, model: nn.Module | None = None) -> Path:
    """Write a model of the caller's own as a ``.umodel``.

    Args:
        src: A whole module (``.pt``, ``.pth``), a ``torch.export`` archive, or weights alone with ``model``.
            **Its code runs**: convert nothing that comes from somebody else.
        dst: The ``.umodel`` to write; checked against the model, bit for bit, before it appears.
        example_inputs: What ``forward`` takes; None for a ``.pt2`` that has its own.
        model: For a file of weights alone: a module of their class.

    Returns:
        ``dst``.

    Raises:
        InvalidSubmission: If the file is missing or cannot be loaded.
        UnifiedError: If the model cannot be stored; with the reason and the line to change.
    """
    src, dst = Path(src), Path(dst)
    if dst.suffix != ".umodel":
        raise UnifiedError(f"expected a file that ends in .umodel to write, got {dst.name!r}")
    if model is not None:
        module = restore_weights(model, _read_weights(src))
    else:
        with importable_from(src.parent), importable_from(Path.cwd()):
            ref = _recognised(src)
            module = load_model(ref, job=src.stem)
        if example_inputs is None and ref.form is ModelForm.PT2:
            example_inputs = example_of_pt2(src)
    if example_inputs is None:
        raise UnifiedError("the file does not say what the model takes; give example inputs (--data, or --input)")
    dst.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of its own archives' modules
        return export(module, example_inputs, dst)


def _recognised(src: Path) -> ModelRef:
    try:
        return recognise(src, job=src.stem, trust=True, staged=False)
    except InvalidSubmission as error:
        if any(problem.code == "E-DECLARED" for problem in error.problems):
            raise UnifiedError(f"{src} holds weights without their model: give its class (--model MODEL.py:Class)") from error
        raise


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content: Any = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UnifiedError(f"{path}: expected weights alone, got what cannot be read so: {str(error)[:200]}") from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UnifiedError(f"{path}: expected a state dict, names with tensors, got a {type(content).__name__}")
    return content
