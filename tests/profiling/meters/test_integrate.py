from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_mmpg.profiling.meters.integrate import integrate

CURVES = {
    # watts at time t, and their exact integral from 0 to t
    "constant": (lambda t: 7.0 + 0 * t, lambda t: 7.0 * t),
    "ramp": (lambda t: 2.0 + 0.5 * t, lambda t: 2.0 * t + 0.25 * t**2),
    "sine": (lambda t: 10 + 4 * np.sin(2 * np.pi * 0.5 * t), lambda t: 10 * t + 4 / np.pi * (1 - np.cos(np.pi * t))),
    "warm-up": (lambda t: 15 - 9 * np.exp(-t / 1.5), lambda t: 15 * t - 13.5 * (1 - np.exp(-t / 1.5))),
    "steps": (
        lambda t: np.where(t % 2 < 1, 5.0, 12.0),
        lambda t: 8.5 * (t - t % 2) + np.where(t % 2 < 1, 5 * (t % 2), 5 + 12 * (t % 2 - 1)),
    ),
}


@pytest.mark.parametrize("name", CURVES)
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    jitter=st.floats(0, 0.45),
    gaps=st.integers(0, 3),
    start=st.floats(0.05, 2),
    outside=st.booleans(),
)
def test_exact_energy_lies_within_the_bound(
    name: str, seed: int, jitter: float, gaps: int, start: float, outside: bool
):
    power, energy = CURVES[name]
    rng = np.random.default_rng(seed)
    period, end = 0.05, start + 8.0
    times = np.arange(0, 10.5, period)
    times = times + rng.uniform(-jitter, jitter, len(times)) * period
    for _ in range(gaps):
        at = rng.uniform(start + 1, end - 2)
        times = times[(times < at) | (times > at + 0.5)]
    if not outside:
        times = times[(times >= start) & (times <= end)]
    result = integrate(times, power(times), start, end)
    exact = float(energy(np.float64(end)) - energy(np.float64(start)))
    assert abs(result.energy_j - exact) <= result.bound_j + 1e-9
    if name != "steps" and not gaps and outside:
        assert result.bound_j < 0.05 * exact  # a bound that is always true because it is huge would be worthless


def test_quantised_readings_stay_within_half_a_step() -> None:
    times = np.arange(0, 10, 0.02)
    true = 6 + np.sin(times)
    step = 0.025
    result = integrate(times, np.round(true / step) * step, 0.5, 9.5, resolution_w=step)
    exact = 6 * 9 + np.cos(0.5) - np.cos(9.5)
    assert abs(result.energy_j - exact) <= result.bound_j


def test_gaps_are_counted_and_widen_the_bound() -> None:
    times = np.arange(0, 10, 0.1)
    power = 5 + (times > 5)
    whole = integrate(times, power, 0, 9.9)
    cut = (times < 4) | (times > 6)
    gappy = integrate(times[cut], power[cut], 0, 9.9)
    assert (whole.gaps, gappy.gaps) == (0, 1)
    assert gappy.bound_j > whole.bound_j + 1


@pytest.mark.parametrize(
    ("times", "power", "end", "message"),
    [
        ([0.0, 1.0], [1.0, 1.0], 0.5, "1 readings"),
        ([0.0, 0.0, 1.0], [1.0, 1.0, 1.0], 1.0, "do not increase"),
        ([0.0, 0.5, 1.0], [1.0, float("nan"), 1.0], 1.0, "not finite"),
        ([0.0, 0.5, 1.0], [1.0, 1.0], 1.0, "do not match"),
        ([0.0, 0.5, 1.0], [1.0, 1.0, 1.0], 0.0, "do not increase"),
    ],
)
def test_readings_that_cannot_be_integrated_are_refused(times, power, end, message) -> None:
    with pytest.raises(ValueError, match=message):
        integrate(times, power, 0.0, end)
