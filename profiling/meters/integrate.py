"""From readings of power to energy, with a bound on what the readings cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GAP_FACTOR = 3.0
"""A pause longer than this many times the usual one is a gap."""


@dataclass(frozen=True)
class Integral:
    """Energy over a window.

    Attributes:
        energy_j: Trapezoidal integral, the first and last reading held to the ends of the window.
        bound_j: Bound on the error of sampling. It holds when power moves in one direction between two readings (in a
            gap: when it stays within the range that the whole window shows); swings faster than the readings and the
            sensor's own accuracy are not in it. Half a quantisation step over the window is.
        gaps: Pauses longer than ``GAP_FACTOR`` times the median pause.
    """

    energy_j: float
    bound_j: float
    gaps: int


def integrate(
    times_s: Sequence[float],
    power_w: Sequence[float],
    start_s: float,
    end_s: float,
    resolution_w: float = 0.0,
) -> Integral:
    """Integrate power readings over a window.

    Args:
        times_s: ``[N]`` increasing times of the readings, seconds; readings outside the window help at its ends.
        power_w: ``[N]`` watts.
        start_s: Beginning of the window.
        end_s: End of the window.
        resolution_w: Step in which the sensor reports.

    Returns:
        The energy.

    Raises:
        ValueError: If fewer than two readings lie in the window, times do not increase, or a value is not finite.
    """
    times, power = np.asarray(times_s, dtype=np.float64), np.asarray(power_w, dtype=np.float64)
    if times.shape != power.shape or times.ndim != 1:
        raise ValueError(f"{times.shape} times do not match {power.shape} readings")
    if not (np.isfinite(times).all() and np.isfinite(power).all()):
        raise ValueError("a reading or its time is not finite")
    if (np.diff(times) <= 0).any() or not start_s < end_s:
        raise ValueError("times do not increase")
    inside = (times >= start_s) & (times <= end_s)
    if inside.sum() < 2:
        raise ValueError(f"{int(inside.sum())} readings in a window of {end_s - start_s:.3g} s, at least 2 are needed")
    before, after = np.flatnonzero(times < start_s), np.flatnonzero(times > end_s)
    t, p = times[inside], power[inside]
    # The ends: between a reading before and the first one inside lies a straight line; without one, the value is held.
    first = _at(start_s, times, power, before[-1]) if before.size else p[0]
    last = _at(end_s, times, power, after[0] - 1) if after.size else p[-1]
    t, p = np.concatenate([[start_s], t, [end_s]]), np.concatenate([[first], p, [last]])
    step, change = np.diff(t), np.abs(np.diff(p))
    usual = float(np.median(np.diff(times[inside])))
    is_gap = step > GAP_FACTOR * usual
    spread = float(power.max() - power.min())
    held = np.zeros(len(step), dtype=bool)
    held[0], held[-1] = not before.size, not after.size
    bound = np.where(is_gap | held, np.maximum(change, spread) * step, change * step / 2)
    return Integral(
        energy_j=float(np.sum(step * (p[:-1] + p[1:]) / 2)),
        bound_j=float(bound.sum()) + resolution_w / 2 * (end_s - start_s),
        gaps=int(is_gap.sum()),
    )


def _at(time_s: float, times: np.ndarray, power: np.ndarray, left: int) -> float:
    share = (time_s - times[left]) / (times[left + 1] - times[left])
    return float(power[left] + share * (power[left + 1] - power[left]))
