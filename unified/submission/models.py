"""Recognise and load a model, whatever form it came in."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from torch import nn

from unified.admission import STAGED_MODEL, ModelForm, ModelRef
from unified.errors import InvalidSubmission, Problem
from unified.submission.trusted import load_trusted
from unified.submission.umodel_read import load_umodel


def recognise(path: Path, *, job: str, trust: bool | str, staged: bool) -> ModelRef:
    """Say which form a model file has, by its content, and hash it; nothing in it is run.

    Args:
        path: The model file.
        job: Whose it is, for messages.
        trust: Whether forms that run code when they are loaded are accepted; a SHA-256: only the one file that has it.
        staged: The file was written by the Python API for its own caller.

    Raises:
        InvalidSubmission: If the file is missing, of no known form, or needs trust it does not have.
    """
    if not path.is_file():
        raise InvalidSubmission([_problem(job, "E-FILE", "a model file", f"no file {str(path)!r}", "correct the path")])
    form = ModelForm.OBJECT if staged and path.name == STAGED_MODEL else _form(path)
    if form is None:
        expected = "a .umodel archive (or, with --trust, a .pt/.pth/.pt2/TorchScript file)"
        remedy = "write it with unified.export(model, example_inputs, path)"
        raise InvalidSubmission([_problem(job, "E-FORM", expected, f"{path.name}, which is none of these", remedy)])
    is_safe = form in {ModelForm.UMODEL, ModelForm.OBJECT}
    digest = _digest(path) if is_safe or trust else ""
    if not (is_safe or trust in {True, digest}):
        given = f"{path.name}, a {form} file, which runs code when it is loaded"
        remedy = (
            "write it with unified.export(model, example_inputs, path), or pass --trust if every job here is your own, "
            "or hand it in signed ('unified sign') to a queue that trusts your key"
        )
        raise InvalidSubmission([_problem(job, "E-TRUST", "a .umodel archive, which is data", given, remedy)])
    return ModelRef(path=path, form=form, sha256=digest)


def load_model(ref: ModelRef, *, job: str | None = None) -> nn.Module:
    """Return a trainable module with the original parameter names.

    Args:
        ref: The model file.
        job: Whose it is, for messages.

    Raises:
        InvalidSubmission: If the file is damaged or changed its form, or runs code and is not the one that was trusted.
    """
    if ref.runs_code and _digest(ref.path) != ref.sha256:
        remedy = "leave the file alone while its job waits and trains; hand it in again"
        given = "another one: it has changed since it was checked"
        raise InvalidSubmission(
            [_problem(job or ref.path.stem, "E-HASH", f"the file of SHA-256 {ref.sha256[:16]}…", given, remedy)]
        )
    return load_umodel(ref.path, job=job) if ref.form is ModelForm.UMODEL else load_trusted(ref.path, ref.form, job=job)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _form(path: Path) -> ModelForm | None:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"
        return ModelForm.PICKLE if is_pickle and path.suffix in {".pt", ".pth"} else None
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] or name for name in archive.namelist()}
        if "manifest.json" in archive.namelist():
            return ModelForm.UMODEL
    if "constants.pkl" in names:
        return ModelForm.TORCHSCRIPT
    if path.suffix == ".pt2" or "archive_format" in names or "serialized_exported_program.json" in names:
        return ModelForm.PT2
    return ModelForm.PICKLE if "data.pkl" in names else None


def _problem(job: str, code: str, expected: str, given: str, remedy: str) -> Problem:
    return Problem(code=code, job=job, field="model", expected=expected, given=given, remedy=remedy)
