"""A service with the ring: jobs train in it as ever, who reaches out of it fails alone, and without it nothing is served."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.models import Prying
from tests.faults.service import PATIENCE_SECONDS, Service
from tests.integration.command_line import environment
from tests.unit.test_sandbox import needs_ring
from unified.job_state import JobState

pytestmark = needs_ring

#: ``python -m unified`` on a system whose kernel knows no Landlock.
WITHOUT_LANDLOCK = """
import sys
from tests.unit.old_kernel import refuse_landlock
from unified.cli import main
refuse_landlock()
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "root", sandbox="required", retry_seconds=0.0)
    yield service
    service.close()


@pytest.mark.slow
def test_who_reaches_out_of_the_ring_fails_alone(service: Service, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of another user")
    store = service.queue.root.database
    content = service.queue.root.config.read_text()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = service.begin()
        assert "sandbox required; jobs are kept from the files of others (landlock" in served.said
        reaches = {
            "secret": ("read", secret),
            "store": ("read", store),
            "settings": ("write", service.queue.root.config),
            "network": ("connect", listener.getsockname()),
            "program": ("program", "/bin/true"),
            "supervisor": ("signal", served.process.pid),
        }
        good = service.submit("good", steps=20)
        bad = {
            name: service.submit(name, lambda reach=reach: Prying(*reach, step=8), steps=20, job={"max_retries": 0})
            for name, reach in reaches.items()
        }
        service.until_ended(good, *bad.values())
        for name, job in bad.items():
            row = service.row(job)
            assert row.state in {JobState.FAILED, JobState.DEAD}, (name, row)
            assert "PermissionError" in row.reason, (name, row.reason)
        service.check_finished(good)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert service.queue.root.config.read_text() == content
    assert served.end() == 0


def test_a_service_that_must_have_the_ring_does_not_start_without_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    code, told = unified_without_landlock("serve", "--root", root, "--sandbox", "required")
    assert code == 1
    assert told.count("\n") == 1
    assert "lacks landlock, which keeps jobs from the files of others" in told
    assert "sandbox = 'auto'" in told
    Service(root, sandbox="required").close()
    code, told = unified_without_landlock("doctor", "--root", root, "--json")
    (check,) = [check for check in json.loads(told)["checks"] if check["name"] == "sandbox"]
    assert (code, check["level"]) == (1, "fail")
    assert check["remedy"]


def unified_without_landlock(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-c", WITHOUT_LANDLOCK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS, env=environment())
    return done.returncode, done.stdout + done.stderr
