"""The state of a process's default random generators, to be taken, kept and put back: each member draws from its own."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RandomState:
    """The states of the default generators, as ``torch.get_rng_state`` gives them.

    Attributes:
        cpu: State of the CPU's generator, uint8 ``(bytes,)``.
        cuda: State of one GPU's generator, uint8 ``(bytes,)``, or None without a GPU.
        device: Which GPU; None stands for the current one at the time of :meth:`restore`.
    """

    cpu: torch.Tensor
    cuda: torch.Tensor | None = None
    device: torch.device | None = None

    @classmethod
    def capture(cls, device: torch.device | str | None = None) -> RandomState:
        """Copy the generators' states, which stay as they are.

        Args:
            device: Whose generator to take beside the CPU's. None takes the current GPU's if CUDA is in use by this process.
        """
        gpu = _gpu(device)
        cuda = None if gpu is None else torch.cuda.get_rng_state(gpu)
        return cls(cpu=torch.get_rng_state(), cuda=cuda, device=gpu)

    @classmethod
    def seeded(cls, seed: int, device: torch.device | str | None = None) -> RandomState:
        """Return the state right after ``torch.manual_seed(seed)``, without seeding anything.

        Args:
            seed: As for ``torch.manual_seed``.
            device: As for :meth:`capture`.
        """
        gpu = _gpu(device)
        cuda = None if gpu is None else torch.Generator(gpu).manual_seed(seed).get_state()
        return cls(cpu=torch.Generator().manual_seed(seed).get_state(), cuda=cuda, device=gpu)

    def restore(self) -> None:
        """Put the states in place."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, "cuda" if self.device is None else self.device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the states as tensors: ``"cpu"`` and, with a GPU, ``"cuda"``. They are not copied."""
        return {"cpu": self.cpu} | ({} if self.cuda is None else {"cuda": self.cuda})

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor]) -> RandomState:
        """Make what :meth:`state_dict` gave again; a GPU's state goes to the current GPU, whichever it came from.

        Raises:
            KeyError: If ``"cpu"`` is missing.
        """
        return cls(cpu=state["cpu"], cuda=state.get("cuda"))


@contextlib.contextmanager
def preserved_random_state(device: torch.device | str | None = None) -> Generator[None]:
    """Let the block draw as it likes: afterwards the generators are where they were, also after an exception.

    Args:
        device: As for :meth:`RandomState.capture`.

    Example:
        >>> before = torch.get_rng_state()
        >>> with preserved_random_state():
        ...     drawn = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    state = RandomState.capture(device)
    try:
        yield
    finally:
        state.restore()


def _gpu(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_initialized() else None
    device = torch.device(device)
    return device if device.type == "cuda" else None
