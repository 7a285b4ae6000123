"""Which samples distil, which choose, and which are held out until the end: disjoint by content, for every task."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unified.fusing.rows import Rows, has_label, join, without_labels
from unified.quantities import plural

VALIDATION_SHARE = 0.2  #: of training rows, where test rows do not serve
TEST_SHARE = 0.2
VALIDATION_SHARE_OF_TEST = 0.5
MIN_TEST_ROWS = 20  #: of a task, to be shared with validation


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

    Where no validation part is given it is half of the test rows, for models know their training rows too well to be
    compared on them. A task with fewer than 20 test rows keeps those, and a fifth of its training rows becomes its
    validation part. A task without test rows gets a fifth of its training rows as test part. Every combination of labels
    that there is among the rows is in each part that is drawn of them.

    Args:
        train: Training rows of all tasks, joined.
        validation: Rows set aside already, or None.
        test: Held-out rows of all tasks, joined, or None.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    notes: list[str] = []
    if test is None:
        train, test = _drawn(train, range(len(train)), TEST_SHARE, generator)
        notes.append(
            f"no test data: {plural(len(test), 'sample')} of the training data are held out, which the models have seen"
        )
        seen, unseen = test, None
    else:
        train = _without(train, test, "training", "test", notes)
        train, seen = _for_untested(train, test, generator, notes)
        unseen = test
    if validation is None:
        train, validation, unseen = _validation(train, unseen, generator)
    else:
        validation = _without(validation, _joined([unseen, seen]), "validation", "test", notes)
        train = _without(train, validation, "training", "validation", notes)
    return Parts(train=train, validation=validation, test=_joined([unseen, seen]), notes=tuple(notes))


def _for_untested(train: Rows, test: Rows, generator: torch.Generator, notes: list[str]) -> tuple[Rows, Rows | None]:
    """Hold out training rows of those tasks whose labels the test rows lack; None if there is no such task."""
    tested = {task for task, labels in test.labels.items() if bool(has_label(labels).any())}
    untested = [task for task in train.labels if task not in tested]
    if not untested:
        return train, None
    train, more = _drawn(train, _labelled(train, untested), TEST_SHARE, generator)
    notes.append(
        f"no test data of {', '.join(untested)}: {plural(len(more), 'sample')} of its training data are held out, "
        "which the model has seen"
    )
    return train, without_labels(more, tested)


def _validation(train: Rows, unseen: Rows | None, generator: torch.Generator) -> tuple[Rows, Rows, Rows | None]:
    """Draw a validation part; returns what is left of the training rows, that part, and what is left of the test rows."""
    roomy = set() if unseen is None else _roomy(unseen)
    of_test: Rows | None = None
    if unseen is not None and (roomy or (not (train.labels or unseen.labels) and len(unseen) >= MIN_TEST_ROWS)):
        candidates = _free_of(unseen, unseen.labels.keys() - roomy)
        unseen, of_test = _drawn(unseen, candidates, VALIDATION_SHARE_OF_TEST, generator)
    if of_test is None:
        train, validation = _drawn(train, range(len(train)), VALIDATION_SHARE, generator)
        return train, validation, unseen
    wanting = [task for task in train.labels if task not in roomy]
    train, of_train = _drawn(train, _labelled(train, wanting), VALIDATION_SHARE, generator)
    return train, _joined([of_test, without_labels(of_train, roomy)]), unseen


def _roomy(test: Rows) -> set[str]:
    """Return the tasks of which half the test rows can be spared, when other tasks' rows are left alone."""
    roomy = set(test.labels)
    while True:
        free = torch.zeros(len(test), dtype=torch.bool)
        free[_free_of(test, test.labels.keys() - roomy)] = True
        enough = {task for task in roomy if int((has_label(test.labels[task]) & free).sum()) >= MIN_TEST_ROWS}
        if enough == roomy:
            return roomy
        roomy = enough


def _labelled(rows: Rows, tasks: Collection[str]) -> list[int]:
    """Return the places of the rows that have a label of one of the tasks."""
    mask = torch.zeros(len(rows), dtype=torch.bool)
    for task in tasks:
        mask |= has_label(rows.labels[task])
    return _places(mask).tolist()


def _free_of(rows: Rows, tasks: Collection[str]) -> list[int]:
    """Return the places of the rows that have no label of the tasks."""
    taken = set(_labelled(rows, tasks))
    return [number for number in range(len(rows)) if number not in taken]


def _joined(sets: Iterable[Rows | None]) -> Rows:
    """Put together those that there are; of none that has a row, the first."""
    there = [rows for rows in sets if rows is not None]
    return join([rows for rows in there if len(rows)] or there[:1])


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
