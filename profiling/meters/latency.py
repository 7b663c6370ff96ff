"""Latency of one call: the cold first call apart, warm-up, raw samples, percentiles, and a check of steadiness."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from lit_mmpg.errors import UserError

Call = Callable[[], object]
Clock = Callable[[], float]

TURN_S = 0.002
"""How long calls that are compared run before the next one has its turn."""

DEVICE_SOURCE = "CUDA events around the engines, without the copies"
"""Where times of an accelerator come from."""

UNSTABLE = 0.05
"""Halves of a run whose medians differ by more than this fraction make it unstable."""

_QUANTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class LatencyConfig:
    """How long to measure.

    Attributes:
        warmup: Calls before the first recorded one, beside the cold call.
        min_count: Least number of recorded calls.
        min_time_s: Least duration of the recorded calls, seconds.
        max_time_s: A call that is so slow that ``min_count`` would take longer ends here, with at least 3 samples.
        attempts: How often an unstable run is repeated before it is reported as unstable.
    """

    warmup: int = 10
    min_count: int = 50
    min_time_s: float = 1.0
    max_time_s: float = 60.0
    attempts: int = 2

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.min_count < 4 or self.attempts < 1:
            raise UserError("latency: warmup must be >= 0, min_count >= 4 and attempts >= 1")
        if not 0 <= self.min_time_s <= self.max_time_s:
            raise UserError("latency: min_time_s must lie between 0 and max_time_s")


@dataclass(frozen=True)
class Distribution:
    """Samples and what is usually asked about them, milliseconds."""

    count: int
    mean_ms: float
    stdev_ms: float
    min_ms: float
    max_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    samples_ms: list[float]

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Distribution:
        """Summarise samples; the standard deviation is the sample's (0 for a single one).

        Raises:
            ValueError: If there is no sample or one is not finite.
        """
        values = np.asarray(samples_ms, dtype=np.float64)
        if not values.size or not np.isfinite(values).all():
            raise ValueError(f"cannot summarise {values.size} samples that are not all finite")
        p50, p90, p95, p99 = (float(q) for q in np.percentile(values, _QUANTILES))
        return cls(
            count=int(values.size),
            mean_ms=float(values.mean()),
            stdev_ms=float(values.std(ddof=1)) if values.size > 1 else 0.0,
            min_ms=float(values.min()),
            max_ms=float(values.max()),
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            samples_ms=[round(float(v), 6) for v in values],
        )


@dataclass(frozen=True)
class Latency:
    """Result of one measurement.

    Attributes:
        wall: Synchronised wall clock, timer overhead subtracted.
        device: The accelerator's own clock, None where there is none.
        device_source: Where ``device`` comes from.
        cold_ms: The very first call (lazy allocation, caches, kernels that are compiled on first use).
        timer_overhead_ms: What reading the clock twice around an empty call costs; subtracted from every wall sample.
        halves: Relative difference of the medians of the two halves of the run, one number per attempt.
        stable: Whether the last attempt's halves agree within 5 %.
        cut_short: True where ``max_time_s`` ended the run before ``min_count`` calls.
        warmup: Calls that were not recorded, cold call included.
    """

    wall: Distribution
    device: Distribution | None
    device_source: str | None
    cold_ms: float
    timer_overhead_ms: float
    halves: list[float] = field(default_factory=list)
    stable: bool = True
    cut_short: bool = False
    warmup: int = 0

    @classmethod
    def of_wall(
        cls,
        samples_ms: Sequence[float],
        cold_ms: float,
        overhead_s: float,
        *,
        warmup: int = 1,
        cut_short: bool = False,
        kept_ms: Sequence[float] | None = None,
    ) -> Latency:
        """Result of a scenario that read the wall clock itself, in one attempt.

        Args:
            samples_ms: All samples, in order; they decide whether the halves agree.
            cold_ms: The very first call.
            overhead_s: Timer overhead that was subtracted from each sample.
            warmup: Calls that were not recorded.
            cut_short: Whether the run ended before the least number of calls.
            kept_ms: The samples to keep, where these are fewer than all.
        """
        halves = halves_differ(samples_ms)
        return cls(
            wall=Distribution.of(samples_ms if kept_ms is None else kept_ms),
            device=None,
            device_source=None,
            cold_ms=cold_ms,
            timer_overhead_ms=overhead_s * 1e3,
            halves=[halves],
            stable=halves <= UNSTABLE,
            cut_short=cut_short,
            warmup=warmup,
        )


def elapsed_ms(call: Call, clock: Clock = time.perf_counter) -> float:
    """Milliseconds of one call, the timer's own cost included: for calls that come once, such as the cold first."""
    start = clock()
    call()
    return (clock() - start) * 1e3


def timer_overhead_s(clock: Clock = time.perf_counter) -> float:
    """Median seconds between two readings of the clock around a call that does nothing."""

    def nothing() -> None:
        return None

    costs = []
    for _ in range(1000):
        start = clock()
        nothing()
        costs.append(clock() - start)
    return float(np.median(costs))


def measure(
    call: Call,
    config: LatencyConfig = LatencyConfig(),
    *,
    device_ms: Callable[[], float] | None = None,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Measure a call.

    Args:
        call: What to time, which returns when its work is done, on an accelerator as well; its result is dropped.
        config: How long.
        device_ms: Milliseconds that the last call took on the accelerator, by its own clock; None where there is none.
        clock: Seconds.

    Returns:
        The measurement.
    """
    cold_ms = elapsed_ms(call, clock)
    overhead_s = timer_overhead_s(clock)
    halves: list[float] = []
    for attempt in range(config.attempts):
        warmup = config.warmup if attempt == 0 else 0
        seconds, on_device, cut = _record(call, config, warmup, device_ms, clock)
        halves.append(halves_differ(seconds))
        if halves[-1] <= UNSTABLE:
            break
    wall = Distribution.of([max(0.0, s - overhead_s) * 1e3 for s in seconds])
    return Latency(
        wall=wall,
        device=Distribution.of(on_device) if on_device else None,
        device_source=None if device_ms is None else DEVICE_SOURCE,
        cold_ms=cold_ms,
        timer_overhead_ms=overhead_s * 1e3,
        halves=halves,
        stable=halves[-1] <= UNSTABLE,
        cut_short=cut,
        warmup=config.warmup + 1,
    )


def measure_in_turns(
    calls: Sequence[Call], config: LatencyConfig = LatencyConfig(), *, clock: Clock = time.perf_counter
) -> list[Distribution]:
    """Measure several synchronous calls that take turns of some milliseconds, forth and back (A B B A).

    A machine that others share is slower for a while, then faster: longer turns would take that for a difference of the
    calls. What a change of turns costs the caches is in all of them alike.

    Args:
        calls: What to time.
        config: How long, for each of them.
        clock: Seconds.

    Returns:
        Wall clock of each call.
    """
    overhead_s = timer_overhead_s(clock)
    samples: list[list[float]] = [[] for _ in calls]

    def timed(which: int) -> float:
        start = clock()
        calls[which]()
        return max(0.0, clock() - start - overhead_s)

    warm = [min(timed(which) for _ in range(config.warmup + 1)) for which in range(len(calls))]
    count = max(1, int(TURN_S / max(*warm, 1e-9)))
    with _no_garbage_collected():
        begin = clock()
        while True:
            for which in (*range(len(calls)), *reversed(range(len(calls)))):
                samples[which] += [timed(which) for _ in range(count)]
            spent = clock() - begin
            enough = len(samples[0]) >= config.min_count and spent >= config.min_time_s * len(calls)
            if enough or (spent >= config.max_time_s * len(calls) and len(samples[0]) >= 3):
                break
    return [Distribution.of([s * 1e3 for s in own]) for own in samples]


def halves_differ(samples: Sequence[float]) -> float:
    """Relative difference between the medians of the first and the second half of a run; 0 for fewer than 4 samples."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size < 4:
        return 0.0
    half = values.size // 2
    first, second = float(np.median(values[:half])), float(np.median(values[half:]))
    middle = (first + second) / 2
    return abs(first - second) / middle if middle > 0 else 0.0


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Collect it now, and not while something is timed."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _record(
    call: Call, config: LatencyConfig, warmup: int, device_ms: Callable[[], float] | None, clock: Clock
) -> tuple[list[float], list[float], bool]:
    for _ in range(warmup):
        call()
    seconds: list[float] = []
    on_device: list[float] = []
    cut = False
    with _no_garbage_collected():
        begin = clock()
        while len(seconds) < config.min_count or clock() - begin < config.min_time_s:
            if len(seconds) >= 3 and clock() - begin >= config.max_time_s:
                cut = len(seconds) < config.min_count
                break
            start = clock()
            call()
            seconds.append(clock() - start)
            if device_ms is not None:
                on_device.append(device_ms())
    return seconds, on_device, cut
