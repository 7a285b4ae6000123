"""The kernel's counters of out-of-memory kills, read from files of its format."""

from __future__ import annotations

from pathlib import Path

import pytest

from unified import oom

VMSTAT = "nr_free_pages 24\noom_kill 3\noom_kill_allocating_task 9\n"
EVENTS = "low 0\nhigh 0\nmax 12\noom 2\noom_kill 2\noom_group_kill 1\n"


def test_the_number_is_never_negative_and_never_falls() -> None:
    first = oom.num_oom_kills()
    assert 0 <= first <= oom.num_oom_kills()


@pytest.mark.parametrize(("content", "count"), [(VMSTAT, 3), (EVENTS, 2), ("oom_kill ?\n", 0), ("", 0)])
def test_a_counter_is_the_line_of_that_very_name(tmp_path: Path, content: str, count: int) -> None:
    (tmp_path / "counters").write_text(content)
    assert oom._counter(tmp_path / "counters") == count


def test_what_is_not_there_counts_nothing(tmp_path: Path) -> None:
    assert oom._counter(tmp_path / "missing") == 0
    assert oom._counter(tmp_path) == 0


@pytest.mark.parametrize(
    ("membership", "folder"),
    [
        ("0::/\n", ""),
        ("0::/user.slice/unified.service\n", "user.slice/unified.service"),
        ("9:memory:/old\n0::/new\n", "new"),
        ("9:memory:/old\n", ""),
    ],
)
def test_the_cgroup_is_the_one_of_version_2(tmp_path: Path, membership: str, folder: str) -> None:
    (tmp_path / "cgroup").write_text(membership)
    expected = tmp_path / "fs" / folder / "memory.events"
    assert oom._memory_events(tmp_path / "cgroup", tmp_path / "fs") == expected
