"""What was aimed at on the traces, and whether it was reached."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.faults_aims import Aim
from benchmarks.scheduling_runs import CORUN, MAX_WAIT_SECONDS, Finding

#: gain in mean JCT over fcfs, and p99 against that of fcfs
TIME_SLICED = {"openb": (6.0, 1.4), "philly-vc2": (2.3, 2.1)}
CO_RUNNING = {"openb": (8.0, 1.0), "philly-vc2": (5.0, 1.0)}
CO_RUNNING_POLICY = "hrrn"


def aims_of(findings: Sequence[Finding]) -> list[Aim]:
    """Return the aims that the findings tell of; each is judged by the mean over the seeds, waits by the worst seed."""
    aims = []
    for trace, (gain, tail) in TIME_SLICED.items():
        aims += _gain_and_tail(_one(findings, trace, "time-sliced", "default"), gain, tail, "")
    for trace, (gain, tail) in CO_RUNNING.items():
        aims += _gain_and_tail(_one(findings, trace, "co-running", CO_RUNNING_POLICY), gain, tail, f", pairs at {CORUN:g}x")
    for trace in TIME_SLICED:
        aims.append(_wait(_one(findings, trace, "time-sliced", "default")))
    return aims


def _gain_and_tail(finding: Finding, gain: float, tail: float, how: str) -> list[Aim]:
    name = f"{finding.policy} on {finding.trace}{how}"
    return [
        Aim(claim=f"{name}: mean JCT of fcfs over its own", limit=gain, measured=finding.gain, unit="x", is_least=True),
        Aim(claim=f"{name}: its p99 JCT over that of fcfs", limit=tail, measured=finding.p99_ratio, unit="x"),
    ]


def _wait(finding: Finding) -> Aim:
    """The longest wait may pass max_wait by a turn of each that was promoted before: a round of the slots."""
    return Aim(
        claim=f"{finding.policy} on {finding.trace}: longest time without service (max_wait and a quantum per slot)",
        limit=(MAX_WAIT_SECONDS + finding.num_slots * finding.quantum) / 3600,
        measured=max(finding.longest_wait_by_seed) / 3600,
        unit="h",
    )


def _one(findings: Sequence[Finding], trace: str, plan: str, policy: str) -> Finding:
    [found] = [each for each in findings if (each.trace, each.plan, each.policy) == (trace, plan, policy)]
    return found
