"""Models of torchvision and timm by the names that they list, built untrained; nothing is read from the network or a file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from unified.component_problems import annotated_kinds, is_of_kind, kinds_in_words
from unified.job_parts import ArchitectureSpec
from unified.job_problems import describe, did_you_mean
from unified.submission.guarded_build import build_on_meta
from unified.submission.refusal import MAX_FAULTS, Fault, RefusedModelError, refused

MAX_TEXT = 100
MAX_ITEMS = 64
_MAX_TENSORS = 5_000  #: of the largest model of a library with its own arguments
MAX_NUMBER = 1 << 20  #: larger sizes no file could hold the weights of

#: Parts of names of arguments that may lead to the network, to a file, or to another kind of model.
_FORBIDDEN = ("pretrained", "weights", "checkpoint", "cache", "path", "file", "url", "hub", "cfg", "features_only", "script")


def library_model(architecture: ArchitectureSpec) -> Callable[[], nn.Module]:
    """Return what builds a model of ``torchvision`` or ``timm``.

    Raises:
        RefusedModelError: If the library is not installed, does not know the name, or an argument is not one of the model's.
    """
    assert architecture.library in _LIBRARIES, "other libraries are not looked up by name"
    assert architecture.name is not None, "a checked architecture has a library and a name"
    names, make = _LIBRARIES[architecture.library](_import(architecture.library))
    if architecture.name not in (known := set(names)):
        otherwise = f"see what {architecture.library} lists"
        remedy = did_you_mean(architecture.name, known, otherwise)
        expected = f"a model for classification that {architecture.library} lists"
        raise refused("E-DECLARED", "architecture.name", expected, describe(architecture.name), remedy)
    make = partial(make, architecture.name)
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in architecture.arguments.items()}
    if arguments:
        faults = _argument_faults(type(build_on_meta(make, _MAX_TENSORS)), architecture.arguments)
        if faults:
            raise RefusedModelError(faults[:MAX_FAULTS])
    return partial(make, **arguments)


def _import(library: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        remedy = f"pip install unifiednn[{library}]"
        given = f"a model of {library}, which is not installed here: {str(error)[:150]}"
        raise refused("E-DECLARED", "architecture.library", "a library that is installed", given, remedy) from error


def _torchvision(library: Any) -> tuple[Iterable[str], Callable[..., nn.Module]]:
    # those for detection and segmentation would fetch a trained backbone, and take other data than a job has
    return library.models.list_models(module=library.models), partial(library.models.get_model, weights=None)


def _timm(library: Any) -> tuple[Iterable[str], Callable[..., nn.Module]]:
    return library.list_models(), lambda name, **arguments: library.model_entrypoint(name)(pretrained=False, **arguments)


_LIBRARIES: dict[str, Callable[[Any], tuple[Iterable[str], Callable[..., nn.Module]]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
}


def _argument_faults(kind: type[nn.Module], arguments: Mapping[str, Any]) -> list[Fault]:
    known = {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and not _is_forbidden(name)
    }
    faults = []
    for name, value in arguments.items():
        place = f"architecture.arguments.{name[:80]}"
        if _is_forbidden(name):
            faults.append(
                _fault(place, "what says how the model is built", describe(value), "leave it out: weights come as a file")
            )
        elif name not in known:
            remedy = did_you_mean(name, known, f"known are {', '.join(known)}")
            faults.append(_fault(place, f"an argument of {kind.__name__}", describe(value), remedy))
        elif not _is_plain(value):
            expected = f"numbers up to {MAX_NUMBER}, true/false, null, short text, or a list of numbers"
            faults.append(_fault(place, expected, describe(value), "give such a value"))
        elif (kinds := annotated_kinds(known[name])) is not None and not is_of_kind(value, kinds):
            faults.append(_fault(place, kinds_in_words(kinds), describe(value), f"see {kind.__module__}.{kind.__name__}"))
    return faults


def _is_forbidden(name: str) -> bool:
    return name.startswith("_") or any(part in name.lower() for part in _FORBIDDEN)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= MAX_ITEMS and all(isinstance(item, int | float) and _is_plain(item) for item in value)
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and not any(mark in value for mark in "/\\:")
    return value is None or (isinstance(value, int | float) and abs(value) <= MAX_NUMBER)


def _fault(field: str, expected: str, given: str, remedy: str) -> Fault:
    return Fault(code="E-DECLARED", where=field, expected=expected, given=given, remedy=remedy)
