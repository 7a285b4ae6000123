"""The ``parameters`` of a request: what it wants of its answer. OIP allows only strings, numbers and booleans in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any

from serving.errors import ServingError
from serving.http.problems import bad_request, shown
from serving.queries import AccuracyMode, Budget, OnMishit, Query

_FLOOR = "min_accuracy"
_MAX_PRIORITY = 1 << 31

#: Triton gives these a meaning of its own, so they can have none here.
_RESERVED = ("priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "headers")


def read_query(
    parameters: Mapping[str, Any], tasks: tuple[str, ...], *, outputs: tuple[str, ...], latency_ms: float | None
) -> Query:
    """Return what a request asks for.

    Args:
        parameters: Its ``parameters``, without those of other parts of the protocol.
        tasks: Those it may name, and asks for if it names none.
        outputs: The names in its ``outputs``, empty if there are none.
        latency_ms: The limit if it gives none; None for no limit.

    Raises:
        Refused: With everything that is wrong, or if ``tasks`` and ``outputs`` disagree.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    floors: dict[str, float] = {}
    for name, value in parameters.items():
        try:
            if name.startswith(f"{_FLOOR}."):
                floors[_floor_task(name, tasks)] = _number(name, value)
            else:
                values[name] = _reader(name)(name, value)
        except ServingError as error:
            problems.append(str(error))
    if floors and _FLOOR in values:
        problems.append(f"expected either {_FLOOR} for all tasks or {_FLOOR}.<task> for some, got both")
    if problems:
        raise bad_request("parameter", "; ".join(problems))
    asked = _asked(values.pop("tasks", None), outputs, tasks)
    priority = values.pop("query_priority", 0)
    values.setdefault("latency_ms", latency_ms)
    if floors:
        values[_FLOOR] = floors
    try:
        return Query(tasks=asked, priority=priority, **values)
    except ServingError as error:
        raise bad_request("parameter", str(error)) from None


def check_tasks(names: Iterable[str], tasks: tuple[str, ...], where: str) -> None:
    """Refuse names that are no tasks; raises Refused with all of them."""
    unknown = [name for name in names if name not in tasks]
    if unknown:
        names_shown = ", ".join(shown(name) for name in unknown[:5])
        raise bad_request("tasks", f"expected in {where} some of the tasks {', '.join(tasks)}; got {names_shown}")


def _asked(named: tuple[str, ...] | None, outputs: tuple[str, ...], tasks: tuple[str, ...]) -> frozenset[str]:
    if named is None:
        return frozenset(outputs or tasks)
    check_tasks(named, tasks, "parameter 'tasks'")
    if outputs and set(outputs) != set(named):
        raise bad_request(
            "tasks", f"expected the same tasks in 'tasks' and in 'outputs', got {', '.join(named)} and {', '.join(outputs)}"
        )
    return frozenset(named)


def _floor_task(name: str, tasks: tuple[str, ...]) -> str:
    task = name.removeprefix(f"{_FLOOR}.")
    if task not in tasks:
        raise ServingError(f"expected {_FLOOR}.<task> with one of the tasks {', '.join(tasks)}; got {shown(name)}")
    return task


def _number(name: str, value: object) -> float:
    if type(value) not in (int, float) or not _is_finite(value):
        raise ServingError(f"expected a number as {shown(name)}, got {shown(value)}")
    return float(value)  # pyrefly: ignore[bad-argument-type] - one of the two types above


def _is_finite(value: object) -> bool:
    try:
        return math.isfinite(value)  # pyrefly: ignore[bad-argument-type] - called with numbers only
    except OverflowError:  # a whole number beyond every float
        return False


def _integer(name: str, value: object) -> int:
    if type(value) is not int or abs(value) >= _MAX_PRIORITY:
        raise ServingError(f"expected a whole number below {_MAX_PRIORITY} as {name!r}, got {shown(value)}")
    return value


def _names(name: str, value: object) -> tuple[str, ...]:
    names = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else ()
    if not all(names) or not names or len(set(names)) != len(names):
        raise ServingError(f"expected as {name!r} names of tasks, separated by commas, each once; got {shown(value)}")
    return names


def _choice(choices: type[StrEnum]) -> Callable[[str, object], StrEnum]:
    def read(name: str, value: object) -> StrEnum:
        if value not in list(choices):
            raise ServingError(f"expected as {name!r} one of {', '.join(choices)}; got {shown(value)}")
        return choices(value)

    return read


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "tasks": _names,
    "latency_ms": _number,
    _FLOOR: _number,
    "accuracy_mode": _choice(AccuracyMode),
    "budget": _choice(Budget),
    "on_mishit": _choice(OnMishit),
    "query_priority": _integer,
}


def _reader(name: str) -> Callable[[str, object], Any]:
    if name in _READERS:
        return _READERS[name]
    if name in _RESERVED or name.startswith("triton_"):
        hint = "; give 'query_priority'" if name == "priority" else "; give 'latency_ms'" if name == "timeout" else ""
        raise ServingError(f"parameter {shown(name)} has a meaning in Triton that this server does not offer{hint}")
    raise ServingError(f"unknown parameter {shown(name)}; expected some of {', '.join(_READERS)}, {_FLOOR}.<task>")
