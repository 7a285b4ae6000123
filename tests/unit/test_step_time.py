"""The first guess of a step's seconds: what must hold of it whatever the constants are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unified.admission import Estimate
from unified.step_time import step_seconds_guess

COUNTS = st.integers(0, 10**13)


def needs(flops, num_ops, activations):
    return Estimate(
        num_parameters=1,
        resident_bytes=4,
        peak_bytes=4 + activations,
        flops_per_step=flops,
        num_ops_per_step=num_ops,
    )


@given(flops=COUNTS, num_ops=COUNTS, activations=COUNTS, more=st.integers(1, 10**13), threads=st.integers(1, 64))
def test_more_work_takes_longer_and_more_threads_do_not(flops, num_ops, activations, more, threads):
    guess = step_seconds_guess(needs(flops, num_ops, activations), threads)
    assert guess >= 0
    assert step_seconds_guess(needs(flops + more, num_ops, activations), threads) >= guess
    assert step_seconds_guess(needs(flops, num_ops + more, activations), threads) >= guess
    assert step_seconds_guess(needs(flops, num_ops, activations + more), threads) >= guess
    assert step_seconds_guess(needs(flops, num_ops, activations), threads + 1) <= guess


def test_threads_do_not_speed_up_the_fixed_cost_of_operators():
    only_operators = needs(0, 1000, 0)
    assert step_seconds_guess(only_operators, 1) == step_seconds_guess(only_operators, 8)
    only_products = needs(10**12, 0, 0)
    assert 1.4 < step_seconds_guess(only_products, 1) / step_seconds_guess(only_products, 2) < 2
