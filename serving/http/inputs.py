"""The ``inputs`` of a request: their names, shapes and datatypes must be the family's; then their elements are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from serving.http.binary import RawTensors
from serving.http.problems import bad_request, shown, too_large
from serving.http.tensors import num_bytes, tensor_from_bytes, tensor_from_json
from serving.records import TensorSpec

_FIELDS = ("name", "shape", "datatype", "parameters", "data")
_SIZE = "binary_data_size"


def read_inputs(entries: object, specs: Sequence[TensorSpec], raw: RawTensors, *, max_rows: int) -> tuple[Tensor, ...]:
    """Return a tensor ``(rows, ...)`` for each input of a family, in its order.

    Args:
        entries: The request's ``inputs``, in any order.
        specs: The family's inputs.
        raw: What is behind the JSON: of inputs that are sent as bytes, in the order of ``entries``.
        max_rows: In one request.

    Raises:
        Refused: If names, shapes, datatypes or elements are others, or there are too many rows.
    """
    inputs = named_objects(entries, "inputs")
    by_name = {spec.name: spec for spec in specs}
    if inputs.keys() != by_name.keys():
        given = ", ".join(shown(name) for name in list(inputs)[:5]) or "none"
        raise bad_request("inputs", f"expected the inputs {', '.join(by_name)}; got {given}")
    rows = _rows(inputs, specs)
    if rows > max_rows:
        raise too_large("too_many_rows", f"expected at most {max_rows} rows in one request, got {shown(rows)}; send several")
    tensors = {name: _tensor(entry, by_name[name], rows, raw) for name, entry in inputs.items()}
    raw.check_all_taken()
    return tuple(tensors[spec.name] for spec in specs)


def named_objects(entries: object, name: str) -> dict[str, dict[str, Any]]:
    """Return the objects of a list by their names, which must differ; raises Refused."""
    if not isinstance(entries, list):
        raise bad_request(name, f"expected {name!r} as a list, got {shown(entries)}")
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        key = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(key, str) or key in found:
            what = f"{shown(key)} twice" if isinstance(key, str) else shown(entry)
            raise bad_request(name, f"expected in {name!r} objects, each with a name of its own; got {what}")
        found[key] = entry
    return found


def object_field(holder: Mapping[str, Any], name: str, whose: str) -> dict[str, Any]:
    """Return a copy of a field that is an object if it is there; null is as good as none. Raises Refused."""
    found = holder.get(name)
    if found is not None and not isinstance(found, dict):
        raise bad_request("json", f"{whose}: expected {name!r} as an object, got {shown(found)}")
    return dict(found or {})


def _rows(inputs: Mapping[str, Mapping[str, Any]], specs: Sequence[TensorSpec]) -> int:
    """Return how many samples a request has, by the shapes of its inputs."""
    rows: int | None = None
    for spec in specs:
        shape, given = inputs[spec.name].get("shape"), inputs[spec.name].get("datatype")
        if given != spec.dtype:
            raise bad_request("datatype", f"input {spec.name!r}: expected datatype {spec.dtype}, got {shown(given)}")
        if not isinstance(shape, list) or not _fits(shape, spec.shape) or rows not in (None, shape[0]):
            wanted = ", ".join(["rows" if rows is None else str(rows), *map(str, spec.shape)])
            got = shown(str(shape[:16]) if isinstance(shape, list) else shape)
            raise bad_request("shape", f"input {spec.name!r}: expected shape [{wanted}] with rows from 1, got {got}")
        rows = shape[0]
    assert rows is not None, "a family has inputs"
    return rows


def _fits(shape: list[Any], sample: tuple[int, ...]) -> bool:
    return all(type(size) is int for size in shape) and tuple(shape[1:]) == sample and shape[:1] > [0]


def _tensor(entry: Mapping[str, Any], spec: TensorSpec, rows: int, raw: RawTensors) -> Tensor:
    whose = f"input {spec.name!r}"
    parameters = object_field(entry, "parameters", whose)
    size = parameters.pop(_SIZE, None)
    unknown = [*parameters, *(entry.keys() - set(_FIELDS))]
    if unknown:
        raise bad_request(
            "inputs", f"{whose}: expected {', '.join(_FIELDS)}, and {_SIZE!r} as a parameter; got {shown(unknown[0])}"
        )
    if (size is None) == ("data" not in entry):
        raise bad_request("data", f"{whose}: expected either 'data' or the parameter {_SIZE!r}")
    if size is None:
        return tensor_from_json(entry["data"], spec, rows)
    return tensor_from_bytes(raw.take(spec.name, size, num_bytes(spec, rows)), spec, rows)
