from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lit_mmpg.metrics import statistics
from lit_mmpg.metrics.statistics import cluster_bootstrap, clustered_combination, clustered_mean, holm
from lit_mmpg.profiling.benchmarks.interval_coverage import CASES, Case, measure

SHORT = (
    "crossed 24 x 20, noise only, -1/0/1",
    "crossed 24 x 20, model + clip, -1/0/1",
    "crossed 10 x 10, device + clip",
    "nested 10 x 12, clip",
    "unbalanced 12 x 60, device",
    "dealt 24 x 335, device + clip",
)


def clustered(seed: int, clusters: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Values that differ between clusters of different sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(clusters), rng.integers(1, 12, size=clusters)))
    return rng.normal(size=clusters)[labels] + rng.normal(size=len(labels)), labels


def naive_variance(values: np.ndarray, labels: np.ndarray) -> float:
    """The jackknife as it is told: leave each cluster out, compute the mean again."""
    means = np.array([values[labels != label].mean() for label in np.unique(labels)])
    return float(((means - values.mean()) ** 2).sum() * (len(means) - 1) / len(means))


def crossed(seed: int, devices: int = 12, clips: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    device, clip = (grid.ravel() for grid in np.meshgrid(np.arange(devices), np.arange(clips)))
    return rng.normal(size=devices)[device] + rng.normal(size=clips)[clip] + rng.normal(size=len(device)), device, clip


def test_one_way_variance_equals_leaving_clusters_out() -> None:
    values, labels = clustered(0)
    found = clustered_mean(values, labels)
    assert found.value == pytest.approx(values.mean())
    assert found.std_error**2 == pytest.approx(naive_variance(values, labels))
    sizes = np.bincount(labels).astype(float)
    effective = np.sqrt(sizes.sum() ** 2 / (sizes**2).sum() * (sizes**2).sum() ** 2 / (sizes**4).sum())
    assert found.df == pytest.approx(effective * 39 / 40)
    assert clustered_mean(values[:120], np.arange(120) % 40).df == pytest.approx(39)


def test_single_items_equal_the_t_interval() -> None:
    values = np.random.default_rng(5).exponential(size=120)
    expected = stats.ttest_1samp(values, 0.8)
    found = clustered_mean(values, np.arange(120))
    bounds = expected.confidence_interval(0.9)
    assert found.interval(0.9)[:3] == pytest.approx((values.mean(), bounds.low, bounds.high))
    assert found.p_value(0.8) == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("nested", [False, True])
def test_two_way_variance_equals_leaving_devices_clips_and_pairs_out(nested: bool) -> None:
    rng = np.random.default_rng(7)
    clip = rng.integers(24, size=150)
    device = clip % 12 if nested else rng.integers(12, size=150)
    values = rng.normal(size=12)[device] + rng.normal(size=24)[clip] + rng.normal(size=150)
    ways = [naive_variance(values, labels) for labels in (device, clip, device * 24 + clip)]
    expected = max(ways[0] + ways[1] - ways[2], ways[0], ways[1])
    found = clustered_mean(values, device, clip)
    assert found.std_error**2 == pytest.approx(expected)
    assert found.std_error >= max(clustered_mean(values, labels).std_error for labels in (device, clip)) - 1e-12
    assert found.clusters == 12


def test_effects_in_one_way_leave_the_degrees_of_freedom_of_that_way() -> None:
    device, clip = crossed(0, 12, 60)[1:]
    rng = np.random.default_rng(0)
    noise = 0.05 * rng.normal(size=len(device))
    by_device = clustered_mean(rng.normal(size=12)[device] + noise, device, clip)
    by_clip = clustered_mean(rng.normal(size=60)[clip] + noise, device, clip)
    assert by_device.df == pytest.approx(11, rel=0.1) and by_clip.df == pytest.approx(59, rel=0.1)
    assert clustered_mean(rng.normal(size=len(device)), device, clip).df > 12  # nothing but noise


@pytest.mark.parametrize("case", [c for c in CASES if str(c) in SHORT], ids=str)
def test_intervals_hold_the_truth_as_often_as_they_say(case: Case) -> None:
    """The whole simulation is :mod:`lit_mmpg.profiling.benchmarks.interval_coverage`."""
    found = measure(case, 1000, methods=["clustered_mean"])["clustered_mean"]
    assert 0.93 - 0.015 <= found["coverage"] <= 0.97 + 0.012


def test_an_advantage_is_found_more_often_than_by_the_pigeonhole_bootstrap() -> None:
    found = measure(Case("crossed", 24, 20, binary=True), 400)
    assert found["clustered_mean"]["power"] > 2 * found["pigeonhole bootstrap"]["power"]
    assert found["pigeonhole bootstrap"]["coverage"] > 0.99 > found["clustered_mean"]["coverage"]
    assert found["by device"]["power"] > 0 < found["two-way, floored"]["power"] <= found["two-way"]["power"]


@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(0.1, 10))
def test_shift_and_scale(seed: int, shift: float, scale: float) -> None:
    values, device, clip = crossed(seed, 10, 11)
    base, moved = clustered_mean(values, device, clip), clustered_mean(scale * values + shift, device, clip)
    assert moved.value == pytest.approx(scale * base.value + shift)
    assert moved.std_error == pytest.approx(scale * base.std_error) and moved.df == pytest.approx(base.df)


def test_labels_of_any_kind_and_any_order() -> None:
    values, labels = clustered(8)
    names = np.array([f"phone-{label:03d}" for label in labels])
    order = np.random.default_rng(0).permutation(len(values))
    expected = clustered_mean(values, labels)
    assert clustered_mean(values, names) == pytest.approx(expected)
    assert clustered_mean(values[order], labels[order]) == pytest.approx(expected)


def test_seeds_are_averaged_item_by_item() -> None:
    values, device = clustered(9)
    clip = np.arange(len(values)) // 2
    noise = np.random.default_rng(0).normal(size=(3, len(values)))
    noise -= noise.mean(axis=0)
    assert clustered_mean(values + noise, device, clip) == pytest.approx(clustered_mean(values, device, clip))


def test_p_value_and_interval_agree() -> None:
    for shift in np.linspace(-1.2, 1.2, 25):
        values, device, clip = crossed(12)
        found = clustered_mean(values - values.mean() + shift, device, clip)
        _, low, high, _ = found.interval()
        assert (found.p_value() < 0.05) == (not low <= 0 <= high)
        assert found.p_value(found.value) == 1
    same = clustered_mean(np.ones(20), np.arange(20))
    assert (same.p_value(), same.p_value(1.0)) == (0.0, 1.0)


def test_one_cluster_gives_no_interval_and_few_give_a_wide_one() -> None:
    one, many = np.zeros(5, dtype=int), np.arange(5)
    for found in (clustered_mean(many, one), clustered_mean(many, one, many), clustered_mean(many, many, one)):
        assert found.value == 2.0 and found.clusters == 1
        assert np.isnan(found.interval()[1:3]).all() and np.isnan(found.p_value())
    assert np.isnan(cluster_bootstrap(many, one, worst)[1:3]).all()
    values, device, clip = crossed(3, 4, 40)
    assert clustered_mean(values, device, clip).df == 3
    assert clustered_mean(values, device, clip).interval().clusters == 4


def test_a_combination_of_means() -> None:
    """Against leaving devices, clips and pairs out of all sets at once."""
    rng = np.random.default_rng(2)
    sets = []
    for items in (150, 90):
        device, clip = rng.integers(12, size=items), rng.integers(20, size=items)
        sets.append((rng.normal(size=12)[device] + rng.normal(size=items), device, clip))
    weights = [1.0, -0.5]

    def total(keep) -> float:
        return sum(w * v[keep(d, c)].mean() for w, (v, d, c) in zip(weights, sets, strict=True))

    def variance(ways) -> float:
        found = np.array([total(lambda d, c, way=way: ~way(d, c)) for way in ways])
        return ((found - total(lambda d, c: d >= 0)) ** 2).sum() * (len(found) - 1) / len(found)

    pairs = {pair for _, d, c in sets for pair in zip(d.tolist(), c.tolist(), strict=True)}
    parts = [
        variance([lambda d, c, i=i: d == i for i in range(12)]),
        variance([lambda d, c, i=i: c == i for i in range(20)]),
        variance([lambda d, c, p=p: (d == p[0]) & (c == p[1]) for p in pairs]),
    ]
    found = clustered_combination(sets, weights)
    assert found.value == pytest.approx(total(lambda d, c: d >= 0))
    assert found.std_error**2 == pytest.approx(max(parts[0] + parts[1] - parts[2], parts[0], parts[1]))
    whole = clustered_combination([sets[0], sets[0]], [1.0, -1.0])
    assert whole.value == 0 and whole.std_error < 1e-12  # shared devices and clips: a set minus itself is nothing
    assert clustered_combination(sets[:1], [1.0]) == pytest.approx(clustered_mean(*sets[0]))


def test_a_set_of_one_device_says_nothing_about_devices() -> None:
    values, device, clip = crossed(4)
    alone = clustered_combination([(values, np.zeros_like(device), clip)], [1.0])
    assert alone.std_error == pytest.approx(clustered_mean(values, clip).std_error)
    assert np.isnan(clustered_combination([(values, device, np.zeros_like(clip))], [1.0]).std_error)
    with pytest.raises(ValueError, match="weights"):
        clustered_combination([(values, device, clip)], [1.0, 2.0])


def worst(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.array([values[w > 0].min() for w in weights])


def test_bootstrap_of_another_statistic_equals_naive_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = clustered(0)

    def naive() -> np.ndarray:
        rng = np.random.default_rng(2)
        groups = [values[labels == label] for label in np.unique(labels)]
        drawn = rng.integers(len(groups), size=(4000, len(groups)))
        return np.array([np.concatenate([groups[i] for i in row]).min() for row in drawn])

    found = cluster_bootstrap(values, labels, worst, samples=4000, seed=1)
    assert found[:3] == pytest.approx((values.min(), *np.quantile(naive(), [0.025, 0.975])), abs=0.05)
    assert found.clusters == 40 and found == cluster_bootstrap(values, labels, worst, samples=4000, seed=1)
    monkeypatch.setattr(statistics, "WEIGHTS_AT_ONCE", 700)
    assert cluster_bootstrap(values, labels, worst, samples=4000, seed=1) == found


def test_holm_known_answer() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.6]), [1.0, 1.0])
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float], alpha: float) -> None:
    rejected = set()
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[index] * (len(p_values) - step) > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_faults() -> None:
    with pytest.raises(ValueError, match="finite"):
        clustered_mean([1.0, np.nan], [0, 1])
    with pytest.raises(ValueError, match="finite and not empty"):
        clustered_mean([], [], [])
    with pytest.raises(ValueError, match="has shape"):
        clustered_mean([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="level is 95"):
        clustered_mean([1.0, 2.0], [0, 1]).interval(95)
    with pytest.raises(ValueError, match="level is 95"):
        cluster_bootstrap([1.0, 2.0], [0, 1], worst, level=95)
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, np.nan])
    with pytest.raises(ValueError, match="expected \\[n\\]"):
        clustered_mean(np.zeros((1, 2, 2)), [0, 1], [0, 1])


def test_module_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import lit_mmpg.metrics.statistics"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=True, timeout=600)
