"""Signatures of job folders: whatever is changed after signing is refused, and what may change at the door does not count."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.unit.job_folders import fields
from tests.unit.signed_jobs import ANNS, BOBS, NOBODYS, QUEUE, USER, key_line, sign_for, signed_job, trusting
from unified.errors import InvalidSubmission, UnifiedError
from unified.queue.files import hash_file
from unified.queue.job_folder import list_folder, parse_fields, read_fields
from unified.queue.records import Grant
from unified.queue.signatures import (
    Claims,
    claim_problems,
    parse_signature,
    sign,
    signed_content,
    source_hashes,
)
from unified.queue.signing import make_key, read_key
from unified.queue.trusted import SIGNATURE, Trusted, parse_signer
from unified.queue.vetting import Handed, grant_of

TRUSTED = trusting().trusted
assert isinstance(TRUSTED, Trusted)

hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
claims_of_ann = st.builds(
    Claims,
    key=st.just(next(iter(TRUSTED.signers))),
    queue=st.just(QUEUE),
    job=st.text(min_size=1, max_size=20),
    expires=st.integers(0, 2**53 - 1),
    model=hashes,
    content=hashes,
)
bits = st.integers(0, 10**9)


def flipped(content: bytes, bit: int) -> bytes:
    """Return the same with one bit another."""
    position, shift = divmod(bit % (8 * len(content)), 8)
    return content[:position] + bytes([content[position] ^ (1 << shift)]) + content[position + 1 :]


def arrives(folder: Path) -> Grant | None:
    """Let a folder arrive at the door, as it is now."""
    read = read_fields(folder, "job")
    files = {name: hash_file(folder / name) for name in list_folder(folder, "job", 0).files if name != "job.json"}
    return grant_of(Handed(folder=folder, fields=read, spec=parse_fields(read, "job"), hashes=files), trusting())


def codes(folder: Path) -> list[str]:
    with pytest.raises(InvalidSubmission) as caught:
        arrives(folder)
    return [problem.code for problem in caught.value.problems]


@given(claims_of_ann)
def test_a_signature_holds_for_what_was_signed(claims: Claims) -> None:
    signature = sign(claims, ANNS)
    assert claim_problems(signature, TRUSTED, job=claims.job, user=USER) == []
    assert parse_signature(signature.to_json(), "job") == signature


@given(claims_of_ann, claims_of_ann, st.sampled_from(["key", "queue", "job", "expires", "model", "content"]))
def test_no_claim_can_be_changed(claims: Claims, other: Claims, field: str) -> None:
    value = {"key": list(TRUSTED.signers)[1], "queue": "other"}.get(field, getattr(other, field))
    changed = replace(claims, **{field: value})
    problems = claim_problems(replace(sign(claims, ANNS), claims=changed), TRUSTED, job=changed.job, user=USER)
    assert [problem.code for problem in problems] == ([] if changed == claims else ["E-SIGN"])


@given(claims_of_ann, bits)
def test_no_bit_of_a_signature_can_be_flipped(claims: Claims, bit: int) -> None:
    signature = sign(claims, ANNS)
    wrong = replace(signature, signature=flipped(bytes.fromhex(signature.signature), bit).hex())
    assert [problem.code for problem in claim_problems(wrong, TRUSTED, job=claims.job, user=USER)] == ["E-SIGN"]


@given(claims_of_ann, bits)
def test_no_bit_of_the_file_can_be_flipped_so_that_it_says_something_else(claims: Claims, bit: int) -> None:
    signature = sign(claims, ANNS)
    try:
        found = parse_signature(flipped(signature.to_json(), bit), "job")
    except InvalidSubmission:
        return
    assert found == signature or claim_problems(found, TRUSTED, job=claims.job, user=USER)


@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
@example({"version": 2})
@example({"version": True})
@example([])
def test_what_is_no_signature_is_a_problem(content: Any) -> None:
    with pytest.raises(InvalidSubmission):
        parse_signature(content if isinstance(content, bytes) else json.dumps(content).encode(), "job")


@pytest.mark.parametrize("field", ["key", "queue", "job", "expires", "model", "content", "signature"])
@pytest.mark.parametrize("value", [..., None, 7.0, True, "", "00"])
def test_a_field_that_is_missing_or_malformed_is_a_problem(field: str, value: object) -> None:
    claims = Claims(key="0" * 64, queue=QUEUE, job="j", expires=1, model="0" * 64, content="0" * 64)
    written = json.loads(sign(claims, ANNS).to_json()) | {field: value}
    if field in {"queue", "job"} and isinstance(value, str):
        return  # any text is one; whether it is the right one is another question
    with pytest.raises(InvalidSubmission) as caught:
        parse_signature(json.dumps({key: value for key, value in written.items() if value is not ...}).encode(), "job")
    assert [problem.code for problem in caught.value.problems] == ["E-SIGN"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(bits, st.sampled_from(["model.umodel", "train.pt"]))
def test_no_bit_of_model_or_data_can_be_flipped(tmp_path: Path, bit: int, name: str) -> None:
    folder = tmp_path / "job"
    if not folder.exists():
        signed_job(folder)
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(flipped(before, bit))
    assert codes(folder) == ["E-SIGN"]
    (folder / name).write_bytes(before)
    assert arrives(folder) is not None


@pytest.mark.parametrize(
    "change", [{"epochs": 2}, {"seed": 1}, {"name": "other"}, {"max_retries": 5}, {"optimizer": "Adam"}, {"epochs": 1.5}]
)
def test_no_field_can_be_changed_that_says_what_is_trained(change: dict[str, Any]) -> None:
    sources = {"model": "0" * 64, "data.train": "1" * 64}
    assert signed_content(fields() | change, sources) != signed_content(fields(), sources)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"},
        {"user": "bob"},
        {"client_token": "t"},
        {"priority": 3},
        {"model": "shared/m.umodel"},
        {"data": {"train": "x"}},
    ],
)
def test_what_a_door_sets_does_not_count(change: dict[str, Any]) -> None:
    sources = {"model": "0" * 64, "data.train": "1" * 64}
    assert signed_content(fields() | change, sources) == signed_content(fields(), sources)


def test_a_folder_counts_by_the_names_and_content_of_its_files_wherever_it_is() -> None:
    files = {"a": "0" * 64, "b/c": "1" * 64}

    def at(place: str, listed: dict[str, str]) -> dict[str, str]:
        return source_hashes({"data.train": place}, {f"{place}/{name}": digest for name, digest in listed.items()})

    assert at("data", files) == at("shared/data-1", dict(reversed(files.items())))
    assert at("data", files) != at("data", {"a": "0" * 64, "b/d": "1" * 64})
    assert at("data", files) != at("data", files | {"d": "2" * 64})


def test_the_door_takes_the_id_that_was_signed(tmp_path: Path) -> None:
    folder = signed_job(tmp_path / "job")
    claims = parse_signature((folder / SIGNATURE).read_bytes(), "job").claims
    assert arrives(folder) == Grant(job=claims.job, digest=claims.digest, expires=claims.expires)
    assert claims.job.startswith("tiny-")
    assert parse_signature((signed_job(tmp_path / "named", id="mine") / SIGNATURE).read_bytes(), "job").claims.job == "mine"


@pytest.mark.parametrize(
    ("job", "how", "words"),
    [
        ({"user": "ann"}, {"key": NOBODYS}, ["a key that this queue lists"]),
        ({"user": "ann"}, {"key": BOBS}, ["job of the key's user 'bob'", "a job of 'ann'"]),
        ({}, {}, ["job of the key's user 'ann'", "a job without a user"]),
        ({"user": "ann"}, {"queue": "other"}, ["for the queue 'lab'", "one for 'other'"]),
        ({"user": "bob"}, {"queue": "other"}, ["for the queue 'lab'", "a job of 'bob'"]),
    ],
)
def test_everything_that_is_wrong_with_a_signature_is_told(
    tmp_path: Path, job: dict[str, Any], how: dict[str, Any], words: list[str]
) -> None:
    folder = signed_job(tmp_path / "job")
    (folder / "job.json").write_text(json.dumps(fields(**job)))
    sign_for(folder, **how)
    with pytest.raises(InvalidSubmission) as caught:
        arrives(folder)
    assert {problem.code for problem in caught.value.problems} == {"E-SIGN"}
    for word in words:
        assert word in str(caught.value)


def test_another_id_than_the_signed_one_is_refused(tmp_path: Path) -> None:
    folder = signed_job(tmp_path / "job")
    (folder / "job.json").write_text(json.dumps(fields(user=USER, id="other")))
    assert codes(folder) == ["E-SIGN"]


def test_a_sweep_and_a_folder_without_its_files_are_not_signed(tmp_path: Path) -> None:
    folder = signed_job(tmp_path / "job")
    (folder / "job.json").write_text(json.dumps(fields(sweep={"seed": [0, 1]})))
    with pytest.raises(InvalidSubmission, match="E-SWEEP"):
        sign_for(folder)
    (folder / "job.json").write_text(json.dumps(fields(model="gone.umodel")))
    with pytest.raises(InvalidSubmission, match=r"E-FILE.*gone\.umodel"):
        sign_for(folder)


def test_a_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ann.key"
    signer = make_key(path, USER)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert parse_signer((tmp_path / "ann.key.pub").read_text()) == signer
    assert parse_signer(key_line(read_key(path), USER)) == signer
    before = path.read_bytes()
    for there in (path, tmp_path / "bob.key.pub"):
        there.touch()
        with pytest.raises(UnifiedError, match="never overwritten"):
            make_key(there.with_suffix("") if there.suffix == ".pub" else there, USER)
    assert path.read_bytes() == before
    (tmp_path / "none").write_text("no key")
    with pytest.raises(UnifiedError, match="no private key"):
        read_key(tmp_path / "none")
