"""What jobs must have in common to step as one: a hash of everything that is not a number of each job's own."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from fusion.stacking.signature import digest
from unified.datasets import TensorData
from unified.job import JobSpec

#: Optimizers whose hyper-parameters may differ between the members of a stack.
OPTIMIZERS = frozenset({"SGD", "Adam", "AdamW", "RMSprop", "Adagrad"})
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


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
        "model": digest(module),
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


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks on while the model is called, for whom stepping as one would not be the same."""
    return any(bool(getattr(child, hooks)) for child in module.modules() for hooks in _HOOKS)


def _flags(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's switches: what is no number."""
    return {
        name: value for name, value in kwargs.items() if isinstance(value, bool) or not isinstance(value, int | float | list)
    }
