"""What ``unified variants list`` does: prints what is known of variants."""

from __future__ import annotations

import sys
from pathlib import Path

from serving.errors import ServingError
from serving.store import VariantStore
from unified.listeners import json_line
from unified.quantities import plural
from unified.run_command import EXIT_DONE
from unified.summary import finite
from unified.terminal import line_writer, make_console, show
from unified.variants.profile_views import known_table, known_to_json


def list_variants(variants: Path, family: str | None, *, as_json: bool) -> int:
    """Print the variants of a store and return the exit code.

    Args:
        variants: The store.
        family: Only these; None for all.
        as_json: A line of JSON for each family in place of tables.

    Raises:
        ServingError: If there is no such store or family.
    """
    store = VariantStore.open(variants)
    console, write = make_console(), line_writer(sys.stdout)
    for number, name in enumerate(families_of(store, family)):
        definition = store.family(name)
        place, known = store.known(name)
        if as_json:
            write(json_line(finite(known_to_json(definition, place, known))))
            continue
        if number:
            write("")
        show(console, known_table(definition, known, console.width))
        num_profiled = sum(each.profiled is not None for each in known)
        write(f"{plural(len(known), 'variant')} of {name}, {num_profiled} profiled on this machine")
        if num_profiled < sum(each.problem is None for each in known):
            write(f"measure the others: unified variants profile {variants}")
    return EXIT_DONE


def families_of(store: VariantStore, family: str | None) -> list[str]:
    """Return the names of the families that a command is about.

    Raises:
        ServingError: If there is none of that name, or none at all.
    """
    if family is not None:
        return [store.family(family).name]
    found = list(store.families())
    if not found:
        raise ServingError(f"{store.path} has no family yet; 'unified variants build' adds one")
    return found
