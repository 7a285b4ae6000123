"""Losses, optimizers and learning-rate schedules: PyTorch's own, built from name and keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import loss as torch_losses
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedules
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from unified.job_parts import Component, LossSpec, LRSchedulerSpec, OptimizerSpec

_OWN_WEIGHTS = "it has weights of its own: make it the last layer of the model"
_NEEDS_CODE = "it needs a function, and a job is data: use e.g. MultiStepLR or SequentialLR"

_LOSSES: dict[str, type[nn.Module]] = {name: getattr(torch_losses, name) for name in torch_losses.__all__}


def _arguments(loss: type[nn.Module]) -> list[str]:
    """Return the names of what ``loss`` is called with."""
    return [*inspect.signature(loss.forward).parameters][1:]


#: What PyTorch has and a job cannot use, and why.
UNFIT: dict[str, str] = {
    name: f"it is called with ({', '.join(_arguments(loss))}), not with (output, target)"
    for name, loss in _LOSSES.items()
    if len(_arguments(loss)) != 2
} | {
    "AdaptiveLogSoftmaxWithLoss": _OWN_WEIGHTS,
    "LinearCrossEntropyLoss": _OWN_WEIGHTS,
    "NLLLoss2d": "PyTorch has retired it: use NLLLoss",
    "LBFGS": "it runs the model several times a step, which the plain training loop does not: use e.g. AdamW",
    "SparseAdam": "it only takes sparse gradients: use Adam",
    "LambdaLR": _NEEDS_CODE,
    "MultiplicativeLR": _NEEDS_CODE,
}


def _classes(module: Any, base: type) -> dict[str, type]:
    """Return the public classes of ``module`` below ``base`` that a job can use, by name."""
    return {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
        if not name.startswith("_") and name not in UNFIT
    }


LOSSES: dict[str, type[nn.Module]] = {name: loss for name, loss in _LOSSES.items() if name not in UNFIT}
OPTIMIZERS: dict[str, type[Optimizer]] = _classes(torch.optim, Optimizer)
LR_SCHEDULERS: dict[str, type[LRScheduler]] = _classes(torch_schedules, LRScheduler)


def build_loss(spec: LossSpec) -> nn.Module:
    """Return the loss; lists given as ``weight`` or ``pos_weight`` become float32 tensors.

    Raises:
        KeyError: If there is no such loss. Whatever else PyTorch's constructor refuses, it says itself.

    Example:
        >>> build_loss(LossSpec(name="CrossEntropyLoss", weight=[1.0, 2.0])).weight
        tensor([1., 2.])
    """
    kwargs = spec.kwargs
    for name in ("weight", "pos_weight"):
        if kwargs.get(name) is not None:
            kwargs[name] = torch.tensor(kwargs[name], dtype=torch.float32)
    return LOSSES[spec.name](**kwargs)


def build_optimizer(spec: OptimizerSpec, params: Iterable[Tensor]) -> Optimizer:
    """Return the optimizer of ``params``; whatever ``spec`` does not say is PyTorch's own default.

    Raises:
        KeyError: If there is no such optimizer.
        ValueError: If PyTorch refuses a value, or a parameter (``Muon`` takes matrices only).

    Example:
        >>> build_optimizer(OptimizerSpec(name="Adam", betas=[0.5, 0.9]), [torch.zeros(1)]).defaults["betas"]
        (0.5, 0.9)
    """
    # JSON has no tuples, but PyTorch's own defaults are tuples and end up in the optimizer's state dict.
    kwargs = {name: tuple(value) if isinstance(value, list) else value for name, value in spec.kwargs.items()}
    build: Any = OPTIMIZERS[spec.name]
    return build(params, **kwargs)


def build_lr_scheduler(
    spec: LRSchedulerSpec | None, optimizer: Optimizer, *, total_steps: int | None = None
) -> LRScheduler | None:
    """Return the learning-rate schedule of ``optimizer``, None for None.

    Args:
        spec: The schedule's name and keyword arguments.
        optimizer: Its learning rates become what the schedule begins with.
        total_steps: How often the schedule will be stepped: number of epochs or of optimizer steps, as
            ``spec.every`` says; None: not known. ``OneCycleLR`` takes it as its length if given none.

    Raises:
        KeyError: If there is no such schedule.
        ValueError: If PyTorch refuses a value, or ``OneCycleLR`` is shorter than the job.
    """
    if spec is None:
        return None
    return _lr_scheduler(spec, optimizer, total_steps)


def needs_metric(scheduler: LRScheduler | None) -> bool:
    """Return whether ``scheduler.step`` wants the epoch's loss: on the test set, or the train set if there is none."""
    return isinstance(scheduler, ReduceLROnPlateau)


def select_output(output: object, which: str | int | None = None) -> Tensor:
    """Return, of what a model gave, the tensor that goes to the loss.

    Args:
        output: A tensor, a mapping (as the models of ``transformers`` give), a tuple or list, or an object.
        which: A key, an attribute or an index; None: the tensor itself, ``"logits"`` of a mapping or an
            object, or the first of a tuple.

    Returns:
        The very tensor, not a copy.

    Raises:
        TypeError: If there is no such tensor; the message says what there is.

    Example:
        >>> select_output({"logits": torch.tensor(1.0), "hidden": torch.tensor(2.0)}, "hidden")
        tensor(2.)
    """
    if which is None and isinstance(output, Tensor):
        return output
    found = _named(output, "logits" if which is None else which) if not isinstance(output, Tensor) else None
    if which is None and isinstance(output, tuple | list) and output:
        found = output[0]
    if isinstance(found, Tensor):
        return found
    wanted = "a tensor, 'logits' or a tuple that begins with a tensor" if which is None else f"output {which!r}"
    raise TypeError(f"expected the model to give {wanted}, got {_contents(output)}; set 'output' to fit the model")


def _lr_scheduler(spec: Component, optimizer: Optimizer, total_steps: int | None) -> LRScheduler:
    kwargs = spec.kwargs
    if "schedulers" in kwargs:
        parts = [Component.model_validate(part) for part in kwargs["schedulers"]]
        kwargs["schedulers"] = [_lr_scheduler(part, optimizer, None) for part in parts]
    if spec.name == "OneCycleLR":
        kwargs = _with_length(kwargs, total_steps)
    build: Any = LR_SCHEDULERS[spec.name]
    return build(optimizer=optimizer, **kwargs)


def _with_length(kwargs: dict[str, Any], total_steps: int | None) -> dict[str, Any]:
    """Return the arguments of ``OneCycleLR`` with a length that covers ``total_steps``."""
    length = kwargs.get("total_steps")
    if length is None and kwargs.get("epochs") and kwargs.get("steps_per_epoch"):
        length = kwargs["epochs"] * kwargs["steps_per_epoch"]
    if length is None:
        return {**kwargs, "total_steps": total_steps}
    if total_steps is not None and length < total_steps:
        raise ValueError(f"OneCycleLR ends after {length} steps, but the job steps it {total_steps} times")
    return kwargs


def _named(output: object, which: str | int) -> object:
    """Return the entry, attribute or item ``which`` of ``output``, None if there is none."""
    if isinstance(which, str):
        return output.get(which) if isinstance(output, Mapping) else getattr(output, which, None)
    items = [*output.values()] if isinstance(output, Mapping) else output
    return items[which] if isinstance(items, tuple | list) and which < len(items) else None


def _contents(output: object) -> str:
    if isinstance(output, Tensor):
        return "one tensor"
    if isinstance(output, Mapping):
        return f"a mapping with {', '.join(repr(key) for key in output) or 'nothing in it'}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {', '.join(type(item).__name__ for item in output) or 'nothing'}"
    return f"a {type(output).__name__}"
