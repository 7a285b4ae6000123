"""A store whose writer is killed holds the old state or the new one, and the next who opens it tidies up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_killed_writer_leaves_the_state_before_or_after_each_change(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.serving_kills", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    states = [result["names"] for result in results]
    # in the order of the changes: one after the other, and each is seen
    expected = [["old", "kept"], ["kept"], ["kept", "new"]]
    assert sorted(states, key=expected.index) == states
    assert all(state in states for state in expected)
    assert any(result["left"] for result in results)  # there was something to tidy up
    assert all(result["swept"] and result["whole"] for result in results)
    assert [result["validation"] for result in results] == sorted(result["validation"] for result in results)
    assert all(result["after"] == ["kept", "new"] for result in results)
