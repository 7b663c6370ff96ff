"""How often intervals of means hold the truth, and how often they find a difference: simulated, for several methods.

``python -m lit_mmpg.profiling.benchmarks.interval_coverage --output FILE.json``

Each case is a layout of items over devices and clips with known effects. A method's coverage is the share of simulated
runs whose 95 % interval holds the true mean; its power is the share that finds a shift of two standard deviations of
the mean. A method is valid where it covers at least ``VALID`` in every case with ``FEW_CLUSTERS`` clusters or more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from lit_mmpg.heartbeat import working
from lit_mmpg.metrics.statistics import clustered_mean
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.report import FEW_CLUSTERS
from lit_mmpg.results import result, write_result
from lit_mmpg.tracking.address import git_commit

VALID = 0.93
SHIFT = 2.0
"""Advantage that power is measured at, in standard deviations of the mean."""
DRAWS = 400
"""Bootstrap samples of the pigeonhole bootstrap."""

Intervals = tuple[np.ndarray, np.ndarray]
"""``[runs]`` lower and upper bounds."""


@dataclass(frozen=True)
class Case:
    """A layout of items and the effects in their values.

    Attributes:
        layout: ``crossed``: every device sees every clip; ``nested``: every clip has one device and three items;
            ``unbalanced``: sizes of devices and clips by a power law; ``dealt``: every clip on one device, by unequal
            shares, with 1 to 7 items.
        devices: Number of devices.
        clips: Number of clips; of each device where nested.
        effects: Standard deviations of 0.5 for ``device``, ``clip`` and ``model`` (two devices each), 0.7 for ``pair``;
            ``heavy``: device effects with Student's t of 3; ``scale``: every fourth device varies three times as much.
        binary: Whether values are differences of right and wrong answers: -1, 0 or 1.
    """

    layout: str
    devices: int
    clips: int
    effects: tuple[str, ...] = ()
    binary: bool = False

    def __str__(self) -> str:
        kind = ", -1/0/1" if self.binary else ""
        return f"{self.layout} {self.devices} x {self.clips}, {' + '.join(self.effects) or 'noise only'}{kind}"


def _cases(layout: str, devices: int, clips: int, *effects: str, binary: Sequence[int] = ()) -> list[Case]:
    """One case for each text of effects; those whose places are in ``binary`` have binary values."""
    return [Case(layout, devices, clips, tuple(e.split()), i in binary) for i, e in enumerate(effects)]


CASES = [
    *_cases("crossed", 24, 20, "", "", "pair", "device", "clip", "device clip", "device clip pair", binary=(0, 3)),
    *_cases("crossed", 24, 20, "device clip heavy", "model clip", "model", binary=(1,)),
    *_cases("crossed", 12, 12, "", "device clip pair"),
    *_cases("crossed", 10, 10, "", "device", "device clip", binary=(0,)),
    *_cases("crossed", 10, 100, "", "clip", "device"),
    *_cases("crossed", 10, 335, "device", binary=(0,)),
    *_cases("nested", 24, 20, "", "device", "device clip", binary=(0,)),
    *_cases("nested", 10, 12, "clip", "device clip"),
    *_cases("unbalanced", 24, 60, "", "device clip", "device scale", binary=(0,)),
    *_cases("unbalanced", 12, 60, "device", "device clip"),
    *_cases("unbalanced", 40, 335, "device clip", binary=(0,)),
    *_cases("dealt", 24, 335, "", "device clip", binary=(0,)),
    *_cases("dealt", 12, 100, "device clip", binary=(0,)),
    *_cases("dealt", 40, 335, "clip", binary=(0,)),
    *_cases("dealt", 10, 335, "device", binary=(0,)),
    *_cases("crossed", 2, 20, "", "device clip"),
    *_cases("crossed", 4, 20, "", "device clip"),
    *_cases("crossed", 6, 20, "device clip"),
    *_cases("crossed", 8, 8, "", "device clip"),
]


def layout(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``[n]`` device and clip of each item."""
    devices, clips = case.devices, case.clips
    if case.layout == "crossed":
        return np.repeat(np.arange(devices), clips), np.tile(np.arange(clips), devices)
    if case.layout == "nested":
        clip = np.repeat(np.arange(devices * clips), 3)
        return clip // clips, clip
    if case.layout == "dealt":
        shares = rng.dirichlet(np.full(devices, 1.5))
        owner = np.concatenate([np.arange(devices), rng.choice(devices, clips - devices, p=shares)])
        items = rng.integers(1, 8, size=clips)
        return np.repeat(owner, items), np.repeat(np.arange(clips), items)
    by_device, by_clip = (np.arange(1, n + 1.0) ** -power for n, power in ((devices, 0.7), (clips, 0.5)))
    extra = devices * clips // 3
    device = np.concatenate([np.arange(devices), rng.choice(devices, extra, p=by_device / by_device.sum())])
    clip = np.concatenate([rng.integers(clips, size=devices), rng.choice(clips, extra, p=by_clip / by_clip.sum())])
    return device, clip


def simulate(case: Case, device: np.ndarray, clip: np.ndarray, runs: int, rng: np.random.Generator) -> np.ndarray:
    """``[runs, n]`` values whose true mean is 0."""
    values = rng.normal(size=(runs, len(device)))
    groups = {"device": device, "clip": clip, "model": device // 2, "pair": device * (clip.max() + 1) + clip}
    for effect in case.effects:
        if effect == "scale":
            values *= np.where(device % 4 == 0, 3.0, 1.0)
        elif effect == "heavy":
            values += 0.5 * rng.standard_t(3, size=(runs, device.max() + 1))[:, device]
        else:
            index = np.unique(groups[effect], return_inverse=True)[1]
            values += (0.7 if effect == "pair" else 0.5) * rng.normal(size=(runs, index.max() + 1))[:, index]
    return np.where(np.abs(values) > 1.3, np.sign(values), 0.0) if case.binary else values


def ours(values: np.ndarray, device: np.ndarray, clip: np.ndarray) -> Intervals:
    """:func:`lit_mmpg.metrics.statistics.clustered_mean`, run by run."""
    found = [clustered_mean(row, device, clip).interval() for row in values]
    return np.array([i.low for i in found]), np.array([i.high for i in found])


def pigeonhole(values: np.ndarray, device: np.ndarray, clip: np.ndarray, draws: int = DRAWS) -> Intervals:
    """Percentiles when devices and clips are drawn with replacement, independently (Owen, 2007)."""
    rng = np.random.default_rng(0)
    weights = np.ones((draws, len(device)))
    for labels in (device, clip):
        count = labels.max() + 1
        weights *= rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, labels]
    weights = weights[weights.any(axis=1)]
    means = values @ weights.T / weights.sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    return low, high


def _clustered(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``[runs]`` variance of the mean, clustered by labels, with the correction G / (G - 1)."""
    index = np.unique(labels, return_inverse=True)[1]
    count = index.max() + 1
    residual = (values - values.mean(axis=1, keepdims=True)) / values.shape[1]
    order = np.argsort(index, kind="stable")
    sums = np.add.reduceat(residual[:, order], np.searchsorted(index[order], np.arange(count)), axis=1)
    result: np.ndarray = (sums**2).sum(axis=1) * count / (count - 1)
    return result


def two_way(floor: bool) -> Callable[[np.ndarray, np.ndarray, np.ndarray], Intervals]:
    """Cameron, Gelbach and Miller (2011) with t at the smaller number of clusters less one.

    Args:
        floor: Whether the variance is at least that of either way alone.
    """

    def intervals(values: np.ndarray, device: np.ndarray, clip: np.ndarray) -> Intervals:
        by_device, by_clip = _clustered(values, device), _clustered(values, clip)
        variance = by_device + by_clip - _clustered(values, device * (clip.max() + 1) + clip)
        variance = np.maximum(variance, np.maximum(by_device, by_clip) if floor else 1e-12)
        return _student(values, variance, min(len(np.unique(device)), len(np.unique(clip))) - 1)

    return intervals


def by_device(values: np.ndarray, device: np.ndarray, clip: np.ndarray) -> Intervals:
    """Clustered by device alone."""
    return _student(values, _clustered(values, device), len(np.unique(device)) - 1)


def _student(values: np.ndarray, variance: np.ndarray, df: int) -> Intervals:
    mean, half = values.mean(axis=1), stdtrit(df, 0.975) * np.sqrt(variance)
    return mean - half, mean + half


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Intervals]] = {
    "clustered_mean": ours,
    "pigeonhole bootstrap": pigeonhole,
    "two-way, floored": two_way(True),
    "two-way": two_way(False),
    "by device": by_device,
}


def measure(case: Case, runs: int, seed: int = 0, methods: Sequence[str] = tuple(METHODS)) -> dict[str, Any]:
    """Coverage and power of methods in one case."""
    rng = np.random.default_rng(seed)
    device, clip = layout(case, rng)
    values = simulate(case, device, clip, runs, rng)
    # Clusters above devices: the labels of the models are passed instead.
    device = device // 2 if "model" in case.effects else device
    shift = SHIFT * float(values.mean(axis=1).std())
    clusters = min(len(np.unique(device)), len(np.unique(clip)))
    row: dict[str, Any] = {"case": str(case), "clusters": clusters}
    for name in methods:
        low, high = METHODS[name](values, device, clip)
        row[name] = {"coverage": float(((low <= 0) & (high >= 0)).mean()), "power": float((low + shift > 0).mean())}
    return row


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Which methods are valid, and their least share of the best valid power, over the cases with enough clusters."""
    enough = [row for row in rows if row["clusters"] >= FEW_CLUSTERS]
    coverage = {name: [row[name]["coverage"] for row in enough] for name in METHODS}
    valid = [name for name in METHODS if min(coverage[name]) >= VALID]
    best = [max(row[name]["power"] for name in valid or METHODS) for row in enough]
    return {
        name: {
            "lowest_coverage": min(coverage[name]),
            "highest_coverage": max(coverage[name]),
            "valid": name in valid,
            "least_share_of_best_valid_power": min(row[name]["power"] / b for row, b in zip(enough, best, strict=True)),
        }
        for name in METHODS
    }


def _range(entry: dict[str, Any]) -> str:
    return f"{entry['lowest_coverage']:.3f} to {entry['highest_coverage']:.3f}"


@working("interval coverage", bar=False)
@in_a_line
def main(args: Sequence[str] | None = None) -> None:
    """Run all cases and write one JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_mmpg.profiling.benchmarks.interval_coverage", description=__doc__
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/interval_coverage.json"), metavar="FILE.json")
    parser.add_argument("--runs", type=int, default=10_000, help="simulated runs of each case")
    options = parser.parse_args(args)
    commit = git_commit()
    rows = []
    with working("simulating", len(CASES), "cases") as work:
        for seed, case in enumerate(CASES):
            rows.append(measure(case, options.runs, seed))
            work.advance()
    found = summary(rows)
    columns = ["case", "clusters", *(f"{name}: coverage / power" for name in METHODS)]
    shown = [
        [row["case"], row["clusters"], *(f"{row[n]['coverage']:.3f} / {row[n]['power']:.2f}" for n in METHODS)]
        for row in rows
    ]
    shown.append(["lowest to highest coverage", f"{FEW_CLUSTERS} and more", *(_range(found[name]) for name in METHODS)])
    command = f"python -m lit_mmpg.profiling.benchmarks.interval_coverage --runs {options.runs}"
    notes = [
        f"95 % intervals, {options.runs} simulated runs a case; power: share that finds a shift of {SHIFT:g} standard "
        f"deviations of the mean. Valid, with {VALID:.0%} or more in every case of {FEW_CLUSTERS} clusters or more: "
        f"{', '.join(name for name in METHODS if found[name]['valid'])}."
    ]
    title = "Coverage and power of intervals"
    write_result(options.output, result(title, command, columns, shown, commit, notes, summary=found, cases=rows))
    for name, entry in found.items():
        print(name, ", ".join(f"{key} {value}" for key, value in entry.items()))
    print(f"Written: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
