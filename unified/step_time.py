"""A first guess of how long a training step takes, for plans made before anything was measured. Free of torch."""

from __future__ import annotations

from unified.admission import Estimate

# Fitted to 24 steps (multilayer perceptrons, convolutions, recurrent layers, encoders; Adam; batches of 8 and 64) on one core
# of a 2.6 GHz AMD EPYC with AVX-512: half of the guesses were within a factor of 1.5, the worst, LSTMs, 4 too high.
_FLOPS_PER_SECOND = 1.0e11
_SECONDS_PER_OP = 3.2e-6
#: Activations are read and written several times in a step; this is per byte held, not per byte moved.
_HELD_BYTES_PER_SECOND = 1.1e9
#: A second thread made a convolutional network 1.54 times as fast: 2 ** 0.62.
_THREAD_EXPONENT = 0.62


def step_seconds_guess(estimate: Estimate, threads: int) -> float:
    """Guess the seconds of one training step on a CPU: arithmetic, memory traffic and the fixed cost of each operator.

    Crude: it ranks jobs and tells minutes from hours. Replace it by measured steps as soon as there are any.

    Args:
        estimate: What the step needs.
        threads: Intra-op threads, from 1 on.

    Example:
        >>> from unified.admission import Estimate
        >>> small = Estimate(
        ...     num_parameters=10, resident_bytes=160, peak_bytes=1000, flops_per_step=5000, num_ops_per_step=100
        ... )
        >>> f"{step_seconds_guess(small, threads=1):.5f}"
        '0.00032'
    """
    activations = estimate.peak_bytes - estimate.resident_bytes
    parallel = estimate.flops_per_step / _FLOPS_PER_SECOND + activations / _HELD_BYTES_PER_SECOND
    return parallel / threads**_THREAD_EXPONENT + estimate.num_ops_per_step * _SECONDS_PER_OP
