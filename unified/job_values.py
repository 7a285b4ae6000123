"""The kinds of values that the fields of a job take, beyond what pydantic knows. Free of torch."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema

from unified.job_problems import refusal
from unified.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_INT = 2**63 - 1  #: what a tensor's index, a file and every other JSON reader hold
MAX_DEPTH = 8  #: how deep keyword arguments may nest

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME_RULE = "1 to 100 letters, digits, '.', '_' or '-', of which the first is a letter or a digit"


def plain_json(value: object, depth: int = 0) -> Any:
    """Return ``value`` as plain JSON (tuples become lists), or refuse it: finite numbers, 64-bit integers, text keys."""
    if depth > MAX_DEPTH:
        raise refusal("E-VALUE", f"at most {MAX_DEPTH} levels of nesting", "flatten it")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if abs(value) > MAX_INT:
            raise refusal("E-VALUE", "an integer of at most 64 bits", "use a smaller number")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise refusal("E-VALUE", "a finite number", "use a finite number")
        return float(value)
    if isinstance(value, list | tuple):
        return [plain_json(item, depth + 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain_json(item, depth + 1) for key, item in value.items()}
    raise refusal("E-TYPE", "numbers, text, true/false, null, or lists of them", "give it as JSON, e.g. tensor.tolist()")


def _path(value: object) -> str | None:
    """Return a path as text, None if ``value`` is no path."""
    if isinstance(value, PathLike):
        value = fspath(value)
    if not isinstance(value, str):
        return None
    if not value or "\0" in value:
        raise refusal("E-VALUE", "the path of a file", "name the file")
    return value


def _file(value: object) -> str:
    path = _path(value)
    if path is None:
        raise refusal("E-TYPE", "the path of a file or folder as text", "name the file")
    return path


def _model(value: object) -> object:
    # A module can only come from a process that has imported torch: no need to import it here to tell.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.nn.Module):
        return value
    path = _path(value)
    if path is None:
        expected = "the path of a model file (in Python also an nn.Module)"
        raise refusal("E-TYPE", expected, "name a file, such as 'lenet.umodel'")
    return path


def _samples(value: object) -> object:
    path = _path(value)
    if path is not None:
        return path
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, list | tuple) or len(value) != 2:
        expected = "the path of a dataset (in Python also a pair of tensors: inputs, targets)"
        raise refusal("E-TYPE", expected, "name a file, such as 'train.pt'")
    inputs, targets = value
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)
    _check_tensors(torch, inputs, targets)
    return (inputs, targets)


def _check_tensors(torch: Any, inputs: object, targets: object) -> None:
    """Refuse anything but tensors that hold one and the same number of samples, at least one."""
    names = [*inputs] if isinstance(inputs, dict) else ["inputs"]
    parts: list[Any] = [*inputs.values()] if isinstance(inputs, dict) else [inputs]
    parts.append(targets)
    if len(parts) < 2 or not all(isinstance(part, torch.Tensor) and part.ndim for part in parts):
        expected = "inputs (a tensor or a dict of tensors) and targets (a tensor), one sample after another"
        raise refusal("E-TYPE", expected, "convert them, e.g. with torch.as_tensor")
    if not all(isinstance(name, str) for name in names):
        raise refusal("E-TYPE", "names of the model's arguments as keys of inputs", "use text as keys")
    lengths = [len(part) for part in parts]
    if len(set(lengths)) != 1 or not lengths[0]:
        expected = "inputs and targets of one length, at least 1"
        raise refusal("E-VALUE", expected, "give one target per sample", given=f"lengths {lengths}")


def _columns(value: object) -> object:
    names = value
    if isinstance(names, str):
        names = [names]
    elif isinstance(names, tuple):
        names = value = list(names)
    elif isinstance(names, dict):
        names = [*names, *names.values()]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        expected = "a column's name, a list of names, or an object from argument to column"
        raise refusal("E-TYPE", expected, "name the columns that the model is given")
    return value


def _output(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise refusal("E-TYPE", "the name or the index of one of the model's outputs", "use e.g. 'logits' or 0")
    if value == "" or (isinstance(value, int) and not 0 <= value < 1000):
        raise refusal("E-VALUE", "a name, or an index from 0 to 999", "use e.g. 'logits' or 0")
    return value


if TYPE_CHECKING:
    FilePath = str
    ModelSource = str | nn.Module
    Samples = str | tuple[Tensor | dict[str, Tensor], Tensor]
    Columns = str | list[str] | dict[str, str]
    OutputName = str | int
    Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
else:
    _TEXT = {"type": "string", "minLength": 1}
    _COLUMNS = [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1},
        {"type": "object", "additionalProperties": _TEXT, "minProperties": 1},
    ]
    _OUTPUTS = [_TEXT, {"type": "integer", "minimum": 0, "maximum": 999}]
    FilePath = Annotated[Any, PlainValidator(_file), WithJsonSchema(_TEXT)]
    ModelSource = Annotated[Any, PlainValidator(_model), WithJsonSchema(_TEXT)]
    Samples = Annotated[Any, PlainValidator(_samples), WithJsonSchema(_TEXT)]
    Columns = Annotated[Any, PlainValidator(_columns), WithJsonSchema({"anyOf": _COLUMNS})]
    OutputName = Annotated[Any, PlainValidator(_output), WithJsonSchema({"anyOf": _OUTPUTS})]
    Plain = Annotated[Any, PlainValidator(plain_json), WithJsonSchema({})]

PositiveInt = Annotated[int, Field(ge=1, le=MAX_INT)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _job_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise refusal("E-VALUE", _NAME_RULE, "rename the job")
    return name


def _user_name(name: str) -> str:
    if not 0 < len(name) <= 100 or not name.isprintable():
        raise refusal("E-VALUE", "1 to 100 printable characters", "shorten or correct it")
    return name


def _client_token(token: str) -> str:
    if not 0 < len(token) <= 200 or not token.isprintable():
        raise refusal("E-VALUE", "1 to 200 printable characters", "shorten or correct it")
    return token


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _lists(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    return {field: list(values) if isinstance(values, tuple) else values for field, values in value.items()}


_SWEEP = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": True}}

SweepValues = Annotated[dict[str, list[Plain]], BeforeValidator(_lists), WithJsonSchema(_SWEEP)]

MetricNames = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_tuple),
    WithJsonSchema({"type": "array", "items": {"enum": list(METRIC_NAMES)}, "uniqueItems": True}),
]

JobName = Annotated[str, AfterValidator(_job_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})]
UserName = Annotated[str, AfterValidator(_user_name), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 100})]
ClientToken = Annotated[
    str, AfterValidator(_client_token), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 200})
]
