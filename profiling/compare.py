"""Two profiles side by side: which figures changed, by how much, how sure that is, and whether a limit is broken.

Profiles come from files (measured one after the other) or are measured in turns by :mod:`.interleave`. Intervals of a
change hold the true one in 95 % of cases:

- from files, a quantile or mean of latency: bootstrap over blocks of neighbouring samples, since neighbours resemble
  each other. What happened between the two runs (temperature, other load) is not in it.
- in turns: order statistics of the ratios of the rounds (sign test), each round with fresh sessions.
- energy, and the ratio to baked parameters: the ends of both, taken in the worst way.
- bytes: exact.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError, closest
from lit_mmpg.profiling.tables import describe_change, engine_label, flags, primary_energy, row_name, start_of
from lit_mmpg.report import json_ready

KIND = "lit-mmpg-profile-comparison"
VERSION = 1

RESAMPLES = 1000
KEPT_SAMPLES = 5000
"""The bootstrap takes at most so many samples of a row, the first ones."""

CONDITIONS = ("gpu", "cpu_usable", "memory_bytes", "threads", "packages")
"""Fields of the environment that change figures, beside machine and power mode."""
SETTINGS = ("latency", "energy", "stream", "sustained", "throughput", "finetune", "cloud")
"""The same of the configuration."""

Row = Mapping[str, Any]
Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A figure of a row.

    Attributes:
        value: The figure, None where the row has none.
        statistic: The same of latency samples ``[..., n]``; None where it is not of samples.
        higher_is_better: Direction.
    """

    value: Callable[[Row], float | None]
    statistic: Statistic | None = None
    higher_is_better: bool = False


def _wall(key: str) -> Callable[[Row], float | None]:
    return lambda row: row["latency"]["wall"][key] if row.get("latency") else None


def _quantile(q: int) -> Metric:
    return Metric(_wall(f"p{q}_ms"), lambda samples: np.percentile(samples, q, axis=-1))


def _memory(key: str) -> Metric:
    return Metric(lambda row: (row.get("memory") or {}).get(key))


def _message(way: str) -> Metric:
    return Metric(lambda row: ((row.get("bytes") or {}).get(way) or {}).get("message_bytes"))


def _energy(key: str) -> Metric:
    return Metric(lambda row: (measured_energy(row) or {}).get(key))


def measured_energy(row: Row) -> Mapping[str, Any] | None:
    """The first energy reading that a meter made; a model's estimate decides nothing."""
    reading = primary_energy(row)  # measured before modelled
    return None if reading is None or reading["estimate"] else reading


METRICS: dict[str, Metric] = {
    **{f"p{q}_ms": _quantile(q) for q in (50, 90, 95, 99)},
    "mean_ms": Metric(_wall("mean_ms"), lambda samples: samples.mean(-1)),
    "cold_ms": Metric(lambda row: row["latency"]["cold_ms"] if row.get("latency") else None),
    "activate_ms": Metric(lambda row: row.get("activate_ms")),
    "energy_j": _energy("gross_j_per_unit"),
    "energy_net_j": _energy("net_j_per_unit"),
    **{key: _memory(key) for key in ("peak_rss_bytes", "device_bytes", "engine_bytes")},
    "answers_per_s": Metric(lambda row: (row.get("throughput") or {}).get("answers_per_s"), higher_is_better=True),
    "baked_ratio": Metric(lambda row: (row.get("personalisation") or {}).get("baked_ratio")),
    "upload_bytes": _message("upload"),
    "download_bytes": _message("download"),
}


@dataclass(frozen=True)
class Limit:
    """How much worse a figure may become.

    Attributes:
        metric: Name, from ``METRICS``.
        amount: Fraction of A's figure, or the figure's own unit.
        relative: Which of them.
    """

    metric: str
    amount: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Limit:
        """``p50_ms=5%`` or ``p50_ms=0.2``.

        Raises:
            UserError: If the text is neither, or there is no such figure.
        """
        found = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9.eE+-]+)\s*(%?)\s*", text)
        try:
            amount = float(found[2]) if found else math.nan
        except ValueError:
            amount = math.nan
        if found is None or not math.isfinite(amount) or amount < 0:
            raise UserError(f"--fail-on {text}: write FIGURE=LIMIT, for example p50_ms=5% or p50_ms=0.2")
        if found[1] not in METRICS:
            raise UserError(
                f"--fail-on {text}: there is no figure '{found[1]}'{closest(found[1], METRICS)}; "
                f"choose from {', '.join(METRICS)}"
            )
        return cls(found[1], amount / 100 if found[3] else amount, bool(found[3]))

    def __str__(self) -> str:
        return f"{self.metric}={self.amount * 100:g}%" if self.relative else f"{self.metric}={self.amount:g}"

    def broken_by(self, a: float, change: float | None) -> bool:
        """Whether a change for the worse (a fraction of ``a``) is more than this allows."""
        return change is not None and change > (self.amount if self.relative else self.amount / abs(a))


@dataclass(frozen=True)
class Change:
    """Relative change from A to B, positive where B's figure is larger; None where nothing is known of an end."""

    estimate: float
    low: float | None
    high: float | None


def row_key(row: Row) -> tuple[str, str, str, int, str, bool]:
    """What makes rows of two profiles the same: engine, all its options, precision, batch, scenario, path."""
    options = json.dumps(row["options"], sort_keys=True)
    return row["engine"], options, row["precision"], row["batch"], row["scenario"], row["encoder_included"]


def row_title(row: Row) -> str:
    """The key in words."""
    return f"{row_name(row)} {row['scenario']} from {start_of(row)}"


def compare_profiles(a: Mapping[str, Any], b: Mapping[str, Any], limits: Sequence[Limit]) -> dict[str, Any]:
    """Compare two profiles that were measured apart.

    Args:
        a: The profile to compare with.
        b: The profile that may have become worse.
        limits: What fails.

    Returns:
        A document of :data:`KIND`.
    """
    others = {row_key(row): row for row in b["rows"]}
    rows = []
    for row in a["rows"]:
        if row["status"] == "ok":
            rows.append(compare_rows(row, others.get(row_key(row)), limits))
    known = {row_key(row) for row in a["rows"] if row["status"] == "ok"}
    new = [row_title(row) for row in b["rows"] if row["status"] == "ok" and row_key(row) not in known]
    return finish("files", side(a), side(b), rows, limits, _remarks(a, b, new))


def compare_rows(a: Row, b: Row | None, limits: Sequence[Limit]) -> dict[str, Any]:
    """One row of both, from their samples and figures."""
    if b is None or b["status"] != "ok":
        told = "B has no such row" if b is None else f"B's row is {b['status']}: {b['reason']}"
        return lost(a, told)
    units = [row.get("unit") for row in (a, b)]
    if None not in units and units[0] != units[1]:
        return lost(a, f"A's figures are of one {units[0]}, B's of one {units[1]}")
    changes: dict[str, tuple[float, float, Change]] = {}
    for name, metric in METRICS.items():
        x, y = metric.value(a), metric.value(b)
        if x is not None and y is None and any(limit.metric == name for limit in limits):
            return lost(a, f"B's row has no {name}, on which there is a limit")
        if x is not None and y is not None and x > 0:
            changes[name] = (x, y, _change(metric, name, a, b, x, y))
    notes = [f"{which}: {flag}" for which, row in (("A", a), ("B", b)) for flag in flags(row)]
    readings = [measured_energy(row) or {} for row in (a, b)]
    meters = [" ".join(str(reading[key]) for key in ("source", "scope") if reading.get(key)) for reading in readings]
    if "energy_j" in changes and meters[0] != meters[1]:
        notes.append(f"energy was read from different sources ({meters[0]} and {meters[1]}) and is not compared")
        changes = {name: found for name, found in changes.items() if not name.startswith("energy")}
    return judged(a, changes, limits, notes)


def judged(
    key: Row, changes: Mapping[str, tuple[float, float, Change]], limits: Sequence[Limit], notes: Sequence[str]
) -> dict[str, Any]:
    """A row of the result: figures of both, changes, and what the limits say.

    Args:
        key: A row with the fields of :func:`row_key`.
        changes: Figure of A, figure of B and change, by name.
        limits: What fails.
        notes: What a reader should know.
    """
    figures = {}
    for name, (x, y, change) in changes.items():
        verdict = _verdict(name, x, change, [limit for limit in limits if limit.metric == name])
        figures[name] = {"a": x, "b": y, "change": change.estimate, "low": change.low, "high": change.high} | verdict
    bad = any(figure["verdict"] == "worse" for figure in figures.values())
    return _key_fields(key) | {
        "status": "worse" if bad else "ok",
        "reason": None,
        "figures": figures,
        "notes": [*notes],
    }


def finish(
    method: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    rows: list[dict[str, Any]],
    limits: Sequence[Limit],
    remarks: Sequence[str],
) -> dict[str, Any]:
    """The document; a limit on a figure that no row of both has fails, since nothing was checked."""
    unchecked = [limit for limit in limits if not any(limit.metric in row["figures"] for row in rows)]
    problems = [f"{row['title']}: {row['reason']}" for row in rows if row["status"] == "lost"]
    problems += [f"--fail-on {limit}: no row of both has this figure" for limit in unchecked]
    for row in rows:
        for name, figure in row["figures"].items():
            if figure["verdict"] == "worse":
                problems.append(f"{row['title']}: {name} {describe_change(figure)}, limit {figure['limit']}")
    if not rows:
        problems.append("A has no row that was measured")
    return json_ready(
        {
            "kind": KIND,
            "schema_version": VERSION,
            "method": method,
            "a": a,
            "b": b,
            "limits": [str(limit) for limit in limits],
            "passed": not problems,
            "problems": problems,
            "remarks": list(remarks),
            "rows": rows,
        }
    )


def side(profile: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison tells about one of its profiles."""
    environment = profile["environment"]
    return {
        "name": profile["name"],
        "bundle": profile["bundle"]["path"],
        "checkpoint_digest": profile["bundle"]["checkpoint_digest"],
        "created": profile["created"],
        "digest": profile["digest"],
        "machine": environment.get("board") or environment.get("cpu") or environment.get("architecture"),
        "power_mode": environment.get("power_mode"),
    }


def median_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Median and an interval of the true median with at least 95 % coverage, from order statistics.

    Args:
        values: Independent values; fewer than 6 give no interval.
    """
    ordered = sorted(values)
    count = len(ordered)
    cut, tail = 0, 0.5**count  # tail: chance that at most `cut` of the values lie below the median
    while 2 * tail <= 0.05:
        cut += 1
        tail += math.comb(count, cut) * 0.5**count
    middle = float(np.median(ordered))
    return (middle, None, None) if cut == 0 else (middle, ordered[cut - 1], ordered[count - cut])


def quantile_interval(samples_ms: Sequence[float], q: float) -> tuple[float | None, float | None]:
    """An interval of a quantile of correlated samples with 95 % coverage (bootstrap over blocks).

    Args:
        samples_ms: In the order in which they were taken; fewer than 20 give no interval.
        q: Per cent.
    """
    if len(samples_ms) < 20:
        return None, None
    kept = np.asarray(samples_ms[:KEPT_SAMPLES])
    values = _bootstrap(kept, lambda drawn: np.percentile(drawn, q, axis=-1), np.random.default_rng(0))
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _change(metric: Metric, name: str, a: Row, b: Row, x: float, y: float) -> Change:
    estimate = y / x - 1
    if metric.statistic is not None:
        samples = [np.asarray(row["latency"]["wall"]["samples_ms"][:KEPT_SAMPLES]) for row in (a, b)]
        if min(map(len, samples)) < 20:
            return Change(estimate, None, None)
        return _bootstrapped(estimate, samples, metric.statistic)
    if name.startswith("energy"):
        key = "bound_j_per_unit" if name == "energy_j" else "net_bound_j_per_unit"
        bound_a, bound_b = ((measured_energy(row) or {}).get(key) for row in (a, b))
        if bound_a is None or bound_b is None or bound_a >= x:
            return Change(estimate, None, None)
        return Change(estimate, (y - bound_b) / (x + bound_a) - 1, (y + bound_b) / (x - bound_a) - 1)
    if name == "answers_per_s" and all("blocks_per_s" in row["throughput"] for row in (a, b)):
        # Rates of the parts of a run; the whole is their harmonic mean, near enough their mean.
        rates = [np.asarray(row["throughput"]["blocks_per_s"]) for row in (a, b)]
        return _bootstrapped(estimate, rates, lambda blocks: blocks.mean(-1))
    if name == "baked_ratio":
        ends = [row["personalisation"][f"baked_ratio_{end}"] for row in (a, b) for end in ("low", "high")]
        if None in ends:
            return Change(estimate, None, None)
        return Change(estimate, ends[2] / ends[1] - 1, ends[3] / ends[0] - 1)
    if name.endswith("_bytes") and name not in ("peak_rss_bytes", "device_bytes"):
        return Change(estimate, estimate, estimate)
    return Change(estimate, None, None)


def _bootstrapped(estimate: float, samples: Sequence[np.ndarray], statistic: Statistic) -> Change:
    """The change of a statistic of samples of A and of B."""
    rng = np.random.default_rng(0)
    a, b = (_bootstrap(own, statistic, rng) for own in samples)
    low, high = (float(q) for q in np.percentile(b / a - 1, (2.5, 97.5)))
    return Change(estimate, low, high)


def _bootstrap(samples: np.ndarray, statistic: Statistic, rng: np.random.Generator) -> np.ndarray:
    """Statistics of circular blocks of neighbouring samples, drawn anew ``RESAMPLES`` times."""
    count = len(samples)
    length = max(1, round(count**0.5))
    starts = rng.integers(count, size=(RESAMPLES, -(-count // length)))
    found = []
    for chunk in np.array_split(starts, 10):
        index = (chunk[..., None] + np.arange(length)).reshape(len(chunk), -1)[:, :count] % count
        found.append(statistic(samples[index]))
    return np.concatenate(found)


def _verdict(name: str, a: float, change: Change, limits: Sequence[Limit]) -> dict[str, Any]:
    """worse: beyond the limit, the interval on the worse side of zero; unsure: beyond it, but that may be noise."""
    sign = -1.0 if METRICS[name].higher_is_better else 1.0
    ends = [None if end is None else sign * end for end in (change.low, change.high)]
    least = None if None in ends else min(ends)  # type: ignore[type-var]
    for limit in limits:
        if limit.broken_by(a, sign * change.estimate):
            sure = least is None or least > 0
            return {"verdict": "worse" if sure else "unsure", "limit": str(limit)}
    if limits:
        return {"verdict": "within", "limit": ", ".join(map(str, limits))}
    return {"verdict": None, "limit": None}


def _key_fields(row: Row) -> dict[str, Any]:
    kept = ("options", "precision", "batch", "scenario", "encoder_included")
    fields = {"title": row_title(row), "engine": engine_label(row), **{name: row[name] for name in kept}}
    return fields | {"unit": row.get("unit")}


def lost(row: Row, reason: str) -> dict[str, Any]:
    """A row of the result that B does not have, or that is wrong in one of both."""
    return _key_fields(row) | {"status": "lost", "reason": reason, "figures": {}, "notes": []}


def _remarks(a: Mapping[str, Any], b: Mapping[str, Any], new: Sequence[str]) -> list[str]:
    remarks = ["measured one after the other: what changed on the machine in between is not in the intervals"]
    found = [side(profile) | {"task": profile["bundle"]["task"]} for profile in (a, b)]
    for key in ("task", "machine", "power_mode"):
        x, y = (one[key] for one in found)
        if x != y:
            remarks.append(f"different {key.replace('_', ' ')}: {x or 'unknown'} and {y or 'unknown'}")
    for section, names in (("environment", CONDITIONS), ("config", SETTINGS)):
        x, y = ({name: profile[section].get(name) for name in names} for profile in (a, b))
        different = ", ".join(f"{section}.{name}" for name in names if x[name] != y[name])
        if different:
            remarks.append(f"measured under different {different}: see both files")
    for which, profile in (("A", a), ("B", b)):
        if profile["state"] != "complete":
            remarks.append(f"{which} is {profile['state']}: some rows may be missing")
    return remarks + [f"only in B: {title}" for title in new]
