"""What a worker reports, as the events that everybody is told. Free of torch."""

from __future__ import annotations

from unified import events, messages
from unified.ledger import JobRecord
from unified.results import timing_of


def steps_done(report: messages.Progress, slot: int, at: float) -> events.StepsDone:
    """Return the news of steps on ``slot``."""
    return events.StepsDone(
        at=at,
        job=report.job,
        slot=slot,
        epoch=report.data_epoch,
        step=report.step,
        loss=report.loss,
    )


def epoch_done(report: messages.EpochEnded, slot: int, at: float) -> events.EpochDone:
    """Return the news of an epoch on ``slot``."""
    row = report.row
    epoch, step = int(row["epoch"]), int(row["step"])
    return events.EpochDone(at=at, job=report.job, slot=slot, epoch=epoch, step=step, metrics=row)


def checkpointed(report: messages.Checkpointed, at: float) -> events.JobCheckpointed:
    """Return the news of a checkpoint."""
    return events.JobCheckpointed(
        at=at,
        job=report.job,
        step=report.step,
        path=str(report.path),
        num_bytes=report.num_bytes,
        seconds=report.seconds,
        least_seconds=report.least_seconds,
    )


def checkpoint_refused(report: messages.CheckpointFailed, at: float) -> events.CheckpointRefused:
    """Return the news that no checkpoint could be written."""
    return events.CheckpointRefused(
        at=at,
        job=report.job,
        reason=report.reason,
        is_disk=report.is_disk,
        num_bytes=report.num_bytes,
    )


def stack(report: messages.StackFormed | messages.StackRefused, slot: int, at: float) -> events.JobEvent:
    """Return the news that jobs on ``slot`` step as one from now on, or do not."""
    kind = {"at": at, "job": report.job, "slot": slot, "members": report.members}
    if isinstance(report, messages.StackFormed):
        return events.StackFormed(**kind, speedup=report.speedup)
    return events.StackRefused(**kind, reason=report.reason, speedup=report.speedup)


def finished(record: JobRecord, at: float) -> events.JobFinished:
    """Return the news that a job's result is on disk and verified."""
    timing = timing_of(record)
    return events.JobFinished(
        at=at,
        job=record.name,
        folder=str(record.results),
        metrics=record.metrics,
        waiting_seconds=timing.waiting,
        training_seconds=timing.training,
        completion_seconds=timing.completion,
        peak_bytes=record.peak_bytes,
    )
