"""T5: partial, garbage, huge, duplicate and hostile entries end in ``rejected/`` with a reason, and keep nobody waiting."""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest

from tests.unit.job_folders import AT_ONCE, archive_bytes, fields, make_job, make_queue, names, zip_folder
from unified.queue.spool import scan
from unified.strict_json import MAX_BYTES


def with_json(content):
    def make(entry):
        make_job(entry)
        (entry / "job.json").write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def with_extra(add):
    def make(entry):
        make_job(entry)
        add(entry)

    return make


def with_file(content):
    return lambda entry: entry.write_bytes(content)


def with_zip(add):
    def make(entry):
        with zipfile.ZipFile(entry, "w") as archive:
            archive.writestr("job.json", json.dumps(fields()))
            add(archive)

    return make


def job_json_is(make_file):
    def make(entry):
        make_job(entry)
        (entry / "job.json").unlink()
        make_file(entry / "job.json")

    return make


def bind(path):
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # the name of a socket is short
        server.bind(path.name)


def deep(entry):
    make_job(entry)
    here = entry
    for _ in range(40):
        here = here / "d"
        here.mkdir()


def train_at(path):
    return with_json(json.dumps(fields(data={"train": path})))


LINK = zipfile.ZipInfo("train.pt")
LINK.external_attr = 0o120777 << 16

#: The name of each entry, how it is made, and the code of the problem that its owner is told.
CORPUS = {
    "empty.job": (lambda entry: entry.mkdir(), "E-FOLDER"),
    "file.job": (with_file(b"x"), "E-KIND"),
    "batch": (lambda entry: make_job(entry / "inner"), "E-FOLDER"),
    "partial.job": (lambda entry: make_job(entry, files=("model.umodel",)), "E-FILE"),
    "torn.job": (with_extra(lambda entry: (entry / "model.umodel").write_bytes(archive_bytes()[:-5])), "E-FILE"),
    "empty-json.job": (with_json(""), "E-JSON"),
    "garbage.job": (with_json(random.Random(0).randbytes(4096)), "E-JSON"),
    "list.job": (with_json("[]"), "E-JSON"),
    "huge.job": (with_json(b" " * (MAX_BYTES + 1)), "E-JSON"),
    "nested.job": (with_json("[" * 100_000), "E-JSON"),
    "twice.job": (with_json('{"name": "a", ' + json.dumps(fields())[1:]), "E-JSON"),
    "nan.job": (with_json('{"weight": NaN}'), "E-JSON"),
    "number.job": (with_json('{"seed": ' + "9" * 5000 + "}"), "E-JSON"),
    "surrogate.job": (with_json('{"name": "\\ud800"}'), "E-JSON"),
    "name.job": (with_json(json.dumps(fields(name="../../etc"))), "E-VALUE"),
    "id.job": (with_json(json.dumps(fields(id="a/b"))), "E-VALUE"),
    "unknown.job": (with_json(json.dumps(fields(command="rm"))), "E-FIELD"),
    "absolute.job": (train_at("/etc/passwd"), "E-PATH"),
    "upwards.job": (train_at("../../../etc/passwd"), "E-PATH"),
    "neighbour.job": (train_at("../good.job/train.pt"), "E-PATH"),
    "around.job": (train_at("../data/../store.db"), "E-PATH"),
    "no-data.job": (train_at("../data/nothing.pt"), "E-FILE"),
    "pipe-data.job": (train_at("../data/pipe"), "E-FILE"),
    "link-inside.job": (with_extra(lambda entry: (entry / "x").symlink_to("/etc/passwd")), "E-LINK"),
    "link-round.job": (with_extra(lambda entry: (entry / "x").symlink_to(entry)), "E-LINK"),
    "link-json.job": (job_json_is(lambda path: path.symlink_to("/etc/passwd")), "E-FOLDER"),
    "pipe-json.job": (job_json_is(os.mkfifo), "E-FOLDER"),
    "folder-json.job": (job_json_is(os.mkdir), "E-FOLDER"),
    "pipe-inside.job": (with_extra(lambda entry: os.mkfifo(entry / "x")), "E-KIND"),
    "socket-inside.job": (with_extra(lambda entry: bind(entry / "x")), "E-KIND"),
    "device-inside.job": (with_extra(lambda entry: os.mknod(entry / "x", 0o020600, os.makedev(1, 3))), "E-KIND"),
    "bytes-inside.job": (with_extra(lambda entry: (entry / os.fsdecode(b"\xff\xfe")).mkdir()), "E-NAME"),
    "escape-inside.job": (with_extra(lambda entry: (entry / "\x1b[2J\n").touch()), "E-NAME"),
    "deep.job": (deep, "E-FOLDER"),
    "pipe": (os.mkfifo, "E-KIND"),
    "socket": (bind, "E-KIND"),
    "link": (lambda entry: entry.symlink_to("/etc"), "E-LINK"),
    "broken-link.job": (lambda entry: entry.symlink_to("/nowhere"), "E-LINK"),
    "stray.pt": (with_file(archive_bytes()), "E-KIND"),
    "lone.json": (with_file(json.dumps(fields()).encode()), "E-FILE"),
    "torn.json": (with_file(json.dumps(fields()).encode()[:-9]), "E-JSON"),
    "no.zip": (with_file(b"PK\x03\x04 not a zip"), "E-ZIP"),
    "folder.zip": (lambda entry: entry.mkdir(), "E-FOLDER"),
    "traversal.zip": (with_zip(lambda archive: archive.writestr("../../evil", "x")), "E-PATH"),
    "absolute.zip": (with_zip(lambda archive: archive.writestr("/tmp/evil", "x")), "E-PATH"),
    "link.zip": (with_zip(lambda archive: archive.writestr(LINK, "/etc/passwd")), "E-LINK"),
    "lacks.zip": (with_zip(lambda archive: archive.writestr("other", "x")), "E-FILE"),
    "n" * 251 + ".job": (lambda entry: entry.mkdir(), "E-FOLDER"),
    os.fsdecode(b"\xff\xfe.job"): (lambda entry: entry.mkdir(), "E-FOLDER"),
    "\x1b[2J\n.job": (lambda entry: entry.mkdir(), "E-FOLDER"),
    "..a.job": (lambda entry: entry.mkdir(), None),
}


def made(root, name):
    try:
        CORPUS[name][0](root.incoming / name)
    except (PermissionError, OSError) as error:
        pytest.skip(f"this system does not let us make such an entry: {error}")


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, store = make_queue(tmp_path / "root")
    os.mkfifo(root.data / "pipe")
    yield root, store
    store.close()


@pytest.mark.parametrize("name", CORPUS, ids=[ascii(name)[:40] for name in CORPUS])
def test_a_hostile_entry_is_rejected_and_its_neighbours_are_taken(queue, name):
    root, store = queue
    make_job(root.incoming / "  first.job", name="first")
    make_job(root.incoming / "zz-last.job", name="last")
    made(root, name)
    seen = {taken.entry: taken for taken in scan(root, store, AT_ONCE, now=time.time() + 1)}
    assert sorted(row.name for row in store.jobs()) == ["first", "last"]
    code = CORPUS[name][1]
    if code is None:
        assert names(root.rejected) == []
        return
    assert (seen[name].outcome, seen[name].problems[0].code) == ("rejected", code)
    assert [hidden for hidden in names(root.incoming) if hidden.startswith(".tmp-")] == []
    check_reason(root, seen[name].folder, code)
    assert scan(root, store, AT_ONCE, now=time.time() + 1) == []


def check_reason(root, folder, code):
    assert folder.parent == root.rejected
    assert folder.name.isascii()
    reason = json.loads((folder / "reason.json").read_text("ascii"))
    assert reason["problems"][0]["code"] == code
    text = (folder / "reason.txt").read_text("utf-8")
    assert code in text
    assert "What to do:" in text
    assert all(line.isprintable() for line in text.splitlines())
    assert len(names(folder)) == 3, "the entry itself is beside the reasons"


def test_all_of_them_at_once_reject_each_and_take_each_good_one(queue, capfd):
    root, store = queue
    for name in CORPUS:
        if not name.startswith((".", "device")):
            CORPUS[name][0](root.incoming / name)
    for index in range(5):
        source = make_job(root.incoming / f"{index}0", name=f"good-{index}")
        zip_folder(source, root.incoming / f"{index}5.zip")
    outcomes = [taken.outcome for taken in scan(root, store, AT_ONCE, now=time.time() + 1)]
    assert {outcome: outcomes.count(outcome) for outcome in set(outcomes)} == {
        "accepted": 5,
        "duplicate": 5,
        "rejected": len(CORPUS) - 2,
    }
    assert len(names(root.rejected)) == len(CORPUS) - 2
    assert scan(root, store, AT_ONCE, now=time.time() + 1) == []


AS_NOBODY = """
import os, sys, tempfile, time
from tests.unit.job_folders import AT_ONCE, make_queue
from unified.queue.root import Root
from unified.queue.store import JobStore
from unified.queue.spool import scan
from pathlib import Path
with tempfile.TemporaryDirectory() as folder:
    scan(*make_queue(Path(folder)), AT_ONCE, now=time.time())  # imports what it needs, while it may
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
root = Root.open(sys.argv[1])
for taken in scan(root, JobStore.open(root.database), AT_ONCE, now=time.time() + 1):
    print(taken.entry, taken.outcome, *(problem.code for problem in taken.problems), taken.text)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become somebody to whom permissions mean something")
def test_what_may_not_be_read_or_moved_is_told(queue, tmp_path):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root, store = make_queue(Path(folder) / "root")
        store.close()
        make_job(root.incoming / "good.job", name="good")
        (make_job(root.incoming / "secret.job") / "train.pt").chmod(0)
        make_job(root.incoming / "stiff.job", name="stiff").chmod(0o500)
        make_job(root.incoming / "closed", name="closed").chmod(0)
        for path in [root.path, *root.path.rglob("*")]:
            os.lchown(path, 65534, 65534)
        (make_job(root.incoming / "theirs.job", name="theirs") / "job.json").chmod(0o400)
        command = [sys.executable, "-c", AS_NOBODY, str(root.path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert [line.split()[:2] for line in done.stdout.splitlines()] == [
            ["closed", "accepted"],
            ["good.job", "accepted"],
            ["secret.job", "rejected"],
            ["stiff.job", "accepted"],
            ["theirs.job", "delayed"],
        ], done.stderr + done.stdout
        assert names(root.rejected / "theirs") == ["reason.json", "reason.txt"], "the reasons are there all the same"
        assert names(root.rejected) == ["secret", "theirs"]
