"""The JSON of an archive, parsed strictly and in bounds: what would make a parser crawl is counted before it is parsed."""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import TypeAdapter, ValidationError

from unified.submission.umodel_faults import MAX_FAULTS, Fault, MalformedError, malformed

MAX_JSON_BYTES = 16 << 20
#: Values in one part: the largest manifest allowed, of 50,000 tensors, has about a million.
MAX_JSON_VALUES = 2_000_000
#: Deeper than any record of ours; far below what Python's stack holds, so that nothing that walks a value can exhaust it.
MAX_JSON_DEPTH = 32


def parse_json(part: str, raw: bytes, *, code: str = "E-JSON", limit: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON strictly: no key twice, no NaN, no number beyond 64 bits, no abyss. Raises MalformedError."""
    if len(raw) > limit:
        raise malformed(code, part, f"at most {limit} bytes", f"{len(raw)} bytes")
    num_values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")  # at least as many as there are
    if num_values > MAX_JSON_VALUES:
        raise malformed(code, part, f"at most {MAX_JSON_VALUES} values", f"about {num_values}")
    try:
        value = json.loads(
            raw.decode(),
            object_pairs_hook=_refuse_twice,
            parse_constant=_refuse_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
        )
    except (ValueError, RecursionError) as error:
        raise malformed(code, part, "strict JSON", str(error)) from error
    _check_depth(code, part, value)
    return value


def validate(adapter: TypeAdapter, part: str, raw: bytes) -> Any:
    """Make a record of JSON that :func:`parse_json` has accepted. Raises MalformedError."""
    try:
        return adapter.validate_json(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        raise MalformedError(
            Fault(
                code="E-SCHEMA",
                where=".".join([part, *map(str, fault["loc"])]),
                expected=f"a record of the format ({fault['msg']})",
                given=repr(fault["input"])[:100],
            )
            for fault in found[:MAX_FAULTS]
        ) from error


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key that stands twice in one object")
    return record


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"the number {text}")


def _parse_int(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:30]}, which no float holds")
    return value


def _check_depth(code: str, part: str, value: Any) -> None:
    level, depth = [value], 0
    while level:
        if depth > MAX_JSON_DEPTH:
            raise malformed(code, part, f"at most {MAX_JSON_DEPTH} levels of nesting", "more")
        inner = [each for each in level if isinstance(each, (dict, list))]
        level = [item for each in inner for item in (each.values() if isinstance(each, dict) else each)]
        depth += 1
