"""The variants that a command is about: those of one family of a store, with what was measured of them on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from serving.errors import ServingError
from serving.store import VariantStore
from serving.table import Table


@contextmanager
def opened(path: Path, family: str | None) -> Iterator[tuple[VariantStore, str]]:
    """Open a store, and close it in the end.

    Args:
        path: Its folder.
        family: A family's name; None for the only one.

    Yields:
        The store, and the name of the family.

    Raises:
        ServingError: If there is no store or no such family, or there are several and none is named.
    """
    with closing(VariantStore.open(path)) as store:
        names = list(store.families())
        if family is None and len(names) != 1:
            raise ServingError(f"{path} has the families {', '.join(names) or 'none'}: say which with --family")
        yield store, store.family(family or names[0]).name


def profiled(store: VariantStore, family: str) -> Table:
    """Return what was measured of a family's variants here; raises ServingError if that is nothing."""
    table = store.table(family)
    if not len(table):
        raise ServingError(
            f"{store.path}: none of the {len(store.variants(family))} variants of {family!r} was profiled on this machine;"
            f" 'unified variants profile {store.path}' does it"
        )
    return table
