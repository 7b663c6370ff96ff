from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from lit_mmpg.metrics import statistics
from lit_mmpg.metrics.statistics import (
    cluster_bootstrap,
    cluster_draws,
    holm,
    interval,
    median,
    paired_cluster_bootstrap,
    paired_draws,
    two_sided_p_value,
    two_way_cluster_bootstrap,
    two_way_draws,
)


def clustered(seed: int, clusters: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Values that differ between clusters of different sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(clusters), rng.integers(1, 12, size=clusters)))
    return rng.normal(size=clusters)[labels] + rng.normal(size=len(labels)), labels


def naive_draws(values, labels, statistic, samples: int, seed: int) -> np.ndarray:
    """Cluster bootstrap as it is told: draw clusters, put their items together, compute."""
    rng = np.random.default_rng(seed)
    groups = [values[labels == label] for label in np.unique(labels)]
    drawn = rng.integers(len(groups), size=(samples, len(groups)))
    return np.array([statistic(np.concatenate([groups[i] for i in row])) for row in drawn])


def same_distribution(a: np.ndarray, b: np.ndarray) -> bool:
    """Seeds are fixed, so that this cannot fail by chance from run to run."""
    return stats.ks_2samp(a, b).pvalue > 0.01


@pytest.mark.parametrize(("ours", "theirs"), [(statistics.mean, np.mean), (median, np.median)])
def test_cluster_draws_equal_naive_resampling(ours, theirs) -> None:
    values, labels = clustered(0)
    draws = cluster_draws(values, labels, ours, samples=2000, seed=1)
    assert same_distribution(draws, naive_draws(values, labels, theirs, 2000, 2))


def test_resampling_items_instead_of_clusters_would_be_noticed() -> None:
    values, labels = clustered(0)
    draws = cluster_draws(values, labels, samples=2000, seed=1)
    assert not same_distribution(draws, naive_draws(values, np.arange(len(values)), np.mean, 2000, 2))


def test_single_items_equal_scipy_bootstrap() -> None:
    values = np.random.default_rng(5).exponential(size=120)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    result = cluster_bootstrap(values, np.arange(120), samples=8000, seed=0)
    assert result.value == pytest.approx(values.mean())
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=0.012)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(60), 5)
    hits = 0
    for trial in range(300):
        values = rng.normal(size=60)[labels] + rng.normal(size=300)
        result = cluster_bootstrap(values, labels, samples=500, seed=trial)
        hits += result.low <= 0 <= result.high
    assert 0.90 <= hits / 300 <= 0.98


@given(
    hnp.arrays(np.float64, st.integers(1, 12), elements=st.integers(-5, 5).map(float)),
    st.data(),
)
def test_weighted_statistics_equal_repeated_values(values: np.ndarray, data: st.DataObject) -> None:
    counts = hnp.arrays(np.int64, (3, len(values)), elements=st.integers(0, 4))
    weights = data.draw(counts.filter(lambda rows: rows.any(axis=1).all()))
    repeated = [np.repeat(values, row) for row in weights]
    np.testing.assert_allclose(statistics.mean(values, weights.astype(float)), [r.mean() for r in repeated], atol=1e-12)
    np.testing.assert_allclose(median(values, weights.astype(float)), [np.median(r) for r in repeated])


def test_slices_draw_the_same_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = clustered(3)
    whole = cluster_draws(values, labels, median, seed=1)
    monkeypatch.setattr(statistics, "WEIGHTS_AT_ONCE", 700)
    sliced = cluster_draws(values, labels, median, seed=1)
    assert len(sliced) == len(whole) == 2000
    np.testing.assert_array_equal(sliced, whole)


def test_same_seed_same_result_and_labels_of_any_kind() -> None:
    values, labels = clustered(8)
    names = np.array([f"phone-{label:03d}" for label in labels])
    assert cluster_bootstrap(values, labels, seed=3) == cluster_bootstrap(values, names, seed=3)
    assert cluster_bootstrap(values, labels, seed=3) != cluster_bootstrap(values, labels, seed=4)


def test_level_widens_the_interval() -> None:
    values, labels = clustered(1)
    narrow, wide = (cluster_bootstrap(values, labels, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_paired_difference_ignores_what_both_share() -> None:
    values, labels = clustered(2)
    result = paired_cluster_bootstrap(values + 0.25, values, labels)
    assert tuple(result) == pytest.approx((0.25, 0.25, 0.25))
    assert tuple(paired_cluster_bootstrap(values + 0.25, values, labels, median)) == pytest.approx((0.25, 0.25, 0.25))


def test_paired_mean_equals_bootstrap_of_the_differences() -> None:
    a, labels = clustered(6)
    b = np.random.default_rng(0).normal(size=len(a))
    result = paired_cluster_bootstrap(a, b, labels, seed=5)
    assert tuple(result) == pytest.approx(tuple(cluster_bootstrap(a - b, labels, seed=5)))


def naive_two_way(values, device, clip, samples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    devices, clips = np.unique(device), np.unique(clip)
    result = []
    for _ in range(samples):
        drawn_devices = rng.choice(devices, size=len(devices)).tolist()
        drawn_clips = rng.choice(clips, size=len(clips)).tolist()
        weight = np.array([drawn_devices.count(d) * drawn_clips.count(c) for d, c in zip(device, clip, strict=True)])
        result.append(np.average(values, weights=weight))
    return np.array(result)


@pytest.mark.parametrize("nested", [False, True])
def test_two_way_draws_equal_naive_resampling(nested: bool) -> None:
    rng = np.random.default_rng(7)
    clip = rng.integers(24, size=150)
    device = clip % 8 if nested else rng.integers(8, size=150)
    values = rng.normal(size=8)[device] + rng.normal(size=24)[clip] + rng.normal(size=150)
    draws = two_way_draws(values, device, clip, samples=1000, seed=0)
    assert same_distribution(draws, naive_two_way(values, device, clip, 1000, 1))
    assert two_way_cluster_bootstrap(values, device, clip).value == pytest.approx(values.mean())


def test_two_way_is_wider_than_either_way() -> None:
    rng = np.random.default_rng(1)
    device, clip = (grid.ravel() for grid in np.meshgrid(np.arange(12), np.arange(15)))
    values = rng.normal(size=12)[device] + rng.normal(size=15)[clip]
    width = {
        "both": np.ptp(two_way_cluster_bootstrap(values, device, clip)[1:]),
        "device": np.ptp(cluster_bootstrap(values, device)[1:]),
        "clip": np.ptp(cluster_bootstrap(values, clip)[1:]),
    }
    assert width["both"] > 1.1 * max(width["device"], width["clip"])


def test_seeds_are_averaged_item_by_item() -> None:
    values, device = clustered(9)
    clip = np.arange(len(values)) // 2
    noise = np.random.default_rng(0).normal(size=(3, len(values)))
    noise -= noise.mean(axis=0)
    assert tuple(two_way_cluster_bootstrap(values + noise, device, clip)) == pytest.approx(
        tuple(two_way_cluster_bootstrap(values, device, clip))
    )


def test_samples_without_weight_are_left_out() -> None:
    draws = two_way_draws([0.0, 1.0], ["a", "b"], ["x", "y"], samples=400)
    assert 0 < len(draws) < 400
    assert np.isfinite(draws).all()


def test_one_cluster_gives_no_interval() -> None:
    one = np.zeros(5, dtype=int)
    many = np.arange(5)
    for result in (
        cluster_bootstrap(many, one),
        two_way_cluster_bootstrap(many, one, many),
        two_way_cluster_bootstrap(many, many, one),
    ):
        assert result.value == 2.0
        assert np.isnan([result.low, result.high]).all()
    assert np.isnan(two_sided_p_value(cluster_draws(many, one)))


def test_p_value_agrees_with_the_interval() -> None:
    for shift in np.linspace(-1.2, 1.2, 25):
        values, labels = clustered(12)
        draws = cluster_draws(values - values.mean() + shift, labels, seed=2)
        low, high = interval(shift, draws)[1:]
        p = two_sided_p_value(draws)
        assert 0 < p <= 1
        if abs(p - 0.05) > 0.004:
            assert (p < 0.05) == (not low <= 0 <= high)


def test_p_value_follows_the_normal_test() -> None:
    values = np.random.default_rng(3).normal(0.08, 1, size=400)
    expected = stats.ttest_1samp(values, 0).pvalue
    assert 0.001 < expected < 0.2
    assert two_sided_p_value(cluster_draws(values, np.arange(400), samples=20000)) == pytest.approx(expected, rel=0.25)


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


@pytest.mark.parametrize("case", ["devices", "single items", "two ways"])
def test_two_thousand_samples_of_thirty_thousand_items_take_under_two_seconds(case: str) -> None:
    rng = np.random.default_rng(0)
    values, device, clip = rng.random(30000), rng.integers(64, size=30000), rng.integers(3000, size=30000)
    start = time.process_time()
    if case == "two ways":
        two_way_cluster_bootstrap(values, device, clip)
    else:
        cluster_bootstrap(values, device if case == "devices" else np.arange(30000))
    assert time.process_time() - start < 2


def test_faults() -> None:
    with pytest.raises(ValueError, match="finite"):
        cluster_bootstrap([1.0, np.nan], [0, 1])
    with pytest.raises(ValueError, match="finite and not empty"):
        two_way_cluster_bootstrap([], [], [])
    with pytest.raises(ValueError, match="clusters has shape"):
        cluster_bootstrap([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="same items"):
        paired_draws([1.0, 2.0], [1.0], [0, 1])
    with pytest.raises(ValueError, match="level is 95"):
        cluster_bootstrap([1.0, 2.0], [0, 1], level=95)
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, np.nan])
    with pytest.raises(ValueError, match="expected \\[n\\]"):
        two_way_draws(np.zeros((1, 2, 2)), [0, 1], [0, 1])


def test_module_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import lit_mmpg.metrics.statistics"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=True, timeout=60)
