import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.queue_cases import S, Supervisor, bring, submitted
from unified import cli
from unified.job_state import JobState
from unified.queue.verbs import Queue
from unified.queue_parsers import _STATES, add_queue_commands, overrides
from unified.service.queue_tables import jobs_table

MOVES = ("pause", "resume", "cancel", "checkpoint", "requeue")
VERBS = ("serve", "submit", "ls", "show", "explain", "logs", *MOVES, "wait", "top", "doctor")
COLUMNS = "ID NAME USER PRIO STATE REASON SLOT STEP/TOTAL ETA LOSS MEM COMPLETE SLOWDOWN WAIT RUN"
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def parser():
    made = argparse.ArgumentParser(prog="unified")
    add_queue_commands(made.add_subparsers(required=True))
    return made


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIFIED_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("COLUMNS", "200")
    with Queue.open(tmp_path / "root", make=True) as queue:
        yield queue


@pytest.fixture
def call(capsys):
    """Call a verb as the command line does; returns the exit code, stdout and stderr."""

    def run(*arguments):
        options = parser().parse_args(list(map(str, arguments)))
        code = cli.guarded(lambda: options.command(options))
        return code, *capsys.readouterr()

    return run


def document(out):
    (line,) = out.splitlines()
    content = json.loads(line)
    assert content["schema"] == 1
    return content


# The command line itself


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_exit_codes_and_an_example_that_parses(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser().parse_args([verb, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    *_, title, example = text.rstrip().splitlines()
    assert title == "example:"
    assert parser().parse_args(example.split()[1:]).verb == verb
    codes = (0, 1, 2, 5, 130) if verb == "serve" else (0, 1, 2, 3, 4, 130)
    assert all(f"\n  {code:<5}" in text for code in codes)


def test_the_states_one_may_ask_for_are_all_states():
    assert list(_STATES) == [str(state) for state in JobState]


def test_every_verb_needs_a_root(monkeypatch, capsys):
    monkeypatch.delenv("UNIFIED_ROOT", raising=False)
    options = parser().parse_args(["ls"])
    with pytest.raises(SystemExit) as exit_:
        options.command(options)
    assert exit_.value.code == 2
    assert "Give --root DIR, or set UNIFIED_ROOT" in capsys.readouterr().err


def test_serve_overrides_the_settings_that_are_given_and_no_others():
    line = "serve --slots 2 --trust --lease-seconds 5 --set max_jobs_per_user=20 --set scheduler=sjf --set data_roots=['/a']"
    assert overrides(parser().parse_args(line.split())) == {
        "slots": 2,
        "trust": True,
        "lease_seconds": 5.0,
        "max_jobs_per_user": 20,
        "scheduler": "sjf",
        "data_roots": ["/a"],
    }
    assert overrides(parser().parse_args(["serve"])) == {}


@pytest.mark.parametrize("wrong", [["--set", "novalue"], ["--lease-seconds", "0"], ["--slots", "none"], ["--threads", "-1"]])
def test_what_serve_cannot_read_is_a_usage_error(wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        parser().parse_args(["serve", *wrong])
    assert exit_.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_parsing_loads_nothing_and_no_verb_loads_torch():
    script = """
import argparse, sys
from unified.queue_parsers import add_queue_commands
add_queue_commands(argparse.ArgumentParser().add_subparsers())
heavy = {"torch", "numpy", "pydantic", "rich", "sqlalchemy", "fastapi"} & set(sys.modules)
assert not heavy, heavy
import unified.service.queue_command, unified.service.submit_command, unified.service.move_command
import unified.service.top, unified.service.doctor
heavy = {"torch", "numpy", "fastapi", "transformers", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_root_that_is_none_is_one_line_or_json(call, tmp_path):
    code, out, err = call("ls", "--root", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith(f"unified: {tmp_path} is not a queue's folder")
    code, out, err = call("ls", "--root", tmp_path, "--json")
    assert (code, err) == (1, "")
    assert document(out)["error"]["code"] == "root"


# ls, show, explain, logs


def test_ls_has_its_columns_and_every_waiting_job_a_reason(call, queue, tmp_path):
    first, second = (submitted(queue, tmp_path / "jobs", name, user="ann") for name in ("a", "b"))
    bring(queue, second, S.RETRY_WAIT, not_before=time.time() + 40.2, num_job_failures=1)
    code, out, _ = call("ls")
    title, *rows = out.splitlines()
    assert code == 0
    assert title.split() == COLUMNS.split()
    assert rows[0].startswith(first)
    assert "supervisor not running" in rows[0]
    assert rows[1].startswith(second)
    assert "retry in 40 s (1 of 2)" in rows[1]


@pytest.mark.parametrize("width", [80, 100, 180])
def test_the_list_fits_its_screen_with_whole_ids_and_a_line_for_each_job(queue, tmp_path, width):
    names = ["a", "b" * 20]
    rows = [queue.get(submitted(queue, tmp_path / "jobs", name, user="ann")) for name in names]
    console = Console(width=width)
    with console.capture() as captured:
        console.print(jobs_table(rows, {row.id: "waits for a slot, as all others are taken" for row in rows}, 0.0, width))
    title, *lines = captured.get().splitlines()
    assert [line.split()[0] for line in lines] == [row.id for row in rows]
    assert {"ID", "STATE", "REASON", "STEP/TOTAL"} <= set(title.split())
    assert (title.split() == COLUMNS.split()) == (width == 180)


def test_ls_spends_no_room_on_the_schedulers_name(queue, tmp_path):
    row = queue.get(submitted(queue, tmp_path / "jobs"))
    console = Console(width=180)
    with console.capture() as captured:
        console.print(jobs_table([row], {row.id: "slots: it is next; under srtf:quantum=1s: 7 s are left"}, 0.0, 180))
    assert "  slots: it is next; 7 s are left  " in captured.get()


def test_ls_selects_and_pages(call, queue, tmp_path):
    jobs = [submitted(queue, tmp_path / "jobs", f"job-{n}", user=("ann", "bob")[n % 2]) for n in range(4)]
    queue.cancel(jobs[0], by="ann")
    assert call("ls", "--state", "cancelled", "--quiet")[1].split() == jobs[:1]
    assert call("queue", "--user", "bob", "--quiet")[1].split() == [jobs[1], jobs[3]]
    page = document(call("ls", "--limit", "3", "--json")[1])
    assert [job["id"] for job in page["jobs"]] == jobs[1:]
    page = document(call("ls", "--limit", "3", "--json", "--cursor", page["cursor"])[1])
    assert ([job["id"] for job in page["jobs"]], page["cursor"]) == (jobs[:1], None)


def test_ls_always_shows_what_is_on_a_slot(call, queue, tmp_path):
    jobs = [submitted(queue, tmp_path / "jobs", f"job-{n}") for n in range(3)]
    bring(queue, jobs[0], S.RUNNING)
    assert call("ls", "--limit", "1", "--quiet")[1].split() == [jobs[0], jobs[2]]


def test_ls_of_nothing_says_so(call, queue):
    assert call("ls") == (0, "", "unified: no jobs yet\n")


def test_texts_of_others_give_a_terminal_no_orders(call, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    row = queue.get(job)
    queue.store.move(job, S.FAILED, old=row.state, epoch=row.epoch, reason="\x1b[2Jgone\r[red]x", by="supervisor")
    for verb in (("ls",), ("show", job), ("explain", job)):
        _, out, _ = call(*verb)
        assert "\x1b" not in out
        assert "\r" not in out
        assert "[red]x" in out


def test_show_tells_everything(call, queue, tmp_path):
    job, other = (submitted(queue, tmp_path / "jobs", name) for name in ("a", "b"))
    bring(queue, job, S.RUNNING)
    bring(queue, other, S.RUNNING)
    _, out, _ = call("show", job[:3])
    assert all(word in out for word in (job, other, "what happened", "placed", "job.json", "model.umodel"))
    shown = document(call("show", job, "--json")[1])
    assert (shown["id"], shown["state"], shown["neighbours"]) == (job, "running", [other])
    assert [move["new"] for move in shown["transitions"]] == ["queued", "loading", "running"]
    assert [attempt["epoch"] for attempt in shown["attempts"]] == [1]
    assert shown["spec"]["model"] == "model.umodel"


def test_show_prints_the_hashes_of_the_result(call, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, S.FINISHED, result_path=f"results/{job}")
    folder = queue.root.result(job)
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"w")
    (folder / "result.json").write_text(json.dumps({"sha256": {"weights.safetensors": "ab" * 32}}))
    assert "ab" * 32 in call("show", job)[1]
    files = document(call("show", job, "--json")[1])["files"]
    assert {"name": "weights.safetensors", "bytes": 1, "sha256": "ab" * 32} in files


def test_an_unknown_job_is_one_line_or_json(call, queue):
    code, out, err = call("show", "nobody")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "nobody" in err
    code, out, _ = call("show", "nobody", "--json")
    error = document(out)["error"]
    assert (code, error["code"], error["job"]) == (1, "unknown-job", "nobody")


def test_explain_speaks_in_sentences(call, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    _, out, _ = call("explain", job)
    assert "No supervisor runs" in out
    explained = document(call("explain", job, "--json")[1])
    assert (explained["id"], explained["reason"]) == (job, "supervisor not running")
    assert explained["lines"] == out.splitlines()


def test_logs_prints_the_log_and_its_end(call, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    queue.root.log(job).unlink(missing_ok=True)
    code, out, err = call("logs", job)
    assert (code, out) == (0, "")
    assert "nothing was logged yet" in err
    queue.root.log(job).write_text("2026-11-21T06:30:00Z  began\nTraceback  x\n2026-11-21T06:30:01Z  failed\nhalf a li")
    assert call("logs", job)[1].splitlines()[1:] == ["Traceback  x", "2026-11-21T06:30:01Z  failed"]
    assert call("logs", job, "-n", "1")[1] == "2026-11-21T06:30:01Z  failed\n"
    assert document(call("logs", job, "--json")[1])["lines"] == [
        {"time": "2026-11-21T06:30:00Z", "text": "began"},
        {"time": None, "text": "Traceback  x"},
        {"time": "2026-11-21T06:30:01Z", "text": "failed"},
    ]


def test_logs_follows_until_the_job_has_ended(call, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    log = queue.root.log(job)
    log.write_text("2026-11-21T06:30:00Z  first\n")

    def go_on():
        with log.open("a") as file:
            file.write("2026-11-21T06:30:01Z  second\n")
            file.flush()
            with Queue.open(queue.root.path) as mine:
                mine.cancel(job, by="ann")
            file.write("2026-11-21T06:30:02Z  last\n")

    thread = threading.Timer(0.3, go_on)
    thread.start()
    _, out, _ = call("logs", "-f", job, "--json")
    thread.join()
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["first", "second", "last"]


def test_explain_says_when_a_deadline_is_and_who_does_not_look_at_it(call, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs", deadline_seconds=7200)
    for decides_by, told in [([], "; scheduler fcfs does not look at it."), (["deadline"], ".")]:
        queue.root.status.write_text(json.dumps({"time": time.time(), "scheduler": "fcfs", "decides_by": decides_by}))
        with Supervisor(queue.root):
            lines = call("explain", job)[1].splitlines()
        [line] = [line for line in lines if line.startswith("Its deadline is in ")]
        assert line.partition(" min")[2] == told


# wait, top, Ctrl-C


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ((S.FINISHED, S.FINISHED), 0),
        ((S.FINISHED, S.CANCELLED), 3),
        ((S.CANCELLED, S.DEAD), 1),
        ((S.FAILED, S.FINISHED), 1),
    ],
)
def test_wait_ends_with_the_worst(ends, code, call, queue, tmp_path):
    jobs = [submitted(queue, tmp_path / "jobs", f"job-{n}") for n in range(len(ends))]
    for job, end in zip(jobs, ends, strict=True):
        bring(queue, job, end, result_path=f"results/{job}")
    done, out, _ = call("wait", *jobs)
    assert done == code
    assert [line.split()[:2] for line in out.splitlines()] == [[job, str(end)] for job, end in zip(jobs, ends, strict=True)]
    done, out, _ = call("wait", *jobs, "--json")
    assert [json.loads(line)["state"] for line in out.splitlines()] == list(map(str, ends))


def test_wait_says_when_its_time_is_over(call, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    code, out, err = call("wait", job, "--timeout", "0.1")
    assert (code, out) == (4, "")
    assert job in err
    code, out, _ = call("wait", job, "--timeout", "0.1", "--json")
    assert (code, document(out)["error"]["code"]) == (4, "timeout")


def test_ctrl_c_detaches_and_cancels_nothing(queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    script = (
        "import argparse, sys\nfrom unified.queue_parsers import add_queue_commands\n"
        "p = argparse.ArgumentParser(); add_queue_commands(p.add_subparsers())\n"
        "o = p.parse_args(sys.argv[1:]); sys.exit(o.command(o))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-c", script, "wait", job]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as waiting:
        assert "no supervisor" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert "nothing was cancelled: unified ls" in waiting.stderr.read()
        assert waiting.wait() == 130
    assert queue.get(job).state is S.QUEUED


def test_top_shows_slots_members_memory_and_queue(call, queue, tmp_path):
    running, waiting = (submitted(queue, tmp_path / "jobs", name) for name in ("a", "b"))
    bring(queue, running, S.RUNNING)
    slot = {"index": 0, "device": "cpu", "threads": 1, "pid": 1, "state": "training", "running": running}
    said = {"pid": 1, "time": time.time(), "started": time.time(), "scheduler": "fcfs", "device": "cpu"}
    status = said | {"slots": [slot | {"residents": [running], "memory_bytes": 5 << 20}], "memory_bytes": 7 << 20}
    queue.root.status.write_text(json.dumps(status))
    with Supervisor(queue.root):
        seen = document(call("top", "--json")[1])
        text = call("top")[1]
    assert [member["id"] for member in seen["slots"][0]["members"]] == [running]
    assert [job["id"] for job in seen["waiting"]] == [waiting]
    assert (seen["is_served"], seen["memory_bytes"], seen["counts"]["queued"]) == (True, 7 << 20, 1)
    assert RFC_3339.fullmatch(seen["time"])
    assert all(word in text for word in (f"> {running}", waiting, "5 MiB", "7 MiB", "fcfs on cpu"))


def test_what_finished_jobs_took_since_their_submission_is_told(call, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, S.FINISHED, finished_time=queue.get(job).submit_time + 12.0, training_seconds=4.0)
    assert document(call("ls", "--json", "--state", "finished")[1])["jobs"][0]["slowdown"] == pytest.approx(3.0)
    assert "12.0 s after submission, slowdown 3.00x" in call("show", job)[1]
    expected = {"mean": 12.0, "p50": 12.0, "p95": 12.0, "p99": 12.0}
    assert document(call("top", "--json")[1])["finished"]["completion_seconds"] == pytest.approx(expected)
    assert "latest 1 finished job: completion since submission mean 12.0 s, p95 12.0 s; slowdown mean 3.00x" in call("top")[1]


def test_top_without_a_supervisor_says_so(call, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, S.RUNNING)
    code, out, _ = call("top")
    assert code == 0
    assert "no supervisor is running" in out
    assert f"on slots of a supervisor that is gone: {job}" in out
    assert document(call("top", "--json")[1])["supervisor"] is None
    assert call("top", "--quiet")[1] == f"{job}\n"
