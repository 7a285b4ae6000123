"""A sweep whose submission is killed between two members: handed in again, every member is a job once, and nothing is left."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.unit.job_folders import make_job, make_queue, names, zip_folder

SWEEP = {"seed": [0, 1, 2]}
POINTS = ["submit.payload-synced@2", "submit.renamed@2", "ingest.before-commit@2", "ingest.committed@2", "ingest.moved@3"]


def spooling(verb, root, *paths, fault=""):
    command = [sys.executable, "-m", "tests.faults.spooling", verb, str(root.path), *map(str, paths)]
    return subprocess.run(command, env=os.environ | {"UNIFIED_FAULT": fault}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("way", ["submit", "ready", "zip"])
def test_a_sweep_that_was_cut_off_goes_on_where_it_was(way, point, tmp_path):
    root, store = make_queue(tmp_path / "root")
    source = make_job(tmp_path / "mine", sweep=SWEEP)
    if way == "ready":
        shutil.copytree(source, root.incoming / ".tmp-copy")
        (root.incoming / ".tmp-copy").rename(root.incoming / "mine.job")
    elif way == "zip":
        zip_folder(source, root.incoming / "mine.zip")
    arguments = ("submit", root, source) if way == "submit" else ("scan", root)
    killed = spooling(*arguments, fault=f"{point}:kill")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(store.jobs()) < 3 or point == "ingest.moved@3"
    again = spooling(*arguments)
    assert again.returncode == 0, again.stderr
    for _ in range(2):  # what was published by the one that was killed
        assert spooling("scan", root).returncode == 0
    assert [row.spec["seed"] for row in sorted(store.jobs(), key=lambda row: row.name)] == [0, 1, 2]
    assert all(names(root.spec(row.id)) == ["job.json", "shared"] for row in store.jobs())
    assert [name for name in names(root.incoming) if not name.startswith(".tmp-")] == names(root.rejected) == []
    store.close()
