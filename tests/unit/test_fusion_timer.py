"""The timer, on a machine whose clock we turn ourselves."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
import pytest
import torch
from torch import nn

from fusion.graph.errors import FusionError
from fusion.timer import Marks, Timing, evaluating, recorder_for, time_interleaved, time_stages, work_clock


class Machine:
    """Time passes only while something runs; every run is written down."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order: list[str] = []

    def clock(self) -> float:
        return self.now

    def run(self, name: str, durations: Sequence[float]) -> Callable[[], None]:
        """Return a function whose runs take these seconds, again and again."""
        left = cycle(durations)

        def function() -> None:
            self.order.append(name)
            self.now += next(left)

        return function


def timings(machine: Machine, *functions: Callable[[], object], **settings: float) -> list[Timing]:
    return time_interleaved(functions, clock=machine.clock, **({"max_seconds": 100.0, "precision": 0.0} | settings))


def test_timer_median_and_rng_untouched() -> None:
    machine = Machine()
    slow_spells = [0.2, 0.2, 0.2, 0.2, 9.0]

    def drawing() -> None:
        torch.rand(3), random.random(), np.random.rand(3)  # noqa: NPY002
        steady()

    steady = machine.run("steady", slow_spells)
    torch.manual_seed(7), random.seed(7), np.random.seed(7)  # noqa: NPY002
    expected = torch.rand(2), random.random(), np.random.rand(2)  # noqa: NPY002
    torch.manual_seed(7), random.seed(7), np.random.seed(7)  # noqa: NPY002
    [timing] = timings(machine, drawing)
    assert timing.median_seconds == pytest.approx(0.2)  # the mean is 1.96
    assert timing.iqr_seconds == pytest.approx(0.0)
    assert torch.equal(torch.rand(2), expected[0])
    assert random.random() == expected[1]
    assert np.array_equal(np.random.rand(2), expected[2])  # noqa: NPY002


def test_timer_has_a_limit() -> None:
    machine = Machine()
    begin = machine.now
    [one, other] = timings(machine, machine.run("one", [3.0]), machine.run("other", [1.0]), max_seconds=20.0, min_runs=1000)
    assert machine.now - begin <= 20.0 + 4.0  # the round that had begun
    assert (one.num_runs, other.num_runs) == (2, 2)  # after three rounds of warm-up


def test_what_takes_longer_than_the_limit_is_measured_once() -> None:
    machine = Machine()
    found = timings(machine, machine.run("one", [50.0]), machine.run("other", [70.0]), max_seconds=1.0)
    assert [(timing.median_seconds, timing.num_runs) for timing in found] == [(50.0, 1), (70.0, 1)]
    assert machine.order == ["one", "other"] * 2  # a warm-up each


def test_functions_take_turns_in_a_rotated_order() -> None:
    machine = Machine()
    functions = [machine.run(name, [1.0]) for name in "abc"]
    timings(machine, *functions, max_seconds=12.0, warmup=0)
    assert "".join(machine.order) == "abc" + "bca" + "cab" + "abc"


def test_warm_up_does_not_count() -> None:
    machine = Machine()
    first_runs_are_cold = [8.0, 7.0, *[1.0] * 1000]
    [timing] = timings(machine, machine.run("a", first_runs_are_cold), warmup=2, max_seconds=50.0)
    assert (timing.median_seconds, timing.iqr_seconds) == (1.0, 0.0)
    assert timing.num_runs == 35


def test_a_short_function_is_not_charged_for_what_its_neighbours_leave_in_the_caches() -> None:
    machine = Machine()

    def caching(name: str) -> Callable[[], None]:
        def function() -> None:
            was_last = bool(machine.order) and machine.order[-1] == name
            machine.order.append(name)
            machine.now += 0.002 if was_last else 0.003

        return function

    alone = timings(machine, caching("a"), max_seconds=0.5)
    together = timings(machine, caching("a"), caching("b"), caching("c"), max_seconds=0.5)
    assert {round(timing.median_seconds, 9) for timing in [*alone, *together]} == {0.002}
    assert all(timing.iqr_seconds == pytest.approx(0.0, abs=1e-9) for timing in together)  # rounding of the clock


def test_it_ends_early_once_all_medians_are_known() -> None:
    machine = Machine()
    [steady, shaky] = time_interleaved(
        [machine.run("steady", [1.0]), machine.run("shaky", [1.0, 1.1])],
        max_seconds=1e6,
        min_runs=5,
        precision=0.01,
        clock=machine.clock,
    )
    assert 5 <= steady.num_runs == shaky.num_runs < 200


def test_a_spell_of_other_peoples_work_leaves_the_quiet_time() -> None:
    timing = Timing.of([1.0] * 4 + [2.0] * 6)
    assert (timing.median_seconds, timing.quiet_seconds) == (2.0, 1.0)


def test_stages_are_measured_one_by_one_and_add_up() -> None:
    machine = Machine()
    parts = [machine.run("first", [0.5]), machine.run("second", [1.5]), machine.run("third", [0.25])]

    def run(marks: Marks) -> None:
        marks.mark()
        for part in parts:
            part()
            marks.mark()

    recorder = recorder_for(torch.device("cpu"), machine.clock)
    [timing] = time_stages([run], max_seconds=30.0, recorder=recorder, clock=machine.clock)
    assert [stage.median_seconds for stage in timing.stages] == [0.5, 1.5, 0.25]
    assert timing.total.median_seconds == 2.25


def test_it_measures_without_gradients_and_with_the_collector_at_rest() -> None:
    machine, seen = Machine(), []

    def function() -> None:
        machine.now += 1.0
        seen.append((torch.is_inference_mode_enabled(), gc.isenabled()))

    assert gc.isenabled()
    timings(machine, function, max_seconds=5.0)
    assert set(seen) == {(True, False)}
    assert gc.isenabled()
    assert not torch.is_inference_mode_enabled()


def test_the_collector_works_again_after_a_failure() -> None:
    def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        time_interleaved([broken], max_seconds=1.0)
    assert gc.isenabled()


@pytest.mark.parametrize("settings", [{"max_seconds": 0.0}, {"min_runs": 0}, {"warmup": -1}])
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(FusionError, match="expected max_seconds > 0, min_runs >= 1 and warmup >= 0"):
        timings(Machine(), print, **settings)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(FusionError, match="at least one function"):
        time_interleaved([], max_seconds=1.0)


def test_each_part_has_its_own_mode_again() -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)), nn.Dropout()).train()
    model[0][1].eval()
    modes = [part.training for part in model.modules()]
    with evaluating(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == modes


def test_only_where_one_thread_does_all_the_work_its_own_time_is_taken() -> None:
    assert torch.get_num_threads() == 1
    assert work_clock(torch.device("cpu")) is time.thread_time
    assert work_clock(torch.device("cuda")) is time.perf_counter
    torch.set_num_threads(2)
    try:
        assert work_clock(torch.device("cpu")) is time.perf_counter
    finally:
        torch.set_num_threads(1)
