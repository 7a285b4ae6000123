"""Which samples distil, which choose, and which are held out until the end: disjoint by content, for every task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unified.fusing.rows import Rows, has_label, join
from unified.quantities import plural

VALIDATION_SHARE = 0.2
TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """The three parts of the data.

    Attributes:
        train: Samples that the fused model is distilled on.
        validation: Samples by which candidates are judged.
        test: Samples that are looked at once, when the search is over.
        notes: What was done to have them.
    """

    train: Rows
    validation: Rows
    test: Rows
    notes: tuple[str, ...]


def part(train: Rows, validation: Rows | None, test: Rows | None, *, seed: int) -> Parts:
    """Return parts that share no sample.

    Where no validation part is given a fifth of the training rows becomes one, and likewise a test part, so that every
    combination of labels that the training rows have is in each. A task whose labels the test rows lack gets a fifth of
    its training rows there.

    Args:
        train: Training rows of all tasks, joined.
        validation: Rows set aside already, or None.
        test: Held-out rows of all tasks, joined, or None.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    notes: list[str] = []
    train, test = _with_test(train, test, generator, notes)
    train = _without(train, test, "training", "test", notes)
    if validation is None:
        train, validation = _drawn(train, range(len(train)), VALIDATION_SHARE, generator)
    else:
        validation = _without(validation, test, "validation", "test", notes)
        train = _without(train, validation, "training", "validation", notes)
    return Parts(train=train, validation=validation, test=test, notes=tuple(notes))


def _with_test(train: Rows, test: Rows | None, generator: torch.Generator, notes: list[str]) -> tuple[Rows, Rows]:
    if test is None:
        train, test = _drawn(train, range(len(train)), TEST_SHARE, generator)
        notes.append(
            f"no test data: {plural(len(test), 'sample')} of the training data are held out, which the models have seen"
        )
        return train, test
    tested = {task for task, labels in test.labels.items() if bool(has_label(labels).any())}
    untested = [task for task in train.labels if task not in tested]
    if untested:
        candidates: set[int] = set()
        for task in untested:
            candidates |= set(has_label(train.labels[task]).nonzero().flatten().tolist())
        train, more = _drawn(train, sorted(candidates), TEST_SHARE, generator)
        test = join([test, more])
        notes.append(
            f"no test data of {', '.join(untested)}: {plural(len(more), 'sample')} of its training data are held out, "
            "which the model has seen"
        )
    return train, test


def _drawn(rows: Rows, candidates: Iterable[int], share: float, generator: torch.Generator) -> tuple[Rows, Rows]:
    """Split rows: the rest, and about ``share`` of the candidates in each pattern of labels, equal rows together."""
    patterns = rows.patterns()
    by_pattern: dict[int, dict[bytes, None]] = {}
    for number in candidates:
        by_pattern.setdefault(patterns[number], {})[rows.keys[number]] = None
    taken: set[bytes] = set()
    for _, keys in sorted(by_pattern.items()):
        order = torch.randperm(len(keys), generator=generator).tolist()
        distinct = list(keys)
        taken |= {distinct[number] for number in order[: max(1, round(share * len(keys)))]}
    return _split(rows, taken)


def _split(rows: Rows, taken: set[bytes]) -> tuple[Rows, Rows]:
    is_taken = torch.tensor([key in taken for key in rows.keys], dtype=torch.bool)
    return rows.take(_places(~is_taken)), rows.take(_places(is_taken))


def _places(mask: Tensor) -> Tensor:
    return mask.nonzero().flatten()


def _without(rows: Rows, others: Rows, what: str, which: str, notes: list[str]) -> Rows:
    """Return the rows that are not among the others."""
    kept, left_out = _split(rows, set(others.keys))
    if len(left_out):
        notes.append(f"{plural(len(left_out), f'{what} sample')} left out: they are in the {which} data too")
    return kept if len(left_out) else rows
