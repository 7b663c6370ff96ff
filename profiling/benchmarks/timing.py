"""Interleaved timing: what is compared takes turns, so that a slow moment of the machine hits all of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

Call = Callable[[], object]

LEAST_S = 2e-3
"""A turn repeats its call until it should last at least this long, in seconds."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times longer one call takes than another.

    Attributes:
        median: Median over the rounds of the ratio within a round.
        low: 10th percentile of the same.
        high: 90th percentile of the same.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds per call, ``[rounds]`` for each name."""

    seconds: Mapping[str, np.ndarray]

    def median_ms(self, name: str) -> float:
        """Median time of one call, milliseconds."""
        return float(np.median(self.seconds[name])) * 1e3

    def ratio(self, name: str, reference: str) -> Ratio:
        """Time of ``name`` over the time of ``reference``, paired within the rounds."""
        low, median, high = np.percentile(self.seconds[name] / self.seconds[reference], [10, 50, 90])
        return Ratio(float(median), float(low), float(high))

    def comparison(self, name: str, reference: str) -> dict[str, object]:
        """Columns of a row that compares two calls: their times, and the ratio and its spread."""
        return {
            "implementation": name,
            "median_ms": self.median_ms(name),
            "reference": reference,
            "reference_median_ms": self.median_ms(reference),
            **{f"ratio_{key}": value for key, value in asdict(self.ratio(name, reference)).items()},
            "rounds": len(self.seconds[name]),
        }


def interleave(
    calls: Mapping[str, Call],
    rounds: int,
    warmup: int = 2,
    least_s: float = LEAST_S,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time calls in turns: A B C A B C ...

    Args:
        calls: What to time, by name.
        rounds: Number of turns of each.
        warmup: Turns of each that are not recorded.
        least_s: See ``LEAST_S``.
        clock: Seconds.

    Returns:
        The times.
    """
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        call()
        start = clock()
        call()
        repeats[name] = max(1, round(least_s / max(clock() - start, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(warmup + rounds):
            for name, call in calls.items():
                start = clock()
                for _ in range(repeats[name]):
                    call()
                elapsed = (clock() - start) / repeats[name]
                if turn >= warmup:
                    seconds[name].append(elapsed)
    finally:
        if collecting:
            gc.enable()
    return Timings({name: np.array(values) for name, values in seconds.items()})
