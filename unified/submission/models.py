"""Recognise and load a model, whatever form it came in."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from unified.admission import STAGED_MODEL, ModelForm, ModelRef
from unified.errors import InvalidSubmission, Problem
from unified.job_parts import ArchitectureSpec
from unified.queue.wholeness import is_cut_archive, is_safetensors
from unified.submission.declared import load_declared, named_class
from unified.submission.pickle_machine import Global, Made
from unified.submission.pretrained import folder_files, folder_hash, load_pretrained
from unified.submission.rebuild import foreign_class, rebuild
from unified.submission.refusal import refusals_told
from unified.submission.saved_values import mapping
from unified.submission.torch_file import open_torch_file
from unified.submission.trusted import load_trusted
from unified.submission.umodel_read import load_umodel

_EXPORT = "write it with unified.export(model, example_inputs, path)"
_EXPORT_OR_TRUST = (
    f"{_EXPORT} or 'unified convert', pass --trust if every job here is your own, "
    "or 'unified sign' it for a queue that trusts your key"
)
_DECLARE = (
    'add e.g. "architecture": {"library": "torchvision", "name": "resnet18"}, or "layers" (docs/job.md); '
    "weights of a class of your own become a .umodel by 'unified convert --model MODEL.py:Class'"
)
_DECLARED_FORMS = frozenset({ModelForm.WEIGHTS, ModelForm.PRETRAINED})


def recognise(
    path: Path, *, job: str, trust: bool | str, staged: bool, architecture: ArchitectureSpec | None = None
) -> ModelRef:
    """Say which form a model has, by its content, and hash it; nothing in it is run.

    Args:
        path: The model's file or folder.
        job: Whose it is, for messages.
        trust: Whether forms that run code when they are loaded are accepted; a SHA-256: only the one file that has it.
        staged: The file was written by the Python API for its own caller.
        architecture: What the job declares it to be.

    Raises:
        InvalidSubmission: If it is missing, of no known form, lacks its architecture, or needs trust it does not have.
    """
    files = _files(path, job, follow=staged)
    if path.is_dir():
        form = ModelForm.PRETRAINED
    elif staged and path.name == STAGED_MODEL:
        form = ModelForm.OBJECT
    else:
        form = _form(path, job, trust=trust is True or (bool(trust) and trust == _sha256(path)))
    declared = _declared(architecture, form, path, job)
    return ModelRef(path=path, form=form, sha256=_identity(path, files, declared), architecture=declared)


def load_model(ref: ModelRef, *, job: str | None = None, finite: bool = True) -> nn.Module:
    """Return a trainable module with the original parameter names, on the CPU, in training mode.

    Args:
        ref: The model's file or folder.
        job: Whose it is, for messages.
        finite: Refuse weights that are NaN or infinite, in forms that run no code.

    Raises:
        InvalidSubmission: If it is damaged, not what it is declared to be, or changed its form.
    """
    if ref.form is ModelForm.UMODEL:
        return load_umodel(ref.path, job=job, finite=finite)
    if ref.runs_code or ref.form is ModelForm.OBJECT:
        return load_trusted(ref.path, ref.form, job=job)
    with refusals_told(ref.path, job):
        if ref.form is ModelForm.MODULE:
            return rebuild(open_torch_file(ref.path), ref.path, finite=finite)
        if ref.form is ModelForm.PRETRAINED:
            return load_pretrained(ref.path, named_class(ref.architecture), finite=finite)
        return load_declared(ref.path, ref.architecture, finite=finite)


def load_unchanged(ref: ModelRef, *, job: str) -> nn.Module:
    """Load a model that was checked before, if it still is what it was then; see :func:`load_model`.

    Raises:
        InvalidSubmission: If it has changed, or is refused.
    """
    if (
        ref.form is not ModelForm.OBJECT
        and _identity(ref.path, _files(ref.path, job, follow=True), ref.architecture) != ref.sha256
    ):
        given = "another one: it has changed since it was checked"
        remedy = "leave the model alone while its job waits and trains; hand it in again"
        raise InvalidSubmission([_problem(job, "E-HASH", f"the model of SHA-256 {ref.sha256[:16]}…", given, remedy)])
    return load_model(ref, job=job)


def _identity(path: Path, files: Sequence[Path], declared: str) -> str:
    """Return the SHA-256 of a model: of its file, or of its folder, and of what its job declares it to be."""
    digest = folder_hash(files) if path.is_dir() else _sha256(path)
    return hashlib.sha256(f"{digest}\n{declared}".encode()).hexdigest() if declared else digest


def _files(path: Path, job: str, *, follow: bool) -> Sequence[Path]:
    """Return the files that a model is made of."""
    if path.is_dir():
        with refusals_told(path, job):
            return folder_files(path, follow=follow)
    if not path.is_file():
        raise InvalidSubmission([_problem(job, "E-FILE", "a model file", f"no file {str(path)!r}", "correct the path")])
    return [path]


def _form(path: Path, job: str, *, trust: bool) -> ModelForm:
    form = _form_at_sight(path)
    if form is ModelForm.PICKLE:
        form = _form_of_pickle(path, job, trust=trust)
    if form is None:
        expected = "a .umodel, a .pt or .pth from torch.save, a .safetensors, or (with --trust) a .pt2 or TorchScript file"
        cut = is_cut_archive(path)
        given = f"{path.name}, an archive without its end" if cut else f"{path.name}, which is none of these"
        remedy = f"copy it again, or {_EXPORT}" if cut else _EXPORT
        raise InvalidSubmission([_problem(job, "E-FORM", expected, given, remedy)])
    if form in (ModelForm.PT2, ModelForm.TORCHSCRIPT) and not trust:
        given = f"{path.name}, a {form} file, which runs code when it is loaded"
        raise InvalidSubmission([_problem(job, "E-TRUST", "a model that is data, not code", given, _EXPORT_OR_TRUST)])
    return form


def _form_at_sight(path: Path) -> ModelForm | None:
    """Return the form by the names of the parts; ``PICKLE`` for whatever ``torch.save`` wrote."""
    if not zipfile.is_zipfile(path):
        if is_safetensors(path):
            return ModelForm.WEIGHTS
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"
        return ModelForm.PICKLE if is_pickle and path.suffix in {".pt", ".pth"} else None
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    if "manifest.json" in listed:
        return ModelForm.UMODEL
    names = {name.partition("/")[2] or name for name in listed}
    if "constants.pkl" in names:
        return ModelForm.TORCHSCRIPT
    if path.suffix == ".pt2" or "archive_format" in names or "serialized_exported_program.json" in names:
        return ModelForm.PT2
    return ModelForm.PICKLE if "data.pkl" in names else None


def _form_of_pickle(path: Path, job: str, *, trust: bool) -> ModelForm:
    """Return the form of what ``torch.save`` wrote: data wherever it can be read as such."""
    if not zipfile.is_zipfile(path):
        if trust:
            return ModelForm.PICKLE
        given = f"{path.name}, a pickle in PyTorch's old format or none of its own, which runs code when it is loaded"
        expected = "a file in the zip format of torch.save"
        remedy = f"load it where it comes from and save it again with torch.save, or {_EXPORT_OR_TRUST}"
        raise InvalidSubmission([_problem(job, "E-TRUST", expected, given, remedy)])
    try:
        with refusals_told(path, job):
            file = open_torch_file(path)
            if mapping(file.root) is not None:
                return ModelForm.WEIGHTS
            _check_classes(file.root, path, job)
            if trust:  # else its reader refuses it, and says why
                rebuild(file, path)
    except InvalidSubmission:
        if trust:
            return ModelForm.PICKLE
        raise
    return ModelForm.MODULE


def _check_classes(root: object, path: Path, job: str) -> None:
    """Refuse a pickle that holds anything but a module of the accepted classes.

    Raises:
        InvalidSubmission: If it does.
    """
    if not isinstance(root, Made):
        given = f"{path.name}, which holds a {type(root).__name__}"
        remedy = "save the whole module, or its state_dict()"
        raise InvalidSubmission([_problem(job, "E-CLASS", "a module, or a mapping of names to tensors", given, remedy)])
    foreign = foreign_class(root) if root.is_new else root.maker
    if foreign is not None:
        raise InvalidSubmission([_foreign_problem(job, path, foreign)])


def _foreign_problem(job: str, path: Path, foreign: Global) -> Problem:
    expected = "a module made only of classes of torch.nn, which is rebuilt without running code"
    given = f"{path.name}, which holds a {foreign}"
    return _problem(job, "E-CLASS", expected, given, f"where the class is defined, {_EXPORT_OR_TRUST}")


def _declared(architecture: ArchitectureSpec | None, form: ModelForm, path: Path, job: str) -> str:
    """Return what the job declares as canonical text, ``""`` if nothing."""
    if architecture is None:
        if form is not ModelForm.WEIGHTS:
            return ""
        given = f"{path.name}, which holds weights without their model"
        raise InvalidSubmission([_problem(job, "E-DECLARED", "a file of weights with an architecture", given, _DECLARE)])
    if form not in _DECLARED_FORMS:
        expected, given = "no architecture", f"one, for {path.name}, a {form} file that says itself what it is"
        raise InvalidSubmission([_problem(job, "E-DECLARED", expected, given, "leave out architecture")])
    if form is ModelForm.PRETRAINED and architecture.library != "transformers":
        expected, given = 'no architecture, or one of "transformers"', f"another, for the folder {path.name}"
        raise InvalidSubmission([_problem(job, "E-DECLARED", expected, given, "leave out architecture")])
    return architecture.canonical()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem(job: str, code: str, expected: str, given: str, remedy: str) -> Problem:
    return Problem(code=code, job=job, field="model", expected=expected, given=given, remedy=remedy)
