"""Do other tools measure the same? Ours, Polygraphy's and ONNX Runtime's own, on the same ONNX file in one run.

    python -m lit_mmpg.profiling.benchmarks.agreement --bundle BUNDLE [--roles model encode] [--batches 1 64]
        [--rounds 40] [--calls 50] [--perf-test onnxruntime_perf_test] [--output FILE.json]

Each tool opens its own session of the file, on the processor with one thread, and measures in its own way:

====================== ============================================================================================
tool                   what it does
====================== ============================================================================================
lit-mmpg               ``InferenceSession.run``: latency as the scenario ``answer``, throughput as ``offline``
lit-mmpg, bound        the same of the engine of a profile, which binds its inputs instead: shown, and not judged
torch.utils.benchmark  the clock of torch around ``InferenceSession.run``
polygraphy             ``OnnxrtRunner``: its time of single inferences; throughput is the inverse of their mean
onnxruntime            ``onnxruntime.transformers.benchmark_helper`` of its wheel: mean latency and queries a second
onnxruntime_perf_test  its program, where one is given or found: no wheel or package holds it, only its source
====================== ============================================================================================

They take turns in every round, in an order that rotates, so that a slow moment of the machine hits each of them. A
ratio is that of a tool's figure to ours within a round: of medians where the tool tells one, else of means; given are
the median over the rounds and its interval (95 %). Target: within 3 %, in latency and in throughput. A bound call has
less to do than one that is handed its arrays. What a tool does around a call, some ten microseconds of Python, and what
it does between two calls, which costs the next one its caches, is in its figures. With calls of a tenth of a
millisecond (batch 1) the tools differ by that, so the target is for the default batch, of calls over a millisecond.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import tell, working
from lit_mmpg.profiling.compare import median_interval
from lit_mmpg.profiling.inputs import adapted_parameters, role_inputs
from lit_mmpg.profiling.meters import latency
from lit_mmpg.report import escape, wide_console
from lit_mmpg.results import result, write_result
from lit_mmpg.runtime.bundle import Arrays, Bundle
from lit_mmpg.runtime.engines import create_engine
from lit_mmpg.tracking.address import git_commit

TARGET = 0.03
OURS, BOUND = "lit-mmpg", "lit-mmpg, bound"
PERF_TEST = "onnxruntime_perf_test"

Figures = dict[str, float]
"""``mean_ms`` of a call, ``per_s`` rows a second, and ``median_ms`` where the tool tells it."""
Tool = Callable[[], Figures]
"""One turn."""


def make_tools(
    bundle: Bundle, role: str, batch: int, calls: int, perf_test: str | None, stack: ExitStack
) -> tuple[dict[str, Tool], dict[str, str]]:
    """The tools that are here, ours first, and why others are not.

    Args:
        bundle: The bundle.
        role: Its graph.
        batch: Rows.
        calls: Calls in one turn.
        perf_test: Program; looked for where programs are when None.
        stack: Closes what is opened.
    """
    inputs, path = role_inputs(bundle, role, batch), str(bundle.graph(role))
    engine = stack.enter_context(create_engine("onnxruntime", bundle, role, threads=1))
    parameters = adapted_parameters(bundle) if engine.personal else None
    if parameters is not None:
        engine.load_parameters(parameters)
    feeds = inputs | engine.parameters
    settings = latency.LatencyConfig(warmup=2, min_count=calls, min_time_s=0.0, max_time_s=600.0, attempts=1)

    session = _session(path)

    def by_us(call: Callable[[], object]) -> Figures:
        found = latency.measure(call, settings).wall
        start = time.perf_counter()
        for _ in range(calls):
            call()
        per_s = batch * calls / (time.perf_counter() - start)
        return {"median_ms": found.p50_ms, "mean_ms": found.mean_ms, "per_s": per_s}

    tools: dict[str, Tool] = {
        OURS: lambda: by_us(lambda: session.run(None, feeds)),
        BOUND: lambda: by_us(lambda: engine.infer(inputs)),
    }
    skipped: dict[str, str] = {}
    try:
        from torch.utils.benchmark import Timer
    except ImportError:
        skipped["torch.utils.benchmark"] = "torch is not installed"
    else:
        own = _session(path)
        timer = Timer("session.run(None, feeds)", globals={"session": own, "feeds": feeds}, num_threads=1)

        def by_torch() -> Figures:
            timer.timeit(2)
            return _of([timer.timeit(1).median * 1e3 for _ in range(calls)], batch)

        tools["torch.utils.benchmark"] = by_torch
    try:
        from polygraphy.backend.onnxrt import OnnxrtRunner
    except ImportError:
        skipped["polygraphy"] = "polygraphy is not installed; run pip install polygraphy"
    else:
        runner = stack.enter_context(OnnxrtRunner(_session(path)))

        def by_polygraphy() -> Figures:
            times_ms = []
            for _ in range(2 + calls):
                runner.infer(feeds, check_inputs=False)
                times_ms.append(runner.last_inference_time() * 1e3)
            return _of(times_ms[2:], batch)

        tools["polygraphy"] = by_polygraphy
    try:
        from onnxruntime.transformers.benchmark_helper import inference_ort
    except ImportError as error:
        skipped["onnxruntime"] = f"its benchmark needs {error.name or error}"
    else:
        another = _session(path)

        def by_onnxruntime() -> Figures:
            per_s = float(inference_ort(another, feeds, {}, calls, batch, warm_up_repeat=2)["QPS"])
            return {"mean_ms": 1e3 * batch / per_s, "per_s": per_s}  # its own milliseconds have two decimals

        tools["onnxruntime"] = by_onnxruntime
    program = shutil.which(perf_test or PERF_TEST)
    if perf_test is not None and program is None:
        raise UserError(f"--perf-test {perf_test} is no program; leave it out, or build it with ONNX Runtime's source")
    if program is None:
        skipped[PERF_TEST] = "no wheel or package holds it; build it with ONNX Runtime's source and give --perf-test"
    else:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tools[PERF_TEST] = _program(program, write_test_data(Path(path), feeds, folder), calls, batch)
    return tools, skipped


def _session(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _of(times_ms: Sequence[float], batch: int) -> Figures:
    mean = float(np.mean(times_ms))
    return {"median_ms": float(np.median(times_ms)), "mean_ms": mean, "per_s": 1e3 * batch / mean}


def write_test_data(graph: Path, feeds: Arrays, folder: Path) -> Path:
    """A graph beside its inputs as ONNX Runtime's test programs read them; where the copy of the graph is.

    Args:
        graph: ONNX file.
        feeds: All of its inputs.
        folder: Where to write.
    """
    from onnx import numpy_helper

    model = folder / "model.onnx"
    shutil.copyfile(graph, model)
    data = folder / "test_data_set_0"
    data.mkdir()
    for number, (name, array) in enumerate(feeds.items()):
        (data / f"input_{number}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
    return model


def _program(program: str, model: Path, calls: int, batch: int) -> Tool:
    command = [program, *f"-e cpu -m times -r {calls} -x 1 -y 1 -o 99 -s".split(), str(model)]

    def run() -> Figures:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{program} ended with status {done.returncode}: {(done.stderr or done.stdout)[-300:]}")
        return read_perf_test(done.stdout, batch)

    return run


def read_perf_test(text: str, batch: int) -> Figures:
    """Figures of ``onnxruntime_perf_test`` from what it prints.

    Raises:
        UserError: If they are not there.
    """
    mean = re.search(r"Average (?:inference )?time cost(?: total)?: *([\d.e+-]+) ms", text)
    median = re.search(r"P50 Latency(?: is|:) *([\d.e+-]+) *s", text)
    if mean is None or median is None:
        raise UserError(f"{PERF_TEST} printed no average and no P50; is it that program? It said: {text[:200]}")
    rate = re.search(r"Number of inferences per second: *([\d.e+-]+)", text)
    per_s = float(rate[1]) if rate else 1e3 / float(mean[1])
    return {"median_ms": float(median[1]) * 1e3, "mean_ms": float(mean[1]), "per_s": batch * per_s}


def compare(tools: Mapping[str, Tool], rounds: int) -> list[dict[str, Any]]:
    """Let the tools take turns.

    Args:
        tools: By name; ours among them.
        rounds: Turns of each.

    Returns:
        For each tool ``tool``, ``version``, ``latency_of`` (median or mean), ``latency_ms``, ``per_s``; for ``latency``
        and ``throughput`` each ``_ratio``, ``_low``, ``_high``; ``within_target``, None where it is another call;
        ``rounds``, its figures.
    """
    names = list(tools)
    figures: dict[str, list[Figures]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found = tools[name]()
            if turn:  # the first round warms up
                figures[name].append(found)
        tell("rounds", turn, rounds, "rounds")
    rows = []
    for name in names:
        kind = "median" if "median_ms" in figures[name][0] else "mean"
        row: dict[str, Any] = {"tool": name, "version": _version(name), "latency_of": kind}
        for what, key in (("latency", f"{kind}_ms"), ("throughput", "per_s")):
            ratios = [own[key] / our[key] for own, our in zip(figures[name], figures[OURS], strict=True)]
            row[f"{what}_ratio"], row[f"{what}_low"], row[f"{what}_high"] = median_interval(ratios)
        row["latency_ms"] = float(np.median([own[f"{kind}_ms"] for own in figures[name]]))
        row["per_s"] = float(np.median([own["per_s"] for own in figures[name]]))
        agrees = all(abs(row[f"{what}_ratio"] - 1) <= TARGET for what in ("latency", "throughput"))
        row["within_target"] = None if name == BOUND else agrees
        rows.append(row | {"rounds": figures[name]})
    return rows


def _version(name: str) -> str | None:
    try:
        return metadata.version({"torch.utils.benchmark": "torch", BOUND: OURS}.get(name, name))
    except metadata.PackageNotFoundError:
        return None


@working("agreement of tools", bar=False)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison.

    Returns:
        0 where all tools agree with ours within the target, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m lit_mmpg.profiling.benchmarks.agreement")
    parser.add_argument("--bundle", required=True, type=Path, help="bundle that 'lit-mmpg export' wrote")
    parser.add_argument("--roles", nargs="+", default=["model"], help="graphs to run")
    parser.add_argument("--batches", nargs="+", type=int, default=[64], help="rows")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each tool")
    parser.add_argument("--calls", type=int, default=50, help="calls in a turn")
    parser.add_argument("--perf-test", help=f"program {PERF_TEST}; the one that is found when not given")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args(argv)
    if options.rounds < 6 or options.calls < 10:
        raise UserError("--rounds must be at least 6 and --calls at least 10")
    bundle = Bundle.open(options.bundle)
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for role in options.roles:
        for batch in options.batches:
            with ExitStack() as stack:
                tools, missing = make_tools(bundle, role, batch, options.calls, options.perf_test, stack)
                skipped |= missing
                found = compare(tools, options.rounds)
            rows += [{"case": f"{role}.onnx, batch {batch}"} | row for row in found]
    columns = ["case", "tool", "version", "latency ms", "to ours", "rows/s", "to ours", "within 3 %"]
    lines = [_line(row) for row in rows]
    table = Table(title=f"{options.rounds} rounds in turns, one thread", title_justify="left")
    for column in columns:
        table.add_column(column)
    for line in lines:
        table.add_row(*map(escape, line))
    console = wide_console()
    console.print(table)
    for name, reason in skipped.items():
        console.print(escape(f"skipped: {name}: {reason}"))
    if options.output:
        command = (
            f"python -m lit_mmpg.profiling.benchmarks.agreement --bundle bundle --roles {' '.join(options.roles)} "
            f"--batches {' '.join(map(str, options.batches))} --rounds {options.rounds} --calls {options.calls}"
        )
        notes = [f"Not here: {name}: {reason}." for name, reason in skipped.items()]
        notes.insert(0, "The same ONNX file by each tool; ratios: median over the rounds and its interval (95 %).")
        made = result("Other tools on the same ONNX file", command, columns, lines, git_commit(), notes, values=rows)
        write_result(options.output, made)
    return 0 if all(row["within_target"] is not False for row in rows) else 1


def _line(row: Mapping[str, Any]) -> list[str]:
    def ratio(what: str) -> str:
        text = f"{row[f'{what}_ratio']:.3f}"
        return text if row["tool"] == OURS else f"{text} ({row[f'{what}_low']:.3f} to {row[f'{what}_high']:.3f})"

    return [
        row["case"],
        row["tool"],
        row["version"] or "this package",
        f"{row['latency_ms']:.4f} ({row['latency_of']})",
        ratio("latency"),
        f"{row['per_s']:,.0f}",
        ratio("throughput"),
        {True: "yes", False: "NO", None: "another call"}[row["within_target"]],
    ]


if __name__ == "__main__":
    sys.exit(main())
