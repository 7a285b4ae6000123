"""The models that are to answer as one: found, loaded, and checked to be of one architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from fusion.stacking.signature import difference, signature
from unified.admission import ModelForm
from unified.errors import InvalidSubmission, UnifiedError
from unified.fusing.examples import Example, ModelSource, example_of_data, find_model, umodel_example
from unified.fusing.sources import RESULT, result_folders
from unified.submission.interpreter import ArchiveModule
from unified.submission.models import load_model, recognise


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answerer:
    """A model that is to be a member.

    Attributes:
        name: Its own among the members.
        model: In evaluation mode.
        source: Where it was found, None for a module.
        sha256: Of its file, None for a module.
        form: Of its file, None for a module.
    """

    name: str
    model: nn.Module
    source: ModelSource | None = None
    sha256: str | None = None
    form: ModelForm | None = None

    @property
    def where(self) -> str:
        """What to call it in messages: its file."""
        return repr(self.name) if self.source is None else str(self.source.file)


def read_answerers(paths: Sequence[Path], *, trust: bool) -> list[Answerer]:
    """Load the models of results, job folders and files, or folders of the first two.

    Args:
        paths: In the order of the members; a folder's are in the order of their names.
        trust: Whether files that run code when they are loaded are accepted.

    Raises:
        InvalidSubmission: With everything that is wrong with any of them.
    """
    problems, found = [], []
    for path in paths:
        try:
            found += [_loaded(find_model(each), trust=trust) for each in _spread(path)]
        except InvalidSubmission as error:
            problems += error.problems
    if problems:
        raise InvalidSubmission(problems)
    return named_apart(found)


def of_modules(models: Mapping[str, nn.Module] | Sequence[nn.Module]) -> list[Answerer]:
    """Return modules as members; without names they are called by their numbers. They are set to evaluation mode meanwhile."""
    named = dict(models) if isinstance(models, Mapping) else {str(index): model for index, model in enumerate(models)}
    return [Answerer(name=name, model=model) for name, model in named.items()]


def named_apart(found: Sequence[Answerer]) -> list[Answerer]:
    """Return the same with names of their own: a number is added to one that is taken."""
    named: dict[str, Answerer] = {}
    for each in found:
        name, number = each.name, 1
        while name in named:
            number += 1
            name = f"{each.name}-{number}"
        named[name] = replace(each, name=name)
    return list(named.values())


def check_alike(members: Sequence[Answerer]) -> None:
    """Refuse models of different architectures.

    Raises:
        UnifiedError: A line with the first difference and the two it is between.
    """
    first = members[0]
    for other in members[1:]:
        found = _difference(other.model, first.model)
        if found is not None:
            raise UnifiedError(f"{other.where} is not of the architecture of {first.where}: {' '.join(found.split())[:300]}")


def samples_of(member: Answerer, count: int, seed: int) -> Example | None:
    """Return samples that a member takes: its job's own if they are there, else noise of what its file declares.

    Returns:
        At least one sample, at most ``count``; None if nothing says what the model takes.
    """
    if member.source is None:
        return None
    try:
        return example_of_data(member.source, count)
    except InvalidSubmission:
        return umodel_example(member.source.file, count, seed) if member.form is ModelForm.UMODEL else None


def _spread(path: Path) -> list[Path]:
    """Return what is in a folder of results or of job folders, or the path itself."""
    if path.is_file() or (path / RESULT).is_file() or (path / "job.json").is_file():
        return [path]
    jobs = sorted(each.parent for each in path.glob("*/job.json") if not (each.parent / RESULT).is_file())
    return jobs or result_folders(path)


def _loaded(source: ModelSource, *, trust: bool) -> Answerer:
    ref = recognise(source.file, job=source.name, trust=trust, staged=False, architecture=source.architecture)
    model = load_model(ref, job=source.name).eval()
    return Answerer(name=source.name, model=model, source=source, sha256=ref.sha256, form=ref.form)


def _difference(one: nn.Module, other: nn.Module) -> str | None:
    """Say how two models differ, what is easiest to understand first."""
    found = difference(one, other)
    if found is None:
        return None
    ours, theirs = _tensors(one), _tensors(other)
    for name in (*ours, *theirs):
        if name not in theirs:
            return f"only the first has a {name}"
        if name not in ours:
            return f"only the second has a {name}"
        if ours[name] != theirs[name]:
            return f"{name} is {ours[name]} against {theirs[name]}"
    return _graph_difference(one, other) or found


def _tensors(model: nn.Module) -> dict[str, str]:
    """Return the lines of parameters and buffers in a model's signature, by name."""
    lines = [line.partition(": ") for line in signature(model) if line.startswith(("parameter ", "buffer "))]
    return {name: text for name, _, text in lines}


def _graph_difference(one: nn.Module, other: nn.Module) -> str | None:
    if not isinstance(one, ArchiveModule) or not isinstance(other, ArchiveModule):
        return None
    ours, theirs = (model._umodel.graphs["eval"].nodes for model in (one, other))
    for number, (mine, yours) in enumerate(zip(ours, theirs, strict=False), start=1):
        if mine.op != yours.op:
            return f"operator {number} is {mine.op} against {yours.op}"
        if mine != yours:
            return f"operator {number}, {mine.op}, has the arguments {_text(mine)} against {_text(yours)}"
    return None if len(ours) == len(theirs) else f"{len(ours)} operators against {len(theirs)}"


def _text(node: object) -> str:
    return f"{getattr(node, 'args', '')} {getattr(node, 'kwargs', '')}"[:120]
