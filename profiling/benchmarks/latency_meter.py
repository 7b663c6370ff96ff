"""Is the latency meter right? Against torch.utils.benchmark and Polygraphy, on the same session in one run.

    python -m lit_mmpg.profiling.benchmarks.latency_meter --bundle BUNDLE [--role model] [--rounds 40]
        [--output FILE.json]

All three time ``InferenceSession.run`` of one ONNX Runtime session with the same inputs. They take turns in every
round, so that a slow moment of the machine hits each of them; a meter's figure is the median over the rounds of the
median of single calls within a round. Target: within 3 %.

The JSON file holds ``rows``: ``meter``, ``version``, ``median_ms``, ``ratio`` (to ours, median over the rounds of the
ratio within a round), ``ratio_low``, ``ratio_high`` (10th and 90th percentile), ``within_target`` and
``round_medians_ms``; ``skipped`` says why a meter is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from lit_mmpg.errors import UserError, in_a_line
from lit_mmpg.heartbeat import working
from lit_mmpg.profiling.inputs import adapted_parameters, role_inputs
from lit_mmpg.profiling.meters import latency
from lit_mmpg.report import wide_console
from lit_mmpg.runtime.bundle import Bundle

TARGET = 0.03
OURS = "lit-mmpg"

Meter = Callable[[], float]
"""One turn: the median of its calls, milliseconds."""


def make_meters(session: Any, feeds: dict[str, np.ndarray], calls: int) -> tuple[dict[str, Meter], dict[str, str]]:
    """The meters that are installed here, and why others are not.

    Args:
        session: An ``onnxruntime.InferenceSession``.
        feeds: Its inputs.
        calls: Calls in one turn.
    """
    settings = latency.LatencyConfig(warmup=2, min_count=calls, min_time_s=0.0, max_time_s=600.0, attempts=1)

    def call() -> object:
        return session.run(None, feeds)

    meters: dict[str, Meter] = {OURS: lambda: latency.measure(call, settings).wall.p50_ms}
    skipped: dict[str, str] = {}
    try:
        from torch.utils.benchmark import Timer
    except ImportError:
        skipped["torch.utils.benchmark"] = "torch is not installed"
    else:
        timer = Timer("call()", globals={"call": call}, num_threads=1)
        meters["torch.utils.benchmark"] = lambda: _torch_ms(timer, calls)
    try:
        from polygraphy.backend.onnxrt import OnnxrtRunner
    except ImportError:
        skipped["polygraphy"] = "polygraphy is not installed; run pip install polygraphy"
    else:
        runner = OnnxrtRunner(session)
        meters["polygraphy"] = lambda: _polygraphy_ms(runner, feeds, calls)
    return meters, skipped


def _torch_ms(timer: Any, calls: int) -> float:
    """Single calls, so that this meter's median is one of calls, too."""
    return float(np.median([timer.timeit(1).median * 1e3 for _ in range(calls)]))


def _polygraphy_ms(runner: Any, feeds: dict[str, np.ndarray], calls: int) -> float:
    times = []
    with runner:
        for _ in range(2 + calls):
            runner.infer(feeds, check_inputs=False)
            times.append(runner.last_inference_time() * 1e3)
    return float(np.median(times[2:]))


def compare(meters: dict[str, Meter], rounds: int) -> list[dict[str, Any]]:
    """Let the meters take turns.

    Args:
        meters: By name; ours among them.
        rounds: Turns of each; the order rotates.

    Returns:
        Rows as the module describes them.
    """
    names = list(meters)
    medians: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            value = meters[name]()
            if turn:  # the first round warms up
                medians[name].append(value)
    rows = []
    for name in names:
        ratios = np.array(medians[name]) / np.array(medians[OURS])
        low, middle, high = (float(q) for q in np.percentile(ratios, (10, 50, 90)))
        rows.append(
            {
                "meter": name,
                "version": _version(name),
                "median_ms": float(np.median(medians[name])),
                "ratio": middle,
                "ratio_low": low,
                "ratio_high": high,
                "within_target": abs(middle - 1) <= TARGET,
                "round_medians_ms": medians[name],
            }
        )
    return rows


def _version(name: str) -> str | None:
    try:
        return metadata.version({"torch.utils.benchmark": "torch"}.get(name, name))
    except metadata.PackageNotFoundError:
        return None


@working("latency meter", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison.

    Returns:
        0 where all meters agree within the target, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m lit_mmpg.profiling.benchmarks.latency_meter")
    parser.add_argument("--bundle", required=True, type=Path, help="bundle that 'lit-mmpg export' wrote")
    parser.add_argument("--role", default="model", help="graph to run")
    parser.add_argument("--batch", type=int, default=16, help="rows")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each meter")
    parser.add_argument("--calls", type=int, default=50, help="calls in a turn")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    options = parser.parse_args(argv)
    if options.rounds < 3 or options.calls < 10:
        raise UserError("--rounds must be at least 3 and --calls at least 10")
    import onnxruntime

    bundle = Bundle.open(options.bundle)
    feeds = dict(role_inputs(bundle, options.role, options.batch))
    if options.role == "model":
        feeds |= adapted_parameters(bundle) or {}
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    path = str(bundle.graph(options.role))
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    meters, skipped = make_meters(session, feeds, options.calls)
    rows = compare(meters, options.rounds)
    table = Table(title=f"median of {options.role}.onnx, batch {options.batch}, {options.rounds} rounds in turns")
    for column in ("meter", "version", "median ms", "ratio to ours", "10 % to 90 %", "within 3 %"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["meter"],
            row["version"] or "this package",
            f"{row['median_ms']:.4f}",
            f"{row['ratio']:.4f}",
            f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
            "yes" if row["within_target"] else "NO",
        )
    console = wide_console()
    console.print(table)
    for name, reason in skipped.items():
        console.print(f"skipped: {name}: {reason}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"rows": rows, "skipped": skipped}, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["within_target"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
