"""Jobs of equal data in folders that do not see each other: each is read alone, and all map one file."""

from __future__ import annotations

import json
import shutil

from tests.reading import plain_job
from unified.cli import main


def test_copies_of_a_dataset_in_folders_apart_are_mapped_from_one_file(tmp_path):
    first = plain_job(tmp_path / "ann" / "hers")
    second = tmp_path / "bob" / "his"
    shutil.copytree(first, second)
    fields = json.loads((second / "job.json").read_text()) | {"name": "his"}
    (second / "job.json").write_text(json.dumps(fields))
    assert main(["run", str(first), str(second), "--out", str(tmp_path / "out"), "--slots", "1"]) == 0
    results = [json.loads((tmp_path / "out" / name / "result.json").read_text()) for name in ("hers", "his")]
    assert len({result["datasets"]["train"]["path"] for result in results}) == 1
