"""From a finished job to a task of a search: its trained model, the output that counts, and how well it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusion.search.tasks import Task
from unified.components import select_output
from unified.dataset_problems import Inputs
from unified.errors import UnifiedError
from unified.fusing.rows import signature_text
from unified.fusing.sources import FinishedJob
from unified.metrics import HIGHER_IS_BETTER, build_metrics
from unified.random_state import preserved_random_state
from unified.submission.models import load_model, recognise

#: Losses of values, and of classes; of another one the search finds out itself what an output is.
_VALUE_LOSSES = frozenset({"MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "PoissonNLLLoss"})
_ADAMS = frozenset({"Adam", "AdamW", "Adamax", "NAdam", "RAdam"})
_CLASS_LOSSES = frozenset({"CrossEntropyLoss", "NLLLoss", "MultiMarginLoss"})


def task_of(job: FinishedJob, inputs: Inputs, *, trust: bool) -> Task:
    """Return the task that a finished job is.

    Args:
        job: The job.
        inputs: A few samples, to see what its model returns.
        trust: Whether a model file that runs code when it is loaded is accepted.

    Raises:
        InvalidSubmission: If the model's file is damaged, or needs trust it does not have.
        UnifiedError: If the model does not take the samples.
    """
    ref = recognise(job.model, job=job.name, trust=trust, staged=False, architecture=job.spec.architecture)
    model = load_model(ref, job=job.name).eval()
    loss = job.spec.loss.name
    return Task(
        name=job.name,
        model=model,
        output=output_key(job.name, model, inputs, job.spec.output),
        score=score_of(job),
        lr=learning_rate(job),
        dense=True if loss in _VALUE_LOSSES else False if loss in _CLASS_LOSSES else None,
    )


def score_of(job: FinishedJob) -> MetricScore | None:
    """Return the job's first metric as a score; None where the search's own accuracy is just that, or there is no metric."""
    metric = job.spec.metrics[0] if job.spec.metrics else None
    if metric is None or (metric == "accuracy" and job.spec.loss.name in _CLASS_LOSSES):
        return None
    return MetricScore(metric, _scale(metric, job.metrics))


@dataclass(frozen=True, slots=True)
class MetricScore:
    """A job's metric as a score, higher is better.

    An error (``mae``, ``mse``, ``perplexity``) has no natural unit, so its score is minus the error over the error that the
    model had in its own test: a drop of 0.01 is one percent more of it.

    Attributes:
        metric: Its name.
        scale: What the metric is divided by.

    Example:
        >>> MetricScore("accuracy")(torch.tensor([[0.1, 0.9], [0.3, 0.2]]), torch.tensor([1, 1]))
        tensor([1., 0.])
        >>> MetricScore("r2")(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        1.0
    """

    metric: str
    scale: float = 1.0

    def __call__(self, output: Tensor, labels: Tensor) -> float | Tensor:
        """Return the score of outputs ``(n, …)`` for labels ``(n, …)``: one for each where the metric is a mean over them."""
        output, labels = output.detach().cpu(), labels.detach().cpu()
        value = _of_each(self.metric, output, labels)
        if value is None:
            (metric,) = build_metrics([self.metric])
            metric.update(output, labels)
            value = float(metric.compute())
        return value / self.scale if HIGHER_IS_BETTER[self.metric] else -value / self.scale


def _of_each(metric: str, output: Tensor, labels: Tensor) -> Tensor | None:
    """Return the metric of each sample ``(n,)`` if their mean is that of all, so that its certainty can be told; else None."""
    if metric == "accuracy" and labels.ndim == 1 and output.ndim == 2 and output.shape[1] > 1:
        return (output.argmax(dim=1) == labels).float()
    if metric in ("mae", "mse") and output.numel() == labels.numel():
        difference = output.double() - labels.double().reshape(output.shape)
        return (difference.abs() if metric == "mae" else difference.square()).reshape(len(output), -1).mean(dim=1)
    return None


def _scale(metric: str, own: Mapping[str, float]) -> float:
    value = own.get(metric)
    is_error = not HIGHER_IS_BETTER[metric]
    return float(value) if is_error and value is not None and math.isfinite(value) and value > 0 else 1.0


def learning_rate(job: FinishedJob) -> float | None:
    """Return the rate that the job was trained with if that was by a kind of Adam, as fused models are; else None.

    A rate of another optimizer means nothing to Adam: plain SGD's are often a hundred times larger.
    """
    if job.spec.optimizer.name not in _ADAMS:
        return None
    rate = job.spec.optimizer.kwargs.get("lr", 1e-3)
    return float(rate) if isinstance(rate, int | float) and rate > 0 else None


def output_key(name: str, model: nn.Module, inputs: Inputs, wanted: str | int | None) -> str | int | None:
    """Return which part of the model's output is scored, None where it is one tensor.

    Raises:
        UnifiedError: If the model does not take the samples, or gives no such part.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), preserved_random_state():
        try:
            output = _called(model, inputs)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UnifiedError(
                f"task {name!r}: its model does not take the data ({signature_text(inputs)}): {reason}; "
                "give data as it was trained on"
            ) from error
        finally:
            model.train(was_training)
    try:
        chosen = select_output(output, wanted)
    except TypeError as error:
        raise UnifiedError(f"task {name!r}: {error}") from error
    return None if isinstance(output, Tensor) else _key_of(output, chosen, wanted)


def _key_of(output: Any, chosen: Tensor, wanted: str | int | None) -> str | int | None:
    """Return the key or position of ``chosen`` in plain mappings and sequences, which is what a captured model gives."""
    if isinstance(output, Mapping):
        return next(key for key, value in output.items() if value is chosen)
    if isinstance(output, tuple | list):
        return next(index for index, value in enumerate(output) if value is chosen)
    return wanted


def _called(model: nn.Module, inputs: Inputs) -> Any:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if isinstance(inputs, dict):
        return model(**{name: tensor.to(device) for name, tensor in inputs.items()})
    return model(inputs.to(device))
