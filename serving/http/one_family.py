"""One family of a store, as if it were alone there."""

from __future__ import annotations

from torch import Tensor, nn

from serving.errors import ServingError
from serving.records import Family
from serving.runtime.snapshot import Models
from serving.table import Table


class OneFamily:
    """Narrows a store to one of its families.

    Args:
        models: The store.
        family: Name of the family.

    Raises:
        ServingError: If there is none of that name.
    """

    def __init__(self, models: Models, family: str) -> None:
        if family not in models.families():
            raise ServingError(f"there is no family {family!r} in the store; there is {', '.join(models.families()) or 'none'}")
        self._models = models
        self._family = family

    @property
    def version(self) -> int:
        """See :class:`Models`."""
        return self._models.version

    def families(self) -> dict[str, Family]:
        """Return the family by its name."""
        return {name: family for name, family in self._models.families().items() if name == self._family}

    def examples(self, family: str) -> tuple[Tensor, ...]:
        """See :class:`Models`."""
        return self._models.examples(family)

    def table(self, family: str, hardware: str | None = None) -> Table:
        """See :class:`Models`."""
        return self._models.table(family, hardware)

    def load(self, key: str) -> nn.Module:
        """See :class:`Models`."""
        return self._models.load(key)
