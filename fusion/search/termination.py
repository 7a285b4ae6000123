"""Early termination: end the training of a candidate whose drop is predicted to stay too large.

References:
    GMorph: Accelerating Multi-DNN Inference via Model Fusion, section 5.1. Different here: both last differences advance in
    the recursion, curves that do not converge are not judged, and a margin is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_NUM_CHECKS = 4
_NEVER_MIND = 1e-12  # a step of the recursion below which the rest adds nothing to a score
_MAX_STEPS = 10_000


def predict_final(checks: Sequence[float], *, interval: float, epochs_left: float, resolution: float) -> float | None:
    """Predict the drop at the end of the budget from the last four checks.

    With f the checks, e_k = ln|f_{k+1} - f_k| and alpha = (e_2 - e_1) / (e_1 - e_0), the recursion
    e_{k+1} = e_k + alpha (e_k - e_{k-1}), f_{k+1} = f_k + s exp(e_k) is repeated, s the sign of the last change.

    Args:
        checks: Drops (or scores) in the order in which they were taken, every one of them.
        interval: Epochs between two checks, > 0.
        epochs_left: Epochs that are left, >= 0; a last interval that is not whole counts as one.
        resolution: The smallest change that means anything: one sample of the validation part. May be 0.

    Returns:
        The prediction; the last value on a plateau; None where nothing can be said: fewer than four checks, one that is not
        finite, or changes that do not shrink.

    Example:
        >>> round(predict_final([0.200, 0.120, 0.075, 0.050], interval=1, epochs_left=100, resolution=0.0001), 4)
        0.0206
    """
    last = checks[-_NUM_CHECKS:]
    if len(last) < _NUM_CHECKS or not all(math.isfinite(value) for value in last):
        return None
    changes = [abs(after - before) for before, after in pairwise(last)]
    if changes[2] == 0 or changes[2] < resolution:
        return last[-1]
    if changes[2] >= changes[1] or changes[0] == 0:
        return None
    alpha = _rate(changes, resolution)
    if alpha is None:
        return None
    sign = math.copysign(1.0, last[3] - last[2])
    before, now, value = math.log(changes[1]), math.log(changes[2]), last[-1]
    for _ in range(min(math.ceil(epochs_left / interval), _MAX_STEPS)):
        before, now = now, now + alpha * (now - before)
        step = math.exp(now)
        if step < _NEVER_MIND:
            break
        value += sign * step
    return value


def should_stop(
    checks: Sequence[float], *, threshold: float, margin: float, interval: float, epochs_left: float, resolution: float
) -> bool:
    """Whether a candidate is to be ended: its drop is predicted to miss ``threshold`` by more than ``margin``.

    Args:
        checks: Drops so far, every one of them.
        threshold: The loosest drop that is still of use.
        margin: A drop, >= 0; usually the standard error of the last one.
        interval: Epochs between two checks.
        epochs_left: Epochs that are left.
        resolution: One over the number of samples of the validation part.
    """
    final = predict_final(checks, interval=interval, epochs_left=epochs_left, resolution=resolution)
    return final is not None and final > threshold + margin


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of ``values``: the score, or the score lost, of each sample.

    With the loss of each sample (1 where only the teacher is right, -1 where only the student is, else 0) that is the error of
    a drop, much smaller than that of two scores taken apart.

    Example:
        >>> standard_error([1, 0, 0, 1])
        0.25
    """
    if not values:
        return math.inf
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values)) / len(values)


def _rate(changes: Sequence[float], resolution: float) -> float | None:
    """Return alpha, or None for a rate at which changes do not shrink."""
    first, second, third = (math.log(change) for change in changes)
    # by so much may two logarithms differ if each of the changes is off by one sample
    noise = max(resolution / changes[0] + resolution / changes[1], 1e-9)
    if abs(second - first) <= noise:
        return 1.0
    alpha = (third - second) / (second - first)
    return alpha if alpha >= 0 else None
