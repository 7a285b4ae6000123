"""How schedulers are spelled: ``srtf``, ``round-robin:quantum=500ms``, ``aging(fair(srtf),weight=0.1)``, ``module:Class``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from schedulers.base import SchedulerConfigError

MOST_LETTERS = 500  #: of a spelling: what is longer was not written by hand, and brackets would nest without end

_OPTION = re.compile(r"\s*(?P<name>[A-Za-z_]\w*)\s*=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """A spelling, taken apart.

    Attributes:
        name: Name of the scheduler, or of the module where it is.
        class_name: Its class there; None where ``name`` is its own.
        options: Its options, as texts.
        inner: The scheduler that it holds, if it is a wrapper.
    """

    name: str
    class_name: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    inner: Spelling | None = None

    @property
    def path(self) -> str:
        """``name`` or ``module:Class``."""
        return self.name if self.class_name is None else f"{self.name}:{self.class_name}"


def parse(text: str) -> Spelling:
    """Take a spelling apart.

    Options stand after a colon, or in brackets together with the scheduler that a wrapper holds. Of
    ``aging(sjf:length=epochs,weight=1)``, ``weight`` is the wrapper's: a scheduler in a wrapper that is to have more
    than one option has brackets of its own.

    >>> parse("aging(2dlas(promote=2,quantum=1s),weight=0.1)").inner
    Spelling(name='2dlas', class_name=None, options={'promote': '2', 'quantum': '1s'}, inner=None)

    Raises:
        SchedulerConfigError: If brackets do not match, what stands in them or after a colon is no option, or it is very long.
    """
    if len(text) > MOST_LETTERS:
        raise SchedulerConfigError(f"scheduler {text[:40]!r}...: expected at most {MOST_LETTERS} letters, got {len(text)}")
    head, items = _split_brackets(text.strip())
    name, *after = (part.strip() for part in head.split(":", 1))
    class_name, options_text = _split_class(after[0]) if after else (None, None)
    path = name if class_name is None else f"{name}:{class_name}"
    if items is None:
        return Spelling(
            name=name, class_name=class_name, options=_options(path, [] if options_text is None else options_text.split(","))
        )
    if options_text is not None:
        raise SchedulerConfigError(f"scheduler {path!r}: its options go into its brackets, got {options_text!r} before them")
    inner = None
    items = [] if items == [""] else items
    if items and _OPTION.fullmatch(items[0]) is None:
        inner = parse(items.pop(0))
    return Spelling(name=name, class_name=class_name, options=_options(path, items), inner=inner)


def split(text: str) -> list[str]:
    """Split several spellings with commas between; what reads ``option=value`` belongs to the one before it.

    >>> split("fcfs, 2dlas:promote=2,quantum=1s, aging(srtf,weight=0.1)")
    ['fcfs', '2dlas:promote=2,quantum=1s', 'aging(srtf,weight=0.1)']

    Raises:
        SchedulerConfigError: If brackets do not match.
    """
    items = _split_brackets(f"({text})")[1] or []
    spellings: list[str] = []
    for item in (item.strip() for item in items):
        if spellings and _OPTION.fullmatch(item):
            spellings[-1] += f",{item}"
        elif item:
            spellings.append(item)
    return spellings


def _split_brackets(text: str) -> tuple[str, list[str] | None]:
    """Split ``head(item,item)``; the items are None if there are no brackets."""
    head, bracket, rest = text.partition("(")
    if ")" in head or (bracket and not rest.endswith(")")):
        raise SchedulerConfigError(f"scheduler {text!r}: its brackets do not match; expected e.g. aging(srtf,weight=0.1)")
    if not bracket:
        return text, None
    items, depth = [""], 0
    for letter in rest[:-1]:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            raise SchedulerConfigError(f"scheduler {text!r}: its brackets do not match; expected e.g. aging(srtf,weight=0.1)")
        if letter == "," and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    if depth:
        raise SchedulerConfigError(f"scheduler {text!r}: {depth} of its brackets are not closed")
    return head, items


def _split_class(text: str) -> tuple[str | None, str | None]:
    """Split what follows ``name:`` into the name of a class and the text of options."""
    first, colon, rest = text.partition(":")
    if first.strip().isidentifier():
        return first.strip(), rest if colon else None
    return None, text


def _options(path: str, items: Iterable[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in items:
        match = _OPTION.fullmatch(item)
        value = match["value"].strip() if match else ""
        if match is None or not value:
            raise SchedulerConfigError(f"scheduler {path!r}: expected option=value, got {item.strip()!r}")
        if match["name"] in options:
            raise SchedulerConfigError(f"scheduler {path!r}: option {match['name']!r} is given twice; keep one")
        options[match["name"]] = value
    return options
