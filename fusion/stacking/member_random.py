"""Each member of a stack draws from a generator of its own, as it would alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class MemberRandom:
    """The members' random generators on the CPU and, with a GPU, on it.

    Args:
        generators: One CPU generator per member; its state is that of the default generator while the member runs alone.
        cuda: Likewise on a GPU, or None.
    """

    def __init__(self, generators: Sequence[torch.Generator], cuda: Sequence[torch.Generator] | None = None) -> None:
        self.generators = list(generators)
        self.cuda = None if cuda is None else list(cuda)

    @classmethod
    def seeded(cls, seeds: Sequence[int], device: torch.device) -> MemberRandom:
        """Return generators as ``torch.manual_seed(seed)`` would leave the default ones, for each member's seed."""
        cuda = [torch.Generator(device).manual_seed(seed) for seed in seeds] if device.type == "cuda" else None
        return cls([torch.Generator().manual_seed(seed) for seed in seeds], cuda)

    def on(self, device: torch.device) -> list[torch.Generator]:
        """Return the members' generators of ``device``."""
        return self.cuda if device.type == "cuda" and self.cuda is not None else self.generators

    def states(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return a copy of each member's states: CPU's, GPU's or None."""
        cuda = [None] * len(self.generators) if self.cuda is None else [each.get_state() for each in self.cuda]
        return [(each.get_state(), gpu) for each, gpu in zip(self.generators, cuda, strict=True)]

    def put(self, states: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        """Go back to what :meth:`states` gave."""
        for index, (cpu, gpu) in enumerate(states):
            self.put_one(index, cpu, gpu)

    def put_one(self, index: int, cpu: Tensor, cuda: Tensor | None = None) -> None:
        """Set one member's states."""
        self.generators[index].set_state(cpu)
        if cuda is not None and self.cuda is not None:
            self.cuda[index].set_state(cuda)

    @contextlib.contextmanager
    def of(self, index: int) -> Iterator[None]:
        """Let the process's default generators be member ``index``'s meanwhile."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.generators[index].get_state())
        with self._cuda_of(index):
            try:
                yield
            finally:
                self.generators[index].set_state(torch.get_rng_state())
                torch.set_rng_state(before)

    @contextlib.contextmanager
    def _cuda_of(self, index: int) -> Iterator[None]:
        if self.cuda is None:
            yield
            return
        generator = self.cuda[index]
        before = torch.cuda.get_rng_state(generator.device)
        torch.cuda.set_rng_state(generator.get_state(), generator.device)
        try:
            yield
        finally:
            generator.set_state(torch.cuda.get_rng_state(generator.device))
            torch.cuda.set_rng_state(before, generator.device)

    def select(self, rows: Sequence[int]) -> MemberRandom:
        """Return those of some members; the generators are the same."""
        cuda = None if self.cuda is None else [self.cuda[row] for row in rows]
        return MemberRandom([self.generators[row] for row in rows], cuda)

    def joined(self, other: MemberRandom) -> MemberRandom:
        """Return these members' and then the other's."""
        cuda = None if self.cuda is None or other.cuda is None else self.cuda + other.cuda
        return MemberRandom(self.generators + other.generators, cuda)
