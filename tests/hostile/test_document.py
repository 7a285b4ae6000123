"""docs/umodel.md says what the code says: fields, codes in the order of their stages, limits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.hostile.test_umodel import CASES
from tests.integration.documents import named, section, table
from unified.submission import umodel_format as form
from unified.submission.umodel_json import MAX_JSON_BYTES, MAX_JSON_DEPTH, MAX_JSON_VALUES
from unified.validation import stage_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "umodel.md"


def fields(record: type) -> list[str]:
    return [field.name for field in dataclasses.fields(record)]


def test_every_field_of_the_records_is_described():
    manifest = section(DOCUMENT, "## manifest.json")
    assert named(manifest) == fields(form.Manifest) + fields(form.InputRecord) + fields(form.TensorRecord)
    graph = named(section(DOCUMENT, "## graph.train.json, graph.eval.json"))
    assert graph[:8] == fields(form.GraphRecord) + fields(form.NodeRecord)


def test_the_codes_stand_in_the_order_of_their_stages():
    codes = named(section(DOCUMENT, "## What a reader refuses"))
    assert [stage_of(code) for code in codes] == sorted(stage_of(code) for code in codes)
    assert {code for _, code in CASES.values()} | {"E-ZIP", "E-HASH"} == set(codes)


def test_the_limits_are_those_of_the_code():
    told = " ".join(row[1] for row in table(section(DOCUMENT, "## Limits")))
    assert told == (
        f"{form.MAX_ARCHIVE_BYTES >> 30} GiB {MAX_JSON_BYTES >> 20} MiB, {MAX_JSON_VALUES:,} values, {MAX_JSON_DEPTH} levels "
        f"{form.MAX_HEADER_BYTES >> 20} MiB {form.MAX_NODES:,} {form.MAX_VALUES:,} {form.MAX_LIST:,} "
        f"{form.MAX_TENSORS:,} each {form.MAX_INPUTS:,} {form.MAX_RANK}"
    )
