"""How evenly a policy treated users.

While users have jobs, each is due a share of the slots by weight, but no more than one slot for each of their jobs. A user's
*normalised service* is what they had over what they were due; Jain's index and the largest deviation tell how even those are.
A job's *finish-time fairness* rho is its JCT over the JCT that it would have had on its user's share, split among that user's
jobs, under the contention that it met; above 1, the user would have been better off with slots of their own.

References:
    Jain, Chiu and Hawe, "A quantitative measure of fairness and discrimination" (1984).
    Mahajan et al., "Themis: fair and efficient GPU cluster scheduling" (NSDI 2020), section 3: rho. There N is the number of
    contending applications; here it is the weight of the contending users over the user's own, as weights may differ.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

from schedulers.simulation.outcome import JobOutcome, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """What users had.

    Attributes:
        normalised: For each user: slot-seconds had over those due.
        rho: For each user: the mean rho of their jobs.
    """

    normalised: dict[str, float]
    rho: dict[str, float]

    @property
    def jain(self) -> float:
        """Jain's index of normalised service: 1 if all are equal, 1/n if one of n users had everything."""
        values = self.normalised.values()
        return sum(values) ** 2 / (len(values) * sum(value * value for value in values))

    @property
    def deviation(self) -> float:
        """The largest distance from the mean, in percent of the mean."""
        mean = fmean(self.normalised.values())
        return 100 * max(abs(value - mean) for value in self.normalised.values()) / mean

    @property
    def worst_rho(self) -> float:
        """The greatest rho of a user."""
        return max(self.rho.values())


@dataclass(slots=True)
class _Account:
    """One user's: units and weight at the moment, and what has added up."""

    units: int = 0
    weight: float = 0.0
    due: float = 0.0
    crowding: float = 0.0  # integral of how many times longer than alone a job takes on the user's share


def fairness_of(outcome: Outcome, slots: int) -> Fairness | None:
    """Return how evenly users were treated; None unless there are two or more.

    Jobs of a length of 0 need nothing and do not count.
    """
    jobs = [job for job in outcome.jobs if job.seconds > 0]
    users = {job.user for job in jobs}
    if len(users) < 2:
        return None
    accounts, rho = _sweep(jobs, slots)
    had: dict[str, float] = defaultdict(float)
    for job in jobs:
        had[job.user] += job.seconds
    return Fairness(
        normalised={user: had[user] / accounts[user].due for user in sorted(users)},
        rho={user: fmean(rho[user]) for user in sorted(users)},
    )


def _sweep(jobs: list[JobOutcome], slots: int) -> tuple[dict[str, _Account], dict[str, list[float]]]:
    """Go through submissions and completions in time."""
    instants = [(job.submit_time, True, index) for index, job in enumerate(jobs)]
    instants += [(job.completion, False, index) for index, job in enumerate(jobs)]
    instants.sort(key=lambda row: (row[0], not row[1]))
    accounts: dict[str, _Account] = defaultdict(_Account)
    active: dict[str, _Account] = {}
    rho: dict[str, list[float]] = defaultdict(list)
    met: dict[int, float] = {}
    then = instants[0][0]
    for now, has_come, index in instants:
        if now > then:
            _add_up(active, slots, now - then)
            then = now
        job = jobs[index]
        account = accounts[job.user]
        if has_come:
            account.units += 1
            account.weight = job.job.weight
            active[job.user] = account
            met[index] = account.crowding
        else:
            crowding = (account.crowding - met[index]) / job.completion_seconds
            rho[job.user].append(job.completion_seconds / (job.seconds * crowding))
            account.units -= 1
            if not account.units:
                del active[job.user]
    return accounts, rho


def _add_up(active: dict[str, _Account], slots: int, seconds: float) -> None:
    total = sum(account.weight for account in active.values())
    for account in active.values():
        share = slots * account.weight / total
        account.due += seconds * min(share, account.units)
        account.crowding += seconds * max(1.0, account.units / share)
