"""What a model returns, taken apart into tensors and the structure they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unified.errors import ExportError


def flatten(output: Any, leaves: list[Any]) -> Any:
    """Append the tensors in ``output`` to ``leaves`` and return its structure, with ``{"leaf": index}`` in their places.

    Mappings, such as the outputs of Hugging Face models, become dicts without the entries that are no tensors (a cache, say).
    """
    if isinstance(output, (Tensor, torch.SymInt)):
        leaves.append(output)
        return {"leaf": len(leaves) - 1}
    if output is None or isinstance(output, (bool, int, float, str)):
        return output
    if isinstance(output, Mapping):
        entries = [(key, value) for key, value in output.items() if _is_plain(value)]
        if not all(isinstance(key, str) for key, _ in entries):
            raise ExportError("a dict that forward returns must have texts as keys")
        return {"dict": [[key, flatten(value, leaves)] for key, value in entries]}
    if isinstance(output, (tuple, list)):
        kind = "tuple" if isinstance(output, tuple) else "list"
        return {kind: [flatten(value, leaves) for value in output]}
    raise ExportError(f"forward returns a {type(output).__name__}; return tensors, or tuples, lists and dicts of them")


def fill(structure: Any, references: list[Any]) -> Any:
    """Undo :func:`flatten`, with ``references`` in the places of the tensors."""
    if not isinstance(structure, dict):
        return structure
    ((kind, content),) = structure.items()
    if kind == "leaf":
        return references[content]
    if kind == "dict":
        return {"dict": [[key, fill(value, references)] for key, value in content]}
    return {kind: [fill(value, references) for value in content]}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (Tensor, torch.SymInt, bool, int, float, str))
