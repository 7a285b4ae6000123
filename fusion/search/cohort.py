"""Training the candidates of one proposal side by side, from rung to rung (successive halving, R6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fusion.search.judge import Judge
from fusion.search.setting import Setting
from fusion.search.training import CoTrain
from fusion.search.trial import Trial


def train_cohort(
    setting: Setting, trials: Sequence[Trial], judge: Judge, cotrain: CoTrain, *, is_over: Callable[[], bool]
) -> None:
    """Train candidates until each has ended.

    Args:
        setting: What the search stands on.
        trials: The candidates; they share the batches of every step.
        judge: Looks at them after every rung.
        cotrain: Trains them.
        is_over: Whether the time for the search is up; asked between rungs.
    """
    config = setting.config
    if config.rungs:
        for trial in trials:
            if not trial.points and trial.status == "running":
                judge.look(trial)
        judge.compare(trials, 0, keep=config.cohort)
    done = 0
    for epochs in config.checks:
        running = [trial for trial in trials if trial.status == "running"]
        if not running:
            break
        if is_over():
            for trial in running:
                trial.end("unknown", "the time was up")
            break
        _train(setting, running, cotrain, first=done, epochs=epochs)
        done = epochs
        for trial in running:
            if trial.status == "running":
                judge.look(trial)
        if epochs in config.rungs and epochs < config.epochs:
            running = [trial for trial in trials if trial.status == "running"]
            judge.compare(running, epochs, keep=math.ceil(len(running) / 2))
    for trial in trials:
        judge.learn(trial.points)


def _train(setting: Setting, trials: list[Trial], cotrain: CoTrain, *, first: int, epochs: int) -> None:
    per_epoch = setting.order.steps_per_epoch
    units = [replace(trial.unit, first_step=first * per_epoch) for trial in trials]
    outcomes = cotrain(units, steps=(epochs - first) * per_epoch, seed=setting.config.seed)
    for trial, outcome in zip(trials, outcomes, strict=True):
        trial.epochs = epochs
        if outcome.failure is not None:
            trial.end("failed", outcome.failure)
