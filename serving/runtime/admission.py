"""What is wrong with a request, before anything is decided about it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from serving.records import DTYPES, Family, TensorSpec
from serving.runtime.requests import InferRequest, RefusalKind, Refused
from serving.runtime.snapshot import Servable, Snapshot

_DTYPES = {name: getattr(torch, dtype) for name, dtype in DTYPES.items()}
#: So many times larger than anything in the family's example, a value is to blame for an output that is not finite.
_FAR = 1e4


def check_request(request: InferRequest, families: Mapping[str, Family], max_rows: int) -> tuple[Family, int]:
    """Return the family and the number of rows of a request; raises Refused with all that is wrong with it."""
    family = families.get(request.family)
    if family is None:
        known = ", ".join(families) or "none"
        raise Refused(RefusalKind.NOT_FOUND, "unknown_model", f"there is no model {request.family!r}; there is {known}")
    unknown = sorted(request.query.tasks - set(family.task_names))
    if unknown:
        raise Refused(
            RefusalKind.BAD_REQUEST,
            "unknown_task",
            f"model {family.name!r} has no task {', '.join(unknown)}; it has {', '.join(family.task_names)}",
        )
    problems = _input_problems(family, request.inputs)
    if problems:
        raise Refused(RefusalKind.BAD_REQUEST, "bad_input", "; ".join(problems))
    rows = len(request.inputs[0])
    if rows > max_rows:
        raise Refused(
            RefusalKind.TOO_LARGE, "too_many_rows", f"expected at most {max_rows} rows in a request, got {rows}; send several"
        )
    return family, rows


def find_version(snapshot: Snapshot, request: InferRequest) -> Servable:
    """Return the variant that a request names; raises Refused if it is not served or does not answer the tasks."""
    servable = snapshot.servables.get(request.version or "")
    if servable is None or servable.variant.family != request.family:
        raise Refused(
            RefusalKind.NOT_FOUND,
            "unknown_version",
            f"model {request.family!r} has no version {request.version!r} that is served here",
        )
    missing = sorted(request.query.tasks - set(servable.variant.tasks))
    if missing:
        raise Refused(
            RefusalKind.BAD_REQUEST,
            "task_not_answered",
            f"version {servable.id} answers {', '.join(servable.variant.tasks)}, not {', '.join(missing)}; ask for fewer tasks"
            " or leave out the version",
        )
    return servable


def blame_values(family: Family, inputs: tuple[Tensor, ...], example: tuple[Tensor, ...]) -> str | None:
    """Return what is wrong with inputs whose outputs are not finite, None if nothing is and so the network is to blame.

    Only then are values looked at: it takes as long as all else that is done for a request before it runs.
    """
    for spec, tensor, usual in zip(family.inputs, inputs, example, strict=True):
        if not tensor.is_floating_point():
            continue
        if not bool(torch.isfinite(tensor).all()):
            return f"input {spec.name!r}: expected finite values, got some that are not"
        if float(tensor.abs().max()) > _FAR * max(1.0, float(usual.abs().max())):
            return f"input {spec.name!r}: some values are so far beyond what the network was made for that it overflows"
    return None


def _input_problems(family: Family, inputs: tuple[Tensor, ...]) -> list[str]:
    if len(inputs) != len(family.inputs):
        names = ", ".join(spec.name for spec in family.inputs)
        return [f"expected {len(family.inputs)} inputs ({names}), got {len(inputs)}"]
    problems = [
        problem for spec, tensor in zip(family.inputs, inputs, strict=True) for problem in _tensor_problems(spec, tensor)
    ]
    if not problems and len({len(tensor) for tensor in inputs}) != 1:
        problems.append(f"expected as many rows in each input, got {', '.join(str(len(tensor)) for tensor in inputs)}")
    if not problems and not len(inputs[0]):
        problems.append("expected at least one row, got none")
    return problems


def _tensor_problems(spec: TensorSpec, tensor: Tensor) -> list[str]:
    if tensor.dtype != _DTYPES[spec.dtype] or tuple(tensor.shape[1:]) != spec.shape or not tensor.ndim:
        wanted = ", ".join(["rows", *map(str, spec.shape)])
        return [f"input {spec.name!r}: expected {spec.dtype} ({wanted}), got {tensor.dtype} {tuple(tensor.shape)}"]
    return []
