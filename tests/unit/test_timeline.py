import random

import numpy as np
import pytest
from matplotlib.image import imread

from tests.unit.event_streams import make_run
from unified.events import (
    JobCancelled,
    JobFailed,
    JobSubmitted,
    MemorySampled,
    TurnEnded,
    TurnStarted,
    WorkerLost,
)
from unified.timeline import MAX_SAMPLES, NUM_COLUMNS, Timeline, draw_timeline


def follow(events):
    timeline = Timeline()
    for event in events:
        timeline(event)
    return timeline


def turn(job, slot, begin, end):
    return [
        TurnStarted(at=begin, job=job, slot=slot),
        TurnEnded(at=end, job=job, slot=slot, steps=1, seconds=end - begin),
    ]


def reference_busy(events, lane, width):
    """Seconds of each column spent in the lane's turns, from the turns themselves."""
    busy, begin = np.zeros(NUM_COLUMNS), None
    edges = np.arange(NUM_COLUMNS + 1) * width
    for event in events:
        if isinstance(event, TurnStarted) and (event.slot, event.job) == lane:
            begin = event.at
        elif isinstance(event, TurnEnded) and (event.slot, event.job) == lane:
            overlap = np.minimum(edges[1:], event.at) - np.maximum(edges[:-1], begin)
            busy += np.clip(overlap, 0.0, None)
    return busy


@pytest.mark.parametrize(("seed", "turn_steps"), [(1, 1), (2, 5), (3, 100_000)])
def test_columns_hold_exactly_the_time_of_the_turns(seed, turn_steps):
    events = make_run(seed, num_jobs=7, num_slots=3, turn_steps=turn_steps)
    timeline = follow(events)
    assert {job for _, job in timeline.lanes} == {event.job for event in events if isinstance(event, JobSubmitted)}
    for key, lane in timeline.lanes.items():
        np.testing.assert_allclose(lane.busy, reference_busy(events, key, timeline.width), atol=1e-9)


def test_a_long_run_of_short_turns_takes_no_more_room():
    dice, events, now = random.Random(7), [], 0.0
    for index in range(20_000):
        seconds = dice.uniform(0.001, 3.0)
        events += turn(f"job-{index % 3}", 0, now, now + seconds)
        now += seconds
    timeline = follow(events)
    assert NUM_COLUMNS / 2 <= timeline.end / timeline.width <= NUM_COLUMNS
    assert {len(lane.busy) for lane in timeline.lanes.values()} == {NUM_COLUMNS}
    total = sum(sum(lane.busy) for lane in timeline.lanes.values())
    assert total == pytest.approx(now)


def test_a_turn_nobody_ended_ends_with_its_job_or_its_worker():
    timeline = follow(
        [
            TurnStarted(at=1, job="a", slot=0),
            TurnStarted(at=1, job="b", slot=1),
            JobFailed(at=3, job="a", reason="x", log=None),
            WorkerLost(at=4, slot=1, reason="signal 9", jobs=("b", "c")),
        ]
    )
    assert sum(timeline.lanes[0, "a"].busy) == pytest.approx(2)
    assert sum(timeline.lanes[1, "b"].busy) == pytest.approx(3)
    assert timeline.endings["a"].kind is JobFailed
    assert "b" not in timeline.endings


def test_samples_of_memory_are_thinned_and_keep_the_peak():
    dice = random.Random(1)
    sizes = [dice.randrange(10**9) for _ in range(3 * MAX_SAMPLES)]
    timeline = follow(MemorySampled(at=i, bytes_in_use=size, utilisation=None) for i, size in enumerate(sizes))
    assert len(timeline.memory) <= MAX_SAMPLES
    assert max(size for _, size in timeline.memory) == max(sizes)
    assert [at for at, _ in timeline.memory] == sorted(at for at, _ in timeline.memory)


@pytest.mark.parametrize(
    "options",
    [
        {"num_jobs": 1, "num_slots": 1, "failures": 0},
        {"num_jobs": 12, "num_slots": 2, "turn_steps": 2},
        {"num_jobs": 64, "num_slots": 4, "turn_steps": 50},
    ],
)
def test_a_picture_shows_turns_in_the_colours_of_the_jobs(options, tmp_path):
    path = tmp_path / "timeline.png"
    draw_timeline(make_run(seed=5, **options), path)
    pixels = (imread(path)[..., :3].reshape(-1, 3) * 255).round().astype(int)
    colours = [(0, 114, 178), (213, 94, 0), (0, 158, 115)][: options["num_jobs"]]
    for colour in colours:
        assert (pixels == colour).all(axis=1).any()


def test_jobs_that_never_trained_and_runs_without_anything_are_drawn(tmp_path):
    draw_timeline([], tmp_path / "empty.png")
    waiting = JobSubmitted(
        at=0, job="a", user=None, num_epochs=1, num_steps=1, steps_per_epoch=1, num_parameters=1, peak_bytes=1
    )
    draw_timeline([waiting, JobCancelled(at=2, job="a")], tmp_path / "waiting.png")
    assert imread(tmp_path / "waiting.png").shape[1] == imread(tmp_path / "empty.png").shape[1]
    assert imread(tmp_path / "waiting.png")[..., :3].min() < 0.5


def test_a_run_broken_off_in_a_turn_is_drawn_until_then(tmp_path):
    timeline = follow([TurnStarted(at=1, job="a", slot=0), MemorySampled(at=4, bytes_in_use=1, utilisation=None)])
    timeline.draw(tmp_path / "timeline.png")
    assert sum(timeline.lanes[0, "a"].busy) == pytest.approx(3)


def test_a_job_that_moved_has_a_lane_on_each_slot():
    timeline = follow([*turn("a", 0, 0, 1), *turn("a", 2, 1, 5), *turn("a", 0, 5, 6)])
    assert sum(timeline.lanes[0, "a"].busy) == pytest.approx(2)
    assert sum(timeline.lanes[2, "a"].busy) == pytest.approx(4)
