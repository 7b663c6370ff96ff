"""Does the gate find a regression, and nothing else? ``profile compare --interleave`` with and without a planted one.

    python -m lit_mmpg.profiling.benchmarks.gate --bundle BUNDLE [--runs 20] [--planted 0.1] [--limit 5]
        [--kept outputs/gate.jsonl] [--output FILE.json]

It takes minutes, so it may run in the background, prints a line for each run, and keeps each in a file: interrupted (or
killed) and started again with the same command, it goes on with the run that is next.

Each run compares a bundle with itself. In half of the runs every answer of B is followed by a busy wait that lasts a
share of what that answer took: the regression, of the same share whatever else the machine does. Target: planted ones
fail in all runs, and 19 of 20 runs without one pass.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import working
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.compare import Limit
from lit_mmpg.profiling.config import EngineSelection, ProfileConfig
from lit_mmpg.profiling.harness import Harness, Instruments
from lit_mmpg.profiling.interleave import Open, compare_bundles, open_pipeline
from lit_mmpg.profiling.meters.latency import LatencyConfig
from lit_mmpg.profiling.pipeline import Pipeline
from lit_mmpg.profiling.plan import Cell
from lit_mmpg.results import machine, result, write_result
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.tracking.address import git_commit


class Slower(Pipeline):
    """A pipeline whose answers take longer by a fixed share."""

    share = 0.0

    def answer(self, features: np.ndarray | None = None) -> np.ndarray:
        """The answer, then a busy wait."""
        start = time.perf_counter()
        found = super().answer(features)
        now = time.perf_counter()
        end = now + self.share * (now - start)
        while now < end:
            now = time.perf_counter()
        return found


def runs(
    harness: Harness,
    cell: Cell,
    count: int,
    share: float,
    limit: Limit,
    rounds: int,
    finished: Sequence[Mapping[str, Any]] = (),
) -> Iterator[dict[str, Any]]:
    """``count`` runs with and ``count`` without a regression, in turns, each as soon as it is there.

    Args:
        harness: Of the bundle.
        cell: What is measured.
        count: Runs of each kind.
        share: By which B is slower.
        limit: What fails.
        rounds: Of each run.
        finished: Runs of before; those that are missing are made.

    Yields:
        ``planted``, ``passed`` and the ``change`` of each, with the interval's ends.
    """
    slower = type("Planted", (Slower,), {"share": share})
    for number in range(len(finished), 2 * count):
        opener: Open = open_pipeline if number % 2 == 0 else (lambda harness, cell: slower(harness.bundle, cell))
        comparison = compare_bundles(harness, harness, [limit], rounds, open_b=opener)
        figure = comparison["rows"][0]["figures"][limit.metric]
        ends = {key: figure[key] for key in ("change", "low", "high")}
        yield {"planted": opener is not open_pipeline, "passed": comparison["passed"], **ends}


def read_kept(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Finished runs of a file; a last line that was cut off is left out, and a file that is missing is begun.

    Raises:
        UserError: If they are of other settings, which would mix what cannot be mixed.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    try:
        first, *found = (json.loads(line) for line in whole.splitlines())
    except ValueError:
        first, found = None, []
    if first != settings:
        raise UserError(f"{path} holds runs of other settings or code; delete it, or name another file by --kept")
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return found


@working("gate", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Returns:
        0 where the target is met, 130 where it was interrupted, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m lit_mmpg.profiling.benchmarks.gate")
    parser.add_argument("--bundle", required=True, type=Path, help="bundle that 'lit-mmpg export' wrote")
    parser.add_argument("--runs", type=int, default=20, help="runs of each kind")
    parser.add_argument("--planted", type=float, default=0.1, help="share by which B is slower")
    parser.add_argument("--limit", type=float, default=5.0, help="limit on the median latency, per cent")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each run")
    parser.add_argument("--kept", type=Path, default=Path("outputs/gate.jsonl"), help="file of finished runs")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args(argv)
    meter = LatencyConfig(warmup=10, min_count=100, min_time_s=0.3, attempts=1)
    config = ProfileConfig("gate", (EngineSelection("onnxruntime"),), encoder="without", latency=meter)
    harness = Harness(Bundle.open(options.bundle), config, Instruments.open())
    cell = Cell(config.engines[0], "fp32", 1, "answer", False)
    limit = Limit("p50_ms", options.limit / 100, True)
    settings = {name: getattr(options, name) for name in ("planted", "limit", "rounds")}
    settings |= {"checkpoint": harness.bundle.manifest.checkpoint_digest, "commit": git_commit(), "machine": machine()}
    found = read_kept(options.kept, settings)[: 2 * options.runs]
    if found:
        print(f"{len(found)} of {2 * options.runs} runs are in {options.kept}", flush=True)
    new = runs(harness, cell, options.runs, options.planted, limit, options.rounds, found)
    try:
        for run in new:
            found.append(run)
            with options.kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
            which = f"{options.planted:.0%} slower" if run["planted"] else "the same bundle"
            told = f"{'passed' if run['passed'] else 'failed'}, change {run['change']:+.1%}"
            print(f"run {len(found)} of {2 * options.runs}: {which}: {told}", flush=True)
    except KeyboardInterrupt:
        print(f"interrupted: {len(found)} of {2 * options.runs} runs are kept in {options.kept}", file=sys.stderr)
        return 130
    rows = []
    for kind, wanted in ((True, False), (False, True)):
        own = [run for run in found if run["planted"] == kind]
        right = sum(run["passed"] == wanted for run in own)
        changes = [run["change"] * 100 for run in own]
        held = sum(run["low"] <= (options.planted if kind else 0.0) <= run["high"] for run in own)
        rows.append(
            [
                f"{options.planted:.0%} slower" if kind else "the same bundle",
                f"{right} of {len(own)} {'failed' if kind else 'passed'}",
                f"{np.median(changes):+.1f} % ({min(changes):+.1f} to {max(changes):+.1f})",
                f"{held} of {len(own)}",
            ]
        )
    met = rows[0][1].startswith(f"{options.runs} of") and int(rows[1][1].split()[0]) >= 0.95 * options.runs
    header = ["B", "as it should", "change found: median (least to most)", "interval holds the truth"]
    for row in rows:
        print(" | ".join(row))
    if options.output:
        command = (
            f"python -m lit_mmpg.profiling.benchmarks.gate --bundle bundle --runs {options.runs} "
            f"--planted {options.planted:g} --limit {options.limit:g} --rounds {options.rounds}"
        )
        note = f"Limit {limit}, {options.rounds} rounds with fresh sessions; target {'met' if met else 'missed'}."
        made = result("The gate on latency", command, header, rows, git_commit(), [note], values=found)
        write_result(options.output, made)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
