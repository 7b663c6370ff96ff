"""Intervals and tests for results that are not independent: items share devices and clips. NumPy only.

A bootstrap that draws clusters with replacement is written as weights: how often each cluster was drawn. One matrix of
weights then serves all samples at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Statistic = Callable[[FloatArray, FloatArray], FloatArray]
"""``(values [n], weights [s, n]) -> [s]``; the weights are counts, of which every row has at least one above zero."""

WEIGHTS_AT_ONCE = 2**21
"""Weights held in memory at once."""


class Interval(NamedTuple):
    """A value with its interval; ``low`` and ``high`` are NaN where there are too few clusters to tell."""

    value: float
    low: float
    high: float


def mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Weighted mean: ``[n]``, ``[s, n]`` -> ``[s]``."""
    result: FloatArray = (weights @ values) / weights.sum(axis=1)
    return result


def median(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Median of the values repeated by their (whole-numbered) weights: ``[n]``, ``[s, n]`` -> ``[s]``."""
    order = np.argsort(values, kind="stable")
    ordered, reached = values[order], np.cumsum(weights[:, order], axis=1)
    total = reached[:, -1:]
    lower = np.argmax(reached > np.floor((total - 1) / 2), axis=1)
    upper = np.argmax(reached > np.floor(total / 2), axis=1)
    result: FloatArray = (ordered[lower] + ordered[upper]) / 2
    return result


def _finite(values: ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite and not empty")
    return array


def _labels(labels: ArrayLike, items: int, name: str) -> tuple[NDArray[np.intp], int]:
    """Consecutive indices of labels of any kind, and their number."""
    array = np.asarray(labels)
    if array.shape != (items,):
        raise ValueError(f"{name} has shape {array.shape}, expected {(items,)}")
    distinct, index = np.unique(array, return_inverse=True)
    return index, len(distinct)


def _draw_weights(rng: np.random.Generator, samples: int, clusters: int) -> FloatArray:
    """How often each cluster is drawn in each sample, ``[samples, clusters]``: multinomial counts.

    Counted draws are many times faster than a multinomial generator when the clusters are many.
    """
    drawn = rng.integers(clusters, size=(samples, clusters))
    drawn += np.arange(samples)[:, None] * clusters
    return np.bincount(drawn.ravel(), minlength=samples * clusters).reshape(samples, clusters).astype(np.float64)


def _chunks(samples: int, width: int) -> list[int]:
    step = max(1, min(samples, WEIGHTS_AT_ONCE // max(1, width)))
    return [step] * (samples // step) + ([samples % step] if samples % step else [])


def cluster_draws(
    values: ArrayLike, clusters: ArrayLike, statistic: Statistic = mean, samples: int = 2000, seed: int = 0
) -> FloatArray:
    """Bootstrap samples of a statistic when whole clusters are drawn with replacement.

    Args:
        values: ``[n]`` one value per item.
        clusters: ``[n]`` label of the cluster of each item, of any type.
        statistic: Function of values and weights; the same seed and clusters give the same weights.
        samples: Number of bootstrap samples.
        seed: Seed of the random generator.

    Returns:
        ``[samples]``; all NaN with fewer than two clusters, since one cluster says nothing about their spread.

    Raises:
        ValueError: If values are not finite, or lengths differ.
    """
    array = _finite(values, "values")
    index, count = _labels(clusters, len(array), "clusters")
    if count < 2:
        return np.full(samples, np.nan)
    rng = np.random.default_rng(seed)
    if statistic is mean:
        sums, sizes = np.bincount(index, weights=array), np.bincount(index).astype(np.float64)
        drawn = (_draw_weights(rng, step, count) for step in _chunks(samples, count))
        return np.concatenate([(weights @ sums) / (weights @ sizes) for weights in drawn])
    drawn = (_draw_weights(rng, step, count) for step in _chunks(samples, len(array)))
    return np.concatenate([statistic(array, weights[:, index]) for weights in drawn])


def two_way_draws(
    values: ArrayLike, device: ArrayLike, clip: ArrayLike, samples: int = 2000, seed: int = 0
) -> FloatArray:
    """Bootstrap samples of the mean when devices and clips are drawn with replacement, independently.

    An item weighs as often as its device was drawn times as often as its clip was drawn (the pigeonhole bootstrap of
    Owen, 2007, which errs on the side of wide intervals). Samples in which no item has any weight are left out.

    Args:
        values: ``[n]``, or ``[seeds, n]``, of which the mean over seeds is taken first.
        device: ``[n]`` labels.
        clip: ``[n]`` labels.
        samples: Number of bootstrap samples.
        seed: Seed of the random generator.

    Returns:
        At most ``samples`` values; all NaN with fewer than two devices or fewer than two clips.

    Raises:
        ValueError: If values are not finite, or lengths differ.
    """
    array = _seed_mean(values)
    by_device, devices = _labels(device, len(array), "device")
    by_clip, clips = _labels(clip, len(array), "clip")
    if min(devices, clips) < 2:
        return np.full(samples, np.nan)
    # Items of one device and clip always weigh the same, so they are summed once.
    cells, cell = np.unique(by_device * clips + by_clip, return_inverse=True)
    sums, sizes = np.bincount(cell, weights=array), np.bincount(cell).astype(np.float64)
    cell_device, cell_clip = np.divmod(cells, clips)
    rng = np.random.default_rng(seed)
    draws = []
    for step in _chunks(samples, max(len(cells), devices, clips)):
        weights = _draw_weights(rng, step, devices)[:, cell_device]
        weights *= _draw_weights(rng, step, clips)[:, cell_clip]
        total = weights @ sizes
        draws.append((weights @ sums)[total > 0] / total[total > 0])
    return np.concatenate(draws)


def two_way_combination_draws(
    sets: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    weights: Sequence[float],
    samples: int = 2000,
    seed: int = 0,
) -> FloatArray:
    """Bootstrap samples of a weighted sum of means of several sets of items that share devices and clips.

    Each sample draws devices and clips once, for all sets: a device or clip that occurs in two sets is drawn as often
    in both. The sets need not hold the same items. A set with one device only says nothing about the spread of devices;
    in it only the clips are drawn.

    Args:
        sets: For each set: ``[n]`` values, ``[n]`` labels of devices, ``[n]`` labels of clips.
        weights: Weight of each set's mean.
        samples: Number of bootstrap samples.
        seed: Seed of the random generator.

    Returns:
        At most ``samples`` values (those in which every set has an item); all NaN with fewer than two clips.

    Raises:
        ValueError: If values are not finite, or lengths differ.
    """
    if len(sets) != len(weights):
        raise ValueError(f"{len(sets)} sets, {len(weights)} weights")
    arrays = [_finite(values, "values") for values, _, _ in sets]
    labels = {"device": [np.asarray(d) for _, d, _ in sets], "clip": [np.asarray(c) for _, _, c in sets]}
    index = {}
    for name, parts in labels.items():
        for part, array in zip(parts, arrays, strict=True):
            _labels(part, len(array), name)
        joint = np.unique(np.concatenate([part.astype(str) for part in parts]), return_inverse=True)[1]
        index[name] = np.split(joint, np.cumsum([len(array) for array in arrays])[:-1])
    clips, devices = (int(max(part.max() for part in index[name])) + 1 for name in ("clip", "device"))
    if clips < 2:
        return np.full(samples, np.nan)
    rng = np.random.default_rng(seed)
    draws = []
    for step in _chunks(samples, max(devices, clips, *map(len, arrays))):
        by_device, by_clip = _draw_weights(rng, step, devices), _draw_weights(rng, step, clips)
        total, drawn = np.zeros(step), np.ones(step, bool)
        for array, device, clip, weight in zip(arrays, index["device"], index["clip"], weights, strict=True):
            counts = by_clip[:, clip]
            if len(np.unique(device)) > 1:
                counts = counts * by_device[:, device]
            size = counts.sum(1)
            drawn &= size > 0
            total += weight * (counts @ array) / np.maximum(size, 1)
        draws.append(total[drawn])
    return np.concatenate(draws)


def _seed_mean(values: ArrayLike) -> FloatArray:
    array = _finite(values, "values")
    if array.ndim not in (1, 2):
        raise ValueError(f"values have shape {array.shape}, expected [n] or [seeds, n]")
    return array if array.ndim == 1 else array.mean(axis=0)


def interval(value: float, draws: FloatArray, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap samples.

    Raises:
        ValueError: If the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a number between 0 and 1")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def two_sided_p_value(draws: FloatArray) -> float:
    """p-value of the hypothesis that the value is zero, by inverting the percentile interval.

    Twice the smaller share of samples on either side of zero (zero itself counts for both), with one sample added, so
    that it is never 0. NaN when the samples are.
    """
    if np.isnan(draws).any():
        return float("nan")
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def cluster_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    statistic: Statistic = mean,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Value of a statistic with its percentile interval when clusters (devices, say) are drawn with replacement.

    Arguments, errors: see :func:`cluster_draws` and :func:`interval`.
    """
    array = _finite(values, "values")
    value = statistic(array, np.ones((1, len(array))))[0]
    return interval(value, cluster_draws(array, clusters, statistic, samples, seed), level)


def paired_draws(
    a: ArrayLike, b: ArrayLike, clusters: ArrayLike, statistic: Statistic = mean, samples: int = 2000, seed: int = 0
) -> FloatArray:
    """Bootstrap samples of ``statistic(a) - statistic(b)``; both see the same drawn clusters.

    Args:
        a: ``[n]`` values of one method.
        b: ``[n]`` values of the other, for the same items in the same order.
        clusters: ``[n]`` labels.
        statistic: See :func:`cluster_draws`.
        samples: Number of bootstrap samples.
        seed: Seed of the random generator.

    Raises:
        ValueError: If values are not finite, or lengths differ.
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"a has shape {first.shape}, b {second.shape}; a pair needs the same items")
    return cluster_draws(first, clusters, statistic, samples, seed) - cluster_draws(
        second, clusters, statistic, samples, seed
    )


def paired_cluster_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    statistic: Statistic = mean,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Difference ``statistic(a) - statistic(b)`` with its percentile interval.

    Arguments, errors: see :func:`paired_draws` and :func:`interval`.
    """
    draws = paired_draws(a, b, clusters, statistic, samples, seed)
    first, second = _finite(a, "a"), _finite(b, "b")
    ones = np.ones((1, len(first)))
    return interval(statistic(first, ones)[0] - statistic(second, ones)[0], draws, level)


def two_way_cluster_bootstrap(
    values: ArrayLike,
    device: ArrayLike,
    clip: ArrayLike,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean with its percentile interval when devices and clips are drawn with replacement, seeds averaged.

    For the difference of two methods pass the differences of their values item by item.

    Arguments, errors: see :func:`two_way_draws` and :func:`interval`.
    """
    return interval(float(_seed_mean(values).mean()), two_way_draws(values, device, clip, samples, seed), level)


def holm(p_values: ArrayLike) -> FloatArray:
    """p-values adjusted for several comparisons by Holm's step-down method, in the given order.

    Args:
        p_values: ``[m]`` p-values of one family of comparisons.

    Returns:
        ``[m]`` adjusted p-values, at most 1; below ``alpha`` means rejected at family-wise error rate ``alpha``.

    Raises:
        ValueError: If a p-value is not between 0 and 1.
    """
    p: NDArray[Any] = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be between 0 and 1, got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted
