"""The hybrid: one ``nn.Module`` per slot that holds every resident member's model (UnifiedNN, "Model unifier", Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


class HybridModule(nn.Module):
    """Members of any architecture side by side; data goes to the one it belongs to.

    The paper chains sub-models in one ``nn.Sequential`` and routes data inside a global forward. Here each member keeps its
    own signature (several inputs, keyword inputs, any output), joins and leaves while the others train, and never shares
    a parameter, buffer or random draw with them.

    Example:
        >>> hybrid = HybridModule()
        >>> hybrid.add("alice", nn.Linear(4, 2)); hybrid.add("bob", nn.Linear(8, 3))
        >>> hybrid("bob", torch.zeros(5, 8)).shape
        torch.Size([5, 3])
        >>> hybrid.drop("alice").out_features, list(hybrid.names())
        (2, ['bob'])
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[str, str] = {}
        self._num_added = 0

    def add(self, name: str, module: nn.Module) -> None:
        """Let ``module`` join under ``name``. The hybrid holds it, not a copy.

        Raises:
            ValueError: If a member of that name is here already.
        """
        if name in self._keys:
            raise ValueError(f"the hybrid has a member {name!r} already; drop it first or choose another name")
        # Submodule names may hold no dot, job names may: hence a key of our own.
        self._keys[name] = f"member_{self._num_added}"
        self._num_added += 1
        self.add_module(self._keys[name], module)

    def drop(self, name: str) -> nn.Module:
        """Let the member leave and return its module; the others are untouched.

        Raises:
            KeyError: If there is no such member.
        """
        module = self.member(name)
        delattr(self, self._keys.pop(name))
        return module

    def member(self, name: str) -> nn.Module:
        """Return the module of the member ``name``.

        Raises:
            KeyError: If there is no such member.
        """
        if name not in self._keys:
            raise KeyError(f"the hybrid has no member {name!r}; it has {sorted(self._keys)}")
        return self._modules[self._keys[name]]  # type: ignore[return-value]  # add_module never stores None here

    def names(self) -> Iterator[str]:
        """Yield the members' names in the order in which they joined."""
        return iter(self._keys)

    def forward(self, name: str, inputs: torch.Tensor | dict[str, torch.Tensor]) -> Any:
        """Run one member.

        Args:
            name: Which member.
            inputs: Its batch: one tensor ``(batch, ...)``, or a dict of them passed as keyword arguments.

        Returns:
            Whatever the member's own forward returns.
        """
        module = self._modules[self._keys[name]]
        return module(**inputs) if isinstance(inputs, dict) else module(inputs)  # type: ignore[misc]  # never None
