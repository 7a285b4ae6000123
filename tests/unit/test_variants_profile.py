"""The commands ``unified variants profile`` and ``list``: what they print, in words and as JSON, and how they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serving.store import VariantStore
from tests.unit.serving_models import Unstable, draft, filled_store, images, labelled, quiet, two_tasks
from unified.cli import main


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture
def store(tmp_path: Path) -> VariantStore:
    store, _ = filled_store(tmp_path / "variants", draft("size-p30", ("size",)))
    return store


def variants(*arguments: object) -> int:
    return main(["variants", *map(str, arguments)])


def test_profile_measures_by_the_kept_data_and_list_shows_it(store: VariantStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.keep_validation("panels", labelled())
    assert variants("list", store.path) == 0
    text = capsys.readouterr().out
    assert "1 variant of panels, 0 profiled on this machine" in text
    assert f"measure the others: unified variants profile {store.path}" in text

    assert variants("profile", store.path, "--batches", "1") == 0
    text = capsys.readouterr().out
    assert text.startswith("scoring 1 variant\n")
    assert "panels: 1 scored, 1 timed of 1 variant in" in text
    assert "on cpu (" in text

    assert variants("profile", store.path, "--batches", "1", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    # a profile that was disturbed is measured again
    assert (told["event"], told["scored"], len(told["timed"]) <= 1) == ("Profiled", [], True)
    assert told["hardware"]["threads"] == 1
    [variant] = told["variants"]
    assert variant["name"] == "size-p30"
    assert list(variant["scores"]) == ["size"]

    assert variants("list", store.path, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["variants"][0] == variant
    assert variants("list", store.path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"variant", "id", "tasks", "ratio", "FLOPs", "shoe", "p50", "p95"} <= set(lines[0].split())
    assert " size score " in lines[0]  # there is a column that is called as the task is
    assert f" {variant['scores']['size']:.2%} " in lines[1]
    assert lines[1].split()[:3] == ["size-p30", variant["id"], "size"]
    assert lines[-1] == "1 variant of panels, 1 profiled on this machine"


def test_data_come_from_a_file_or_the_held_out_part_of_a_folder(
    store: VariantStore, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled()
    content = {"inputs": data.inputs[0], "targets": dict(data.labels)}
    folder = store.path.parent / "data"
    folder.mkdir()
    torch.save({"inputs": images(2), "targets": torch.zeros(2)}, folder / "train.pt")
    assert variants("profile", store.path, "--data", folder) == 1
    assert "expected validation or test" in capsys.readouterr().err
    torch.save(content, folder / "test.pt")
    assert variants("profile", store.path, "--data", folder, "--batches", "1") == 0
    assert store.metadata.data("panels") == data.digest()
    torch.save(content | {"inputs": images(40, seed=7)}, store.path.parent / "other.pt")
    assert variants("profile", store.path, "--data", store.path.parent / "other.pt", "--batches", "1") == 0
    assert store.metadata.data("panels") != data.digest()


def test_what_is_rejected_is_said_and_shown(store: VariantStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.add(replace(draft("bad", ("size",)), module=Unstable()), (images(3),))
    data = labelled()
    data.inputs[0][0] = 0
    store.keep_validation("panels", data)
    assert variants("profile", store.path, "--batches", "1") == 3
    text = capsys.readouterr().out
    assert "rejected bad: task 'size': an output is not finite; it is not served" in text
    [line] = [line for line in text.splitlines() if line.startswith("bad ")]
    assert line.endswith("rejected: task 'size': an output is not finite")


@pytest.mark.parametrize("verb", ["profile", "list"])
def test_what_cannot_be_used_is_a_line_and_exit_code_1(
    store: VariantStore, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, problem in (
        ((store.path.parent,), "is no store of variants"),
        ((store.path, "--family", "pans"), "has no family 'pans'; it has panels"),
    ):
        assert variants(verb, *arguments) == 1
        assert problem in capsys.readouterr().err


def test_profile_refuses_what_it_cannot_measure_by(store: VariantStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert variants("profile", store.path) == 1
    assert "keeps no held-out data" in capsys.readouterr().err
    VariantStore.create(store.path, two_tasks("boxes"))
    assert variants("profile", store.path, "--data", store.path) == 1
    assert "say which with --family" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        variants("profile", store.path, "--batches", "1,0")
    assert "expected batch sizes from 1 with commas between" in capsys.readouterr().err


def test_families_are_listed_one_by_one(store: VariantStore, capsys: pytest.CaptureFixture[str]) -> None:
    VariantStore.create(store.path, two_tasks("boxes"))
    assert variants("list", store.path, "--json") == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["family"]["name"], len(each["variants"])) for each in listed] == [("panels", 1), ("boxes", 0)]
    assert variants("list", store.path) == 0
    assert "0 variants of boxes" in capsys.readouterr().out
