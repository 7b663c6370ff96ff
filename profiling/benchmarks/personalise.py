"""Ways to personalise a running engine, against each other and against an engine with the parameters baked in.

    python -m lit_mmpg.profiling.benchmarks.personalise [--output FILE.json] [--rounds 50] [--swaps 30]
        [--bundle DIR ...]

Without ``--bundle`` it exports a device model of 512 features, width 128 and 500 answers with each form of dynamic
layers; its weights are random, of which no time depends. Everything runs on one thread. For each way:

Besides the engines' own ways, ``settled`` is ``inputs`` after so many answers with the same parameters that ONNX
Runtime has made a session beside that holds them as constants (``settle_after``).

- ``swap_ms``: from the bytes of a download in memory to the first answer with them (message parsed and checked,
  parameters decoded, swapped, one inference), in turns with the other ways; of which ``load_ms`` is the swap alone.
- ``ratio``: steady-state latency at batch 1 over the engine with the same parameters baked in. Single inferences take
  turns (A B B A ...); a ratio is that of the medians of 100 turns, given are its median, 10th and 90th percentiles.
- ``extra_bytes``: what the process grows by at most during swaps, in a fresh process.

Every way is verified against the reference first; one that is wrong is not timed, and one that fails is named with its
reason and costs no other row (exit status 1). Targets: ``inputs`` and ``settled`` at most 1.05
times the baked engine, and a load of at most one inference. Ways that need a GPU are listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from lit_mmpg.errors import UserError, reason_of
from lit_mmpg.heartbeat import working
from lit_mmpg.link.messages import Download
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.benchmarks.timing import Ratio
from lit_mmpg.profiling.meters.memory import restart_peak, status_bytes
from lit_mmpg.profiling.scenarios.exchange import download_of
from lit_mmpg.report import escape, wide_console
from lit_mmpg.results import result, write_result
from lit_mmpg.runtime.bundle import Arrays, Bundle
from lit_mmpg.runtime.engines import Engine, create_engine, engine_class, engine_table
from lit_mmpg.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from lit_mmpg.runtime.verify import verify
from lit_mmpg.tracking.address import git_commit

MODULE = "python -m lit_mmpg.profiling.benchmarks.personalise"
FORMS = ("low_rank", "full", "core", "basis")
ENGINES = ("onnxruntime", "onnxruntime_cuda", "tensorrt", "torch_tensorrt")
"""Engines that are measured where they can run."""
RATIO_TARGET = 1.05
LOAD_TARGET = 1.0
"""Most time of a load, in inferences."""
CASES = ("device0", "device1")
SETTLED = "settled"
CODEC = "fp16"
BLOCK = 100
"""Turns whose medians give one ratio."""


@dataclass(frozen=True)
class Row:
    """Figures of one way on one bundle; ``None`` where a reason says why not (``failed``: though it can run here)."""

    case: str
    engine: str
    way: str
    parameters: int
    download_bytes: int
    swap_ms: float | None = None
    load_ms: float | None = None
    infer_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    extra_bytes: int | None = None
    reason: str | None = None
    failed: bool = False

    @property
    def target_met(self) -> bool | None:
        """Whether ``inputs`` or ``settled`` keeps both targets; ``None`` for other ways."""
        if self.way not in ("inputs", SETTLED) or self.ratio is None or self.load_ms is None or self.infer_ms is None:
            return None
        return self.ratio <= RATIO_TARGET and self.load_ms <= LOAD_TARGET * self.infer_ms


def downloads(bundle: Bundle) -> dict[str, bytes]:
    """Messages as the cloud would send them, for the devices of the reference."""
    return {case: download_of(bundle, number) for number, case in enumerate(CASES)}


def all_ways(name: str) -> tuple[str, ...]:
    """Ways of an engine, with ``settled`` where it has that."""
    ways = engine_class(name).ways
    return (ways[0], SETTLED, *ways[1:]) if name == "onnxruntime" else ways


def options_of(way: str) -> dict[str, Any]:
    """Options of an engine that is personalised in a way; nothing is made beside while swaps are timed."""
    return {"settle_after": 5} if way == SETTLED else {"personalise": way}


def settle(engine: Engine | None, inputs: Arrays) -> None:
    """Answer until the parameters are constants."""
    while isinstance(engine, OnnxRuntimeEngine) and not engine.settled:
        engine.infer(inputs)


def first_row(bundle: Bundle) -> Arrays:
    """One question."""
    return {name: array[:1].copy() for name, array in bundle.reference().roles["model"].inputs.items()}


def measure(case: str, bundle: Bundle, name: str, rounds: int, swaps: int) -> list[Row]:
    """Figures of all ways of one engine.

    Args:
        case: What to call the bundle.
        bundle: The bundle.
        name: The engine.
        rounds: Blocks of the steady state.
        swaps: Rounds of swaps.

    Returns:
        A row for each way; one that fails has the reason.
    """
    messages, inputs = downloads(bundle), first_row(bundle)
    decoded = {device: Download.parse(data).parameters(bundle.spec) for device, data in messages.items()}
    ways = all_ways(name)
    baked = next(way for way in ("reload", "refit") if way in ways)
    engines: dict[str, Engine] = {}
    rows: list[Row] = []
    with ExitStack() as stack:
        for way in ways:
            try:
                engines[way] = _verified(stack, name, bundle, way)
            except Exception as error:  # one way's failure must not cost the others
                rows.append(_failed(case, bundle, name, way, len(messages[CASES[0]]), error))
        if baked not in engines:
            missing = UserError(f"there is no engine by {baked} to compare with")
            return rows + [_failed(case, bundle, name, way, len(messages[CASES[0]]), missing) for way in engines]
        swap, load = _swaps(engines, messages, decoded, inputs, bundle, swaps)
        for engine in engines.values():
            engine.load_parameters(decoded[CASES[0]])
        settle(engines.get(SETTLED), inputs)
        for way, engine in engines.items():
            infer_ms, ratio = steady_state(engine, engines[baked], inputs, rounds)
            rows.append(
                Row(
                    case,
                    name,
                    way,
                    bundle.spec.size,
                    len(messages[CASES[0]]),
                    swap_ms=float(np.median(swap[way])),
                    load_ms=float(np.median(load[way])),
                    infer_ms=infer_ms,
                    ratio=ratio.median,
                    ratio_low=ratio.low,
                    ratio_high=ratio.high,
                    extra_bytes=_extra_bytes(bundle.path, name, way),
                )
            )
    return rows


def _verified(stack: ExitStack, name: str, bundle: Bundle, way: str) -> Engine:
    """An active engine that computes the reference; the stack deactivates it."""
    engine = stack.enter_context(create_engine(name, bundle, "model", **options_of(way)))
    verdict = verify(engine)
    if not verdict.ok:
        raise UserError(f"wrong, not timed: {'; '.join(verdict.problems)}")
    return engine


def _failed(case: str, bundle: Bundle, name: str, way: str, download_bytes: int, error: Exception) -> Row:
    return Row(case, name, way, bundle.spec.size, download_bytes, reason=reason_of(error), failed=True)


def steady_state(engine: Engine, baked: Engine, inputs: Arrays, rounds: int) -> tuple[float, Ratio]:
    """Median latency in ms, and its ratio to that of the baked engine.

    Single inferences take turns, so that whatever else runs on the machine hits both; the ratio is one of medians over
    a block of turns, which an interrupted call does not move.

    Args:
        engine: The engine.
        baked: The engine with the same parameters baked in.
        inputs: One question.
        rounds: Blocks.
    """
    times = np.zeros((rounds + 1, BLOCK, 2))
    for block in range(rounds + 1):
        for turn in range(BLOCK):
            order = ((0, engine), (1, baked)) if turn % 2 else ((1, baked), (0, engine))
            for column, current in order:
                start = time.perf_counter()
                current.infer(inputs)
                times[block, turn, column] = time.perf_counter() - start
    medians = np.median(times[1:], axis=1)  # the first block warms up
    low, middle, high = np.percentile(medians[:, 0] / medians[:, 1], [10, 50, 90])
    return float(np.median(medians[:, 0])) * 1e3, Ratio(float(middle), float(low), float(high))


def _swaps(
    engines: dict[str, Engine],
    messages: dict[str, bytes],
    decoded: dict[str, Arrays],
    inputs: Arrays,
    bundle: Bundle,
    rounds: int,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of whole swaps and of loads, in turns; each answer is compared with the expected one."""
    swap: dict[str, list[float]] = {way: [] for way in engines}
    load: dict[str, list[float]] = {way: [] for way in engines}
    expected = {}
    with create_engine("onnxruntime", bundle, "model") as judge:
        for name in CASES:
            judge.load_parameters(decoded[name])
            expected[name] = judge.infer(inputs)
    for turn in range(rounds + 1):
        name = CASES[turn % len(CASES)]
        for way, engine in engines.items():
            start = time.perf_counter()
            parameters = Download.parse(messages[name]).parameters(bundle.spec)
            loading = time.perf_counter()
            engine.load_parameters(parameters)
            loaded = time.perf_counter()
            answer = engine.infer(inputs)
            end = time.perf_counter()
            for output, values in answer.items():
                np.testing.assert_allclose(values, expected[name][output], rtol=1e-3, atol=1e-3)
            if turn:  # the first turn warms up
                swap[way].append((end - start) * 1e3)
                load[way].append((loaded - loading) * 1e3)
    return swap, load


def _extra_bytes(path: Path, name: str, way: str) -> int | None:
    """Growth of a fresh process during swaps."""
    command = [sys.executable, *MODULE.split()[1:], "--child", name, way, "--bundle", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        return None
    found = json.loads(done.stdout.strip().splitlines()[-1])["extra_bytes"]
    return None if found is None else int(found)


def child(name: str, way: str, bundle: Bundle) -> int | None:
    """What this process grows by at most during swaps, in bytes; ``None`` where the system does not say.

    Args:
        name: The engine.
        way: The way.
        bundle: The bundle.
    """
    inputs = first_row(bundle)
    decoded = [Download.parse(data).parameters(bundle.spec) for data in downloads(bundle).values()]
    with create_engine(name, bundle, "model", **options_of(way)) as engine:
        engine.infer(inputs)
        if not restart_peak():
            return None
        before = status_bytes("VmRSS")
        for turn in range(6):
            engine.load_parameters(decoded[turn % 2])
            engine.infer(inputs)
            settle(engine if way == SETTLED else None, inputs)
        peak = status_bytes("VmHWM")
    return None if before is None or peak is None else max(0, peak - before)


def open_rows(case: str, bundle: Bundle, name: str, reason: str) -> list[Row]:
    """Rows of an engine that cannot run here.

    Args:
        case: What to call the bundle.
        bundle: The bundle.
        name: The engine.
        reason: Why it cannot run.
    """
    try:
        ways = engine_class(name).ways
    except UserError:
        ways = ("inputs",)
    size = len(downloads(bundle)[CASES[0]])
    return [Row(case, name, way, bundle.spec.size, size, reason=reason) for way in ways]


def make_bundle(form: str, folder: Path, complete: bool = False) -> Bundle:
    """A bundle of a device model with random weights.

    Args:
        form: Form of its dynamic layers.
        folder: Where to write it.
        complete: Also with the projection, the weights for engines that need torch, and every precision that is as good
            as an exported one has to be.
    """
    import onnx
    import torch
    from safetensors import numpy as safetensors_numpy
    from safetensors.torch import save_file

    from lit_mmpg.device.graphs import graph_specs
    from lit_mmpg.device.model import DeviceModelConfig, DeviceNetwork, DynamicConfig, Shapes
    from lit_mmpg.export.reference import make_reference, static_parameters
    from lit_mmpg.export.samples import DeviceSample
    from lit_mmpg.export.statistics import count_macs, tensor_infos
    from lit_mmpg.export.write import write_manifest
    from lit_mmpg.onnx_graphs import export_graph
    from lit_mmpg.runtime.bundle import REFERENCE, STATIC, WEIGHTS, file_digest
    from lit_mmpg.runtime.manifest import Acceptance, AnchorRule, Frames, GraphInfo, Link, Manifest
    from lit_mmpg.torch_engines.base import NETWORK, network_json

    torch.manual_seed(0)
    frames, words = 8, 16
    config = DeviceModelConfig(width=128, heads=1, temporal=False)
    dynamic = DynamicConfig(("frame_projection", "head"), form, 8)  # type: ignore[arg-type]
    network = (
        DeviceNetwork(Shapes("open_ended", (512,), 5000, 500, words), config, dynamic).eval().requires_grad_(False)
    )
    specs = graph_specs(network, frames, 1)[: None if complete else 1]
    rng = np.random.default_rng(0)
    inputs = {
        "model": {
            "frames": rng.standard_normal((16, frames, 512)).astype(np.float32),
            "frame_mask": np.ones((16, frames), bool),
            "text": rng.integers(1, 5000, (16, 1, words)),
        },
        "project": {"features": rng.standard_normal((16, 512)).astype(np.float32)},
    }
    static = static_parameters(network)

    def own() -> Arrays:
        return {n: (a + rng.normal(0, 0.05, a.shape)).astype(np.float32) for n, a in static.items()}

    devices = [DeviceSample(f"device{i}", own(), inputs) for i in range(3)]
    infos: list[GraphInfo] = []

    def add(role: str, precision: str, graph: onnx.ModelProto) -> None:
        file = folder / (f"{role}.onnx" if precision == "fp32" else f"{role}.{precision}.onnx")
        onnx.save_model(graph, str(file))
        sizes = {"B": 1, "T": frames, "L": words} if role == "model" else {"N": 1}
        infos.append(
            GraphInfo(
                role=role,
                precision=precision,
                file=file.name,
                sha256=file_digest(file),
                bytes=file.stat().st_size,
                nodes=len(graph.graph.node),
                macs=count_macs(graph, sizes),
                macs_at=sizes,
                inputs=tensor_infos(graph.graph.input),
                outputs=tensor_infos(graph.graph.output),
                acceptance=Acceptance("synthetic", 0, 0, 0.0, None, None, True),
            )
        )

    graphs = {spec.role: export_graph(spec, network) for spec in specs}
    for role, graph in graphs.items():
        add(role, "fp32", graph)
    safetensors_numpy.save_file(make_reference(specs, network, devices).to_tensors(), folder / REFERENCE)
    safetensors_numpy.save_file(static, folder / STATIC)
    files = [REFERENCE, STATIC]
    if complete:
        save_file(network.state_dict(), folder / WEIGHTS)
        (folder / NETWORK).write_text(network_json(network, dynamic), encoding="utf-8")
        files += [WEIGHTS, NETWORK]

    def write() -> Bundle:
        manifest = Manifest(
            version="benchmark",
            task="open_ended",
            half="cloud",
            checkpoint_digest="0" * 64,
            run_id=None,
            tracking_uri=None,
            data_fingerprint="",
            spec=network.spec,
            frames=Frames(512, 128, frames),
            anchors=AnchorRule(2, "uniform", 8, "device"),
            link=Link("int8", CODEC),
            preprocessing=None,
            max_words=words,
            vocabulary={},
            answers=(),
            graphs=tuple(infos),
            files={name: file_digest(folder / name) for name in files},
        )
        write_manifest(folder, manifest)
        return Bundle.open(folder)

    if complete:
        _add_precisions(graphs["model"], [inputs["model"] | device.parameters for device in devices], add, write, infos)
    return write()


def _add_precisions(
    graph: Any, calibration: list[Arrays], add: Callable[..., None], write: Callable[[], Bundle], infos: list[Any]
) -> None:
    """The model in the other precisions; one that cannot be made or is not good enough is left out."""
    from lit_mmpg.export.precision import convert

    for precision in ("fp16", "int8_weight", "int8"):
        before = len(infos)
        try:
            add("model", precision, convert(graph, precision, calibration))
            with create_engine("onnxruntime", write(), "model", precision) as engine:
                good = verify(engine).ok
        except Exception:  # no ONNX Runtime here, for example: then its graph is not known to be right
            good = False
        if not good:
            del infos[before:]


def table(rows: Sequence[Row], command: str) -> dict[str, Any]:
    """The rows as a small result; what could not run here is in its values alone."""
    shown, previous = [], ""
    for row in rows:
        if row.ratio is None:
            continue
        case = f"{row.case}, {row.parameters:,}"
        target = {True: "met", False: "missed", None: ""}[row.target_met]
        times = [f"{value:.2f} ms" for value in (row.load_ms, row.swap_ms) if value is not None]
        extra = "" if row.extra_bytes is None else f"{row.extra_bytes / 2**20:.0f} MiB"
        ratio = f"{row.ratio:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]"
        shown.append(["" if case == previous else case, row.way, ratio, *times, extra, target])
        previous = case
    columns = ["form, values", "way", "inference over the baked engine", "load", "download bytes to first answer"]
    columns += ["extra memory", f"at most {RATIO_TARGET:g}, load below an inference"]
    notes = [
        f"ONNX Runtime {__import__('onnxruntime').__version__}, batch 1, one thread; single inferences and swaps take "
        "turns, every way is verified first. Ratios: median of blocks of turns, with the 10th and 90th percentile."
    ]
    values = [vars(row) | {"target_met": row.target_met} for row in rows]
    title = "Ways to bring parameters into a running engine"
    return result(title, command, columns, shown, git_commit(), notes, values=values)


def print_rows(rows: Sequence[Row]) -> None:
    """One line per way."""
    table = Table(title="ways to personalise, batch 1, one thread", caption="ratio: over the baked engine, in turns")
    for name in ("bundle", "engine", "way"):
        table.add_column(name, no_wrap=True)
    for name in ("values", "download", "bytes to answer ms", "load ms", "inference ms", "ratio", "extra", "targets"):
        table.add_column(name, justify="right")
    previous = None
    reasons: dict[str, str] = {}
    for row in rows:
        if row.reason:
            what = f"failed: {row.case}, {row.engine} by {row.way}" if row.failed else f"open: {row.engine}"
            reasons[what] = row.reason
            continue
        if previous not in (None, row.case):
            table.add_section()
        previous = row.case
        start = (row.case, row.engine, row.way, f"{row.parameters:,}", f"{row.download_bytes:,} B")
        extra = "" if row.extra_bytes is None else f"{row.extra_bytes / 2**20:.1f} MiB"
        met = {True: "met", False: "missed", None: ""}[row.target_met]
        ratio = f"{row.ratio:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]"
        table.add_row(*start, f"{row.swap_ms:.3f}", f"{row.load_ms:.3f}", f"{row.infer_ms:.3f}", ratio, extra, met)
    console = wide_console()
    console.print(table)
    for what, reason in reasons.items():
        console.print(escape(f"{what}: {reason}"), soft_wrap=True)


@working("personalise", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="lit_mmpg.profiling.benchmarks.personalise", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--output", help="JSON file for the rows")
    parser.add_argument("--rounds", type=int, default=50, help="blocks of 100 turns of the steady state")
    parser.add_argument("--swaps", type=int, default=30, help="rounds of swaps")
    parser.add_argument("--bundle", nargs="+", default=[], help="bundles to measure instead of the four forms")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        name, way = options.child
        print(json.dumps({"extra_bytes": child(name, way, Bundle.open(options.bundle[0]))}))
        return 0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if options.bundle:
            cases = {Path(path).name: Bundle.open(path) for path in options.bundle}
        else:
            cases = {}
            for form in FORMS:
                (Path(folder) / form).mkdir()
                cases[form] = make_bundle(form, Path(folder) / form)
        reasons = {row.name: row.reason for row in engine_table()}
        for name in ENGINES:
            for case, bundle in cases.items():
                reason = reasons[name]
                if reason is not None:
                    rows += open_rows(case, bundle, name, reason)
                    continue
                try:
                    rows += measure(case, bundle, name, options.rounds, options.swaps)
                except Exception as error:  # one bundle's failure must not cost the other rows
                    rows += [_failed(case, bundle, name, way, 0, error) for way in all_ways(name)]
    print_rows(rows)
    if options.output:
        given = f" --bundle {' '.join(Path(path).name for path in options.bundle)}" if options.bundle else ""
        command = f"{MODULE} --rounds {options.rounds} --swaps {options.swaps}{given}"
        write_result(Path(options.output), table(rows, command))
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
