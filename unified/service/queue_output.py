"""How the queue's verbs speak: results on stdout as tables, lines or JSON, messages on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from unified.errors import InvalidSubmission, UnifiedError
from unified.job_state import IllegalMoveError, JobState
from unified.queue.errors import QueueError
from unified.queue.records import JobRow
from unified.terminal import line_writer, make_console, show

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1
EXIT_DONE, EXIT_ERROR, EXIT_CANCELLED, EXIT_TIMEOUT, EXIT_INTERRUPTED = 0, 1, 3, 4, 130

_SHOWN_CONTROLS = "\t\n"
#: Others' texts may hold what a terminal obeys; it is shown, and not obeyed.
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in _SHOWN_CONTROLS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where a verb's words go.

    Attributes:
        as_json: Results are JSON.
        is_quiet: Results are ids only, and there are no messages but errors.
    """

    as_json: bool = False
    is_quiet: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether people read it."""
        return not (self.as_json or self.is_quiet)

    @property
    def width(self) -> int:
        """Columns that a table may have."""
        return make_console().width

    def line(self, text: str) -> None:
        """Print a line of results."""
        line_writer(sys.stdout)(safe(text))

    def table(self, content: RenderableType) -> None:
        """Print a table of results."""
        show(make_console(), content)

    def document(self, content: Mapping[str, Any]) -> None:
        """Print JSON: all results, or a line of a stream."""
        from unified.summary import finite

        line_writer(sys.stdout)(json.dumps(finite({"schema": SCHEMA, **content}), ensure_ascii=False, allow_nan=False))

    def message(self, text: str) -> None:
        """Tell people something that is no result."""
        if not self.is_quiet:
            self.complain(text)

    def error(self, error: Exception) -> None:
        """Say what went wrong, a line for each problem."""
        for line in error_lines(error):
            self.complain(line)

    def complain(self, text: str) -> None:
        """Say a line of what went wrong, quiet or not."""
        line_writer(sys.stderr)(f"unified: {safe(text)}")


def safe(text: str) -> str:
    """Return ``text`` without what a terminal would obey.

    >>> safe(f"a{chr(27)}[2Jb") == f"a{chr(0xFFFD)}[2Jb"
    True
    """
    return text.translate(_CONTROLS)


def error_lines(error: Exception) -> list[str]:
    """Return what went wrong as a line for each problem."""
    if isinstance(error, InvalidSubmission):
        return [" ".join(str(problem).split()) for problem in error.problems]
    return str(error).splitlines() or [type(error).__name__]


def error_document(error: Exception, job: str | None = None) -> dict[str, Any]:
    """Return what went wrong as JSON: ``code``, ``message``, ``job``, and ``problems`` of a submission."""
    if isinstance(error, InvalidSubmission):
        problems = [asdict(problem) for problem in error.problems]
        whose = job or (error.problems[0].job if error.problems else None)
        return {"code": "invalid-submission", "message": "; ".join(error_lines(error)), "job": whose, "problems": problems}
    return {"code": _code(error), "message": " ".join(str(error).split()), "job": job}


def _code(error: Exception) -> str:
    if isinstance(error, QueueError):
        return error.code
    if isinstance(error, IllegalMoveError):
        return "conflict"
    return "error" if isinstance(error, UnifiedError) else type(error).__name__


def job_document(row: JobRow, reason: str) -> dict[str, Any]:
    """Return a job as JSON, exactly as the HTTP API shows it."""
    from unified.service.http_models import job_model

    return job_model(row, reason).model_dump(mode="json", by_alias=True)


def exit_code(states: list[JobState]) -> int:
    """Return the exit code of jobs that have ended: that of the worst."""
    if any(state in {JobState.FAILED, JobState.DEAD} for state in states):
        return EXIT_ERROR
    return EXIT_CANCELLED if JobState.CANCELLED in states else EXIT_DONE
