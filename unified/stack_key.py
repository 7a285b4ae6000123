"""What jobs must have in common to step as one: a hash of everything that is not a number of each job's own."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from unified.datasets import TensorData
from unified.job import JobSpec
from unified.submission.interpreter import ArchiveModule

#: Optimizers whose hyper-parameters may differ between the members of a stack.
OPTIMIZERS = frozenset({"SGD", "Adam", "AdamW", "RMSprop", "Adagrad"})
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_COMMON = frozenset(vars(nn.Module()))  #: attributes of every module


def stack_key(spec: JobSpec, module: nn.Module, train: TensorData) -> str | None:
    """Return a SHA-256 that is equal for jobs which may step as one, or None for a job that steps by itself.

    Learning rate, momentum, betas, eps, weight decay, clipping, schedule, seed, data, epochs, early stopping, metrics and
    checkpoints are a job's own.

    Args:
        spec: The job.
        module: Its model.
        train: Its training data, for shapes and dtypes.
    """
    if spec.stacking != "auto" or spec.precision != "fp32" or spec.optimizer.name not in OPTIMIZERS or _has_hooks(module):
        return None
    inputs, targets = train.batch(torch.arange(1))
    named = inputs if isinstance(inputs, dict) else {"": inputs}
    content = {
        "parameters": [_tensor(name, value) for name, value in module.named_parameters(remove_duplicate=False)],
        "buffers": [_tensor(name, value) for name, value in module.named_buffers(remove_duplicate=False)],
        "model": _structure(module),
        "loss": [spec.loss.name, spec.loss.kwargs],
        "output": spec.output,
        "optimizer": [spec.optimizer.name, _flags(spec.optimizer.kwargs)],
        "batch_size": spec.batch_size,
        "inputs": [_tensor(name, value[0]) for name, value in named.items()],
        "targets": _tensor("", targets[0]),
    }
    text = json.dumps(content, sort_keys=True, default=repr, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor(name: str, value: torch.Tensor) -> tuple[str, tuple[int, ...], str]:
    return name, tuple(value.shape), str(value.dtype)


def _structure(module: nn.Module) -> Any:
    """Return what a model computes: the records of its graphs, or else the tree of its modules."""
    if isinstance(module, ArchiveModule):
        state = module._umodel
        constants = [hashlib.sha256(repr(constant.tolist()).encode()).hexdigest() for constant in state.constants]
        return {name: repr(graph) for name, graph in sorted(state.graphs.items())} | {"constants": constants}
    return [
        (name, _called(type(child)), child.extra_repr(), _attributes(child))
        for name, child in module.named_modules(remove_duplicate=False)
    ]


def _attributes(module: nn.Module) -> list[tuple[str, str]]:
    """Return what a module keeps beside tensors and other modules: its forward may depend on it."""
    own = {name: value for name, value in vars(module).items() if name not in _COMMON}
    return [(name, _text(value)) for name, value in sorted(own.items())]


def _text(value: Any) -> str:
    """Show a value so that equal ones look equal in every process; what only an address tells apart, by its type."""
    text = repr(value)
    return f"{_called(type(value))} {getattr(value, '__qualname__', '')}" if " at 0x" in text else text


def _called(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks on while the model is called, for whom stepping as one would not be the same."""
    return any(bool(getattr(child, hooks)) for child in module.modules() for hooks in _HOOKS)


def _flags(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's switches: what is no number."""
    return {
        name: value for name, value in kwargs.items() if isinstance(value, bool) or not isinstance(value, int | float | list)
    }
