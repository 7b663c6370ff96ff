from __future__ import annotations

import time

import numpy as np
import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.meters.latency import (
    DEVICE_SOURCE,
    TURN_S,
    Distribution,
    LatencyConfig,
    halves_differ,
    measure,
    measure_in_turns,
    timer_overhead_s,
)


class Clock:
    """A clock that moves when it is told to, so that every expected figure is exact."""

    def __init__(self, tick_s: float = 0.0) -> None:
        self.now, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now += self.tick_s
        return self.now


QUICK = LatencyConfig(warmup=3, min_count=20, min_time_s=0.0, max_time_s=100, attempts=1)


def test_every_call_is_a_sample_and_the_cold_one_stands_apart() -> None:
    clock, calls = Clock(), []

    def call() -> None:
        clock.now += 0.5 if not calls else 0.010 + 0.001 * (len(calls) % 2)
        calls.append(1)

    result = measure(call, QUICK, clock=clock)
    assert result.cold_ms == pytest.approx(500)
    assert len(calls) == 1 + 3 + 20 and result.warmup == 4
    assert result.wall.count == len(result.wall.samples_ms) == 20
    assert sorted(set(np.round(result.wall.samples_ms, 3))) == [10.0, 11.0]
    assert result.wall.mean_ms == pytest.approx(10.5)
    assert result.stable and not result.cut_short


def test_the_timers_own_cost_is_subtracted_and_stated() -> None:
    clock = Clock(tick_s=1e-3)

    def call() -> None:
        clock.now += 0.010

    assert timer_overhead_s(clock) == pytest.approx(1e-3)
    result = measure(call, QUICK, clock=clock)
    assert result.timer_overhead_ms == pytest.approx(1.0)
    assert result.wall.p50_ms == pytest.approx(10.0)


def test_device_time_is_kept_beside_wall_time() -> None:
    clock = Clock()

    def call() -> None:
        clock.now += 0.010

    result = measure(call, QUICK, clock=clock, device_ms=lambda: 9.0)  # a tenth is spent on launching
    assert result.device is not None and result.device_source == DEVICE_SOURCE
    assert result.device.p50_ms == pytest.approx(9.0) and result.wall.p50_ms == pytest.approx(10.0)


def test_least_time_makes_more_samples_and_most_time_ends_a_slow_call() -> None:
    clock = Clock()

    def call() -> None:
        clock.now += 0.1

    longer = LatencyConfig(warmup=0, min_count=4, min_time_s=5.0, max_time_s=10, attempts=1)
    assert measure(call, longer, clock=clock).wall.count == pytest.approx(50, abs=1)
    shorter = LatencyConfig(warmup=0, min_count=1000, min_time_s=0.0, max_time_s=1.0, attempts=1)
    result = measure(call, shorter, clock=clock)
    assert result.cut_short and 3 <= result.wall.count <= 11


def test_a_run_that_drifts_is_repeated_and_then_flagged() -> None:
    clock, count = Clock(), [0]

    def slower_and_slower() -> None:
        count[0] += 1
        clock.now += 0.010 * 1.02 ** count[0]

    result = measure(slower_and_slower, LatencyConfig(0, 20, 0.0, 1e6, attempts=3), clock=clock)
    assert not result.stable
    assert len(result.halves) == 3 and all(h > 0.05 for h in result.halves)
    assert count[0] == 1 + 3 * 20


def test_halves() -> None:
    assert halves_differ([1.0] * 10 + [1.2] * 10) == pytest.approx(0.2 / 1.1)
    assert halves_differ([1.0, 2.0] * 10) == 0
    assert halves_differ([1.0, 5.0]) == 0


def test_percentiles_against_numpy() -> None:
    samples = np.random.default_rng(0).lognormal(size=501)
    d = Distribution.of(samples)
    assert (d.p50_ms, d.p99_ms) == pytest.approx((np.median(samples), np.percentile(samples, 99)))
    assert d.stdev_ms == pytest.approx(samples.std(ddof=1))
    with pytest.raises(ValueError, match="finite"):
        Distribution.of([1.0, float("inf")])


def test_a_real_clock_measures_a_real_sleep() -> None:
    result = measure(lambda: time.sleep(0.005), LatencyConfig(1, 10, 0.0, 5.0))
    assert 5.0 <= result.wall.p50_ms < 20
    assert 0 < result.timer_overhead_ms < 0.1


@pytest.mark.parametrize("options", [{"warmup": -1}, {"min_count": 3}, {"min_time_s": 2, "max_time_s": 1}])
def test_impossible_settings_are_refused(options) -> None:
    with pytest.raises(UserError, match="latency"):
        LatencyConfig(**options)


def test_turns_are_short_so_that_a_drift_of_the_machine_hits_each_call_alike() -> None:
    clock, order = Clock(), []

    def lasting(name: str, seconds: float) -> None:
        order.append(name)
        clock.now += seconds * (1.0 if int(clock.now / 0.1) % 2 else 1.5)  # slower for a while, then faster

    config = LatencyConfig(warmup=3, min_count=200, min_time_s=0.5, max_time_s=100, attempts=1)
    slow, fast = measure_in_turns([lambda: lasting("a", 1.1e-4), lambda: lasting("b", 1e-4)], config, clock=clock)
    assert slow.mean_ms / fast.mean_ms == pytest.approx(1.1, rel=0.01)
    assert slow.p90_ms / fast.p90_ms == pytest.approx(1.1, rel=0.01)
    assert slow.count == fast.count >= 200 and sum(slow.samples_ms) + sum(fast.samples_ms) >= 1e3
    turns = "".join(order[8:])
    count = len(turns) - len(turns.lstrip("a"))
    assert 1 < count <= TURN_S / 1.1e-4 and turns.startswith("a" * count + "b" * 2 * count + "a" * 2 * count + "b")


def test_turns_end_after_the_longest_time_with_a_few_calls_of_each() -> None:
    clock = Clock()

    def lasting() -> None:
        clock.now += 3.0

    config = LatencyConfig(warmup=0, min_count=1000, min_time_s=0.0, max_time_s=10, attempts=1)
    first, second = measure_in_turns([lasting, lasting], config, clock=clock)
    assert first.count == second.count == 4
