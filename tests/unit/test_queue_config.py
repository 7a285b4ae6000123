"""The operator's settings: what is wrong with them is said in words, with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from unified.queue.config import ServiceConfig
from unified.queue.errors import RootError


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('scheduler = "sjf"\nslots = 3\n')
    config = ServiceConfig.read(path, {"slots": 1, "threads": None})
    assert (config.scheduler, config.slots, config.threads) == ("sjf", 1, 1)
    assert ServiceConfig.read(tmp_path / "none.toml") == ServiceConfig()


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ('sheduler = "fcfs"', {}, ["config.toml", "no setting 'sheduler'", "did you mean 'scheduler'?"]),
        ("", {"bogus": 3}, ["command line", "no setting 'bogus'"]),
        ("lease_seconds = -1", {}, ["config.toml: lease_seconds", "got -1"]),
        ('min_free_bytes = "much"', {"threads": 0}, ["config.toml: min_free_bytes", "command line: threads"]),
        ("slots = ", {}, ["is not TOML"]),
    ],
)
def test_everything_that_is_wrong_is_told_with_its_place(
    tmp_path: Path, text: str, overrides: dict[str, object], words: list[str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(RootError) as caught:
        ServiceConfig.read(path, overrides)
    for word in words:
        assert word in str(caught.value)
