"""What ``unified submit``, ``pause``, ``resume``, ``cancel``, ``checkpoint`` and ``requeue`` do."""

import argparse
import json
import os
import re

import pytest

from tests.unit.queue_cases import S, Supervisor, bring, job_folder, submitted
from unified import cli
from unified.queue.verbs import Queue
from unified.queue_parsers import add_queue_commands

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


# submit


def test_submit_prints_the_id_and_the_four_next_commands(call, queue, tmp_path):
    code, out, err = call("submit", job_folder(tmp_path / "jobs"))
    (job,) = [row.id for row in queue.list().jobs]
    assert code == 0
    first, *next_ = out.splitlines()
    assert first == f"{job}  submitted"
    assert [line.split() for line in next_] == [
        ["unified", "show", job],
        ["unified", "logs", "-f", job],
        ["unified", "wait", job],
        ["unified", "cancel", job],
    ]
    assert "no supervisor is running; the job is kept" in err


def test_the_next_commands_name_the_root_that_was_given(call, queue, tmp_path):
    _, out, _ = call("submit", job_folder(tmp_path / "jobs"), "--root", queue.root.path)
    assert all(line.endswith(f"--root {queue.root.path}") for line in out.splitlines()[1:])


def test_submitting_again_says_already_submitted_with_the_same_id(call, queue, tmp_path):
    folder = job_folder(tmp_path / "jobs")
    _, first, _ = call("submit", folder)
    code, second, _ = call("submit", folder)
    assert code == 0
    assert second.startswith(f"{first.split()[0]}  already submitted: queued")


def test_submit_makes_the_queue_where_there_is_none(call, tmp_path):
    code, out, _ = call("submit", job_folder(tmp_path / "jobs"), "--root", tmp_path / "new", "--quiet")
    assert code == 0
    with Queue.open(tmp_path / "new") as made:
        assert out.split() == [row.id for row in made.list().jobs]


def test_a_folder_of_job_folders_is_submitted_whole(call, queue, tmp_path):
    for name in ("a", "b"):
        job_folder(tmp_path / "jobs", name)
    code, out, _ = call("submit", tmp_path / "jobs", "--user", "ann", "--priority", "-3", "--json")
    jobs = document(out)["jobs"]
    assert code == 0
    assert [(job["name"], job["user"], job["priority"]) for job in jobs] == [("a", "ann", -3), ("b", "ann", -3)]
    assert all(job["is_new"] and not job["checked"] and RFC_3339.fullmatch(job["submit_time"]) for job in jobs)


def test_what_is_refused_keeps_no_other_job_from_being_accepted(call, queue, tmp_path):
    job_folder(tmp_path / "jobs", "bad", epochs="two", batch_size=0)
    job_folder(tmp_path / "jobs", "good")
    code, out, err = call("submit", tmp_path / "jobs")
    assert code == 1
    assert [row.name for row in queue.list().jobs] == ["good"]
    assert out.startswith("good-")
    problems = [line for line in err.splitlines() if "job 'bad'" in line]
    assert len(problems) == 2
    code, out, _ = call("submit", tmp_path / "jobs" / "bad", "--json")
    error = document(out)["error"]
    assert (code, error["code"], error["job"], len(error["problems"])) == (1, "invalid-submission", "bad", 2)


def test_submit_waits_for_the_check_where_a_supervisor_runs(call, queue, tmp_path):
    with Supervisor(queue.root, check=True):
        code, out, err = call("submit", job_folder(tmp_path / "jobs"), "--json")
    assert (code, err) == (0, "")
    (job,) = document(out)["jobs"]
    assert job["checked"]
    assert job["steps_total"] == 20


def test_submit_prints_all_that_the_check_found(call, queue, tmp_path):
    with Supervisor(queue.root, check=["model: no class 'Net'", "data.train: 3 rows, expected 4"]):
        code, out, err = call("submit", job_folder(tmp_path / "jobs"))
    (job,) = [row.id for row in queue.list().jobs]
    assert (code, out) == (1, f"{job}  submitted\n")
    assert err.splitlines() == [
        f"unified: job {job}: model: no class 'Net'",
        f"unified: job {job}: data.train: 3 rows, expected 4",
    ]


def test_submit_does_not_wait_if_told_and_no_longer_than_told(call, queue, tmp_path):
    with Supervisor(queue.root):
        assert call("submit", job_folder(tmp_path / "jobs", "a"), "--no-wait")[2] == ""
        _, _, err = call("submit", job_folder(tmp_path / "jobs", "b"), "--check-timeout", "0.05")
    assert "not checked yet" in err


@pytest.mark.parametrize(("end", "code"), [(S.FINISHED, 0), (S.FAILED, 1), (S.DEAD, 1), (S.CANCELLED, 3)])
def test_submit_and_wait_follows_to_the_end(end, code, call, queue, tmp_path):
    with Supervisor(queue.root, check=True, finish=end):
        done, out, _ = call("submit", job_folder(tmp_path / "jobs"), "--wait", "--timeout", "30")
    (row,) = queue.list().jobs
    assert done == code
    assert out.splitlines()[-1].startswith(f"{row.id}  {end}")


def test_one_id_for_several_jobs_is_an_error(call, queue, tmp_path):
    for name in ("a", "b"):
        job_folder(tmp_path / "jobs", name)
    code, _, err = call("submit", tmp_path / "jobs", "--id", "mine")
    assert code == 1
    assert "--id names one job, and here are 2" in err


# pause, resume, cancel, checkpoint, requeue


def test_verbs_take_several_ids_and_tell_of_each(call, queue, tmp_path):
    jobs = [submitted(queue, tmp_path / "jobs", name) for name in ("a", "b")]
    assert call("pause", *jobs) == (0, f"{jobs[0]}  paused\n{jobs[1]}  paused\n", "")
    assert call("pause", jobs[0]) == (0, f"{jobs[0]}  already paused\n", "")
    assert call("resume", *jobs, "--quiet") == (0, f"{jobs[0]}\n{jobs[1]}\n", "")
    told = document(call("cancel", *jobs, "--json")[1])
    assert [(job["id"], job["state"], job["done"]) for job in told["jobs"]] == [(job, "cancelled", True) for job in jobs]


def test_what_is_impossible_for_one_is_done_for_the_others(call, queue, tmp_path):
    good, bad = (submitted(queue, tmp_path / "jobs", name) for name in ("a", "b"))
    bring(queue, bad, S.FINISHED)
    code, out, err = call("cancel", good, bad, "nobody")
    assert (code, out) == (1, f"{good}  cancelled\n")
    assert f"job {bad}: cannot cancel it: it is finished" in err
    assert "nobody" in err
    told = document(call("cancel", bad, "--json")[1])
    assert (told["error"]["code"], told["error"]["job"]) == ("conflict", bad)


def test_jobs_are_selected_by_user_and_state(call, queue, tmp_path):
    first, second, third = (
        submitted(queue, tmp_path / "jobs", name, user=user) for name, user in (("a", "ann"), ("b", "ann"), ("c", "bob"))
    )
    bring(queue, second, S.FINISHED)
    assert call("pause", "--user", "ann") == (0, f"{first}  paused\n", "")
    assert call("cancel", "--state", "queued")[1] == f"{third}  cancelled\n"
    assert call("requeue", "--user", "bob")[1] == f"{third}  queued again\n"
    assert call("cancel", "--user", "nobody") == (0, "", "unified: there is no job to cancel\n")


def test_a_verb_without_jobs_is_a_usage_error(queue, capsys):
    options = parser().parse_args(["cancel"])
    with pytest.raises(SystemExit) as exit_:
        options.command(options)
    assert exit_.value.code == 2
    assert "which jobs to cancel?" in capsys.readouterr().err


def test_verbs_wait_for_the_supervisor(call, queue, tmp_path):
    jobs = [submitted(queue, tmp_path / "jobs", name) for name in ("a", "b")]
    for job in jobs:
        bring(queue, job, S.RUNNING)
    with Supervisor(queue.root):
        assert call("checkpoint", jobs[0])[1] == f"{jobs[0]}  checkpointed: step 7, jobs/x/ckpt/1-7.safetensors\n"
        assert call("cancel", *jobs) == (0, f"{jobs[0]}  cancelled\n{jobs[1]}  cancelled\n", "")


def test_verbs_wait_no_longer_than_told(call, queue, tmp_path):
    job = submitted(queue, tmp_path / "jobs")
    bring(queue, job, S.RUNNING)
    descriptor = queue.root.take_lock()  # a supervisor that does nothing
    try:
        code, out, _ = call("pause", job, "--timeout", "0.1")
        assert (code, out) == (4, f"{job}  pause asked for; it is being done\n")
        assert call("pause", job, "--no-wait")[0] == 0
    finally:
        os.close(descriptor)
    code, out, _ = call("pause", job)
    assert (code, out) == (1, f"{job}  pause asked for; supervisor not running: it is done as soon as one runs\n")
