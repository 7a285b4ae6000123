"""Build a model that a job only names, and give it stored weights: first without memory, to see whether they fit.

What a name and its arguments stand for may be of any size. Built on the meta device it takes no memory, and only if its
parameters are those of the file, whose size is known, it is built in earnest.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unified.job_problems import did_you_mean
from unified.submission.equality import preserved_random_state
from unified.submission.refusal import MAX_FAULTS, Fault, RefusedModelError, refused
from unified.submission.stored_tensors import check_finite
from unified.submission.weight_files import Weight

SPARE_MODULES = 5_000  #: beside some for each stored tensor; activations and the like have none
_MODULES_PER_TENSOR = 20
MAX_RANGE = 1024  #: numbers in a list that a builder may read while it builds
_SPARE_BYTES = 256 << 20  #: for buffers that are not stored

_FIELD = "architecture"
_WRONG = "correct the architecture, or save the weights of this one: torch.save(model.state_dict(), path)"


def build_to_fit(make: Callable[[], nn.Module], weights: Mapping[str, Weight], *, finite: bool = True) -> nn.Module:
    """Return what ``make`` builds, with these weights, in training mode.

    The names of parameters that are tied stand for each other: one of them is enough. Building draws from a random state of
    its own; that of the process stays as it was.

    Args:
        make: Builds the model, whatever device is the default.
        weights: What its state dict must hold, all of it and nothing else.
        finite: Refuse weights that are NaN or infinite.

    Raises:
        RefusedModelError: If it cannot be built, or the weights are not its own.
    """
    with own_random_state():
        model = build_on_meta(make, len(weights))
        _check_fit(model, weights)
        check_hidden(model, weights)
        torch.default_generator.manual_seed(0)
        model = make()
    _load(model, weights, finite=finite)
    return model.train()


@contextlib.contextmanager
def own_random_state() -> Iterator[None]:
    """Build in here: whatever is drawn comes from a state of its own, and builders' warnings are not shown."""
    with preserved_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        yield


def build_on_meta(make: Callable[[], nn.Module], num_tensors: int) -> nn.Module:
    """Return what ``make`` builds, without memory for its tensors.

    Args:
        make: Builds the model, whatever device is the default.
        num_tensors: How many weights there are for it.

    Raises:
        RefusedModelError: If it cannot be built, or has more modules than there can be with so many weights.
    """
    failures: list[Exception] = []
    for numbers in (contextlib.nullcontext, _RealNumbers):
        try:
            with torch.device("meta"), numbers(), _bounded(num_tensors):
                return make()
        except RefusedModelError:
            raise
        except Exception as error:  # noqa: BLE001 - builders refuse arguments with errors of any kind
            failures.append(error)
            if not isinstance(error, NotImplementedError | RuntimeError):
                break
    error = failures[-1]
    given = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    raise refused("E-DECLARED", _FIELD, "an architecture that can be built", given, "correct its arguments") from error


class _RealNumbers(TorchFunctionMode):
    """Makes short lists of numbers for real: some builders compute their widths or rates with them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func in (torch.arange, torch.linspace, torch.tensor) and made.is_meta and made.numel() <= MAX_RANGE:
            return func(*args, **{**kwargs, "device": "cpu"})
        return made


@contextlib.contextmanager
def _bounded(num_tensors: int) -> Iterator[None]:
    """Stop a builder that makes far more modules or parameters than there are weights."""
    count, limit = 0, SPARE_MODULES + _MODULES_PER_TENSOR * num_tensors

    def tick(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > limit:
            expected = f"a model for {num_tensors} stored tensors"
            raise refused("E-DECLARED", _FIELD, expected, f"one of more than {limit} parts", "correct its arguments")

    hooks = [
        nn.modules.module.register_module_module_registration_hook(tick),
        nn.modules.module.register_module_parameter_registration_hook(tick),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_fit(model: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Compare names, shapes and types."""
    own = dict(model.state_dict(keep_vars=True))
    groups = _tied(own)
    faults = [*_missing(own, groups, weights), *_unexpected(own, weights), *_misshapen(own, weights)]
    if faults:
        raise RefusedModelError(faults)


def check_hidden(model: nn.Module, weights: Mapping[str, Weight]) -> None:
    """Bound the buffers that are not stored.

    Raises:
        RefusedModelError: If they are out of proportion to what is stored.
    """
    own = model.state_dict(keep_vars=True)
    hidden = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in own)
    stored = sum(weight.nbytes for weight in weights.values())
    if hidden > stored + _SPARE_BYTES:
        given = f"{hidden} bytes of buffers that are not stored"
        raise refused("E-DECLARED", _FIELD, f"a model of about {stored} bytes", given, _WRONG)


def _missing(own: Mapping[str, Tensor], groups: Mapping[int, list[str]], weights: Mapping[str, Weight]) -> list[Fault]:
    names = [name for name, tensor in own.items() if not any(other in weights for other in groups[id(tensor)])]
    return [_fault(f"weights of {name!r}", "none", _WRONG) for name in names[:MAX_FAULTS]] + _more(names, "missing")


def _unexpected(own: Mapping[str, Tensor], weights: Mapping[str, Weight]) -> list[Fault]:
    names = [name for name in weights if name not in own]
    return [
        _fault("only weights that the architecture has", repr(name[:100]), did_you_mean(name, own, _WRONG))
        for name in names[:MAX_FAULTS]
    ] + _more(names, "that it does not have")


def _misshapen(own: Mapping[str, Tensor], weights: Mapping[str, Weight]) -> list[Fault]:
    faults: list[Fault] = []
    for name in own.keys() & weights.keys():
        room, weight = own[name], weights[name]
        if tuple(room.shape) != weight.shape or room.dtype != weight.dtype:
            expected = f"{name!r} of {room.dtype} and shape {tuple(room.shape)}"
            same_shape = tuple(room.shape) == weight.shape
            remedy = f"convert it: tensor.to({room.dtype})" if same_shape else _WRONG
            faults.append(_fault(expected, f"{weight.dtype} and shape {weight.shape}", remedy))
    faults.sort(key=lambda fault: fault.expected)
    return faults[:MAX_FAULTS] + _more(faults, "of another shape or type")


def _more(found: list[Any], what: str) -> list[Fault]:
    return [] if len(found) <= MAX_FAULTS else [_fault("weights that fit", f"{len(found)} {what} in all", _WRONG)]


def _fault(expected: str, given: str, remedy: str) -> Fault:
    return Fault(code="E-DECLARED", where="model", expected=expected, given=given, remedy=remedy)


def _tied(own: Mapping[str, Tensor]) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for name, tensor in own.items():
        groups.setdefault(id(tensor), []).append(name)
    return groups


def _load(model: nn.Module, weights: Mapping[str, Weight], *, finite: bool) -> None:
    own = dict(model.state_dict(keep_vars=True))
    with torch.no_grad():
        for names in _tied(own).values():
            given = [name for name in names if name in weights]
            tensor = weights[given[0]].read()
            if finite and own[given[0]].requires_grad:
                check_finite(given[0], tensor)
            for other in given[1:]:
                if not torch.equal(tensor, weights[other].read()):
                    pair = f"{given[0]!r} and {other!r}"
                    raise refused("E-DECLARED", "model", f"{pair} equal, as they are one", "two that differ", _WRONG)
            own[given[0]].copy_(tensor)
