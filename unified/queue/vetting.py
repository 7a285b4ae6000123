"""Whether a signed job may run code here: asked when it is handed in, and again whenever its model is about to be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unified.errors import InvalidSubmission, Problem
from unified.job import JobSpec
from unified.queue.config import ServiceConfig
from unified.queue.files import hash_file, open_plain
from unified.queue.job_folder import Fields, named_sources
from unified.queue.pickled_names import UndeterminedError, foreign_names
from unified.queue.records import Grant, JobRow
from unified.queue.signatures import Signature, claim_problems, parse_signature, signed_content, source_hashes
from unified.queue.trusted import SIGNATURE, Trusted, sign_problem
from unified.strict_json import MAX_BYTES

_MAX_TOLD = 5  #: names of one pickle in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """A job folder at the door, complete: what ``job.json`` says, and the SHA-256 of its files by name."""

    folder: Path
    fields: Fields
    spec: JobSpec
    hashes: Mapping[str, str]


def grant_of(handed: Handed, config: ServiceConfig) -> Grant | None:
    """Return what a job's signature grants; None where there is none, or nobody asks for one.

    Whether the grant has expired or was used is for the store to say, in the transaction that uses it.

    Raises:
        InvalidSubmission: With everything that is wrong with the signature, or with what is signed.
    """
    trusted, spec = config.trusted, handed.spec
    if config.trust or trusted is None or SIGNATURE not in handed.hashes:
        return None
    signature = _read_signature(handed.folder, spec.name)
    claims, job = signature.claims, spec.id or signature.claims.job
    problems = claim_problems(signature, trusted, job=job, user=spec.user or "")
    sources = source_hashes(named_sources(spec), handed.hashes)
    if sources["model"] != claims.model:
        problems.append(sign_problem(job, f"the model that was signed, {claims.model[:16]}…", f"{sources['model'][:16]}…"))
    elif signed_content(handed.fields, sources) != claims.content:
        problems.append(sign_problem(job, "job.json and data as they were signed", "something else in one of them"))
    problems = problems or _model_problems(handed.folder / str(spec.model), job, trusted)
    if problems:
        raise InvalidSubmission(problems)
    return Grant(job=job, digest=claims.digest, expires=claims.expires)


def trust_in(folder: Path, row: JobRow, config: ServiceConfig) -> bool | str:
    """Return whether the model of a job that was taken in may be loaded here if that runs code.

    Args:
        folder: The job's folder.
        row: The job.
        config: The queue's settings.

    Returns:
        True: whatever it is; False: not; or the SHA-256 of the one file that may be, as its signature still counts.
    """
    if config.trust or config.trusted is None:
        return config.trust
    try:
        claims = (signature := _read_signature(folder, row.id)).claims
        model = folder / str(row.spec["model"])
        problems = claim_problems(signature, config.trusted, job=row.id, user=row.user)
        problems = problems or _model_problems(model, row.id, config.trusted)
        return claims.model if not problems and hash_file(model) == claims.model else False
    except (InvalidSubmission, OSError, KeyError):
        return False


def _read_signature(folder: Path, job: str) -> Signature:
    with open_plain(folder / SIGNATURE) as file:
        return parse_signature(file.read(MAX_BYTES + 1), job)


def _model_problems(model: Path, job: str, trusted: Trusted) -> list[Problem]:
    """Return what a model's pickle would import and may not."""
    if not model.is_file():
        return []
    try:
        names = foreign_names(model, trusted.modules)
    except UndeterminedError as error:
        return [_trust_problem(model, job, f"one of which that cannot be told: {error}")]
    if not names:
        return []
    more = f" and {len(names) - _MAX_TOLD} more" if len(names) > _MAX_TOLD else ""
    return [_trust_problem(model, job, f"{', '.join(names[:_MAX_TOLD])}{more}"[:500])]


def _trust_problem(model: Path, job: str, given: str) -> Problem:
    return Problem(
        code="E-TRUST",
        job=job,
        field=model.name,
        expected="a pickle that names only PyTorch's layers and what is in modules that the operator has listed",
        given=given,
        remedy="have the modules listed under [trusted], write it with today's torch.save, or export it with unified.export",
    )
