"""Schedulers by name: the built-in ones in one table, others from entry points or as ``module:Class``."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TypeAlias

from schedulers.aging import Aging
from schedulers.base import Scheduler, SchedulerConfigError, Seconds
from schedulers.drr import DeficitRoundRobin
from schedulers.edf import EarliestDeadlineFirst
from schedulers.fair import FairShare
from schedulers.fcfs import FirstComeFirstServed
from schedulers.hrrn import HighestResponseRatioNext
from schedulers.las import LeastAttainedService
from schedulers.las_2d import DiscretisedLeastAttainedService
from schedulers.needs import check_fields
from schedulers.priority import Priority
from schedulers.quanta import DEFAULT_QUANTUM
from schedulers.round_robin import RoundRobin
from schedulers.sjf import ShortestJobFirst
from schedulers.spelling import Spelling, parse
from schedulers.srtf import ShortestRemainingTimeFirst
from schedulers.stride import Stride

Factory: TypeAlias = Callable[..., Scheduler]

ENTRY_POINT_GROUP = "unified.schedulers"

_NOTHING: Mapping[str, str] = MappingProxyType({})


def the_default(quantum: str | Seconds = DEFAULT_QUANTUM) -> Aging:
    """Build what the simulator speaks for where nothing is known of the jobs to come: ``aging(srtf)``."""
    return Aging(ShortestRemainingTimeFirst(quantum), weight=0.1, max_wait="72h")


BUILT_INS: dict[str, tuple[Factory, str]] = {
    "fcfs": (FirstComeFirstServed, "in order of arrival, each to its end"),
    "priority": (
        Priority,
        "lowest priority value first; equal values take turns of one epoch; preempt=epoch (default) or step",
    ),
    "sjf": (ShortestJobFirst, "smallest first, each to its end; length=parameters (default), epochs or seconds"),
    "round-robin": (RoundRobin, "everybody in turn; quantum=1epoch (default), or e.g. 200steps, 500ms"),
    "default": (the_default, "aging(srtf,weight=0.1,max_wait=72h)"),
    "srtf": (ShortestRemainingTimeFirst, "least time left first, by measured steps; quantum=2s (default), or e.g. 500ms"),
    "hrrn": (HighestResponseRatioNext, "least time left by age and length first; quantum=2s"),
    "las": (LeastAttainedService, "least slot time so far first; quantum=2s"),
    "2dlas": (DiscretisedLeastAttainedService, "queues by slot time so far; thresholds=1min/10min/2h (else learnt), promote=8"),
    "stride": (Stride, "least slot time by weight since it came first; quantum=2s"),
    "drr": (DeficitRoundRobin, "rounds of equal time, or equally many steps; quantum=2s (default), or e.g. 200steps"),
    "edf": (EarliestDeadlineFirst, "earliest deadline first; refuses a job whose deadline would not be met; quantum=2s"),
    "aging": (Aging, "wrapper: aging(srtf,weight=0.1,max_wait=72h) lets age count, and nobody wait for longer"),
    "fair": (FairShare, "wrapper: fair(srtf,by=user) gives each user the same share of the slots"),
}


def create(spelling: str, defaults: Mapping[str, str] = _NOTHING) -> Scheduler:
    """Build a scheduler from its spelling.

    Args:
        spelling: ``name``, ``name:option=value,option=value``, or ``wrapper(inner,option=value)`` where ``inner`` is
            a spelling, too. A name is a built-in one, one of an entry point of the group ``unified.schedulers``, or
            ``module:Class``. Options are passed as texts.
        defaults: Options for every scheduler in the spelling that has them and is not given them there.

    Raises:
        SchedulerConfigError: If name, option or value is unknown (the message gives the nearest known one),
            or if what the name leads to cannot be imported or is no scheduler.

    >>> type(create("round-robin:quantum=200steps")).__name__
    'RoundRobin'
    >>> type(create("aging(srtf,weight=0.1)", {"quantum": "60s"}).inner).__name__
    'ShortestRemainingTimeFirst'
    """
    return _build(parse(spelling), spelling, defaults)


def _build(parsed: Spelling, whole: str, defaults: Mapping[str, str]) -> Scheduler:
    name, factory = parsed.path, _find(parsed)
    parameters = _parameters(name, factory)
    if parsed.inner is not None and "inner" not in parameters:
        raise SchedulerConfigError(f"scheduler {name!r} is no wrapper: it holds no other such as {parsed.inner.path!r}")
    if parsed.inner is None and "inner" in parameters:
        raise SchedulerConfigError(f"scheduler {name!r} wraps another: write e.g. {name}(srtf)")
    _check_options(name, parameters, parsed.options)
    options: dict[str, str | Scheduler] = {option: value for option, value in defaults.items() if option in parameters}
    options |= parsed.options
    if parsed.inner is not None:
        options["inner"] = _build(parsed.inner, whole, defaults)
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise SchedulerConfigError(f"scheduler {name!r}: {error}; write {name}:option=value") from error
    try:
        scheduler = factory(**options)
    except ValueError as error:
        raise SchedulerConfigError(f"scheduler {whole!r}: {error}") from error
    except Exception as error:  # it may be a plug-in
        raise SchedulerConfigError(f"scheduler {whole!r} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(scheduler, Scheduler):
        kind = type(scheduler).__name__
        raise SchedulerConfigError(f"scheduler {name!r}: a {kind} has no 'select' or no 'needs'")
    check_fields(name, scheduler.needs)
    return scheduler


def available() -> dict[str, str]:
    """Return every name with one line of help; plug-ins, not imported for this, name where they come from.

    Raises:
        SchedulerConfigError: If a plug-in takes a name that another scheduler has.
    """
    plug_ins = {name: f"plug-in {plug_in.value}" for name, plug_in in _plug_ins().items()}
    return {name: help_line for name, (_, help_line) in BUILT_INS.items()} | plug_ins


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A scheduler in the list of all.

    Attributes:
        name: What it is called.
        needs: What it decides by, sorted; a wrapper decides by what its inner one needs, too.
        help: What it does, in one line.
    """

    name: str
    needs: tuple[str, ...]
    help: str


def listed() -> list[Listed]:
    """Return all schedulers that have names, plug-ins last; one that cannot be imported says so in its help.

    Raises:
        SchedulerConfigError: If a plug-in takes a name that another scheduler has.
    """
    built_ins = []
    for name, (factory, help_line) in BUILT_INS.items():
        scheduler = factory(FirstComeFirstServed()) if _is_wrapper(factory) else factory()
        built_ins.append(Listed(name=name, needs=_needs_shown(factory, scheduler), help=help_line))
    return built_ins + [_listed_plug_in(name, plug_in) for name, plug_in in _plug_ins().items()]


def _listed_plug_in(name: str, plug_in: EntryPoint) -> Listed:
    origin = f"plug-in {plug_in.value}"
    try:
        factory = _load(name, plug_in)
    except SchedulerConfigError as error:
        return Listed(name=name, needs=(), help=f"{origin}: {error}")
    does = (inspect.getdoc(factory) or "").partition("\n")[0]
    return Listed(name=name, needs=_needs_shown(factory, factory), help=f"{does} ({origin})" if does else origin)


def _needs_shown(factory: Factory, has_needs: object) -> tuple[str, ...]:
    needs = getattr(has_needs, "needs", frozenset())
    own = sorted(needs) if isinstance(needs, frozenset) else []
    return (*own, "those of the inner one") if _is_wrapper(factory) else tuple(own)


def _is_wrapper(factory: Factory) -> bool:
    return "inner" in inspect.signature(factory).parameters


def _parameters(name: str, factory: Factory) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except ValueError as error:  # some built-in classes have none
        raise SchedulerConfigError(
            f"scheduler {name!r}: expected a class whose options can be told, got {factory!r}"
        ) from error


def _find(parsed: Spelling) -> Factory:
    """Find what a spelling's name leads to."""
    name, class_name, plug_ins = parsed.name, parsed.class_name, _plug_ins()
    if name in BUILT_INS or name in plug_ins:
        if class_name is not None:
            raise SchedulerConfigError(f"scheduler {name!r}: expected option=value after ':', got {class_name!r}")
        return BUILT_INS[name][0] if name in BUILT_INS else _load(name, plug_ins[name])
    if class_name is not None and _is_module(name):
        return _load(parsed.path, EntryPoint(parsed.path, parsed.path, ENTRY_POINT_GROUP))
    known = _nearest(name, [*BUILT_INS, *plug_ins])
    if class_name is not None:
        known = f"nor is there a module of that name to import (PYTHONPATH=. adds this folder); {known}"
    raise SchedulerConfigError(f"no scheduler is called {name!r}; {known}")


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
    except Exception as error:  # what a module does on import is its own
        raise SchedulerConfigError(f"scheduler {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(factory):
        raise SchedulerConfigError(f"scheduler {name!r}: {entry_point.value} is not a class but {factory!r}")
    return factory


def _check_options(name: str, parameters: Mapping[str, inspect.Parameter], options: Mapping[str, str]) -> None:
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = [parameter for parameter in parameters if parameter != "inner"]
    for option in options:
        if option not in known:
            raise SchedulerConfigError(f"scheduler {name!r} has no option {option!r}; {_nearest(option, known)}")


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    if not known:
        return "it has none"
    close = difflib.get_close_matches(word.lower(), known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"
