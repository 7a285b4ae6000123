"""The folders that ``unified run --fuse`` writes beside the jobs' results. Free of torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from unified.errors import UnifiedError

FUSED = "fused"


def fused_name(number: int, of: int) -> str:
    """Return the folder of one fused model of several.

    >>> fused_name(1, of=1), fused_name(2, of=3)
    ('fused', 'fused-2')
    """
    return FUSED if of == 1 else f"{FUSED}-{number}"


def check_names(folders: Sequence[Path]) -> None:
    """Refuse, before anything is trained, jobs whose results would lie where fused models go.

    Args:
        folders: As handed in; what else is wrong with them is told by those who read them.

    Raises:
        UnifiedError: If a job is called ``fused``, or ``fused-1`` and the like.
    """
    for folder in folders:
        for job in [folder] if (folder / "job.json").is_file() else sorted(path.parent for path in folder.glob("*/job.json")):
            name = _name_of(job)
            if re.fullmatch(rf"{FUSED}(-\d+)?", name, flags=re.IGNORECASE):
                raise UnifiedError(
                    f"job {name!r} ({job}): with --fuse the folder of that name in --out is for the fused model; "
                    "rename the job, or train without --fuse and call 'unified fuse' afterwards"
                )


def _name_of(job: Path) -> str:
    try:
        return str(json.loads((job / "job.json").read_bytes())["name"])
    except (OSError, ValueError, LookupError, TypeError):
        return job.name
