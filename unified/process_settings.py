"""PyTorch's switches for a whole process: a member's own code may turn them, and must not turn them for its neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from unified.random_state import preserved_random_state


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """The switches as a worker started with them; default dtype, default device and grad mode have fixed values."""

    is_deterministic: bool
    matmul_precision: str
    has_mkldnn: bool

    @classmethod
    def capture(cls) -> ProcessSettings:
        """Read the switches."""
        return cls(
            is_deterministic=torch.are_deterministic_algorithms_enabled(),
            matmul_precision=torch.get_float32_matmul_precision(),
            has_mkldnn=bool(torch.backends.mkldnn.enabled),
        )

    def restore(self, num_threads: int | None) -> None:
        """Put the switches back, and the number of intra-op threads unless it is None."""
        if num_threads is not None and torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
        torch.set_flush_denormal(False)
        torch.autograd.set_detect_anomaly(False)
        if torch.get_float32_matmul_precision() != self.matmul_precision:
            torch.set_float32_matmul_precision(self.matmul_precision)
        if torch.are_deterministic_algorithms_enabled() != self.is_deterministic:
            torch.use_deterministic_algorithms(self.is_deterministic)
        if torch.backends.mkldnn.enabled != self.has_mkldnn:
            torch.backends.mkldnn.enabled = self.has_mkldnn  # pyrefly: ignore[bad-assignment]  # a property in disguise

    @classmethod
    @contextmanager
    def preserved(cls) -> Iterator[None]:
        """Put the switches and the number of threads back as they are now, whatever happens inside."""
        settings, num_threads = cls.capture(), torch.get_num_threads()
        try:
            yield
        finally:
            settings.restore(num_threads)

    @contextmanager
    def around_foreign_code(self, device: torch.device, num_threads: int | None) -> Iterator[None]:
        """Let another member's code run in the middle of a turn: random state and switches are afterwards what they were."""
        with preserved_random_state(device):
            self.restore(num_threads)
            try:
                yield
            finally:
                self.restore(num_threads)
