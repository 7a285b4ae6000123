"""The tables that the command line prints: a run's end, a plan, one submission, the schedulers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from schedulers.registry import Listed
from unified.columns import fitting, natural
from unified.job_state import JobState
from unified.progress import JobProgress
from unified.quantities import MISSING, bytes_text, count_text, metrics_text, plural, seconds_text, spread_text, times_text
from unified.quantities import value_text as number_text
from unified.run_plan import PlannedJob, RunPlan
from unified.summary import Summary
from unified.sweep_results import SweepResults, sweep_results
from unified.sweeps import value_text

if TYPE_CHECKING:
    from unified.admission import DatasetRef, Submission

STATE_STYLES = {
    JobState.FINISHED: "green",
    JobState.FAILED: "bold red",
    JobState.CANCELLED: "yellow",
    JobState.PAUSED: "yellow",
}

_PLAN_COLUMNS = (
    "#", "job", "user", "threads", "parameters", "resident", "peak", "FLOPs/step", "steps", "predicted", "data",
)  # fmt: skip
_PLAN_NAMES = ("job", "user", "data")
_MOST_OF_A_NAME = 30  #: columns; longer ones are folded where there is no more room
_PLAN_LEFT_OUT_FIRST = ("FLOPs/step", "resident", "threads", "parameters", "data", "user")


def final_table(summary: Summary) -> RenderableType:
    """Return a run's end: a line per job with times since submission, final metrics and peak memory, and a total.

    Members of sweeps have their lines in the table of their sweep.
    """
    sweeps = [sweep_table(sweep) for sweep in sweep_results(summary)]
    jobs = [job for job in summary.jobs.values() if job.sweep is None]
    tables = [*([_jobs_table(jobs, summary.now)] if jobs or not sweeps else []), *sweeps]
    return Group(*tables, Text(_total(summary)), *_since_submission(summary))


def sweep_table(sweep: SweepResults) -> RenderableType:
    """Return what came of a sweep: a line per member, best first, with its values, final metrics and seconds."""
    table = _table()
    for field in sweep.fields:
        table.add_column(field, overflow="fold")
    for metric in sweep.metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    for title in ("complete", "slowdown", "training"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("state")
    table.add_column("job, and the reason", overflow="fold")
    for member in sweep.members:
        table.add_row(*_member_cells(sweep, member))
    title = f"sweep {sweep.name}: {plural(len(sweep.members), 'job')}, best first by {sweep.ranked_by}"
    return Group(Text(f"{title}; what has none or did not finish comes last"), table)


def _member_cells(sweep: SweepResults, member: JobProgress) -> list[Text]:
    values = [value_text(member.values[field]) if field in member.values else MISSING for field in sweep.fields]
    metrics = [number_text(member.metrics.get(metric)) for metric in sweep.metrics]
    story = [text for text in (member.reason, f"(log: {member.log})" if member.log else None) if text]
    texts = [
        *values,
        *metrics,
        seconds_text(member.completion_seconds),
        times_text(member.slowdown),
        seconds_text(member.training_seconds),
        str(member.state),
        " ".join([member.name, *story]),
    ]
    cells = [Text(text) for text in texts]
    cells[-2].stylize(STATE_STYLES.get(member.state, ""))
    return cells


def _jobs_table(jobs: Sequence[JobProgress], now: float) -> Table:
    table = _table()
    for title in ("job", "user", "state"):
        table.add_column(title, overflow="fold")
    for title in ("complete", "slowdown", "waiting", "training", "peak"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("metrics, or the reason", overflow="fold")
    for job in jobs:
        table.add_row(*_final_cells(job, now))
    return table


def plan_tables(plan: RunPlan, width: int) -> RenderableType:
    """Return what a run would do: the jobs in the scheduler's order, the slots, and who shares which dataset.

    Args:
        plan: What it would do.
        width: Columns of the screen; what it has no room for is left out.
    """
    parts: list[RenderableType] = [
        _plan_table(plan, width),
        Text("slots"),
        *(Text(f"  {line}") for line in plan.stages.splitlines()),
    ]
    parts.append(Text(f"  why: {plan.reason}"))
    if any(job.why for job in plan.jobs):
        parts += [Text("why in this order"), _reasons_table(plan)]
    if plan.predicted_seconds is not None:
        parts.append(Text(f"  all done after about {seconds_text(plan.predicted_seconds)}"))
    if plan.stacks:
        parts.append(Text("stacks to be tried: they step as one if that is measured to be faster"))
        parts += [Text(f"  {', '.join(names)}") for names in plan.stacks]
    parts += [Text("shared data"), *map(Text, _shared_lines(plan))]
    return Group(*parts)


def _plan_table(plan: RunPlan, width: int) -> Table:
    lines = [_plan_cells(job) for job in plan.jobs]
    widths = natural(_PLAN_COLUMNS, lines)
    widths |= {title: min(widths[title], _MOST_OF_A_NAME) for title in _PLAN_NAMES}
    table = _table()
    titles = fitting(widths, width, _PLAN_LEFT_OUT_FIRST)
    for title in titles:
        is_name = title in _PLAN_NAMES
        table.add_column(title, justify="left" if is_name else "right", overflow="fold", no_wrap=not is_name)
    for line in lines:
        table.add_row(*(line[title] for title in titles))
    return table


def _reasons_table(plan: RunPlan) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(max_width=_MOST_OF_A_NAME, overflow="fold")
    table.add_column(overflow="fold")
    for job in plan.jobs:
        table.add_row(*map(Text, (str(job.order), job.name, job.why)))
    return Padding(table, (0, 0, 0, 2))


def submission_table(submission: Submission, step_seconds: float | None = None) -> RenderableType:
    """Return what a job folder holds, a fact per line.

    Args:
        submission: The job.
        step_seconds: Measured seconds of a training step on one thread, if it was measured.
    """
    spec, estimate = submission.spec, submission.estimate
    facts = {
        "job": spec.name,
        "user": spec.user or MISSING,
        "model": f"{submission.model.path.name} ({submission.model.form})",
        "parameters": f"{count_text(estimate.num_parameters)} ({estimate.num_parameters})",
        "training data": _dataset(submission.train),
        "test data": _dataset(submission.test) if submission.test else "none",
        "length": f"{plural(submission.num_epochs, 'epoch')}, {plural(submission.num_steps, 'step')} "
        f"of batch_size {spec.batch_size}",
        "precision": spec.precision,
        "peak memory": f"{bytes_text(estimate.peak_bytes)} estimated, data aside",
        "between turns": f"{bytes_text(estimate.resident_bytes)}",
    }
    if estimate.num_ops_per_step:  # else the step could not be followed, and there is a problem that says why
        facts["a step"] = f"{count_text(estimate.flops_per_step, 'FLOP')}, {plural(estimate.num_ops_per_step, 'operator')}"
        at_peak = f"{bytes_text(estimate.eval_peak_bytes)} at its peak"
        facts["evaluation"] = f"{count_text(estimate.eval_flops, 'FLOP')} a batch, {at_peak}"
    if step_seconds is not None:
        whole = seconds_text(step_seconds * submission.num_steps)
        facts["predicted"] = f"{seconds_text(step_seconds)} a step, {whole} in all, on one thread"
    return _facts(facts)


def members_table(members: Sequence[tuple[Submission, float | None]]) -> RenderableType:
    """Return the members of a sweep, a line each, with their values, length, memory and predicted time on one thread."""
    table = _table()
    origins = [(submission.spec.from_sweep, submission, seconds) for submission, seconds in members]
    fields = list(dict.fromkeys(field for origin, _, _ in origins if origin for field in origin.values))
    for title in ("job", *fields):
        table.add_column(title, overflow="fold")
    for title in ("steps", "peak", "predicted"):
        table.add_column(title, justify="right", no_wrap=True)
    for origin, submission, seconds in origins:
        values = {} if origin is None else origin.values
        texts = [submission.spec.name, *(value_text(values[field]) if field in values else MISSING for field in fields)]
        texts += [str(submission.num_steps), bytes_text(submission.estimate.peak_bytes)]
        texts.append(seconds_text(None if seconds is None else seconds * submission.num_steps))
        table.add_row(*map(Text, texts))
    return Group(table, Text(f"{plural(len(members), 'job')}; of the first:"))


def schedulers_table(listed: Sequence[Listed]) -> RenderableType:
    """Return the schedulers, each with what it needs and its line of help."""
    table = _table()
    table.add_column("Name", style="bold", no_wrap=True)
    table.add_column("Who trains next", overflow="fold")
    table.add_column("Decides by", overflow="fold")
    for one in listed:
        table.add_row(one.name, Text(one.help), Text(", ".join(one.needs) or MISSING))
    return table


def _table() -> Table:
    return Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))


def _facts(facts: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    return table


def _final_cells(job: JobProgress, now: float) -> list[Text]:
    ended = job.ended_at is not None
    story = job.reason or metrics_text(job.metrics) or MISSING
    texts = [
        job.name,
        job.user or MISSING,
        str(job.state),
        seconds_text(job.completion_seconds) if ended else MISSING,
        times_text(job.slowdown),
        seconds_text(job.waiting_seconds(now)),
        seconds_text(job.training_seconds),
        bytes_text(job.peak_bytes),
        f"{story} (log: {job.log})" if job.log else story,
    ]
    cells = [Text(text) for text in texts]
    cells[2].stylize(STATE_STYLES.get(job.state, ""))
    return cells


def _total(summary: Summary) -> str:
    counts = [f"{summary.count(state)} {state}" for state in JobState if summary.count(state)]
    parts = [f"{plural(len(summary.jobs), 'job')}: {', '.join(counts) or 'nothing to do'}"]
    parts.append(f"all in {seconds_text(summary.makespan_seconds)} (makespan)")
    if summary.peak_bytes is not None:
        parts.append(f"peak memory of the run {bytes_text(summary.peak_bytes)}")
    return "; ".join(parts)


def _since_submission(summary: Summary) -> list[Text]:
    completions, slowdowns = summary.completions(), summary.slowdowns()
    if completions is None:
        return []
    parts = [f"completion since submission {spread_text(completions.mean, completions.p95)}"]
    if slowdowns is not None:
        parts.append(f"slowdown {spread_text(slowdowns.mean, slowdowns.p95, times_text)}")
    return [Text("; ".join(parts))]


def _plan_cells(job: PlannedJob) -> dict[str, Text]:
    texts = [
        str(job.order),
        job.name,
        job.user or MISSING,
        str(job.threads or MISSING),
        count_text(job.num_parameters),
        bytes_text(job.resident_bytes),
        bytes_text(job.peak_bytes),
        count_text(job.flops_per_step),
        str(job.num_steps),
        seconds_text(job.predicted_seconds),
        f"{job.dataset_source} ({bytes_text(job.dataset_bytes)})",
    ]
    return {title: Text(text) for title, text in zip(_PLAN_COLUMNS, texts, strict=True)}


def _shared_lines(plan: RunPlan) -> Sequence[str]:
    """Say for each dataset that several jobs name, whatever they call it, who they are."""
    sizes = {job.dataset_key: job.dataset_bytes for job in plan.jobs}
    lines = [
        f"  {key[:12]} ({bytes_text(sizes.get(key))}, loaded once): {', '.join(names)}" for key, names in plan.shared.items()
    ]
    return lines or ["  none: every job has a dataset of its own"]


def _dataset(dataset: DatasetRef) -> str:
    size = f"{plural(dataset.num_samples, 'sample')}, {bytes_text(dataset.nbytes)}"
    return f"{dataset.source}: {size}, content {dataset.key[:12]}"
