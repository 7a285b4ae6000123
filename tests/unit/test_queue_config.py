"""The operator's settings: what is wrong with them is said in words, with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from unified.queue.config import ServiceConfig
from unified.queue.errors import RootError

KEY = f"ed25519:{'A' * 43}="


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('scheduler = "sjf"\nslots = 3\n')
    config = ServiceConfig.read(path, {"slots": 1, "threads": None})
    assert (config.scheduler, config.slots, config.threads) == ("sjf", 1, 1)
    assert ServiceConfig.read(tmp_path / "none.toml") == ServiceConfig()


def test_the_keys_that_are_trusted_are_read_with_their_users(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[trusted]\nname = "lab"\nmodules = ["mylab.models"]\nkeys = ["{KEY}  Ann B "]\n')
    trusted = ServiceConfig.read(path).trusted
    assert trusted is not None
    assert (trusted.name, trusted.modules) == ("lab", ("mylab.models",))
    assert [(signer.user, signer.key) for signer in trusted.signers.values()] == [("Ann B", bytes(32))]


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ('sheduler = "fcfs"', {}, ["config.toml", "no setting 'sheduler'", "did you mean 'scheduler'?"]),
        ("", {"bogus": 3}, ["command line", "no setting 'bogus'"]),
        ("lease_seconds = -1", {}, ["config.toml: lease_seconds", "got -1"]),
        ('min_free_bytes = "much"', {"threads": 0}, ["config.toml: min_free_bytes", "command line: threads"]),
        ("slots = ", {}, ["is not TOML"]),
        ("trusted = true", {}, ["config.toml: trusted: "]),
        ("[trusted]", {}, ["trusted.name: field required", "trusted.keys: field required"]),
        ('[trusted]\nname = "lab"\nkeys = []', {}, ["trusted.keys: tuple should have at least 1 item"]),
        ('[trusted]\nname = "a lab"\nkey = ["x"]', {}, ["trusted.name: expected 1 to 100 letters", "did you mean 'keys'?"]),
        (
            '[trusted]\nname = "lab"\nkeys = ["ed25519:AAAA ann"]',
            {},
            ["trusted.keys[1]: expected a key as 'unified keygen' prints"],
        ),
        (f'[trusted]\nname = "lab"\nkeys = ["{KEY}"]', {}, ["trusted.keys[1]: expected the name of the key's user"]),
        (f'[trusted]\nname = "lab"\nkeys = ["{KEY} ann", "{KEY} bob"]', {}, ["trusted: a key is listed twice"]),
        (
            f'[trusted]\nname = "l"\nmodules = ["a b"]\nkeys = ["{KEY} ann"]',
            {},
            ["trusted.modules[1]: expected the dotted name"],
        ),
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
