"""Which variants are to be made of a multi-task network, and how (MTLsys, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serving.errors import ServingError
from serving.pruning import Criterion, RatioOf
from serving.subsets import Subsets, subset_name, subsets_of

RATIOS = tuple(step / 10 for step in range(10))  #: MTLsys, section 4.2: from 0 to 90 %
SYSTEMS, PRUNE_FOR = ("multi", "single", "both"), ("parent", "tasks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which variants are made, and how.

    Attributes:
        ratios: Pruning ratios, each in [0, 1).
        subsets: See :data:`serving.subsets.Subsets`; of the multi-task system.
        systems: From the multi-task network, from one network for each task trained alone, or both.
        prune_for: ``"parent"``: the whole network is pruned once for each ratio, and heads are removed after it (the paper);
            ``"tasks"``: heads are removed first, so that only what serves the tasks decides which channels go.
        criterion: Which channels go first, see :class:`serving.pruning.Criterion`.
        ratio_of: What a ratio is a share of, see :class:`serving.pruning.RatioOf`.
        round_to: Channels that are left come in multiples of this.
        train_epochs: Before pruning; 0 keeps the parent as it is.
        finetune_epochs: After pruning, of every variant, those of ratio 0 too.
        batch_size: Samples of a step.
        lr: Learning rate of Adam.
        seed: Of all random numbers.
    """

    ratios: tuple[float, ...] = RATIOS
    subsets: Subsets = "singles+all"
    systems: Literal["multi", "single", "both"] = "multi"
    prune_for: Literal["parent", "tasks"] = "parent"
    criterion: str = Criterion.MAGNITUDE
    ratio_of: str = RatioOf.CHANNELS
    round_to: int = 1
    train_epochs: int = 10
    finetune_epochs: int = 10
    batch_size: int = 64
    lr: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [ratio for ratio in self.ratios if not 0 <= ratio < 1]
        if wrong or not self.ratios:
            raise ServingError(f"expected pruning ratios from 0 up to 1, got {wrong or 'none'}")
        for given, known in (
            (self.criterion, Criterion),
            (self.ratio_of, RatioOf),
            (self.systems, SYSTEMS),
            (self.prune_for, PRUNE_FOR),
        ):
            if given not in list(known):
                raise ServingError(f"expected one of {', '.join(known)}; got {given!r}")
        if self.systems != "multi" and not self.train_epochs:
            raise ServingError(
                "the single-task system needs networks that were never trained for several tasks: hand in an untrained parent "
                "and train_epochs > 0, or ask for the multi-task system alone"
            )

    def names(self, tasks: Sequence[str]) -> list[str]:
        """Return the names of all variants that will be made for these tasks.

        Raises:
            ServingError: If subsets are wrong, or two would have the same name.
        """
        multi = subsets_of(tasks, self.subsets) if self.systems != "single" else ()
        single = [(task,) for task in tasks] if self.systems != "multi" else []
        prefixes = [subset_name(subset, tasks) for subset in multi] + [single_name(*subset) for subset in single]
        names = [f"{prefix}-{ratio_name(ratio)}" for ratio in sorted(set(self.ratios)) for prefix in prefixes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ServingError(f"two variants would both be called {twice[0]!r}: give the tasks {', '.join(tasks)} other names")
        return names


def ratio_name(ratio: float) -> str:
    """Return a ratio as part of a name.

    >>> ratio_name(0.3), ratio_name(0.05), ratio_name(0.125)
    ('p30', 'p05', 'p12.5')
    """
    percent = f"{100 * ratio:g}"
    return f"p{percent.zfill(2)}"


def single_name(task: str) -> str:
    """Return what the network that is trained for one task alone is called."""
    return f"single-{task}"
