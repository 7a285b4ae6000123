"""Data of people who mean harm: nothing but the file that a job names is read, and little of it stands for little."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.hostile.children import in_children
from tests.hostile.forged_files import little_memory, write_pt
from tests.reading import plain_job, read
from tests.unit.dataset_cases import write_tokenizer
from unified import sandbox
from unified.admission import DatasetRef
from unified.dataset_files import reference
from unified.datasets import load_tensors
from unified.errors import InvalidSubmission
from unified.job_parts import ColumnSpec
from unified.read_limits import ReadLimits

COLUMNS = ColumnSpec(inputs="x", targets="y")
ROW = b'{"x": 1.0, "y": 1}\n'


def refer(source: Path, cache: Path, tokenizer: Path | None = None) -> DatasetRef:
    return reference(source, columns=COLUMNS, tokenizer=tokenizer, max_length=None, cache_dir=cache, job="hostile")


def parquet(path: Path, number: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"x": [number, number], "y": [0, 1]}).to_parquet(path)
    return path


def refused(source: Path, cache: Path, tokenizer: Path | None = None) -> str:
    with little_memory(), pytest.raises(InvalidSubmission) as caught:
        refer(source, cache, tokenizer)
    [problem] = caught.value.problems
    assert problem.code == "E-DATA"
    assert problem.remedy
    return problem.given


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_name_that_is_a_pattern_brings_no_other_file_into_the_cache(suffix, tmp_path):
    for name, row in (("a/d*", ROW), ("a/d2", ROW.replace(b"1.0", b"66.0")), ("victim", ROW)):
        path = tmp_path / f"{name}.{suffix}"
        parquet(path, 66.0 if "2" in name else 1.0)
        if suffix == "jsonl":
            path.write_bytes(row * 2)
    if suffix == "jsonl":
        refused(tmp_path / "a" / "d*.jsonl", tmp_path / "cache")
    else:
        refer(tmp_path / "a" / "d*.parquet", tmp_path / "cache")
    victim = refer(tmp_path / f"victim.{suffix}", tmp_path / "cache")
    assert load_tensors(victim).inputs.tolist() == [1.0, 1.0]


def test_a_path_of_several_addresses_is_refused(tmp_path):
    path = tmp_path / "x::" / "d.jsonl"
    path.parent.mkdir()
    path.write_bytes(ROW)
    assert "::" in refused(path, tmp_path / "cache")


def test_text_that_is_compressed_is_not_unpacked(tmp_path):
    (tmp_path / "d.json").write_bytes(gzip.compress(ROW * 10_000_000, 1))
    refused(tmp_path / "d.json", tmp_path / "cache")


def test_a_small_table_of_many_rows_takes_no_disk(tmp_path):
    source = tmp_path / "d.parquet"
    pd.DataFrame({"x": [0.0], "y": [0]}).loc[[0] * 2_000_000].to_parquet(source, index=False)
    assert source.stat().st_size < 1 << 20
    ref = refer(source, tmp_path / "cache")
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".json"]
    assert files == [ref.path]


@pytest.mark.parametrize("value", ["PATH", {"a": ["PATH"]}])
def test_a_tokenizer_reads_no_file_but_its_own(value, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("word")
    folder = tmp_path / "tokenizer"
    write_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    more = json.loads(json.dumps({"vocab": value}).replace("PATH", str(secret)))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "BertTokenizer"} | more))
    (tmp_path / "d.jsonl").write_text('{"x": "word", "y": 1}')
    assert "secret.txt" in refused(tmp_path / "d.jsonl", tmp_path / "cache", folder)


@pytest.mark.parametrize("maker", [b"ctorch\nSize\n", b"ccollections\nCounter\n", b""])
def test_a_structure_that_nobody_could_write_out_is_refused(maker, tmp_path):
    laughs = b"N\x85q\x00" + b"".join(bytes([104, n, 104, n, 134, 113, n + 1]) for n in range(60))
    write_pt(tmp_path / "d.pt", b"\x80\x02" + maker + laughs + (b"\x85R." if maker else b"."))
    assert "several places" in refused(tmp_path / "d.pt", tmp_path / "cache")


@pytest.mark.skipif(not sandbox.available()[0].is_available, reason="this kernel keeps no process from files")
def test_equal_data_in_a_folder_that_a_reader_may_not_open_does_not_stop_it(tmp_path):
    mine, other = tmp_path / "mine" / "train.pt", tmp_path / "other" / "train.pt"
    for path in (other, mine):
        path.parent.mkdir()
        torch.save((torch.ones(2, 3), torch.zeros(2)), path)
    cache = tmp_path / "cache"
    assert refer(other, cache).path == other

    def read(_: int) -> str:
        sandbox.confine(sandbox.reading_confinement([mine.parent], cache))
        ref = refer(mine, cache)
        return f"{ref.path.parent.name} {len(load_tensors(ref))}"

    assert list(in_children(1, read)) == ["mine 2"]


def test_a_reader_that_is_ended_leaves_nothing_half_written(nursery, tmp_path):
    folder = plain_job(tmp_path / "job")
    fields = json.loads((folder / "job.json").read_text())
    fields["data"] = {"train": "wide.csv", "columns": {"inputs": "x", "targets": "y"}}
    (folder / "job.json").write_text(json.dumps(fields))
    (folder / "wide.csv").write_text("x," * 60_000 + "y\n" + "1," * 60_000 + "1\n")
    (found,) = read(nursery, folder, limits=ReadLimits(cpu_seconds=2))
    assert [problem.code for problem in found.problems] == ["E-LIMIT"]
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name != "known"] == []
