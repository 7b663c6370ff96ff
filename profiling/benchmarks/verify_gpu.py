"""What only an NVIDIA GPU shows, in one command of less than ten minutes.

    make verify-gpu [PYTHON=...]      or      python -m lit_mmpg.profiling.benchmarks.verify_gpu [--output DIR]

It takes the torch, ONNX Runtime and TensorRT that the interpreter has, and says where torch is not the one that the
package asks for. Each check runs in a process of its own with a limit of time, so that one that fails, crashes or hangs
costs no other:

- a training step of both halves: loss and updated weights equal those of the processor;
- every CUDA engine, by every way to bring in personal parameters (inputs, refit, reload): outputs for several devices
  equal the reference of the bundle, in every precision, and again after the parameters have been swapped;
- a CUDA graph: captured once, replayed with swapped parameters, by torch and by TensorRT; its layers and copies;
- NVML's meters: state, memory of a process, energy of a load;
- ``profile run`` on the GPU, with its report.

At the end there is one table, *verified / failed / not installed*, and DIR/verify_gpu.json with the command, the
commit, the machine and the versions.

Exit status: 0 where nothing failed, 1 where a check failed, 3 where there is no usable GPU (one line, nothing is run);
make answers 2 to both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from lit_mmpg.errors import UserError, reason_of
from lit_mmpg.heartbeat import working
from lit_mmpg.profiling import environment
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.meters import nvml
from lit_mmpg.profiling.meters.sources import Unavailable
from lit_mmpg.report import escape, wide_console
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.cudart import why_no_gpu
from lit_mmpg.runtime.engines import create_engine, engine_class
from lit_mmpg.runtime.verify import verify
from lit_mmpg.writing import write_text

ROOT = Path(__file__).parents[3]
TOTAL_S = 570.0
"""Longest run of all checks, seconds."""
NO_GPU = 3
"""Exit status where there is no GPU."""
GPU_ENGINES = (
    "torch",
    "onnxruntime_cuda",
    "tensorrt",
    "tensorrt_rtx",
    "onnxruntime_tensorrt",
    "torch_inductor",
    "torch_aoti",
    "torch_tensorrt",
)
CPU_ENGINES = ("torch", "onnxruntime")
VERIFIED, FAILED, MISSING = "verified", "failed", "not installed"
TOLERANCE = 1e-2
"""Most relative error of loss, gradient and updated weights of a step."""


class NotInstalledError(Exception):
    """What a check needs is not there."""


@dataclass
class Result:
    """What one check found.

    Attributes:
        name: The check.
        status: ``verified``, ``failed`` or ``not installed``.
        reason: Why it is not verified.
        seconds: How long it took.
        figures: What was measured on the way; no claim of speed.
    """

    name: str
    status: str
    reason: str | None = None
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


# -- checks: each runs in a process of its own ---------------------------------------------------------------------


def check_bundle(work: Path, device: str) -> dict[str, Any]:
    """Make the bundle that the other checks take, on the processor."""
    folder = work / "bundle"
    folder.mkdir()
    with _installed():
        from lit_mmpg.profiling.benchmarks.personalise import make_bundle

        bundle = make_bundle("low_rank", folder, complete=True)
    return {"precisions": bundle.precisions("model")}


def check_training(work: Path, device: str) -> dict[str, Any]:
    """One optimiser step of both halves, on the processor and on the GPU from the same weights."""
    with _installed():
        import torch

        from lit_mmpg.profiling.benchmarks import training_step
    configs = training_step.read_configs()
    arguments = configs["data"]["init_args"]
    arguments["clips"] = {
        "train_devices": 4,
        "val_devices": 2,
        "test_devices": 2,
        "train_clips": 6,
        "seen_clips": 1,
        "unseen_clips": 4,
        "image_size": 24,
    }
    arguments["cache_dir"] = str(work / "clips")
    arguments["batch"] = {"devices": 2, "clips": 2, "items_per_clip": 2, "context_clips": 3}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    _draw_on_the_processor(torch)
    found: dict[str, list[tuple[float, Any, Any]]] = {}
    for where in ("cpu", device):
        stages = training_step.build_stages(configs)  # seeded: the same weights and batches
        for name, stage, batch in (
            ("device half", stages.static, stages.pixels[0]),
            ("cloud half", stages.cloud, stages.features[0]),
        ):
            stage.module.to(where)
            torch.manual_seed(1)
            loss = stage.step(batch.to(where))
            trained = [(p.grad, p.detach()) for p in stage.module.parameters() if p.grad is not None]
            gradient, weights = (torch.cat([t.cpu().flatten() for t in ts]) for ts in zip(*trained, strict=True))
            found.setdefault(name, []).append((loss, gradient, weights))
    figures = {}
    for name, (expected, got) in found.items():
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(got[1:], expected[1:], strict=True)]
        loss_error = abs(got[0] - expected[0]) / max(1.0, abs(expected[0]))
        names = ("loss_error", "gradient_error", "weight_error")
        figures[name] = {"loss": got[0], **dict(zip(names, (loss_error, *errors), strict=True))}
        if not all(error <= TOLERANCE for error in (loss_error, *errors)):  # NaN is no small error
            raise UserError(f"a step of the {name} differs from the processor's: {figures[name]}")
    return figures


def _draw_on_the_processor(torch: Any) -> None:
    """Give a step the same random numbers on both: generators of a processor and a GPU differ."""
    rand, randn = torch.rand, torch.randn
    torch.rand = lambda *size, device=None, **options: rand(*size, **options).to(device or "cpu")
    torch.randn_like = lambda like: randn(like.shape, dtype=like.dtype).to(like.device)


def check_engine(work: Path, device: str, name: str, way: str) -> dict[str, Any]:
    """Every precision of an engine, by one way to bring in personal parameters, against the reference."""
    if name.startswith("onnxruntime"):
        with suppress(ImportError):
            import torch  # noqa: F401 -- its wheels bring the CUDA libraries that ONNX Runtime looks for by name
    try:
        cls = engine_class(name)
    except UserError as error:
        raise NotInstalledError(str(error)) from error
    reason = cls.requirements()
    if reason:
        raise NotInstalledError(reason)
    bundle = _bundle(work)
    options: dict[str, Any] = {"personalise": way}
    if name.startswith("torch") and name != "torch_tensorrt":
        options["device"] = device
    figures: dict[str, Any] = {}
    problems = []
    cells = [("model", precision) for precision in bundle.precisions("model") if precision in cls.precisions]
    for role, precision in [*cells, *([("project", "fp32")] if way == "inputs" else [])]:
        try:
            figures[f"{role} {precision}"] = _compare(bundle, name, role, precision, options)
        except Exception as error:  # one precision's failure must not hide the others
            problems.append(f"{role} {precision}: {reason_of(error)}")
    if name in ("tensorrt", "tensorrt_rtx") and way == "inputs":
        try:
            figures["model fp32 replayed"] = _compare(bundle, name, "model", "fp32", options | {"cuda_graph": True})
        except Exception as error:
            problems.append(f"model fp32 replayed: {reason_of(error)}")
    if problems:
        raise UserError("; ".join(problems))
    return figures


def _compare(bundle: Bundle, name: str, role: str, precision: str, options: dict[str, Any]) -> dict[str, Any]:
    reference = bundle.reference()
    with create_engine(name, bundle, role, precision, **options) as engine:
        verdict = verify(engine)
        if not verdict.ok:
            raise UserError("; ".join(verdict.problems))
        inputs = {n: array[:1].copy() for n, array in reference.roles[role].inputs.items()}
        loads, answers = [], []
        for turn in range(10):
            start = time.perf_counter()
            if engine.personal:
                engine.load_parameters(reference.parameters[f"device{turn % 2}"])
            loads.append((time.perf_counter() - start) * 1e3)
            start = time.perf_counter()
            engine.infer(inputs)
            answers.append((time.perf_counter() - start) * 1e3)
        return {
            "error": verdict.figures.error,
            "load_ms": float(np.median(loads)) if engine.personal else None,
            "infer_ms": float(np.median(answers)),
            "gpu_ms": getattr(engine, "gpu_ms", None),
            "workspace_bytes": engine.workspace_bytes,
            "engine_bytes": engine.engine_bytes,
            "build_s": engine.build_s,
            "parts_ms": engine.parts_ms(inputs),
            "layers": engine.layer_times(inputs, 5),
            "details": engine.describe(),
        }


def check_graph(work: Path, device: str) -> dict[str, Any]:
    """A captured CUDA graph answers right after its parameters have been swapped."""
    with _installed():
        import torch

        from lit_mmpg.torch_engines.eager import TorchEngine
    bundle = _bundle(work)
    reference = bundle.reference()
    samples = reference.roles["model"]
    figures = {}
    with create_engine("torch", bundle, "model", device=device) as engine, torch.inference_mode():
        assert isinstance(engine, TorchEngine)
        arguments = engine.arguments(samples.inputs)
        replay, output = _captured(lambda: engine._module(**arguments), device)
        for case, expected in samples.outputs.items():
            for tensor, entry in zip(arguments["parameters"], bundle.spec, strict=True):
                tensor.copy_(torch.from_numpy(reference.parameters[case][entry.name]))
            result = replay()
            got = (output if result is None else result).cpu().numpy()
            figures[case] = float(np.abs(got - expected["scores"]).max() / np.abs(expected["scores"]).max())
    wrong = {case: error for case, error in figures.items() if not error <= 1e-3}
    if wrong:
        raise UserError(f"replayed outputs differ from the reference: {wrong}")
    return {"largest_error": figures}


def _captured(run: Callable[[], Any], device: str) -> tuple[Callable[[], Any], Any]:
    """What computes again, and where its result lies; on a processor the function itself."""
    import torch

    if device == "cpu":
        return run, None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    return graph.replay, output


def check_nvml(work: Path, device: str) -> dict[str, Any]:
    """State, memory of this process, and energy of a load."""
    library, reason = nvml.load()
    if library is None:
        raise NotInstalledError(reason)
    gpu = nvml.open_gpu(library)
    if isinstance(gpu, Unavailable):
        raise UserError(gpu.reason)
    source = nvml.open_energy(gpu)
    figures: dict[str, Any] = {"gpu": gpu.describe(), "state": gpu.state(), "busy": gpu.busy_fraction()}
    with suppress(ImportError):
        import torch

        matrix = torch.randn(2048, 2048, device=device)
        before = source.read_j() if isinstance(source, nvml.NvmlCounter) else None
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            matrix = torch.nn.functional.normalize(matrix @ matrix)
        figures["checksum"] = float(matrix.sum())  # waits for the load
        used, figures["memory_source"] = gpu.process_bytes(os.getpid())
        figures["memory_bytes"] = used
        if isinstance(source, nvml.NvmlCounter) and before is not None:
            figures["energy_j"] = source.read_j() - before
            if figures["energy_j"] <= 0:
                raise UserError("NVML's energy counter stood still under load")
    if isinstance(source, nvml.NvmlPower):
        figures["power_w"] = source.read_w()["gpu"]
    if isinstance(source, Unavailable):
        raise UserError(f"{source.reason}; the rest answers: {figures}")
    return figures


def check_profile(work: Path, device: str) -> dict[str, Any]:
    """``profile run`` from the command to its report."""
    _bundle(work)
    engines = (
        "[{engine: torch}, {engine: onnxruntime}]"
        if device == "cpu"
        else "[{engine: torch, options: {device: cuda}}, {engine: onnxruntime_cuda}, {engine: tensorrt}, "
        "{engine: onnxruntime}]"
    )
    config = work / "profile.yaml"
    config.write_text(
        f"name: verify_gpu\nengines: {engines}\nencoder: without\nscenarios: [answer]\n"
        "latency: {min_count: 20}\nenergy: {min_window_s: 3, idle_s: 2, model: false}\n",
        encoding="utf-8",
    )
    output = work / "profile"
    command = [sys.executable, "-m", "lit_mmpg.profiling", "run", "--bundle", str(work / "bundle")]
    command += ["--config", str(config), "--output", str(output), "--no-record"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        rows = json.loads((output / "profile.json").read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError) as error:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(f"it wrote no profile.json: {last[:300]}") from error
    bad = [f"{r['engine']}: {r['reason']}" for r in rows if r["status"] in ("wrong", "failed")]
    if bad or done.returncode:
        raise UserError("; ".join(bad) or f"it ended with status {done.returncode}")
    page = (output / "report.html").read_text(encoding="utf-8")
    fine = [r for r in rows if r["status"] == "ok"]
    if not fine or not all(r["engine"] in page for r in fine):
        raise UserError("its report shows no engine that ran: " + "; ".join(str(r["reason"]) for r in rows))
    return {
        r["engine"]: {
            "p50_ms": r["latency"]["wall"]["p50_ms"],
            "energy": [e["source"] for e in r["energy"] if e.get("gross_j_per_unit") is not None],
            "device_bytes": (r["memory"] or {}).get("device_bytes"),
            "workspace_bytes": (r["memory"] or {}).get("workspace_bytes"),
        }
        for r in fine
    }


# -- running them --------------------------------------------------------------------------------------------------


@contextmanager
def _installed() -> Iterator[None]:
    """For imports: a package that is not there is no failure."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"{error.name} is not installed") from error


def _bundle(work: Path) -> Bundle:
    if not (work / "bundle" / "manifest.json").is_file():
        missing = [name for name in ("torch", "onnxscript") if find_spec(name) is None]
        if missing:
            raise NotInstalledError(f"{missing[0]} is not installed, which makes the bundle to run")
        raise UserError("there is no bundle to run: the first check failed")
    return Bundle.open(work / "bundle")


CHECKS: dict[str, tuple[Callable[[Path, str], dict[str, Any]], float]] = {
    "bundle (on the processor)": (check_bundle, 240.0),
    "training step": (check_training, 120.0),
    "CUDA graph": (check_graph, 60.0),
    "NVML": (check_nvml, 60.0),
    "profile run": (check_profile, 150.0),
}
"""Check -> function and limit of time, seconds; those of engines are called ``ENGINE by WAY``."""
ENGINE_LIMIT_S = 120.0
SLOW_ENGINES = ("torch_inductor", "torch_aoti", "torch_tensorrt")
"""They compile for long, so that they come last."""


def checks(device: str) -> dict[str, float]:
    """All checks with their limits of time in seconds, in the order in which they run."""
    quick: dict[str, float] = {}
    slow: dict[str, float] = {}
    for name in CPU_ENGINES if device == "cpu" else GPU_ENGINES:
        try:
            ways = engine_class(name).ways
        except UserError:
            ways = ("inputs",)
        for way in ways:
            place = slow if name in SLOW_ENGINES or way == "reload" else quick
            place[f"{name} by {way}"] = ENGINE_LIMIT_S
    fixed = {name: limit_s for name, (_, limit_s) in CHECKS.items()}
    last = fixed.pop("profile run")
    return fixed | quick | {"profile run": last} | slow


def child(name: str, work: Path, device: str) -> Result:
    """Run one check here."""
    engine, _, way = name.partition(" by ")
    try:
        figures = check_engine(work, device, engine, way) if way else CHECKS[name][0](work, device)
        return Result(name, VERIFIED, figures=figures)
    except NotInstalledError as error:
        return Result(name, MISSING, str(error))
    except Exception as error:
        return Result(name, FAILED, reason_of(error))


def run_check(name: str, work: Path, device: str, limit_s: float) -> Result:
    """Run one check in a process of its own, and all that it starts.

    Args:
        name: The check.
        work: Folder that the checks share.
        device: ``cuda``, or ``cpu``.
        limit_s: After this it is ended.
    """
    if limit_s < 1:
        return Result(name, FAILED, "not run: the time for all checks is over")
    command = [sys.executable, "-m", "lit_mmpg.profiling.benchmarks.verify_gpu"]
    command += ["--device", device, "--check", name, str(work)]
    place = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    variables = os.environ | place | {"XDG_CACHE_HOME": str(work / "cache")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Result(name, FAILED, f"ended after {limit_s:.0f} s, its limit")
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    lines = [line for line in output.splitlines() if line.startswith('{"name"')]
    if process.returncode or not lines:
        last = (errors.strip() or output.strip() or "no output").splitlines()[-1]
        return Result(name, FAILED, f"its process ended with status {process.returncode}: {last[:300]}")
    return Result(**json.loads(lines[-1]))


def no_gpu() -> str | None:
    """Why there is no GPU to verify; None where there is one."""
    reason = why_no_gpu()
    if reason is None:
        return None
    with suppress(ImportError):
        import torch

        if torch.cuda.is_available():  # its wheel may bring a CUDA runtime that is found nowhere else
            return None
    return reason


def torch_versions() -> dict[str, Any]:
    """The torch that is there, the one that the package asks for, and whether they agree (None: not known)."""
    try:
        here: str | None = metadata.version("torch")
    except metadata.PackageNotFoundError:
        here = None
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8") if (ROOT / "pyproject.toml").is_file() else ""
    pin = re.search(r'"torch([<>=!~][^"]*)"', text)
    agrees = None
    if here and pin:
        with suppress(ImportError):
            from packaging.specifiers import SpecifierSet

            agrees = SpecifierSet(pin[1]).contains(here.split("+")[0], prereleases=True)
    return {"installed": here, "pin": pin[1] if pin else None, "agrees": agrees}


def _commit() -> dict[str, Any]:
    def git(*arguments: str) -> str | None:
        with suppress(OSError):
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "changed": None if changed is None else bool(changed)}


def print_results(results: Sequence[Result]) -> None:
    """The table."""
    table = Table(title="what only a GPU shows")
    for name in ("check", "status"):
        table.add_column(name, no_wrap=True)
    table.add_column("s", justify="right")
    table.add_column("why", overflow="fold")
    colours = {VERIFIED: "green", FAILED: "red", MISSING: "yellow"}
    for result in results:
        status = f"[{colours[result.status]}]{result.status}[/]"
        table.add_row(result.name, status, f"{result.seconds:.0f}", escape((result.reason or "")[:400]))
    wide_console().print(table)


@working("verify gpu", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks, print the table and write the file."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="lit_mmpg.profiling.benchmarks.verify_gpu",
        description=(__doc__ or "").split("\n")[0] + " Exit status: 0 nothing failed, 1 a check failed, 3 no GPU.",
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/verify_gpu"), help="folder for verify_gpu.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", metavar="CHECK", help=argparse.SUPPRESS)
    parser.add_argument("--check", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.check:
        result = child(options.check[0], Path(options.check[1]), options.device)
        print("\n" + json.dumps(asdict(result), default=str), flush=True)
        return 0
    reason = no_gpu() if options.device == "cuda" else None
    if reason:
        print(f"verify-gpu: nothing was verified: {reason}")
        return NO_GPU
    torch = torch_versions()
    if torch["agrees"] is False:
        print(f"note: torch {torch['installed']} is here; the package asks for {torch['pin']}", flush=True)
    head = {
        "kind": "lit-mmpg.verify-gpu",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "lit_mmpg.profiling.benchmarks.verify_gpu", *given]),
        **_commit(),
        "device": options.device,
        "torch": torch,
        "environment": environment.describe(gpu=nvml.open_gpu()),
    }
    results: list[Result] = []
    deadline = time.monotonic() + TOTAL_S
    with tempfile.TemporaryDirectory(prefix="verify-gpu-") as folder:
        for name, limit_s in checks(options.device).items():
            if options.only and name not in options.only:
                continue
            print(f"{name} ...", flush=True)
            start = time.monotonic()
            result = run_check(name, Path(folder), options.device, min(limit_s, deadline - start))
            result.seconds = round(time.monotonic() - start, 1)
            results.append(result)
            _save(options.output, head, results)  # after each check, so that an interrupted run keeps it
    print_results(results)
    print(f"Written: {options.output / 'verify_gpu.json'}")
    return 1 if any(result.status == FAILED for result in results) else 0


def _save(output: Path, head: dict[str, Any], results: list[Result]) -> None:
    counts = {status: sum(r.status == status for r in results) for status in (VERIFIED, FAILED, MISSING)}
    document = head | {"counts": counts, "checks": [asdict(result) for result in results]}
    write_text(output / "verify_gpu.json", json.dumps(document, indent=2, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
