"""Measure a job's step before it is admitted: on fake tensors first, then, where it is small enough, for real on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from schedulers.base import Steps
from unified.admission import DatasetRef, Estimate, Submission
from unified.components import build_loss, build_optimizer
from unified.datasets import load_tensors
from unified.errors import InvalidSubmission, Problem, SlowEstimateError
from unified.hybrid import HybridModule
from unified.job import JobSpec
from unified.member import Member
from unified.memory import MAX_SECONDS, count_parameters, estimate
from unified.process_settings import ProcessSettings
from unified.quantities import seconds_text
from unified.stepping import Hooks
from unified.submission.models import load_model
from unified.trainer import Trainer

MAX_TRIAL_STEPS = 4  #: the first one warms up
TRIAL_SECONDS = 0.3  #: after which no further step is begun


def measure_step(spec: JobSpec, module: nn.Module, train: DatasetRef, device_type: str) -> tuple[Estimate, tuple[Problem, ...]]:
    """Return what a step needs; for a step that cannot be done at all only what its weights need, and why."""
    autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[spec.precision]
    sample = load_tensors(train).batch(torch.arange(min(2, train.num_samples)))
    try:
        with ProcessSettings.preserved():
            measured = estimate(
                module,
                build_loss(spec.loss),
                lambda parameters: build_optimizer(spec.optimizer, parameters),
                sample,
                batch_size=min(spec.batch_size, train.num_samples),
                device_type=device_type,
                autocast_dtype=autocast,
                output=spec.output,
            )
    except SlowEstimateError as error:
        raise InvalidSubmission([_slow_problem(spec.name, error)]) from error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the job's own fault: it will fail alone, when its turn comes
        return _weights_only(module), (_step_problem(spec.name, f"{type(error).__name__}: {error}"),)
    return measured, ()


def _weights_only(module: nn.Module) -> Estimate:
    """Count weights, gradients and two moments of Adam."""
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    held = 4 * parameters + buffers
    return Estimate(
        num_parameters=count_parameters(module),
        resident_bytes=held,
        peak_bytes=held,
        flops_per_step=0,
        num_ops_per_step=0,
        eval_peak_bytes=held,
    )


def time_steps(submission: Submission, module: nn.Module) -> tuple[float | None, tuple[Problem, ...]]:
    """Return the seconds of a real training step on this process's throw-away copy, or why there was none."""
    device = torch.device("cpu")
    hybrid = HybridModule()
    hybrid.add(submission.name, module)
    member = Member(submission, module, load_tensors(submission.train), None, device)
    trainer = Trainer(hybrid, device, torch.get_num_threads())
    hooks = Hooks(between_steps=lambda: False, on_progress=lambda *_: None, on_epoch=lambda *_: None)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < MAX_TRIAL_STEPS and sum(seconds) < TRIAL_SECONDS):
        report = trainer.run_turn(member, Steps(count=1), hooks)
        if report.failure is not None:
            return None, (_step_problem(submission.name, report.failure.reason),)
        if not report.steps:
            break  # the whole job is a single step
        seconds.append(report.seconds)
    return min(seconds), ()


def _slow_problem(job: str, error: BaseException) -> Problem:
    return Problem(
        code="E-LIMIT",
        job=job,
        field="model",
        expected=f"a model of which one step is followed operator by operator within {seconds_text(MAX_SECONDS)}",
        given=str(error),
        remedy="hand in a model with fewer operators",
    )


def _step_problem(job: str, reason: str) -> Problem:
    return Problem(
        code="E-STEP",
        job=job,
        field="model",
        expected="a training step on the first batches",
        given=reason,
        remedy="correct the model, its loss or its data",
    )


def time_one(alike: Sequence[Submission], module: nn.Module) -> tuple[float | None, tuple[Problem, ...]]:
    """Time steps of the first of these jobs; where they fail, as with too high a learning rate, those of the last."""
    seconds, problems = time_steps(alike[0], module)
    if problems and len(alike) > 1:
        seconds, _ = time_steps(alike[-1], load_model(alike[-1].model, job=alike[-1].name))
    return seconds, problems
