"""Print what schedulers decide in one run: ``python -m schedulers.testing.decisions SPELLING…``, alike in every process."""

from __future__ import annotations

import json
import random
import sys

from schedulers.base import JobView
from schedulers.registry import create
from schedulers.testing.run import SimulatedRun


def decisions(spelling: str) -> list[tuple[str, int, float]]:
    """Return who was granted which slot when, over a fixed workload of equal and different units."""
    rng = random.Random(0)
    units = [
        JobView(
            id=f"unit-{index}",
            submit_time=rng.randrange(4),
            user_shares=((rng.choice("ab"), 1.0),),
            priority=rng.randrange(2),
            num_parameters=rng.randrange(2),
            steps_total=rng.randrange(1, 9),
            step_seconds=rng.choice([1, 2]),
        )
        for index in range(12)
    ]
    turns = SimulatedRun(scheduler=create(spelling), units=units, num_slots=2).to_the_end()
    return [(turn.unit.id, turn.slot_id, float(turn.began)) for turn in turns]


if __name__ == "__main__":
    sys.stdout.write(json.dumps([decisions(spelling) for spelling in sys.argv[1:]]))
