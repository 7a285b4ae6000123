"""The order in which a job sees its samples: exactly that of a shuffling ``DataLoader``."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from unified.errors import CheckpointError, InvalidSubmission, Problem


def batch_problems(num_samples: int, batch_size: int, *, drop_last: bool, job: str) -> list[Problem]:
    """Return why no batch can be drawn: there must be samples, and a batch in every epoch."""

    def problem(field: str, expected: str, given: str, remedy: str) -> Problem:
        return Problem(code="E-DATA", job=job, field=field, expected=expected, given=given, remedy=remedy)

    if batch_size < 1:
        return [problem("batch_size", "at least 1", str(batch_size), "give the number of samples in a batch")]
    if num_samples < 1:
        return [problem("data.train", "at least 1 sample", f"{num_samples}", "check how the file was written")]
    if drop_last and num_samples < batch_size:
        given = f"{num_samples} samples and drop_last, which leaves no batch in an epoch"
        remedy = f"set drop_last to false, or batch_size to at most {num_samples}"
        return [problem("batch_size", f"at least {batch_size} samples for a full batch", given, remedy)]
    return []


class BatchOrder:
    """Endless batches of sample indices, one shuffled epoch after another, resumable after any batch.

    The batches equal those of ``DataLoader(dataset, batch_size, shuffle=True, drop_last=drop_last,
    generator=generator)`` iterated once per epoch. Each epoch takes from the generator a base seed (which the
    loader keeps for worker processes), a permutation, and a second one that the sampler throws away.

    Args:
        num_samples: Number of samples of the dataset.
        batch_size: Samples in a batch.
        drop_last: Whether an incomplete last batch is left out.
        generator: A generator on the CPU that nothing else draws from.

    Raises:
        InvalidSubmission: There are no samples, or an epoch would have no batch.

    Example:
        >>> order = BatchOrder(5, 2, generator=torch.Generator().manual_seed(0))
        >>> [len(next(order)) for _ in range(order.steps_per_epoch)], order.epoch
        ([2, 2, 1], 1)
    """

    def __init__(self, num_samples: int, batch_size: int, *, drop_last: bool = False, generator: torch.Generator) -> None:
        problems = batch_problems(num_samples, batch_size, drop_last=drop_last, job="unnamed")
        if problems:
            raise InvalidSubmission(problems)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.step = 0  #: batches handed out so far, over all epochs
        self._generator = generator
        self._epoch_state = generator.get_state()  # as it was when the current epoch began
        self._permutation: torch.Tensor | None = None  # (num_samples,), of the current epoch

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        full, rest = divmod(self.num_samples, self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    @property
    def epoch(self) -> int:
        """Number of epochs handed out whole: the index of the epoch that the next batch belongs to."""
        return self.step // self.steps_per_epoch

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        """Return the next batch's indices, int64 ``(batch,)``: not to be written."""
        position = self.step % self.steps_per_epoch
        if position == 0:
            self._begin_epoch()
        elif self._permutation is None:
            self._permutation = self._draw_permutation()
        assert self._permutation is not None, "an epoch that has begun has a permutation"
        self.step += 1
        start = position * self.batch_size
        return self._permutation[start : min(start + self.batch_size, self.num_samples)]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what is needed to go on after the last batch handed out, as tensors of its own."""
        between_epochs = self.step % self.steps_per_epoch == 0
        state = self._generator.get_state() if between_epochs else self._epoch_state.clone()
        return {
            "generator": state,
            "step": torch.tensor(self.step),
            "shape": torch.tensor([self.num_samples, self.batch_size, int(self.drop_last)]),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on where the order that gave ``state`` stood.

        Raises:
            CheckpointError: ``state`` belongs to another number of samples, batch size or ``drop_last``.
        """
        own = [self.num_samples, self.batch_size, int(self.drop_last)]
        given = state["shape"].tolist()
        if given != own:
            raise CheckpointError(
                f"expected the order of (num_samples, batch_size, drop_last) = {own}, got that of {given}; "
                "the data or the job changed since the checkpoint: put them back, or delete it to begin again"
            )
        self.step = int(state["step"])
        self._epoch_state = state["generator"].to(device="cpu", copy=True)
        self._generator.set_state(self._epoch_state)
        self._permutation = None

    def _begin_epoch(self) -> None:
        if self.step > 0:
            # RandomSampler ends every epoch with randperm(n)[:0]; drawn here, where it is known to be needed.
            torch.randperm(self.num_samples, generator=self._generator, device="cpu")
        self._epoch_state = self._generator.get_state()
        self._permutation = self._draw_permutation()

    def _draw_permutation(self) -> torch.Tensor:
        torch.empty((), dtype=torch.int64, device="cpu").random_(generator=self._generator)  # DataLoader's base seed
        return torch.randperm(self.num_samples, generator=self._generator, device="cpu")
