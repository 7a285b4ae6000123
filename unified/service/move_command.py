"""``unified pause | resume | cancel | checkpoint | requeue``: ask for all jobs first, then wait for those on a slot."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from functools import partial

from unified.errors import UnifiedError
from unified.job_state import JobState
from unified.queue.verb_rules import VERBS
from unified.queue.verbs import Outcome, Queue
from unified.service.queue_command import who_asks
from unified.service.queue_output import EXIT_DONE, EXIT_ERROR, EXIT_TIMEOUT, Output, error_document, job_document

_FOREVER = 10 * 365 * 24 * 3600.0


def move(queue: Queue, options: argparse.Namespace, out: Output) -> int:
    """Do what the verb says to the jobs named or selected, and return the exit code."""
    jobs = list(dict.fromkeys(options.ids or _selected(queue, options)))
    if not jobs:
        out.message(f"there is no job to {options.verb}")
    outcomes: dict[str, Outcome] = {}
    errors: dict[str, UnifiedError] = {}
    ask = partial(_ask, queue, options)
    for job in jobs:
        try:
            outcomes[job] = ask(job)
        except UnifiedError as error:
            errors[job] = error
    if not options.no_wait:
        deadline = time.monotonic() + (options.timeout or _FOREVER)
        for job, outcome in tuple(outcomes.items()):
            try:
                outcomes[job] = queue.finish(outcome, max(0.0, deadline - time.monotonic()))
            except UnifiedError as error:
                errors[job] = error
                del outcomes[job]
    _tell(queue, options.verb, outcomes, errors, out)
    return _exit_code(queue, options, outcomes, errors)


def _selected(queue: Queue, options: argparse.Namespace) -> Iterator[str]:
    """Return the jobs of a user, or in some states; where no state is named, those that the verb has something to do for."""
    verb = VERBS[options.verb]
    states = tuple(map(JobState, options.state)) or (*verb.moves, *verb.asked)
    return (row.id for row in queue.store.jobs(states=states, user=options.user))


def _ask(queue: Queue, options: argparse.Namespace, job: str) -> Outcome:
    if options.ids and options.state:
        row = queue.get(job, user=options.user)
        if str(row.state) not in options.state:
            return Outcome(job=row, done=True, text=f"left as it is: {row.state}")
    if options.verb == "requeue":
        return queue.requeue(job, by=who_asks(), user=options.user, from_scratch=options.from_scratch)
    return getattr(queue, options.verb)(job, by=who_asks(), user=options.user)


def _tell(queue: Queue, verb: str, outcomes: dict[str, Outcome], errors: dict[str, UnifiedError], out: Output) -> None:
    if out.as_json:
        jobs = [
            {**job_document(outcome.job, queue.reason(outcome.job)), "done": outcome.done, "text": outcome.text}
            for outcome in outcomes.values()
        ]
        told = [error_document(error, job) for job, error in errors.items()]
        first = {"error": told[0]} if told else {}
        out.document({"verb": verb, "jobs": jobs, "errors": told, **first})
        return
    for outcome in outcomes.values():
        out.line(outcome.job.id if out.is_quiet else f"{outcome.job.id}  {outcome.text}")
    for error in errors.values():
        out.error(error)


def _exit_code(queue: Queue, options: argparse.Namespace, outcomes: dict[str, Outcome], errors: dict[str, UnifiedError]) -> int:
    if errors:
        return EXIT_ERROR
    if options.no_wait or all(outcome.done for outcome in outcomes.values()):
        return EXIT_DONE
    return EXIT_TIMEOUT if queue.is_served else EXIT_ERROR
