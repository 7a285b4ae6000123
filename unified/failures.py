"""Whose failure it was: from what is known of a job, or of a dead worker and those who were on it. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unified.budgets import Fault, Situation, Verdict
from unified.ledger import JobRecord, Journal
from unified.nursery import Exit

MAX_BANS = 3  #: a job that workers died with beside so many others stays alone
_ACCOUNTS = ("is_alone", "num_job_failures", "num_infra_failures", "num_blames", "last_fault")


def situation_of(
    record: JobRecord, fault: Fault, *, was_alone: bool, signature: str = "", is_shared: bool = False
) -> Situation:
    """Return a job's failure with what it had on its account before."""
    return Situation(
        fault=fault,
        signature=signature or f"{fault} at step {record.step}",
        was_alone=was_alone,
        is_shared=is_shared,
        is_alone=record.is_alone,
        num_job_failures=record.num_job_failures,
        num_infra_failures=record.num_infra_failures,
        num_blames=record.num_blames,
        last_fault=record.last_fault,
    )


def accounts_of(verdict: Verdict) -> dict[str, Any]:
    """Return what a verdict writes on a job's account."""
    return {name: getattr(verdict, name) for name in _ACCOUNTS}


def suspects_of(lost: Sequence[JobRecord], attending: str | None) -> list[JobRecord]:
    """Return those of a dead worker's jobs whose code it ran: one that it attended to, or else whose turn it was.

    A turn ends when the device is done with it, so what was launched and not yet synchronised is the running job's. All members
    of a stack have the turn: any may be the culprit, so all are suspects, none is blamed, and each runs alone next.
    """
    return [record for record in lost if (record.name == attending if attending else record.is_running or record.is_hosting)]


def fault_of_death(how: Exit, *, is_stalled: bool, is_out_of_memory: bool, is_batch: bool) -> tuple[Fault, Fault]:
    """Return what a worker's death was for its suspects, and for the others that were on it.

    Signals that somebody else must have sent are nobody's fault, except in a batch run, where nobody else is at work.
    """
    if is_stalled:
        return Fault.STALL, Fault.NEIGHBOUR
    if is_out_of_memory:
        return Fault.OUT_OF_MEMORY, Fault.NEIGHBOUR
    if how.is_from_outside and not is_batch:
        return Fault.KILLED, Fault.KILLED
    return Fault.CRASH, Fault.NEIGHBOUR


def death_text(record: JobRecord, fault: Fault, reason: str) -> str:
    """Say what a worker's death is to a job's owner."""
    if fault in {Fault.NEIGHBOUR, Fault.KILLED}:
        return f"its worker died ({reason})"
    count = record.num_blames + 1
    return f"its worker died {f'{count} times ' if count > 1 else ''}while it ran ({reason})"


def clear_suspect(record: JobRecord, bans: set[frozenset[str]], journal: Journal) -> None:
    """A suspect has trained alone for a while: it is harmless by itself, and not to meet the same company again.

    Who shared its turn was a suspect like itself and has to show the same; they may meet, but step as one no more.
    """
    for other in sorted(record.suspected_beside - record.shared_turns):
        bans.add(frozenset({record.name, other}))
        journal.ban(record.name, other)
    num_bans = sum(record.name in pair for pair in bans)
    record.suspected_beside, record.is_alone = frozenset(), num_bans >= MAX_BANS
