"""Intervals and tests for results that are not independent: items share devices and clips. No torch.

Means have a closed form (:func:`clustered_mean`, :func:`clustered_combination`). Other statistics, such as the worst
tenth of the devices, have a bootstrap that draws clusters with replacement (:func:`cluster_bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from lit_mmpg.report import FEW_CLUSTERS

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]
Statistic = Callable[[FloatArray, FloatArray], FloatArray]
"""``(values [n], weights [s, n]) -> [s]``; the weights are counts, of which every row has at least one above zero."""

WEIGHTS_AT_ONCE = 2**21
"""Weights held in memory at once."""
MOST_DF = 1e6


class Interval(NamedTuple):
    """A value with its interval; ``low`` and ``high`` are NaN where there are too few clusters to tell."""

    value: float
    low: float
    high: float
    clusters: int | None = None
    """The smaller of the numbers of devices and of clips behind it; None where nobody counted."""


class Estimate(NamedTuple):
    """A mean, or a weighted sum of means, with what an interval needs.

    Attributes:
        value: The estimate.
        std_error: Its standard error; NaN with fewer than two clusters.
        df: Degrees of freedom of Student's t.
        clusters: The smaller of the numbers of devices and of clips.
    """

    value: float
    std_error: float
    df: float
    clusters: int

    def interval(self, level: float = 0.95) -> Interval:
        """Interval of Student's t.

        Raises:
            ValueError: If the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level is {level}, expected a number between 0 and 1")
        half = float(stdtrit(self.df, (1 + level) / 2)) * self.std_error
        return Interval(self.value, self.value - half, self.value + half, self.clusters)

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p-value of the hypothesis that the value is ``null``; NaN with fewer than two clusters."""
        distance = abs(self.value - null)
        if self.std_error == 0:
            return 1.0 if distance == 0 else 0.0
        return float(2 * stdtr(self.df, -distance / self.std_error))


def clustered_mean(values: ArrayLike, *clusters: ArrayLike) -> Estimate:
    """Mean of items that share clusters in one or two ways: devices, or devices and clips.

    For the difference of two methods pass the differences of their values item by item.

    Args:
        values: ``[n]``, or ``[seeds, n]``, of which the mean over seeds is taken first.
        clusters: One or two arrays ``[n]`` of labels of any type. Where devices belong to larger clusters (models of
            cameras, sites), pass the labels of those.

    Returns:
        The mean; without a standard error where one of the ways has fewer than two clusters.

    Raises:
        ValueError: If values are not finite, or lengths differ.

    Example:
        >>> found = clustered_mean([1, 1, 0, 0, 1, 0], ["a", "a", "b", "b", "c", "c"])
        >>> found.value, found.clusters
        (0.5, 3)
        >>> interval = found.interval()
        >>> bool(interval.low < 0.5 < interval.high)
        True
    """
    array = _finite(values, "values")
    if array.ndim not in (1, 2):
        raise ValueError(f"values have shape {array.shape}, expected [n] or [seeds, n]")
    array = array if array.ndim == 1 else array.mean(axis=0)
    index = [_labels(labels, len(array), f"clusters[{i}]")[0] for i, labels in enumerate(clusters)]
    return _estimate([array], [1.0], [[way] for way in index], needed=range(len(index)))


def clustered_combination(sets: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]], weights: Sequence[float]) -> Estimate:
    """Weighted sum of the means of several sets of items that share devices and clips.

    The sets need not hold the same items. A set with one device only says nothing about the spread of devices; in it
    only the clips count.

    Args:
        sets: For each set: ``[n]`` values, ``[n]`` labels of devices, ``[n]`` labels of clips.
        weights: Weight of each set's mean.

    Returns:
        The sum; without a standard error where there are fewer than two clips.

    Raises:
        ValueError: If values are not finite, or lengths differ.
    """
    if len(sets) != len(weights):
        raise ValueError(f"{len(sets)} sets, {len(weights)} weights")
    arrays = [_finite(values, "values") for values, _, _ in sets]
    ways = []
    for place, name in ((1, "device"), (2, "clip")):
        parts = [np.asarray(entry[place]) for entry in sets]
        for part, array in zip(parts, arrays, strict=True):
            _labels(part, len(array), name)
        joint = np.unique(np.concatenate([part.astype(str) for part in parts]), return_inverse=True)[1]
        ways.append(np.split(joint, np.cumsum([len(array) for array in arrays])[:-1]))
    return _estimate(arrays, weights, ways, needed=[1])


def _estimate(
    arrays: list[FloatArray], weights: Sequence[float], ways: list[list[IndexArray]], needed: Sequence[int]
) -> Estimate:
    """Two-way clustered variance by the jackknife, with degrees of freedom of its own.

    The variance is that of Cameron, Gelbach and Miller (2011), ``Vd + Vc - Vcell``, not below ``Vd`` or ``Vc``, where
    each part is the jackknife over devices, over clips, and over pairs of both. The degrees of freedom follow
    Satterthwaite, with the effective number of clusters; a way counts by as much as its variance exceeds that of the
    pairs. Chosen by simulated coverage and power
    (``profiling/benchmarks/interval_coverage.py``). Below ``FEW_CLUSTERS`` the degrees of freedom are those of the
    smallest way, which errs on the side of wide intervals. Without two clusters in each way that is ``needed`` there is
    no standard error; another way of one cluster does not count.
    """
    value = float(sum(weight * array.mean() for weight, array in zip(weights, arrays, strict=True)))
    found = [_jackknife(arrays, weights, way) for way in ways]
    counted = [part for part in found if part.clusters > 1]
    if any(found[i].clusters < 2 for i in needed) or not counted:
        return Estimate(value, float("nan"), 1.0, min(part.clusters for part in found))
    fewest = min(part.clusters for part in counted)
    if len(counted) == 1:
        variance, df = counted[0].variance, counted[0].effective - 1
    else:
        step = max(int(part.max()) + 1 for part in ways[1])
        pairs = [first * step + second for first, second in zip(*ways, strict=True)]
        both = _jackknife(arrays, weights, pairs)
        first, second = counted
        variance = max(first.variance + second.variance - both.variance, first.variance, second.variance)
        # Each way enters the spread of the variance as far as it exceeds what single pairs explain.
        spread = both.variance**2 / max(1, both.clusters - 1)
        spread += sum(max(0.0, w.variance - both.variance) * w.variance / (w.effective - 1) for w in counted)
        df = variance**2 / spread if spread > 0 else MOST_DF
    df = fewest - 1 if fewest < FEW_CLUSTERS else df
    return Estimate(value, float(np.sqrt(variance)), float(np.clip(df, 1, MOST_DF)), fewest)


class _Way(NamedTuple):
    variance: float
    clusters: int
    effective: float


def _jackknife(arrays: list[FloatArray], weights: Sequence[float], way: list[IndexArray]) -> _Way:
    """Variance of a weighted sum of means when clusters are left out one at a time."""
    labels, index = np.unique(np.concatenate(way), return_inverse=True)
    count = len(labels)
    change, share = np.zeros(count), np.zeros(count)
    parts = np.split(index, np.cumsum([len(array) for array in arrays])[:-1])
    spread = False
    for array, weight, part in zip(arrays, weights, parts, strict=True):
        sizes = np.bincount(part, minlength=count).astype(np.float64)
        if (sizes > 0).sum() < 2:
            continue
        spread = True
        sums = np.bincount(part, weights=array, minlength=count)
        change += weight * ((array.sum() - sums) / (len(array) - sizes) - array.mean())
        share += abs(weight) * sizes / len(array)
    if not spread:
        return _Way(0.0, 1, 1.0)
    kept = share > 0
    clusters = int(kept.sum())
    # As many clusters of equal size would tell as much about the variance: the first number holds where the items of a
    # cluster are independent, the second where they move together; their geometric mean lies between.
    apart = share.sum() ** 2 / (share**2).sum()
    together = (share**2).sum() ** 2 / (share**4).sum()
    effective = 1 + np.sqrt(apart * together) * (clusters - 1) / clusters
    return _Way(float((change[kept] ** 2).sum() * (clusters - 1) / clusters), clusters, float(effective))


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


def cluster_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    statistic: Statistic,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Value of a statistic with its percentile interval when whole clusters are drawn with replacement.

    For means, :func:`clustered_mean` is exact where this is only right for many clusters.

    Args:
        values: ``[n]`` one value per item.
        clusters: ``[n]`` label of the cluster of each item, of any type.
        statistic: Function of values and weights; the same seed and clusters give the same weights.
        samples: Number of bootstrap samples.
        seed: Seed of the random generator.
        level: Of the interval.

    Returns:
        The value; without bounds (NaN) with fewer than two clusters, since one says nothing about their spread.

    Raises:
        ValueError: If values are not finite, lengths differ, or the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a number between 0 and 1")
    array = _finite(values, "values")
    index, count = _labels(clusters, len(array), "clusters")
    value = float(statistic(array, np.ones((1, len(array))))[0])
    if count < 2:
        return Interval(value, float("nan"), float("nan"), count)
    rng = np.random.default_rng(seed)
    drawn = (_draw_weights(rng, step, count) for step in _chunks(samples, len(array)))
    draws = np.concatenate([statistic(array, weights[:, index]) for weights in drawn])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), count)


def holm(p_values: ArrayLike) -> FloatArray:
    """p-values adjusted for several comparisons by Holm's step-down method, in the given order.

    Args:
        p_values: ``[m]`` p-values of one family of comparisons.

    Returns:
        ``[m]`` adjusted p-values, at most 1; below ``alpha`` means rejected at family-wise error rate ``alpha``.

    Raises:
        ValueError: If a p-value is not between 0 and 1.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    p: NDArray[Any] = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be between 0 and 1, got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted
