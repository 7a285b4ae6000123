"""What one more resident job costs in memory: PSS while K jobs take turns in one slot, against K.

Memory counts once the last job has begun, and until half-way to the first result: all K are resident and none is on its
way out. The peak of a whole run would tell of its beginning and end, where other things than resident jobs need memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.modes import Kind, Mode, perform

MIB = 2**20
TAKING_TURNS = Mode(
    name="unified, K resident", kind=Kind.UNIFIED, threads=1, scheduler="round-robin", slots="1"
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentMemory:
    """Memory against the number of resident jobs, in one repeat.

    Attributes:
        resident_bytes: Median PSS of all processes while all jobs were resident, by number of jobs.
        slope_bytes: Of the least-squares line through them: one more job, its own tensors included.
        own_bytes: A job's parameters, gradients, buffers and optimizer state; the data are common to all.
    """

    resident_bytes: dict[int, float]
    slope_bytes: float
    own_bytes: int

    @property
    def beyond_mib(self) -> float:
        """One more job beyond its own tensors and data, in MiB."""
        return (self.slope_bytes - self.own_bytes) / MIB


def measure_resident(folders: Sequence[Path], own_bytes: int, counts: Sequence[int], work: Path) -> ResidentMemory:
    """Run the first K of ``folders`` for each K in ``counts``.

    Raises:
        RunFailedError: If a run fails.
    """
    sizes: dict[int, float] = {}
    for count in counts:
        out = work / f"resident-{count}"
        run = perform(TAKING_TURNS, folders[:count], out)
        all_began = max(job.began_seconds for job in run.jobs)
        first_done = min(job.completion_seconds for job in run.jobs)
        sizes[count] = run.measured.watched.typical_bytes(all_began, (all_began + first_done) / 2)
        shutil.rmtree(out)
    slope = float(np.polyfit(list(sizes), list(sizes.values()), deg=1)[0])
    return ResidentMemory(resident_bytes=sizes, slope_bytes=slope, own_bytes=own_bytes)
