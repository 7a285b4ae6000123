import io
import json
import os

import pytest

from tests.unit.event_streams import make_run
from unified.events import (
    EpochDone,
    JobCancelled,
    JobFailed,
    JobPaused,
    JobResumed,
    StackFormed,
    StackRefused,
    StepsDone,
    TurnStarted,
    WorkerLost,
)
from unified.listeners import EventLog, JsonLines, PlainLines, event_to_json


def plain(events):
    stream = io.StringIO()
    listener = PlainLines(stream)
    for event in events:
        listener(event)
    return stream.getvalue().splitlines()


def test_a_job_has_one_line_for_each_thing_that_happens_to_it():
    events = make_run(seed=1, num_jobs=4, failures=1, turn_steps=3)
    lines = plain(events)
    for event in events:
        if isinstance(event, EpochDone):
            assert sum(f"{event.job}  epoch {event.epoch}/" in line for line in lines) == 1
    for name in {event.job for event in events if isinstance(event, TurnStarted)}:
        mine = [line for line in lines if f" s  {name}  " in line]
        kinds = [line.split(name + "  ", 1)[1].split()[0].rstrip(":") for line in mine]
        assert kinds[0] == "submitted"
        assert kinds.count("started") == 1, "further turns are not worth a line"
        assert kinds[-1] in {"finished", "failed"}
        assert sum(kind in {"finished", "failed"} for kind in kinds) == 1


def test_lines_say_who_what_and_how_it_ended():
    text = "\n".join(plain(make_run(seed=1, num_jobs=2, failures=1)))
    assert "submitted by alice: " in text
    assert "61.7 k parameters, peak about 12 MiB" in text
    assert "failed: loss is nan (log: out/x/job.log)" in text
    assert "accuracy 0.9" in text
    assert "peak 11 MiB; in out/" in text


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (JobPaused(at=1.25, job="a", step=7), "     1.2 s  a  paused at step 7"),
        (JobResumed(at=2, job="a", step=7), "     2.0 s  a  waits for its turn again, from step 7"),
        (JobCancelled(at=3, job="a"), "     3.0 s  a  cancelled"),
        (JobFailed(at=3, job="a", reason="out of memory", log=None), "     3.0 s  a  failed: out of memory"),
    ],
)
def test_rare_events_have_their_line(event, line):
    assert plain([event]) == [line]


def test_a_lost_worker_is_told_with_the_jobs_that_go_on():
    (line,) = plain([WorkerLost(at=5, slot=1, reason="killed by signal 9", jobs=("a", "b"))])
    assert line.endswith("run  the worker of slot 1 died: killed by signal 9; from their checkpoints go on: a, b")


def test_json_lines_are_strict_json_with_every_event_and_field():
    events = make_run(seed=2, num_jobs=3)
    stream = io.StringIO()
    listener = JsonLines(stream)
    for event in events:
        listener(event)
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["event"] for record in records] == [type(event).__name__ for event in events]
    for record, event in zip(records, events, strict=True):
        for name in type(event).__dataclass_fields__:
            value = getattr(event, name)
            assert record[name] == (list(value) if isinstance(value, tuple) else value)


def test_a_loss_that_is_not_a_number_is_null_in_json():
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    stream = io.StringIO()
    JsonLines(stream)(StepsDone(at=1, job="a", slot=0, epoch=1, step=2, loss=float("nan")))
    record = json.loads(stream.getvalue(), parse_constant=refuse)
    assert record["loss"] is None


def test_the_log_is_appended_to_and_makes_its_folder(tmp_path):
    path = tmp_path / "out" / ".state" / "events.jsonl"
    events = make_run(seed=3, num_jobs=2)
    for part in (events[:10], events[10:]):
        log = EventLog(path)
        for event in part:
            log(event)
        log.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == [json.loads(json.dumps(event_to_json(event))) for event in events]


def test_the_log_makes_nothing_before_the_first_event(tmp_path):
    EventLog(tmp_path / "out" / "events.jsonl").close()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [PlainLines, JsonLines])
def test_a_reader_who_goes_away_does_not_end_the_run(kind):
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w", buffering=1)
    listener = kind(stream)
    for event in make_run(seed=1, num_jobs=2):
        listener(event)
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_stack_has_one_line_however_many_turns_it_has():
    names = ("lr0.1", "lr0.2", "lr0.3", "lr0.4")
    formed = StackFormed(at=1.0, job="lr0.1", slot=0, members=names, speedup=1.72)
    refused = StackRefused(at=2.0, job="x", slot=0, members=("x", "y"), reason="is not faster", speedup=0.9)
    assert plain([formed, formed, refused]) == [
        "     1.0 s  lr0.1  leads a stack of 4: lr0.1, lr0.2, … 1.7x",
        "     2.0 s  x  stack of 2: x, y 0.9x: is not faster; they train one at a time",
    ]
