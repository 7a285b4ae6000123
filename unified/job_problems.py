"""Turn what is wrong with a job's fields into the :class:`~unified.errors.Problem` records that a user reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from unified.errors import Problem

MAX_PROBLEMS = 100  #: of one job; nobody reads on, and a hostile file could have a million

#: Fields that all members of a sweep share: who it is, where it goes, and its one model and data, which are read once.
NOT_SWEPT = frozenset({"name", "id", "user", "client_token", "model", "architecture", "data", "sweep", "from_sweep"})

_LONGEST = 80
_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


def refusal(code: str, expected: str, remedy: str, given: str | None = None) -> PydanticCustomError:
    """Return the error for a validator to raise: it says all that a :class:`Problem` wants to know."""
    context = {"code": code, "expected": expected, "remedy": remedy, "given": given}
    return PydanticCustomError("unified", "{expected}", context)


def problems_in(error: ValidationError, job: str, model: type[BaseModel]) -> list[Problem]:
    """Return what pydantic found wrong with ``job`` when filling in ``model``."""
    found = error.errors(include_url=False)
    problems = [_problem(details, job, model) for details in found[:MAX_PROBLEMS]]
    if len(found) > MAX_PROBLEMS:
        expected, given = f"at most {MAX_PROBLEMS} problems", f"{len(found)}"
        problems.append(Problem(code="E-FIELD", job=job, field="all", expected=expected, given=given, remedy="begin anew"))
    return problems


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``name`` was most likely meant to be, None if nothing is near.

    Example:
        >>> nearest("optimiser", ["optimizer", "output"])
        'optimizer'
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    found = get_close_matches(name[:_LONGEST].lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return ``"did you mean 'x'?"``, or ``otherwise`` if no known name is near."""
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near is not None else otherwise


def describe(value: object) -> str:
    """Return a value as the user wrote it, in JSON where it has one and is short.

    Example:
        >>> describe(True), describe([1, "a"]), describe({"lr": 0.1})
        ('true', '[1, "a"]', 'an object with "lr"')
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, str | int | float | None):
        text = json.dumps(value[:_LONGEST] if isinstance(value, str) else value, ensure_ascii=False)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if len(value) > 8 else f"[{', '.join(map(_brief, value))}]"
    if isinstance(value, Mapping):
        keys = ", ".join(_brief(key) for key in [*value][:8])
        return f"an object with {keys or 'nothing in it'}{', …' if len(value) > 8 else ''}"
    return f"a {type(value).__name__} object"


def or_sweep(field: str, value: object, remedy: str) -> str:
    """Return a remedy that also tells of sweeps if ``value`` is a list in a field that takes none.

    Example:
        >>> or_sweep("seed", [0, 1], "give an integer")
        'give an integer, or to train with each of them write "sweep": {"seed": [0, 1]}'
    """
    is_listed = isinstance(value, list | tuple) and "[" not in field and field.partition(".")[0] not in NOT_SWEPT
    if not is_listed:
        return remedy
    values = "[…]" if len(value) > 8 or any(isinstance(item, list | Mapping) for item in value) else describe(value)
    return f'{remedy}, or to train with each of them write "sweep": {{"{field}": {values}}}'


def _brief(value: object) -> str:
    return "…" if isinstance(value, list | tuple | Mapping) else describe(value)


def _problem(details: ErrorDetails, job: str, model: type[BaseModel]) -> Problem:
    """Return one of pydantic's errors in our words."""
    kind, value, place = details["type"], details["input"], details["loc"]
    given = describe(value)
    if kind == "unified":
        context = details.get("ctx", {})
        code, expected, remedy = context["code"], context["expected"], context["remedy"]
        given = context["given"] or given
    elif kind == "missing":
        code, expected, given, remedy = "E-MISSING", "a value", "nothing", "add it"
    elif kind in ("extra_forbidden", "invalid_key"):
        code, expected = "E-FIELD", "a known key"
        known = _known_keys(model, place[:-1])
        remedy = did_you_mean(str(place[-1]), known, f"remove it; known are {', '.join(known)}")
    elif kind in _TYPES:
        code, expected, remedy = "E-TYPE", _TYPES[kind], _type_remedy(_TYPES[kind], value)
    else:
        code, (expected, remedy) = "E-VALUE", _value_in_words(details)
    if kind in _TYPES or kind == "literal_error":
        remedy = or_sweep(_field(place), value, remedy)
    return Problem(code=code, job=job, field=_field(place), expected=expected, given=given, remedy=remedy)


def _field(place: tuple[int | str, ...]) -> str:
    """Return a place as a path such as ``"metrics[0]"``; the whole is ``"job.json"``."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:_LONGEST]}" for step in place)
    return path.removeprefix(".") or "job.json"


def _known_keys(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Return the names of the fields at ``place`` in ``model``."""
    for step in place:
        inner = model_in(model.model_fields[str(step)].annotation)
        assert inner is not None, "only records have keys that may be unknown"
        model = inner
    return [*model.model_fields]


def model_in(annotation: object) -> type[BaseModel] | None:
    """Return the model in an annotation such as ``DataSpec | None``, None if there is none in it."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _type_remedy(expected: str, value: object) -> str:
    if isinstance(value, str) and expected in ("an integer", "a number", "true or false"):
        return "write it without quotes"
    if isinstance(value, float) and expected == "an integer" and value.is_integer():
        return f"write {int(value)}"
    return f"give {expected}"


def _value_in_words(details: ErrorDetails) -> tuple[str, str]:
    """Return what was expected of a value of the right type, and the remedy."""
    context = details.get("ctx", {})
    bounds = [f"{words} {context[bound]}" for bound, words in _BOUNDS.items() if bound in context]
    if details["type"] == "finite_number":
        return "a finite number", "give a finite number"
    if details["type"] == "literal_error":
        known = [part.strip("'") for part in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return f"{context['expected']}", did_you_mean(str(details["input"]), known, "use one of these")
    if bounds:
        return f"a number of {bounds[0]}", "give a number in that range"
    return details["msg"], "correct it"
