"""Which jobs of one model and one dataset take the same step, so that only one of them has to be measured. Free of torch."""

from __future__ import annotations

import json

from unified.job import JobSpec


def step_kind(spec: JobSpec) -> str:
    """Return a text that is equal for jobs whose steps take the same memory and time, given the same model and data.

    What a fraction such as a learning rate is makes no difference, unless it is zero: then an optimizer may leave work out.
    """
    kind = {
        "batch_size": spec.batch_size,
        "drop_last": spec.drop_last,
        "loss": spec.loss.model_dump(mode="json"),
        "optimizer": _kind(spec.optimizer.model_dump(mode="json")),
        "lr_scheduler": None if spec.lr_scheduler is None else [spec.lr_scheduler.name, spec.lr_scheduler.every],
        "is_clipped": spec.clip_grad_norm is not None,
        "precision": spec.precision,
        "output": spec.output,
    }
    return json.dumps(kind, sort_keys=True)


def _kind(value: object) -> object:
    if isinstance(value, float):
        return "a fraction" if value else "zero"
    if isinstance(value, dict):
        return {name: _kind(item) for name, item in value.items()}
    return [_kind(item) for item in value] if isinstance(value, list) else value
