"""Files that grow: every line comes once and in order, also when the reader comes again or the file is written anew."""

import json
import threading

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.http_service import add_job, append, make_tokens, move_job, served
from unified.job_state import JobState
from unified.queue.verbs import Queue
from unified.service.http_streams import MAX_LINE_BYTES, Tail, event, file_pieces, last_lines

LINES = st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=20), max_size=20)


@given(data=st.data(), lines=LINES)
def test_a_reader_gets_every_line_once_however_they_are_written(tmp_path_factory, data, lines):
    path = tmp_path_factory.mktemp("tail") / "log.txt"
    content = "".join(f"{line}\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=10)))
    tail, found = Tail(path), []
    for start, stop in zip([0, *cuts], [*cuts, len(content)], strict=True):
        with path.open("ab") as file:
            file.write(content[start:stop])
        if data.draw(st.booleans()):
            tail = Tail(path, tail.mark)  # the reader went away and comes again
        read, was_reset = tail.read()
        assert not was_reset
        found += read
    assert found == lines
    assert tail.read() == ([], False)


def test_a_file_written_anew_is_read_from_its_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("1\n2\n3\n")
    tail = Tail(path)
    assert tail.read() == (["1", "2", "3"], False)
    (tmp_path / "new").write_text("1\n2\nx\ny\n")
    (tmp_path / "new").rename(path)
    comes_again = Tail(path, tail.mark)
    assert tail.read() == (["1", "2", "x", "y"], True)
    assert comes_again.read() == (["1", "2", "x", "y"], True)
    path.write_text("1\n")
    assert tail.read() == (["1"], True)


@pytest.mark.parametrize("mark", ["", "-", "x-y", "5", "5-", "-5", "1e3-2", "٣-٣"])
def test_a_mark_that_is_none_means_the_beginning(tmp_path, mark):
    append(tmp_path / "log.txt", "a\n")
    assert Tail(tmp_path / "log.txt", mark).read()[0] == ["a"]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"x" * (MAX_LINE_BYTES + 10) + b"\nnext\n")
    tail = Tail(path)
    first, second = tail.read()[0], tail.read()[0]
    assert [len(line) for line in first] == [MAX_LINE_BYTES]
    assert second == ["x" * 10, "next"]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_no_text_forges_an_event(text):
    block = event(text)
    assert block.endswith("\n\n")
    fields = block[:-2].split("\n")
    assert all(field.startswith("data: ") for field in fields)
    assert "\n".join(field.removeprefix("data: ") for field in fields) == text.replace("\r", "")


@given(lines=LINES, number=st.integers(0, 25), most=st.integers(1, 200))
def test_the_last_lines_are_whole_and_the_last(tmp_path_factory, lines, number, most):
    path = tmp_path_factory.mktemp("last") / "log.txt"
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(content + b"unfinished")
    found = last_lines(path, number, max_bytes=10_000).decode()
    assert found.split("\n")[:-1] == (lines[-number:] if number else [])
    assert content.endswith(last_lines(path, number, max_bytes=most))


def test_what_is_not_there_is_empty(tmp_path):
    assert last_lines(tmp_path / "none", 5) == b""
    assert list(file_pieces(tmp_path / "none")) == []
    assert Tail(tmp_path / "none").read() == ([], False)


def events_of(answer):
    """The events of a stream, as they come: name, data, and the id so far."""
    name, data, last = "message", [], ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data.append(line.removeprefix("data: "))
        elif line.startswith("id: "):
            last = line.removeprefix("id: ")
        elif not line and data:
            yield name, "\n".join(data), last
            name, data = "message", []


@pytest.fixture
def queue(tmp_path):
    with Queue.open(tmp_path / "root", make=True) as queue:
        add_job(queue, "a", user="alice", state=JobState.RUNNING)
        yield queue


def test_a_log_is_followed_to_the_jobs_end(queue):
    append(queue.root.log("a"), "one\n")
    with served(queue.root.path) as (_, url), httpx.stream("GET", f"{url}/v1/jobs/a/logs?follow=1", timeout=20) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of(answer)
        assert next(events)[:2] == ("message", "one")
        append(queue.root.log("a"), "two\nthree\nfo")
        assert [next(events)[1], next(events)[1]] == ["two", "three"]
        append(queue.root.log("a"), "ur\n")
        move_job(queue, "a", JobState.FAILED)
        assert next(events)[:2] == ("message", "four")
        assert next(events)[:2] == ("end", '{"state": "failed"}')
        assert list(events) == []


def test_a_reader_that_comes_again_goes_on_where_it_was(queue):
    append(queue.root.log("a"), "one\ntwo\n")
    with served(queue.root.path) as (_, url):
        follow = f"{url}/v1/jobs/a/logs?follow=1"
        with httpx.stream("GET", follow, timeout=20) as answer:
            events = events_of(answer)
            next(events), next(events)
            append(queue.root.log("a"), "three\n")
            last = next(events)[2]  # the id that came behind the two
        move_job(queue, "a", JobState.FAILED)
        with httpx.stream("GET", follow, timeout=20, headers={"Last-Event-ID": last}) as answer:
            assert [(name, data) for name, data, _ in events_of(answer)] == [
                ("message", "three"),
                ("end", '{"state": "failed"}'),
            ]


def test_metrics_are_followed_from_a_step_on_and_told_anew_after_a_reset(queue):
    path = queue.root.metrics("a")
    append(path, "".join(f'{{"step": {step}, "loss": NaN}}\n' for step in (1, 2, 3)))
    with served(queue.root.path) as (_, url):
        follow = f"{url}/v1/jobs/a/metrics?follow=1&since=2"
        with httpx.stream("GET", follow, timeout=20) as answer:
            events = events_of(answer)
            assert [json.loads(next(events)[1]) for _ in range(2)] == [{"step": 2, "loss": None}, {"step": 3, "loss": None}]
            path.with_name("new").write_text('{"step": 2, "loss": 0.5}\n')
            path.with_name("new").rename(path)
            assert next(events)[0] == "reset"
            assert json.loads(next(events)[1]) == {"step": 2, "loss": 0.5}


def test_many_follow_at_once_and_nobody_follows_other_peoples(queue, tmp_path):
    tokens, headers = make_tokens(tmp_path, alice=["read"], bob=["read"])
    with served(queue.root.path, "--token-file", tokens) as (_, url):
        follow = f"{url}/v1/jobs/a/logs?follow=1"
        assert httpx.get(follow, headers=headers["bob"]).status_code == 404
        found = []

        def read():
            with httpx.stream("GET", follow, timeout=20, headers=headers["alice"]) as answer:
                found.append([data for _, data, _ in events_of(answer)])

        readers = [threading.Thread(target=read) for _ in range(20)]
        for reader in readers:
            reader.start()
        append(queue.root.log("a"), "one\n")
        move_job(queue, "a", JobState.FAILED)
        for reader in readers:
            reader.join()
        assert found == [["one", '{"state": "failed"}']] * 20
