"""Schedulers by name: the built-in ones in one table, others from entry points or as ``module:Class``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeAlias

from schedulers.base import Scheduler, SchedulerConfigError
from schedulers.fcfs import FirstComeFirstServed
from schedulers.priority import Priority
from schedulers.round_robin import RoundRobin
from schedulers.sjf import ShortestJobFirst
from schedulers.srtf import ShortestRemainingTimeFirst

Factory: TypeAlias = Callable[..., Scheduler]

ENTRY_POINT_GROUP = "unified.schedulers"

BUILT_INS: dict[str, tuple[Factory, str]] = {
    "fcfs": (FirstComeFirstServed, "in order of arrival, each to its end"),
    "priority": (Priority, "lowest priority value first; equal values take turns of one epoch"),
    "sjf": (ShortestJobFirst, "smallest first, each to its end; length=parameters (default) or epochs"),
    "round-robin": (RoundRobin, "everybody in turn; quantum=1epoch (default), or e.g. 200steps, 500ms"),
    "srtf": (ShortestRemainingTimeFirst, "least time left first, by measured steps; quantum=2s (default), or e.g. 500ms"),
}


def create(spelling: str) -> Scheduler:
    """Build a scheduler from its spelling.

    Args:
        spelling: ``name`` or ``name:option=value,option=value``, where the name is a built-in one, one of an
            entry point of the group ``unified.schedulers``, or ``module:Class``. Options are passed as texts.

    Raises:
        SchedulerConfigError: If name, option or value is unknown (the message gives the nearest known one),
            or if what the name leads to cannot be imported or is no scheduler.

    >>> type(create("round-robin:quantum=200steps")).__name__
    'RoundRobin'
    """
    name, factory, options_text = _find(spelling.strip())
    options = _parse_options(name, options_text)
    _check_options(name, factory, options)
    try:
        scheduler = factory(**options)
    except ValueError as error:
        raise SchedulerConfigError(f"scheduler {spelling!r}: {error}") from error
    if not isinstance(scheduler, Scheduler):
        kind = type(scheduler).__name__
        raise SchedulerConfigError(f"scheduler {name!r}: a {kind} has no 'select' or no 'needs'")
    return scheduler


def available() -> dict[str, str]:
    """Return every name with one line of help; plug-ins, not imported for this, name where they come from.

    Raises:
        SchedulerConfigError: If a plug-in takes a name that another scheduler has.
    """
    plug_ins = {name: f"plug-in {plug_in.value}" for name, plug_in in _plug_ins().items()}
    return {name: help_line for name, (_, help_line) in BUILT_INS.items()} | plug_ins


def _find(spelling: str) -> tuple[str, Factory, str | None]:
    """Split a spelling into name, what it leads to, and the text of its options, if any."""
    name, colon, rest = spelling.partition(":")
    options = rest if colon else None
    plug_ins = _plug_ins()
    if name in BUILT_INS:
        return name, BUILT_INS[name][0], options
    if name in plug_ins:
        return name, _load(name, plug_ins[name]), options
    class_name, second_colon, rest = rest.partition(":")
    if class_name.isidentifier() and _is_module(name):
        path = f"{name}:{class_name}"
        return path, _load(path, EntryPoint(path, path, ENTRY_POINT_GROUP)), rest if second_colon else None
    raise SchedulerConfigError(f"no scheduler is called {name!r}; {_nearest(name, [*BUILT_INS, *plug_ins])}")


def _plug_ins() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for plug_in in entry_points(group=ENTRY_POINT_GROUP):
        if plug_in.name in BUILT_INS or plug_in.name in found:
            owner = "a built-in one" if plug_in.name in BUILT_INS else f"plug-in {found[plug_in.name].value}"
            raise SchedulerConfigError(
                f"plug-in {plug_in.value} takes the name {plug_in.name!r}, which {owner} has; "
                "plug-ins add names and replace none: rename it, or uninstall what brought it"
            )
        found[plug_in.name] = plug_in
    return found


def _is_module(name: str) -> bool:
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent is missing or breaks; or a module without a spec
        return False


def _load(name: str, entry_point: EntryPoint) -> Factory:
    try:
        factory = entry_point.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise SchedulerConfigError(f"scheduler {name!r} cannot be imported: {error}") from error
    if not callable(factory):
        raise SchedulerConfigError(f"scheduler {name!r}: {entry_point.value} is not a class but {factory!r}")
    return factory


def _parse_options(name: str, text: str | None) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in [] if text is None else text.split(","):
        option, _, value = (part.strip() for part in item.partition("="))
        if not option or not value:
            raise SchedulerConfigError(f"scheduler {name!r}: expected option=value after ':', got {item!r}")
        if option in options:
            raise SchedulerConfigError(f"scheduler {name!r}: option {option!r} is given twice; keep one")
        options[option] = value
    return options


def _check_options(name: str, factory: Factory, options: dict[str, str]) -> None:
    signature = inspect.signature(factory)
    parameters = signature.parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    takes_any = len(known) < len(parameters)
    for option in options:
        if option not in known and not takes_any:
            hint = _nearest(option, known)
            raise SchedulerConfigError(f"scheduler {name!r} has no option {option!r}; {hint}")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise SchedulerConfigError(f"scheduler {name!r}: {error}; write {name}:option=value") from error


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    if not known:
        return "it has none"
    close = difflib.get_close_matches(word.lower(), known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"
