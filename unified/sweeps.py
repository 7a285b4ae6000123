"""Sweeps: one job whose ``sweep`` lists values for some of its fields becomes one ordinary job per combination of them.

Works on the fields of ``job.json`` as they are written, so that every way in expands alike. Free of torch.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from unified.errors import Problem
from unified.job_parts import Component
from unified.job_problems import NOT_SWEPT, describe, did_you_mean, model_in

MAX_MEMBERS = 1000  #: of one sweep; so an index of three digits keeps their names in order
MAX_NAME = 80  #: letters of a sweep's name, which begins its members' names
MAX_TOKEN = 190  #: letters of a sweep's client token, likewise
_LONGEST_NAME = 100
_LONGEST_VALUE = 24

Fields = dict[str, Any]
Sweep = Mapping[str, Sequence[Any]]


def combinations(sweep: Sweep) -> list[Fields]:
    """Return the values of each member, by field: a grid in the order written, in which the last field changes fastest.

    Example:
        >>> combinations({"seed": [0, 1], "batch_size": [16, 32]})[1]
        {'seed': 0, 'batch_size': 32}
    """
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def member_fields(fields: Mapping[str, Any]) -> list[Fields]:
    """Return the ``job.json`` of each member of a sweep; of a job without a sweep, its own.

    Args:
        fields: The content of a ``job.json`` in which :func:`sweep_problems` finds nothing; it is left as it is.

    Example:
        >>> job = {"name": "digits", "optimizer": "SGD", "sweep": {"optimizer.lr": [0.1, 0.01]}}
        >>> [(member["name"], member["optimizer"]["lr"]) for member in member_fields(job)]
        [('digits-000-lr0.1', 0.1), ('digits-001-lr0.01', 0.01)]
    """
    if fields.get("sweep") is None:
        return [dict(fields)]
    return [_member(fields, index, values) for index, values in enumerate(combinations(fields["sweep"]))]


def values_text(values: Mapping[str, Any]) -> str:
    """Return the values of a member in words, such as ``"optimizer.lr=0.1, seed=0"``."""
    return ", ".join(f"{field}={value_text(value)}" for field, value in values.items())


def value_text(value: object) -> str:
    """Return a swept value as it is shown: text bare, everything else in JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def sweep_problems(job: str, fields: Mapping[str, Any], sweep: Sweep, model: type[BaseModel]) -> Iterator[Problem]:
    """Yield what is wrong with a sweep itself; of what is wrong with its members, see :func:`member_problems`.

    Args:
        job: Whose it is.
        fields: The other fields of the job that are well-formed.
        sweep: From a field to its values.
        model: The record that knows all fields of a job.
    """
    if not sweep:
        yield _problem("E-VALUE", job, "sweep", "an object from a field to a list of values", "{}", "leave it out")
    for field, values in sweep.items():
        yield from _field_problems(job, field[:_LONGEST_NAME], model)
        yield from _values_problems(job, f"sweep.{field[:_LONGEST_NAME]}", values)
    count = math.prod(len(values) for values in sweep.values())
    if count > MAX_MEMBERS:
        remedy = "list fewer values, or make several sweeps of it"
        yield _problem("E-VALUE", job, "sweep", f"at most {MAX_MEMBERS} combinations", f"{count}", remedy)
    yield from _name_problems(job, fields)


def member_problems(job: str, found: Sequence[tuple[Fields, Sequence[Problem]]]) -> Iterator[Problem]:
    """Yield what is wrong with members of a sweep, each thing once, with the first combination that has it.

    Args:
        job: The sweep's name.
        found: Each member's fields and problems.
    """
    firsts: dict[Problem, Fields] = {}
    counts: Counter[Problem] = Counter()
    for member, problems in found:
        for problem in problems:
            alike = replace(problem, job=job)
            firsts.setdefault(alike, member)
            counts[alike] += 1
    for problem, member in firsts.items():
        others = f" and {counts[problem] - 1} more" if counts[problem] > 1 else ""
        combination = values_text(member["from_sweep"]["values"])
        yield replace(problem, given=f"{problem.given} in the combination {combination}{others}")


def equal_members_problems(job: str, members: Sequence[Fields]) -> Iterator[Problem]:
    """Yield the first pair of members that would train the very same; a whole part and a field of it can do that."""
    seen: dict[str, Fields] = {}
    for member in members:
        rest = {
            field: value
            for field, value in member.items()
            if field not in {"name", "client_token", "from_sweep", "model", "data"}
        }
        text = json.dumps(rest, sort_keys=True)
        if text in seen:
            first, second = (values_text(each["from_sweep"]["values"]) for each in (seen[text], member))
            expected, remedy = "combinations that differ", "remove one of them"
            yield _problem("E-VALUE", job, "sweep", expected, f"{first}, which is the same job as {second}", remedy)
            return
        seen[text] = member


def _member(fields: Mapping[str, Any], index: int, values: Fields) -> Fields:
    member = {field: value for field, value in fields.items() if field != "sweep"}
    for path in sorted(values, key=lambda path: path.count(".")):  # a whole part before the fields in it
        member = _with(member, path.split("."), values[path])
    name = str(fields["name"])
    if member.get("client_token") is not None:
        member["client_token"] = f"{member['client_token']}/{index:03}"
    return member | {"name": _name(name, index, values), "from_sweep": {"name": name, "values": values}}


def _with(part: object, path: Sequence[str], value: object) -> Any:
    """Return a copy of a part of a job in which the field at ``path`` has another value."""
    if not path:
        return value
    fields = {"name": part} if isinstance(part, str) else dict(part) if isinstance(part, Mapping) else {}
    return fields | {path[0]: _with(fields.get(path[0]), path[1:], value)}


def _name(sweep: str, index: int, values: Mapping[str, Any]) -> str:
    lasts = Counter(path.rpartition(".")[2] for path in values)
    labels = {path: last if lasts[last := path.rpartition(".")[2]] == 1 else path for path in values}
    parts = [f"{index:03}", *(f"{labels[path]}{_short(value)}" for path, value in values.items())]
    return _allowed(f"{sweep}-{'-'.join(parts)}")[:_LONGEST_NAME]


def _short(value: object) -> str:
    """Return a value as part of a name; of a component its own name."""
    if isinstance(value, Mapping):
        value = value.get("name", "-".join(f"{field}{_short(inner)}" for field, inner in value.items()))
    if isinstance(value, list):
        return "_".join(map(_short, value))[:_LONGEST_VALUE]
    return _allowed(value_text(value))[:_LONGEST_VALUE]


def _allowed(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", text.replace("e+", "e"))


def _field_problems(job: str, field: str, model: type[BaseModel]) -> Iterator[Problem]:
    """Yield a problem unless ``field`` leads to a field that may differ between the members."""
    steps = field.split(".")
    if steps[0] in NOT_SWEPT:
        remedy = "hand in a job for each; jobs in one folder may share their data"
        yield _problem("E-VALUE", job, f"sweep.{field}", "a field that may differ within a sweep", describe(steps[0]), remedy)
        return
    record: type[BaseModel] | None = model
    for depth, step in enumerate(steps):
        fields = _fields_of(record)
        if step not in fields:
            yield _unknown_field(job, field, ".".join(steps[:depth]), [*fields])
            return
        record = model_in(fields[step].annotation)
        if _is_component(record):
            yield from _argument_problems(job, field, steps[depth + 1 :])
            return


def _is_component(record: type[BaseModel] | None) -> bool:
    return record is not None and issubclass(record, Component)


def _fields_of(record: type[BaseModel] | None) -> dict[str, FieldInfo]:
    if record is None:
        return {}
    return {name: field for name, field in record.model_fields.items() if name not in NOT_SWEPT}


def _unknown_field(job: str, field: str, part: str, known: Sequence[str]) -> Problem:
    """Return the problem of a field that ``part`` (the job itself if empty) does not have."""
    if known:
        whole = [f"{part}.{name}" if part else name for name in known]
        remedy = did_you_mean(field, whole, f"known are {', '.join(whole)}")
    else:
        remedy = f"{part!r} has no fields of its own; sweep it as a whole"
    return _problem("E-FIELD", job, f"sweep.{field}", "a field of the job", describe(field), remedy)


def _argument_problems(job: str, field: str, rest: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem unless ``rest`` is nothing or one argument, which only PyTorch knows."""
    if len(rest) > 1 or "" in rest:
        expected, remedy = "a component or one of its arguments", "sweep the whole argument"
        yield _problem("E-FIELD", job, f"sweep.{field}", expected, describe(field), remedy)


def _values_problems(job: str, field: str, values: Sequence[Any]) -> Iterator[Problem]:
    if not values:
        yield _problem("E-VALUE", job, field, "at least one value", "[]", "list the values, or leave the field out")
    seen: set[str] = set()
    for index, value in enumerate(values):
        text = json.dumps(value, sort_keys=True)
        if text in seen:
            yield _problem("E-VALUE", job, f"{field}[{index}]", "each value once", describe(value), "remove it")
        seen.add(text)


def _name_problems(job: str, fields: Mapping[str, Any]) -> Iterator[Problem]:
    for field, limit in (("name", MAX_NAME), ("client_token", MAX_TOKEN)):
        value = fields.get(field)
        if isinstance(value, str) and len(value) > limit:
            expected = f"at most {limit} characters for a sweep, whose members add to it"
            yield _problem("E-VALUE", job, field, expected, f"{len(value)}", "shorten it")
    if fields.get("id") is not None:
        expected, remedy = "no id for a sweep", "leave it out: its members' ids are made of their names and contents"
        yield _problem("E-VALUE", job, "id", expected, describe(fields["id"]), remedy)
    if fields.get("from_sweep") is not None:
        expected, remedy = "a sweep or a member of one", "leave out one of the two"
        yield _problem("E-VALUE", job, "from_sweep", expected, "both", remedy)


def _problem(code: str, job: str, field: str, expected: str, given: str, remedy: str) -> Problem:
    return Problem(code=code, job=job, field=field, expected=expected, given=given, remedy=remedy)
