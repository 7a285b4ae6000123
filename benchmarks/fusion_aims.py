"""The targets T1 to T11 of the design, judged by what was found; each becomes one printed line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median

from benchmarks.fusion_coverage_targets import Target
from benchmarks.fusion_records import THRESHOLDS, Audit, Kill, Passes, Search, Start, Unit
from benchmarks.fusion_starts import FITTED, RANDOM, RENEWED

GUIDED, REFERENCE, PAPER = "guided", "paper-pr", "paper"
COMPARED = (0.01, 0.02)  #: thresholds of T1 to T4
TIE = 0.01  #: speedups that differ by less are equal: so far apart two measurements of one model may lie
HETEROGENEOUS = "mixed"
IDS = tuple(f"T{number}" for number in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)) + tuple(f"C{number}" for number in range(1, 8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """Our search against a reference for one threshold, on one set with one seed.

    Attributes:
        unit: The set and seed.
        threshold: The allowed drop.
        ours: Our search.
        theirs: The reference.
    """

    unit: Unit
    threshold: float
    ours: Search
    theirs: Search

    @property
    def speedup_ratio(self) -> float:
        """Our measured speedup over theirs."""
        return self.ours.end(self.threshold).speedup / self.theirs.end(self.threshold).speedup

    @property
    def our_seconds(self) -> float:
        """Until we had what they had in the end; infinite if we never did.

        Where they found nothing: until we had anything, or all that we took if we found nothing either.
        """
        end = self.theirs.end(self.threshold)
        wanted, never = (end.yardstick, math.inf) if end.number else (1 + 1e-6, self.ours.seconds)
        reached = self.ours.reached(self.threshold, wanted)
        return never if reached is None else reached

    @property
    def their_seconds(self) -> float:
        """Until they had it; where they found nothing, all that they took."""
        end = self.theirs.end(self.threshold)
        return end.seconds if end.number else self.theirs.seconds

    @property
    def is_telling(self) -> bool:
        """Whether one of them found anything."""
        return any(search.end(self.threshold).number for search in (self.ours, self.theirs))

    @property
    def own_ratio(self) -> float:
        """Our seconds to their final speedup over theirs."""
        return self.our_seconds / self.their_seconds

    @property
    def budget_ratio(self) -> float:
        """Our seconds to their final speedup over all that they took."""
        return self.our_seconds / self.theirs.seconds

    @property
    def fully_trained_ratio(self) -> float:
        """Candidates with their full training until we had their final speedup over those until they had it."""
        if math.isinf(self.our_seconds):
            return math.inf
        return self.ours.fully_trained(self.our_seconds) / max(1, self.theirs.fully_trained(self.their_seconds))


def duels(units: Iterable[Unit], reference: str, thresholds: Sequence[float] = COMPARED) -> list[Duel]:
    """Return our searches against those of a reference, where both were run."""
    found = []
    for unit in units:
        for threshold in thresholds:
            ours, theirs = unit.search(GUIDED, threshold), unit.search(reference, threshold)
            if ours is not None and theirs is not None:
                found.append(Duel(unit=unit, threshold=threshold, ours=ours, theirs=theirs))
    return found


def speed_aims(units: Sequence[Unit]) -> list[Target]:
    """Return T1: over all sets, then set by set."""
    found = [*_compared("T1", "", duels(units, REFERENCE)), _over("T1", units)]
    for name in dict.fromkeys(unit.set for unit in units):
        if name != HETEROGENEOUS:
            found += _compared("T1", f"_{name}", duels(_of(units, name), REFERENCE))
    return found


def time_aims(units: Sequence[Unit]) -> list[Target]:
    """Return T2: over all sets, against both references."""
    return [
        *_times("T2", REFERENCE, duels(units, REFERENCE), 1 / 5),
        *_times("T2", PAPER, duels(units, PAPER), 1 / 10),
    ]


def training_aims(units: Sequence[Unit]) -> list[Target]:
    """Return T3."""
    telling = [duel for duel in duels(units, REFERENCE) if duel.is_telling]
    value = _median(telling, lambda duel: duel.fully_trained_ratio)
    return [Target(id="T3", measure="fully_trained_ratio", value=value, op="<=", bound=1 / 5)]


def mixed_aims(units: Sequence[Unit]) -> list[Target]:
    """Return T4."""
    mixed = _of(units, HETEROGENEOUS)
    starts = [start for unit in mixed for start in unit.starts]
    return [
        *_compared("T4", "", duels(mixed, REFERENCE)),
        _over("T4", mixed),
        *_times("T4", REFERENCE, duels(mixed, REFERENCE), 1 / 5),
        Target(id="T4", measure="epoch0_drop_ratio", value=start_ratio(starts, RENEWED), op="<=", bound=0.5),
        Target(id="T4", measure="epoch0_drop_ratio_without_statistics", value=start_ratio(starts, ""), op="<=", bound=0.5),
    ]


def start_ratio(starts: Sequence[Start], suffix: str) -> float | None:
    """Return the median drop of fitted adapters over that of random ones; None if random ones lose nothing."""
    medians = [median(start.drops[name + suffix] for start in starts) if starts else 0.0 for name in (FITTED, RANDOM)]
    return medians[0] / medians[1] if medians[1] > 0 else None


def pass_aims(passes: Sequence[Passes]) -> list[Target]:
    """Return T7."""
    return [
        Target(
            id="T7",
            measure=f"random_passes_equal_reference_{each.num_tasks}",
            value=each.equal / each.num_passes,
            op=">=",
            bound=1,
        )
        for each in passes
    ] or [Target(id="T7", measure="random_passes_equal_reference", value=None, op=">=", bound=1)]


def audit_aims(audits: Sequence[Audit]) -> list[Target]:
    """Return T8: of all that was ended, of what was predicted to miss, and of what would have been the best of a threshold."""
    met = sum(audit.met for audit in audits)
    ended = [entry for audit in audits for entry in audit.ended]
    wrong = {
        "": [is_met for _, _, is_met, _ in ended],
        "_by_prediction": [is_met for _, why, is_met, _ in ended if why.startswith("predicted")],
        "_and_best": [is_met and is_best for _, _, is_met, is_best in ended],
    }
    found = [
        Target(
            id="T8",
            measure=f"wrongly_killed_share{suffix}",
            value=sum(flags) / met if met else None,
            op="<=",
            bound=0.05,
        )
        for suffix, flags in wrong.items()
    ]
    share = median(entry[0] for entry in ended) if ended else None
    return [*found, Target(id="T8", measure="median_kill_epoch_share", value=share, op="<=", bound=0.25)]


def resume_aims(kills: Sequence[Kill]) -> list[Target]:
    """Return T9; kills that came too late, and searches that found nothing, tell nothing."""
    telling = [kill for kill in kills if kill.after_seconds is not None and kill.num_better]
    value = sum(kill.is_equal for kill in telling) / len(telling) if telling else None
    return [Target(id="T9", measure="resumed_equals_uninterrupted_share", value=value, op=">=", bound=1)]


def front_aims(units: Sequence[Unit]) -> list[Target]:
    """Return T10, of the sets where three references, one for each threshold, were run."""
    whole = [found for unit in units if len(found := duels([unit], REFERENCE, THRESHOLDS)) == len(THRESHOLDS)]
    found = []
    for place, threshold in enumerate(THRESHOLDS):
        value = _median([three[place] for three in whole], lambda duel: duel.speedup_ratio)
        name = f"front_ratio_{100 * threshold:g}"
        found.append(Target(id="T10", measure=name, value=value, op=">=", bound=1))
    for name, count in (("to_three", len(THRESHOLDS)), ("to_one", 1)):
        ratios = [_front_seconds(three) / (sum(duel.theirs.seconds for duel in three) * count / len(three)) for three in whole]
        value = median(ratios) if ratios else None
        found.append(Target(id="T10", measure=f"seconds_ratio_{name}", value=value, op="<=", bound=1 / 3))
    return found


def _front_seconds(three: Sequence[Duel]) -> float:
    """Return after how many seconds our front was as good as three models; the models side by side are there at once."""
    return max(duel.our_seconds if duel.theirs.end(duel.threshold).number else 0.0 for duel in three)


def published_aims() -> list[Target]:
    """Return T11, for which the paper's models and data would have to be here."""
    return [
        Target(id="T11", measure="B1_speedup_at_1pct", value=None, op=">", bound=3.06),
        Target(id="T11", measure="B4_speedup_at_1pct", value=None, op=">", bound=1.91),
    ]


def latency_aims(found: dict[str, float] | None, *, max_error: float, min_spearman: float) -> list[Target]:
    """Return T5."""
    values = found or {}
    names = (("latency_median_error", "<=", max_error), ("latency_spearman", ">=", min_spearman))
    return [Target(id="T5", measure=name, value=values.get(name), op=op, bound=bound) for name, op, bound in names]


def _compared(name: str, suffix: str, found: Sequence[Duel]) -> Iterator[Target]:
    mean = geometric_mean(duel.speedup_ratio for duel in found) if found else None
    below = len({(duel.unit.set, duel.unit.seed) for duel in found if duel.speedup_ratio < 1 - TIE}) if found else None
    yield Target(id=name, measure=f"speedup_ratio_mean{suffix}", value=mean, op=">=", bound=1.15)
    yield Target(id=name, measure=f"seeds_below_reference{suffix}", value=below, op="<=", bound=0)


def _over(name: str, units: Sequence[Unit]) -> Target:
    """Count the models that lose more on held-out samples than they were handed out for, by any contender."""
    ends = [end for unit in units for search in unit.searches for end in search.ends]
    value = sum(end.is_over for end in ends) if ends else None
    return Target(id=name, measure="accepted_over_threshold", value=value, op="<=", bound=0)


def _times(name: str, reference: str, found: Sequence[Duel], bound: float) -> Iterator[Target]:
    telling = [duel for duel in found if duel.is_telling]
    own = _median(telling, lambda duel: duel.own_ratio)
    whole = _median(telling, lambda duel: duel.budget_ratio)
    yield Target(id=name, measure=f"seconds_ratio_{reference}", value=own, op="<=", bound=bound)
    yield Target(id=name, measure=f"seconds_ratio_{reference}_budget", value=whole, op="<=", bound=bound)


def _median(found: Sequence[Duel], figure: Callable[[Duel], float]) -> float | None:
    return median(figure(duel) for duel in found) if found else None


def _of(units: Iterable[Unit], name: str) -> list[Unit]:
    return [unit for unit in units if unit.set == name]
