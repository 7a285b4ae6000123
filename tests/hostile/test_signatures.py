"""Signatures that do not count here, and pickles that run what nobody listed: at every door of a real queue."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.own_models import Tracked
from tests.unit.job_folders import archive_bytes, fields, make_queue, names, zip_folder
from tests.unit.signed_jobs import ANNS, BOBS, NOBODYS, USER, sign_for, signed_job, trusting
from unified.errors import InvalidSubmission
from unified.job_state import JobState
from unified.queue.archive import submit_archive
from unified.queue.config import ServiceConfig
from unified.queue.records import Submitted
from unified.queue.root import Root
from unified.queue.signatures import Signature
from unified.queue.spool import scan
from unified.queue.store import JobStore
from unified.queue.submitting import submit_folder
from unified.queue.trusted import SIGNATURE
from unified.queue.vetting import trust_in
from unified.service import retention
from unified.submission.models import recognise

OWN = "tests.integration.own_models"
DAY = 86_400.0


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._command = f"touch {marker}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self._command,)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[tuple[Root, JobStore]]:
    root, store = make_queue(tmp_path / "queue")
    with store:
        yield root, store


def submit(queue: tuple[Root, JobStore], folder: Path, config: ServiceConfig | None = None, **how: Any) -> Submitted:
    return submit_folder(*queue, folder, by="test", config=config or trusting(OWN), **how)


def refusal(
    queue: tuple[Root, JobStore], folder: Path, config: ServiceConfig | None = None, **how: Any
) -> tuple[set[str], str]:
    """Submit a folder that must be refused at every door, leaving nothing; return the codes and the words."""
    root, store = queue
    found: set[tuple[str, str]] = set()
    config = config or trusting(OWN)
    packed = zip_folder(folder, folder.with_suffix(".zip"))
    for door in (submit_folder, submit_archive):
        with pytest.raises(InvalidSubmission) as caught:
            door(root, store, folder if door is submit_folder else packed, by="test", config=config, **how)
        found.add((", ".join(sorted({problem.code for problem in caught.value.problems})), str(caught.value)))
    if not how:
        packed.rename(root.incoming / "job.zip")
        [entry] = scan(root, store, config, now=time.time() + 60)
        assert entry.outcome == "rejected", entry
        found.add((", ".join(sorted({problem.code for problem in entry.problems})), "\n".join(map(str, entry.problems))))
    assert store.page().jobs == ()
    assert names(root.incoming) == []
    [(codes, words)] = found
    return set(codes.split(", ")), words


def write_model(folder: Path, content: object) -> Path:
    """Write a job folder of Ann's with a pickled model."""
    folder.mkdir(parents=True)
    torch.save(content, folder / "model.pt")
    (folder / "train.pt").write_bytes(archive_bytes())
    (folder / "job.json").write_text(json.dumps(fields(user=USER, model="model.pt")))
    return folder


def test_a_signed_model_of_a_listed_module_is_taken_in_and_trusted(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "job", Tracked())
    signature = sign_for(folder)
    job = submit(queue, folder).job
    assert (job.id, job.user) == (signature.claims.job, USER)
    assert trust_in(queue[0].spec(job.id), job, trusting(OWN)) == signature.claims.model
    assert submit(queue, folder).is_new is False


def test_a_dropped_zip_of_a_signed_job_is_taken_in(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    root, store = queue
    folder = write_model(tmp_path / "job", Tracked())
    sign_for(folder)
    zip_folder(folder, root.incoming / "job.zip", prefix="job/")
    [entry] = scan(root, store, trusting(OWN), now=time.time() + 60)
    assert (entry.outcome, entry.problems) == ("accepted", ())


def test_files_that_are_brought_along_and_what_a_door_sets_leave_a_signature_whole(
    queue: tuple[Root, JobStore], tmp_path: Path
) -> None:
    folder = signed_job(tmp_path / "job")
    (folder / "train.pt").rename(tmp_path / "train.pt")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "one.csv").write_text("x,y\n1,2\n")
    (folder / "job.json").write_text(json.dumps(fields(data={"train": "../train.pt", "test": str(tmp_path / "rows")})))
    signature = sign_for(folder)
    job = submit(queue, folder, user=USER, changes={"priority": 3, "client_token": "t"}).job
    assert (job.id, job.priority, job.user) == (signature.claims.job, 3, USER)


def test_a_key_that_is_not_listed(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    sign_for(signed_job(tmp_path / "job"), NOBODYS)
    assert refusal(queue, tmp_path / "job")[0] == {"E-SIGN"}


def test_another_users_key(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    sign_for(signed_job(tmp_path / "job"), BOBS)
    assert refusal(queue, tmp_path / "job")[0] == {"E-SIGN"}


def test_a_job_that_is_handed_in_for_another_user(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    codes, words = refusal(queue, signed_job(tmp_path / "job"), user="bob")
    assert codes == {"E-SIGN"}
    assert "the key's user 'ann'" in words


def test_a_signature_for_another_queue(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    assert refusal(queue, signed_job(tmp_path / "job"), trusting(OWN, name="other"))[0] == {"E-SIGN"}


def test_a_signature_that_has_expired(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    sign_for(signed_job(tmp_path / "job"), seconds=-1)
    codes, words = refusal(queue, tmp_path / "job")
    assert codes == {"E-SIGN"}
    assert "not expired" in words


def test_a_model_that_was_changed_after_signing(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "job", Tracked())
    sign_for(folder)
    torch.save(Tracked(), folder / "model.pt")
    assert refusal(queue, folder)[0] == {"E-SIGN"}


def test_a_job_that_was_changed_after_signing(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    folder = signed_job(tmp_path / "job")
    (folder / "job.json").write_text(json.dumps(fields(user=USER, epochs=100)))
    assert refusal(queue, folder)[0] == {"E-SIGN"}


def test_the_signature_of_another_job(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    other = signed_job(tmp_path / "other", id="other")
    folder = signed_job(tmp_path / "job", id="job")
    (folder / SIGNATURE).write_bytes((other / SIGNATURE).read_bytes())
    codes, words = refusal(queue, folder)
    assert codes == {"E-SIGN"}
    assert "a signature for job 'job'" in words


def test_claims_that_were_changed(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    folder = signed_job(tmp_path / "job")
    signature = sign_for(folder)
    later = replace(signature.claims, expires=signature.claims.expires + 1)
    (folder / SIGNATURE).write_bytes(Signature(claims=later, signature=signature.signature).to_json())
    assert refusal(queue, folder)[0] == {"E-SIGN"}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"version": 2}', b"\xff", b'{"version": 1, "version": 1}', b"[" * 10**5, b'{"version": NaN}']
)
def test_what_is_no_signature(queue: tuple[Root, JobStore], tmp_path: Path, content: bytes) -> None:
    folder = signed_job(tmp_path / "job")
    (folder / SIGNATURE).write_bytes(content)
    assert refusal(queue, folder)[0] <= {"E-SIGN", "E-JSON"}


def test_a_signature_is_good_for_one_job_even_when_that_is_gone(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    root, store = queue
    folder = signed_job(tmp_path / "job")
    job = submit(queue, folder).job
    store.move(job.id, JobState.CANCELLED, old=job.state, epoch=job.epoch, reason="cancelled on request", by="ann")
    assert submit(queue, folder).is_new is False  # it is the cancelled job still
    retention.sweep(root, store, trusting().model_copy(update={"keep_results_days": 1.0}), time.time() + 2 * DAY)
    codes, words = refusal(queue, folder)
    assert codes == {"E-SIGN"}
    assert "used before" in words
    sign_for(folder)
    assert submit(queue, folder).is_new


def test_a_pickle_that_runs_a_command_even_though_it_is_signed(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = write_model(tmp_path / "job", {"model": Tracked(), "more": Payload(marker)})
    sign_for(folder)
    codes, words = refusal(queue, folder)
    assert codes == {"E-TRUST"}
    assert "posix.system" in words
    assert not marker.exists()


def test_a_signed_model_of_a_module_that_is_not_listed(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "job", Tracked())
    sign_for(folder)
    codes, words = refusal(queue, folder, trusting("mylab.models"))
    assert codes == {"E-TRUST"}
    assert f"{OWN}.Tracked" in words


def test_a_pickle_without_a_signature(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    job = submit(queue, write_model(tmp_path / "job", Payload(marker))).job
    spec = queue[0].spec(job.id)
    trust = trust_in(spec, job, trusting(OWN))
    assert trust is False
    with pytest.raises(InvalidSubmission, match=r"E-CLASS.*unified\.export.*unified sign"):
        recognise(spec / "model.pt", job=job.id, trust=trust, staged=False)
    assert not marker.exists()


def test_a_signature_says_nothing_where_no_keys_are_listed(queue: tuple[Root, JobStore], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "job", Tracked())
    sign_for(folder)
    config = trusting(OWN).model_copy(update={"trusted": None})
    job = submit(queue, folder, config).job
    assert trust_in(queue[0].spec(job.id), job, config) is False


def test_a_file_that_is_swapped_and_a_key_that_is_struck_off_after_the_door(
    queue: tuple[Root, JobStore], tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "job", Tracked())
    sign_for(folder, ANNS)
    job = submit(queue, folder).job
    spec, config = queue[0].spec(job.id), trusting(OWN)
    trust = trust_in(spec, job, config)
    assert recognise(spec / "model.pt", job=job.id, trust=trust, staged=False).runs_code
    assert config.trusted is not None
    bobs_only = config.trusted.model_copy(update={"keys": config.trusted.keys[1:]})
    assert trust_in(spec, job, config.model_copy(update={"trusted": bobs_only})) is False
    torch.save(Tracked(), spec / "model.pt")
    assert trust_in(spec, job, config) is False
    with pytest.raises(InvalidSubmission, match="E-CLASS"):  # swapped after that look
        recognise(spec / "model.pt", job=job.id, trust=trust, staged=False)
