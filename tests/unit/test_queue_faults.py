import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import unified
from unified.queue.faults import CRASH_POINTS, FaultSettingError, parse_faults

TWICE = """
from unified.queue.faults import reach
for _ in range(3):
    try:
        reach("store.before-commit")
        print("passed", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


def run(fault):
    return subprocess.run([sys.executable, "-c", TWICE], env={"UNIFIED_FAULT": fault}, capture_output=True, text=True)


def test_nothing_happens_where_nothing_is_asked_for():
    assert run("").stdout.split() == ["passed"] * 3
    assert run("store.committed:kill").stdout.split() == ["passed"] * 3


def test_a_process_is_killed_at_the_time_asked_for():
    first, second = run("store.before-commit"), run("store.before-commit@2:kill")
    assert first.returncode == second.returncode == -signal.SIGKILL
    assert (first.stdout, second.stdout) == ("", "passed\n")


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EROFS"])
def test_an_error_comes_every_time_or_at_the_one_asked_for(name):
    number = str(getattr(errno, name))
    assert run(f"store.before-commit:{name}").stdout.split() == [number] * 3
    assert run(f"store.before-commit@2:{name}").stdout.split() == ["passed", number, "passed"]


def test_a_process_is_stopped_once_and_goes_on():
    process = subprocess.Popen(
        [sys.executable, "-c", TWICE], env={"UNIFIED_FAULT": "store.before-commit:stop"}, stdout=subprocess.PIPE, text=True
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.communicate()[0].split() == ["passed"] * 3


def test_several_faults_are_kept_apart():
    found = parse_faults("ingest.moved@3:stop, submit.renamed:EIO,")
    assert [(fault.point, fault.nth) for fault in found] == [("ingest.moved", 3), ("submit.renamed", None)]


@pytest.mark.parametrize(
    "text", ["nowhere", "submit.renamed:explode", "submit.renamed@0", "submit.renamed@x", "submit.renamed@-1"]
)
def test_a_mistake_in_the_variable_is_told(text):
    with pytest.raises(FaultSettingError, match="UNIFIED_FAULT"):
        parse_faults(text)
    failed = run(text)
    assert failed.returncode == 1
    assert "FaultSettingError" in failed.stderr


def test_every_point_says_where_it_is():
    assert all(" " in where for where in CRASH_POINTS.values())


def test_no_code_reaches_a_point_that_is_not_in_the_table():
    sources = [path.read_text() for path in Path(unified.__path__[0]).rglob("*.py")]
    reached = {point for source in sources for point in re.findall(r'\breach\("([^"]+)"\)', source)}
    assert reached <= CRASH_POINTS.keys()
    assert {point for point in CRASH_POINTS if point.startswith(("submit.", "ingest."))} <= reached
