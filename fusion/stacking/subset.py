"""Some members of a stack alone: what they compute with, so that the others cost nothing.

Members that stand side by side compute with views of the stack's tensors. Others with copies: of what needs gradients a new
one for each run, through which gradients reach the whole tensor; of the rest one that is kept until the values change, and
whose own changes (BatchNorm's statistics) are written back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion.stacking.dispatch import StackMode

MAX_KEPT = 4  #: subsets whose copies a stack keeps: the last ones asked for


@dataclass(slots=True, kw_only=True)
class _Copy:
    """Some rows of ``source`` as they were at its version ``taken_at``; ``own_version`` tells whether they changed since."""

    source: Tensor
    taken_at: int
    rows: Tensor
    own_version: int


class Subset:
    """Some members of a stack.

    Args:
        members: Their positions, in the order wanted.
        mode: Computes for as many members.
    """

    def __init__(self, members: tuple[int, ...], mode: StackMode) -> None:
        self.members = members
        self.mode = mode
        self._is_range = list(members) == list(range(members[0], members[0] + len(members)))
        self._copies: dict[str, _Copy] = {}

    def tensors(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the members compute with.

        Args:
            values: All members' tensors by name, ``(members, ...)``.

        Returns:
            ``(subset, ...)`` by name; views for members side by side.
        """
        if self._is_range:
            return {name: value.narrow(0, self.members[0], len(self.members)) for name, value in values.items()}
        return {name: self._selected(name, value) for name, value in values.items()}

    def write_back(self, *, is_training: bool) -> None:
        """Let what a run wrote to copies reach the stack.

        Args:
            is_training: BatchNorm may have written its statistics, which does not count as a change for PyTorch.
        """
        for copy in self._copies.values():
            may_be_written = is_training and not isinstance(copy.source, nn.Parameter)
            if may_be_written or copy.rows._version != copy.own_version:
                with torch.no_grad():
                    copy.source.index_copy_(0, _index(self.members, copy.source), copy.rows)
                copy.taken_at, copy.own_version = copy.source._version, copy.rows._version

    def forget_buffers(self) -> None:
        """Keep no copies of buffers: somebody may have written to them in a way that PyTorch does not count as a change."""
        self._copies = {name: copy for name, copy in self._copies.items() if isinstance(copy.source, nn.Parameter)}

    def _selected(self, name: str, value: Tensor) -> Tensor:
        if value.is_inference() or (value.requires_grad and torch.is_grad_enabled()):
            return value.index_select(0, _index(self.members, value))
        copy = self._copies.get(name)
        if copy is None or copy.source is not value or copy.taken_at != value._version:
            with torch.inference_mode(False), torch.no_grad():  # usable in any mode later
                rows = value.index_select(0, _index(self.members, value))
            copy = _Copy(source=value, taken_at=value._version, rows=rows, own_version=rows._version)
            self._copies[name] = copy
        return copy.rows


def checked(members: Sequence[int], num_members: int) -> tuple[int, ...]:
    """Return the positions of members, each once.

    Raises:
        ValueError: If there are none, or one is unknown or named twice.
    """
    wanted = tuple(int(member) for member in members)
    if not wanted or len(set(wanted)) != len(wanted) or not all(0 <= member < num_members for member in wanted):
        raise ValueError(f"expected some of the members 0 to {num_members - 1}, each once, got {list(members)}")
    return wanted


def _index(members: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(members, device=like.device)
