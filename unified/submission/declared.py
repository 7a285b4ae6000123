"""Weights whose architecture the job declares: built by name or from a list of layers, and given the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from unified.job_parts import ArchitectureSpec
from unified.queue.wholeness import is_safetensors
from unified.submission.guarded_build import build_to_fit
from unified.submission.layer_list import layer_list
from unified.submission.library_models import library_model
from unified.submission.refusal import refused
from unified.submission.torch_file import open_torch_file
from unified.submission.weight_files import Weight, safetensors_weights, torch_weights


def load_declared(path: Path, architecture: str, *, finite: bool = True) -> nn.Module:
    """Return the model of an architecture with the weights of a file, in training mode, on the CPU.

    Args:
        path: A ``.safetensors``, or a ``.pt`` of tensors only.
        architecture: What the job declares, as :meth:`~unified.job_parts.ArchitectureSpec.canonical` gives it.
        finite: Refuse weights that are NaN or infinite.

    Raises:
        RefusedModelError: If the architecture cannot be built, or the weights are not its own.
        MalformedError: If the file is damaged.
        OSError: If it cannot be read.
    """
    make = _maker(ArchitectureSpec.model_validate_json(architecture))
    return build_to_fit(make, read_weights_file(path), finite=finite)


def read_weights_file(path: Path) -> dict[str, Weight]:
    """Return the tensors of a file of weights by name; raises as :func:`load_declared` does."""
    return safetensors_weights(path) if is_safetensors(path) else torch_weights(open_torch_file(path), path.name)


def _maker(architecture: ArchitectureSpec) -> Callable[[], nn.Module]:
    if architecture.layers is not None:
        return layer_list(architecture.layers)
    if architecture.library == "transformers":
        given, remedy = "a file of weights", "hand in the folder that model.save_pretrained(folder) writes"
        raise refused("E-DECLARED", "architecture.library", "a folder of a model of transformers", given, remedy)
    return library_model(architecture)


def named_class(architecture: str) -> str | None:
    """Return the class of ``transformers`` that an architecture names, None without one."""
    return json.loads(architecture).get("name") if architecture else None
