"""The history on disk: whole records or none, only its own search's, and weights that outlive the process."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from fusion.graph.errors import FusionError
from fusion.search.history import History, check_writable

IDENTITY = {"models": {"age": "1", "mood": "2"}, "data": "3", "settings": {"epochs": 4, "seed": 0}}


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3, 2), value)}


def filled(folder: Path, count: int = 3) -> Path:
    with History(folder, IDENTITY) as history:
        for number in range(count):
            history.append({"key": f"k{number}", "drop": number / 4}, weights=weights(number), weights_key=f"k{number}")
    return folder


def test_records_and_weights_come_back_in_another_process_s_place(tmp_path):
    filled(tmp_path)
    with History(tmp_path, IDENTITY) as history:
        assert history.num_records == 3
        assert list(history.records()) == [{"key": f"k{n}", "drop": n / 4} for n in range(3)]
        assert torch.equal(history.weights("k2")["w"], weights(2)["w"])
        history.append({"key": "more"})
        assert [record["key"] for record in history.records()] == ["k0", "k1", "k2", "more"]


def test_a_last_line_cut_at_any_byte_is_dropped_and_nothing_else(tmp_path):
    whole = (filled(tmp_path) / "candidates.jsonl").read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole)):
        (tmp_path / "candidates.jsonl").write_bytes(whole[:end])
        with History(tmp_path, IDENTITY) as history:
            assert [record["key"] for record in history.records()] == ["k0", "k1"]
            history.append({"key": "again"})
        with History(tmp_path, IDENTITY) as history:
            assert [record["key"] for record in history.records()] == ["k0", "k1", "again"]


def test_a_last_line_of_garbage_is_dropped(tmp_path):
    with (filled(tmp_path) / "candidates.jsonl").open("ab") as lines:
        lines.write(b"\x00\x00\x00\n")
    with History(tmp_path, IDENTITY) as history:
        assert history.num_records == 3


def test_damage_before_the_last_line_is_refused_with_its_line(tmp_path):
    path = filled(tmp_path) / "candidates.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{oops\n" + lines[2])
    with pytest.raises(FusionError, match=r"candidates\.jsonl, line 2 is damaged"):
        History(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"models": {"age": "1", "mood": "9"}}, r"models \(mood\)"),
        ({"data": "9"}, "data"),
        ({"settings": {"epochs": 5, "seed": 0}}, r"settings \(epochs\)"),
        ({"data": "9", "settings": {"epochs": 4}}, r"data; settings \(seed\)"),
    ],
)
def test_a_foreign_history_is_refused_and_says_what_differs(tmp_path, change, named):
    filled(tmp_path)
    text = f"history at {tmp_path} was made for other models, data or settings: {named}; use a new path or --fresh"
    with pytest.raises(FusionError, match=text):
        History(tmp_path, IDENTITY | change)
    with History(tmp_path, IDENTITY) as history:  # and it is still whole
        assert history.num_records == 3


def test_tuples_in_the_identity_are_as_lists(tmp_path):
    with History(tmp_path, {"settings": {"rungs": (1, 2)}}):
        pass
    with History(tmp_path, {"settings": {"rungs": [1, 2]}}) as history:
        assert history.num_records == 0


def test_fresh_begins_anew_and_touches_only_a_history(tmp_path):
    filled(tmp_path)
    (tmp_path / "mine.txt").write_text("x")
    with History(tmp_path, {"data": "other"}, fresh=True) as history:
        assert (history.num_records, history.weight_keys(), history.table()) == (0, set(), None)
    assert (tmp_path / "mine.txt").exists()
    foreign = tmp_path / "foreign"
    (foreign / "weights").mkdir(parents=True)
    (foreign / "weights" / "model.safetensors").write_bytes(b"not ours")
    with History(foreign, IDENTITY, fresh=True):
        assert (foreign / "weights" / "model.safetensors").read_bytes() == b"not ours"


def test_candidates_without_an_identity_are_not_taken_over(tmp_path):
    (filled(tmp_path) / "identity.json").unlink()
    with pytest.raises(FusionError, match=r"no identity\.json"):
        History(tmp_path, IDENTITY)


def test_only_one_at_a_time(tmp_path):
    with History(tmp_path, IDENTITY), pytest.raises(FusionError, match="in use by another process"):
        History(tmp_path, IDENTITY)
    with History(tmp_path, IDENTITY):
        pass


def test_unwritable_output_refused_at_start(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/fusion")):
        with pytest.raises(FusionError, match=f"output folder {folder} cannot be written"):
            check_writable(folder)
        with pytest.raises(FusionError, match="pass another path"):
            History(folder, IDENTITY)
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_weights_of_all_kinds_round_trip(tmp_path):
    tied, base = torch.randn(4, 3), torch.arange(12.0).reshape(3, 4)
    state = {
        "tied": tied,
        "same": tied,
        "transposed": base.T,
        "view": base[1:, ::2],
        "half": torch.randn(2).bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "empty too": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    with History(tmp_path, IDENTITY) as history:
        history.save_weights("k", state)
        back = history.weights("k")
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert back["same"] is back["tied"]
    assert not back["parameter"].requires_grad


def test_weights_not_kept_are_deleted(tmp_path):
    filled(tmp_path)
    with History(tmp_path, IDENTITY) as history:
        history.drop_weights_except({"k1", "never saved"})
        assert history.weight_keys() == {"k1"}
        with pytest.raises(FusionError, match="no weights 'k0'"):
            history.weights("k0")
        with pytest.raises(FusionError, match=r"cannot be called '\.\./k'"):
            history.save_weights("../k", weights(0))


def test_leftovers_of_a_write_that_was_cut_off_are_removed(tmp_path):
    leftover = filled(tmp_path) / "weights" / ".k9.safetensors.tmp"
    leftover.write_bytes(b"half")
    with History(tmp_path, IDENTITY) as history:
        assert history.weight_keys() == {"k0", "k1", "k2"}
    assert not leftover.exists()


def test_numbers_that_are_not_finite_become_null(tmp_path):
    with History(tmp_path, IDENTITY) as history:
        history.append({"drop": float("nan"), "all": [1.5, float("inf")], "inner": {"x": -float("inf")}})
        history.save_table({"b0_0": 1e-3, "odd": float("nan")})
        assert list(history.records()) == [{"drop": None, "all": [1.5, None], "inner": {"x": None}}]
        assert history.table() == {"b0_0": 1e-3, "odd": None}
    json.loads((tmp_path / "candidates.jsonl").read_text(), parse_constant=pytest.fail)


def test_a_full_disk_leaves_whole_records(tmp_path):
    filled(tmp_path)
    size = (tmp_path / "candidates.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with History(tmp_path, IDENTITY) as history:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
            with pytest.raises(OSError, match="too large"):
                history.append({"key": "x" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert history.num_records == 3
        history.append({"key": "after"})
        assert [record["key"] for record in history.records()] == ["k0", "k1", "k2", "after"]


def test_a_killed_process_leaves_weights_for_every_record(tmp_path):
    script = f"""
        import sys, torch
        from pathlib import Path
        from fusion.search.history import History
        with History(Path({str(tmp_path)!r}), {IDENTITY!r}) as history:
            for number in range(100_000):
                history.append({{"key": f"k{{number}}"}}, weights={{"w": torch.full((9, 9), float(number))}},
                               weights_key=f"k{{number}}")
                print(number, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    for _ in range(20):
        process.stdout.readline()
    time.sleep(0.0137)  # anywhere within a write
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with History(tmp_path, IDENTITY) as history:
        keys = [record["key"] for record in history.records()]
        assert len(keys) >= 20
        for number, key in enumerate(keys):
            assert float(history.weights(key)["w"][0, 0]) == number
