"""When to ask: the budget-accuracy curve of each policy against random skipping at the same budget.

    python -m lit_mmpg.profiling.benchmarks.policies --ckpt CKPT

Unseen devices, each followed by another one in the middle of its stream (:mod:`lit_mmpg.profiling.benchmarks.streams`).
The threshold of each policy is chosen on the validation devices (the fewest requests that keep the target share of the
always-ask gain there) and reported on the test devices, beside the whole curve. Requests are counted over all clips
of a stream, the first adaptation included.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from lit_mmpg.heartbeat import working
from lit_mmpg.metrics.statistics import clustered_mean
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.benchmarks.streams import Stream, Walk, follow, static, streams
from lit_mmpg.profiling.benchmarks.trained import Trained, command
from lit_mmpg.runtime.policies import Always, Drift, EveryN, Policy, Uncertainty

TARGET_SHARE, TARGET_REQUESTS = 0.95, 0.20
GRID: dict[str, list[Policy]] = {
    "drift": [Drift(round(x, 3)) for x in np.geomspace(0.04, 0.8, 25)],
    "uncertainty": [Uncertainty(round(x, 3)) for x in np.geomspace(0.02, 0.5, 18)],
    "every": [EveryN(n) for n in (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)],
}


@dataclass(frozen=True)
class Point:
    """A policy on some streams.

    Attributes:
        policy: As on the command line.
        requests: Share of the clips at which it asked.
        accuracy: Share of right answers.
        share: Share of the gain of asking always; ``None`` where that gains nothing.
        low: Lower end of its 95 % bootstrap interval over streams.
        high: Upper end.
    """

    policy: str
    requests: float
    accuracy: float
    share: float | None
    low: float | None
    high: float | None


def point(name: str, walks: Sequence[Walk], always: Sequence[Walk], plain: Sequence[np.ndarray]) -> Point:
    """Measure walks, one for each stream, against asking always and never."""
    ours = np.array([w.right.mean() for w in walks])
    most = np.array([w.right.mean() for w in always])
    least = np.array([p.mean() for p in plain])
    rows = np.arange(len(ours))

    def share(index: np.ndarray) -> float:
        gain = float((most[index] - least[index]).mean())
        return float((ours[index] - least[index]).mean()) / gain if gain > 0 else float("nan")

    asked = float(np.mean([w.asked.mean() for w in walks]))
    if (most - least).mean() <= 0:
        return Point(name, asked, float(ours.mean()), None, None, None)
    rng = np.random.default_rng(0)
    draws = np.array([share(rng.integers(0, len(rows), len(rows))) for _ in range(2000)])
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Point(name, asked, float(ours.mean()), share(rows), float(low), float(high))


def skip_at_random(stream: Stream, requests: float, first: int = Drift(1.0).first) -> Walk:
    """What to expect of a device that tosses a coin before each clip: exact, nothing is drawn.

    Args:
        stream: The stream.
        requests: Share of the clips at which it asks.
        first: Clips of the first context; it asks then whatever the coin says, as a policy does.
    """
    size = len(stream)
    coin = min(1.0, max(0.0, (requests * size - 1) / (size - first - 1)))
    asked = np.where(np.arange(size) < first, 0.0, coin)
    asked[first] = 1.0
    right = stream.right[:, 0].copy()
    for t in range(first, size):
        # The parameters in use are those of the last request: at s, and at none of the clips since.
        since = t - np.arange(first, t + 1)
        weight = coin * (1 - coin) ** since
        weight[0] = (1 - coin) ** since[0]
        right[t] = weight @ stream.right[t, first : t + 1]
    return Walk(asked, right)


def random_at(many: Sequence[Stream], requests: float) -> list[Walk]:
    """Random skipping at a budget, one walk for each stream."""
    return [skip_at_random(stream, requests) for stream in many]


def curve(many: Sequence[Stream], grid: dict[str, list[Policy]]) -> dict[str, list[Point]]:
    """Points of all policies of a grid."""
    always, plain = [follow(s, Always()) for s in many], [static(s) for s in many]
    return {
        kind: [point(str(policy), [follow(s, policy) for s in many], always, plain) for policy in policies]
        for kind, policies in grid.items()
    }


def choose(points: Sequence[Point]) -> Point:
    """The point with the fewest requests that reaches the target; else the most accurate one."""
    good = [p for p in points if p.share is not None and p.share >= TARGET_SHARE]
    return min(good, key=lambda p: p.requests) if good else max(points, key=lambda p: p.accuracy)


def measure(chosen_on: Sequence[Stream], reported_on: Sequence[Stream]) -> dict[str, Any]:
    """Choose each policy's threshold on some streams and report it on others."""
    choices = {kind: choose(points) for kind, points in curve(chosen_on, GRID).items()}
    points = curve(reported_on, GRID)
    always, plain = [follow(s, Always()) for s in reported_on], [static(s) for s in reported_on]
    rows = []
    for kind, chosen in choices.items():
        found = next(p for p in points[kind] if p.policy == chosen.policy)
        policy = next(p for p in GRID[kind] if str(p) == chosen.policy)
        ours, blind = [follow(s, policy) for s in reported_on], random_at(reported_on, found.requests)
        chance = point("random", blind, always, plain)
        gap = np.array([a.right.mean() - b.right.mean() for a, b in zip(ours, blind, strict=True)])
        spread = clustered_mean(gap, np.arange(len(gap))).interval()
        rows.append(
            {
                "kind": kind,
                **vars(found),
                "validation": vars(chosen),
                "random_share": chance.share,
                "random_accuracy": chance.accuracy,
                "minus_random": spread.value,
                "minus_random_low": spread.low,
                "minus_random_high": spread.high,
                "meets_target": (found.share or 0.0) >= TARGET_SHARE and found.requests <= TARGET_REQUESTS,
            }
        )
    budgets = [round(float(b), 3) for b in (0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.3, 0.5)]
    chance_curve = [point(f"random:{b}", random_at(reported_on, b), always, plain) for b in budgets]
    return {
        "streams": len(reported_on),
        "clips": len(reported_on[0]),
        "static": float(np.mean([p.mean() for p in plain])),
        "always": float(np.mean([w.right.mean() for w in always])),
        "chosen": rows,
        "curves": {kind: [vars(p) for p in found] for kind, found in points.items()}
        | {"random": [vars(p) for p in chance_curve]},
    }


def markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"Checkpoint `{result['checkpoint']}`: {result['streams']} streams of {result['clips']} clips; the device "
        f"changes in the middle. Static {100 * result['static']:.1f} %, always asking {100 * result['always']:.1f} %.",
        "",
        "| chosen on validation | requests | accuracy | share of the gain | random, same budget | minus random |",
        "|---|---|---|---|---|---|",
    ]
    for r in result["chosen"]:
        share, low, high, chance = (_percent(r[key]) for key in ("share", "low", "high", "random_share"))
        gap = [f"{100 * r[key]:+.1f}" for key in ("minus_random", "minus_random_low", "minus_random_high")]
        cells = [f"`{r['policy']}`", f"{100 * r['requests']:.1f} %", f"{100 * r['accuracy']:.1f} %"]
        cells += [f"{share} [{low}, {high}]", chance, f"{gap[0]} [{gap[1]}, {gap[2]}] points"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| curve | requests: share of the gain |", "|---|---|"]
    for kind, points in result["curves"].items():
        pairs = [f"{100 * p['requests']:.1f} %: {_percent(p['share'])}" for p in points]
        lines.append(f"| {kind} | {', '.join(pairs)} |")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{100 * share:.0f} %"


def screen_table(result: dict[str, Any]) -> Table:
    """The result for the screen."""
    table = Table(
        "policy",
        "requests",
        "accuracy",
        "share of the gain",
        "random",
        title="chosen on validation, on test",
        caption=f"static {result['static']:.1%}, always {result['always']:.1%}",
    )
    for row in result["chosen"]:
        table.add_row(
            row["policy"],
            f"{row['requests']:.1%}",
            f"{row['accuracy']:.1%}",
            f"{_percent(row['share'])} [{_percent(row['low'])}, {_percent(row['high'])}]",
            _percent(row["random_share"]),
        )
    return table


@working("policies", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write ``policies.json`` and ``policies.md``."""

    def figures(trained: Trained, options: argparse.Namespace, told: Callable[[str], None]) -> dict[str, Any]:
        sets = [streams(trained, group, told) for group in ("val", "test_unseen")]
        told("walking the streams")
        return measure(*sets)

    return command(
        "policies",
        __doc__,
        figures,
        markdown,
        screen_table,
        argv,
        ckpt="checkpoint of a cloud half that answers questions",
    )


if __name__ == "__main__":
    sys.exit(main())
