"""Which variant of an operator is fastest for which shape: measured once on tensors of that very shape, then remembered.

No variant of a convolution wins everywhere (``docs/stacking.md`` has the table), so nothing is assumed: each is run forward
and, where gradients are wanted, backward, and the one with the least median time is taken from then on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Variant = Callable[..., Tensor | list[Tensor]]
Key = tuple[object, ...]

NUM_RUNS = 4
SECONDS = 0.05  #: after which a variant is not run again


class Chooser(Protocol):
    """Says which variant of an operator is to run; see :meth:`Choices.pick`."""

    def pick(self, name: str, variants: Mapping[str, Variant], tensors: Sequence[Tensor | None], settings: Key = ()) -> str:
        """Return the name of a variant."""


class Choices:
    """Remembers the fastest variants.

    Args:
        forced: Names of variants to take wherever they are offered, unmeasured: for tests, and to reproduce a run.
    """

    def __init__(self, forced: Sequence[str] = ()) -> None:
        self.forced = tuple(forced)
        self.known: dict[Key, str] = {}
        self.seconds: dict[Key, dict[str, float]] = {}

    def pick(self, name: str, variants: Mapping[str, Variant], tensors: Sequence[Tensor | None], settings: Key = ()) -> str:
        """Return the name of the fastest of ``variants``, each called with ``tensors``.

        Args:
            name: The operator's.
            variants: Functions of equal results; the first is taken where nothing can be measured (while exporting).
            tensors: What they are called with now; only shapes, strides, dtypes and the like matter.
            settings: What else distinguishes this use, such as a stride.
        """
        for wanted in self.forced:
            if wanted in variants:
                return wanted
        if len(variants) == 1 or any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return next(iter(variants))
        key = (name, settings, torch.get_num_threads(), torch.is_grad_enabled(), *map(_described, tensors))
        if key not in self.known:
            times = {each: measured(function, tensors) for each, function in variants.items()}
            self.seconds[key] = times
            self.known[key] = min(times, key=times.__getitem__)
        return self.known[key]


def measured(function: Variant, tensors: Sequence[Tensor | None]) -> float:
    """Return the median seconds of ``function`` on random tensors like ``tensors``, backward included if any needs gradients.

    Draws from a generator of its own.
    """
    copies = [None if tensor is None else _like(tensor) for tensor in tensors]
    times: list[float] = []
    began = time.perf_counter()
    while len(times) <= NUM_RUNS and (len(times) < 2 or time.perf_counter() - began < SECONDS):
        start = time.perf_counter()
        _run(function, copies)
        _await(copies)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one warms up


def _run(function: Variant, tensors: Sequence[Tensor | None]) -> None:
    result = function(*tensors)
    outputs = [result] if isinstance(result, Tensor) else result
    wanted = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    if torch.is_grad_enabled() and wanted and any(output.requires_grad for output in outputs):
        torch.autograd.grad(outputs, wanted, [torch.ones_like(output) for output in outputs], allow_unused=True)


def _await(tensors: Sequence[Tensor | None]) -> None:
    first = next(tensor for tensor in tensors if tensor is not None)
    if first.device.type == "cuda":
        torch.cuda.synchronize(first.device)


def _like(tensor: Tensor) -> Tensor:
    """Return random values laid out like ``tensor``."""
    with torch.no_grad():
        copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        copy.uniform_(-0.1, 0.1, generator=torch.Generator(tensor.device).manual_seed(0))
    return copy.requires_grad_(tensor.requires_grad)


def _described(tensor: Tensor | None) -> Key | None:
    if tensor is None:
        return None
    return (tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device.type, tensor.requires_grad)


class Repeated:
    """Notes what another chooser says, and says the same again, operator by operator: for a trace, where nothing is measured.

    Args:
        chooser: Is asked until :meth:`repeat`.
    """

    def __init__(self, chooser: Chooser) -> None:
        self._chooser = chooser
        self._said: dict[str, list[str]] = {}
        self._left: dict[str, list[str]] | None = None

    def repeat(self) -> None:
        """From now on say what was said, from the beginning."""
        self._left = {name: list(ways) for name, ways in self._said.items()}

    def pick(self, name: str, variants: Mapping[str, Variant], tensors: Sequence[Tensor | None], settings: Key = ()) -> str:
        """Return the name of a variant: the first where a model computes otherwise while it is traced."""
        if self._left is None:
            way = self._chooser.pick(name, variants, tensors, settings)
            self._said.setdefault(name, []).append(way)
            return way
        said = self._left.get(name)
        way = said.pop(0) if said else ""
        return way if way in variants else next(iter(variants))
