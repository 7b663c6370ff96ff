"""The service under load, in one run and one report.

    python -m lit_mmpg.profiling.benchmarks.serving_load --ckpt CHECKPOINT [--output outputs/serving_load]
        [--with-litserve]

Starts ``lit-mmpg serve`` on loopback and measures, with a load generator in a process of its own:

``throughput``
    Answered requests a second against the bare batched forward of the same model (batches of 32, no messages, no HTTP),
    in interleaved rounds; for contexts as the checkpoint was trained with, and for contexts so large that a batch costs
    30 ms or more. Beside it the same ratio by processor time, which other jobs on the machine disturb less.
``latency``
    Against the offered load, up to and beyond saturation, and what an overload is answered with, how fast, and how
    much of the saturated rate it leaves.
``devices``
    1,000 simulated devices at once, each checked to get its own parameters, byte-equal to the computation alone.
``memory``
    Resident memory of the service over the whole run.
``litserve``
    The same cloud half behind LitServe with binary bodies (``--with-litserve`` installs it into an environment of its
    own), in rounds that take turns with ours.

The service and the bare forward run on the first core that this process may use, the load generator on the second
where there is one: ratios within a run mean something, rates on another machine or day do not.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import tell, working
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.benchmarks.load import Offer, Outcome, offer
from lit_mmpg.profiling.benchmarks.services import Service, free_port, litserve, running
from lit_mmpg.profiling.benchmarks.serving_page import page
from lit_mmpg.results import result, write_result

if TYPE_CHECKING:
    from lit_mmpg.link import Upload
    from lit_mmpg.serving.cloud_half import CloudHalf

MODULE = "lit_mmpg.profiling.benchmarks.serving_load"
BATCH, CONNECTIONS, DEVICES = 32, 64, 1000
TARGETS = {"as trained": 0.8, "large": 0.92}
LOADS = (0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.25, 2.0)
"""Offered loads, as shares of the saturated throughput."""

Send = Callable[[Offer], Outcome]


def make_uploads(half: CloudHalf, count: int, clips: int, frames: int, anchors: int, seed: int = 0) -> list[Upload]:
    """Uploads of different devices with full contexts of standard normal anchors."""
    from lit_mmpg.link import Upload

    rng = np.random.default_rng(seed)
    positions = np.tile((np.arange(anchors) + 0.5) / anchors, (clips, 1))
    return [
        Upload.encode(
            anchors=rng.normal(size=(clips, anchors, half.width)),
            anchor_mask=np.ones((clips, anchors), bool),
            positions=positions,
            num_frames=np.full(clips, frames),
            device_id=f"device-{number}",
            codec=half.upload_codec,
            checkpoint_digest=half.checkpoint_digest,
            spec_digest=half.spec_digest,
        )
        for number in range(count)
    ]


@dataclass(frozen=True)
class Turn:
    """One measurement of a throughput.

    Attributes:
        per_s: Devices per second.
        cpu_ms: Processor time per device, milliseconds, of whoever answers (not of the load generator).
    """

    per_s: float
    cpu_ms: float


def bare_forward(half: CloudHalf, uploads: Sequence[Upload], seconds: float) -> Turn:
    """The forward pass alone: anchors in tensors, parameters in tensors."""
    import torch

    from lit_mmpg.serving.cloud_half import stack

    batches = [stack(uploads[i : i + BATCH]) for i in range(0, len(uploads), BATCH)]
    done, begin, cpu = 0, time.perf_counter(), time.process_time()
    with torch.inference_mode():
        while time.perf_counter() - begin < seconds:
            half.compute(batches[done % len(batches)])
            done += 1
    count = BATCH * done
    return Turn(count / (time.perf_counter() - begin), 1e3 * (time.process_time() - cpu) / count)


def saturate(service: Service, send: Send, bodies: Sequence[bytes], seconds: float) -> Turn:
    """The service as fast as it goes.

    Raises:
        UserError: If it refuses something.
    """
    cpu = service.cpu_s()
    outcome = send(Offer(service.url, bodies, CONNECTIONS, seconds))
    if set(outcome.latencies_s) != {200}:
        raise UserError(f"port {service.port} answered with {sorted(outcome.latencies_s)}; only 200 is measured")
    return Turn(outcome.per_s(), 1e3 * (service.cpu_s() - cpu) / outcome.count())


def throughput(
    half: CloudHalf, services: dict[str, Service], send: Send, uploads: Sequence[Upload], rounds: int, seconds: float
) -> dict[str, Any]:
    """Saturated throughput and the bare forward, in turn."""
    bodies = [upload.to_bytes() for upload in uploads]
    turns: dict[str, list[Turn]] = {name: [] for name in ("forward", *services)}
    bare_forward(half, uploads, 0.5)
    for service in services.values():
        saturate(service, send, bodies, seconds)
    for _ in range(rounds):
        turns["forward"].append(bare_forward(half, uploads, seconds))
        for name, service in services.items():
            turns[name].append(saturate(service, send, bodies, seconds))

    def ratios(over: str, under: str) -> list[float]:
        return [a.per_s / b.per_s for a, b in zip(turns[over], turns[under], strict=True)]

    ours = ratios("service", "forward")
    cpu = {name: statistics.median(turn.cpu_ms for turn in each) for name, each in turns.items()}
    found: dict[str, Any] = {
        "upload_message_bytes": len(bodies[0]),
        "batch_forward_ms": 1e3 * BATCH / statistics.median(turn.per_s for turn in turns["forward"]),
        "per_s": {name: [turn.per_s for turn in each] for name, each in turns.items()},
        "cpu_ms": cpu,
        "ratio_median": statistics.median(ours),
        "ratio_low": min(ours),
        "ratio_high": max(ours),
        "cpu_ratio": cpu["forward"] / cpu["service"],
    }
    if "litserve" in services:
        found["litserve_over_service"] = statistics.median(ratios("litserve", "service"))
    return found


def percentiles(latencies_s: Sequence[float]) -> dict[str, float]:
    """Quantiles in milliseconds."""
    if not latencies_s:
        return {}
    p50, p90, p99 = np.percentile(latencies_s, [50, 90, 99]) * 1e3
    return {"p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99)}


def latency(
    service: Service, send: Send, bodies: Sequence[bytes], saturated_per_s: float, rounds: int, seconds: float
) -> dict[str, Any]:
    """Latency against offered load; overloads, each right after a saturated turn of its own; and what comes after."""

    def at(share: float, saturated_per_s: float = saturated_per_s) -> dict[str, Any]:
        outcome = send(Offer(service.url, bodies, 512, seconds, share * saturated_per_s))
        refused = [s for status, each in outcome.latencies_s.items() if status != 200 for s in each]
        return {
            "load": share,
            "offered_per_s": share * saturated_per_s,
            "answered_per_s": outcome.per_s(),
            "answered_of_saturated": outcome.per_s() / saturated_per_s,
            **percentiles(outcome.latencies_s.get(200, [])),
            "refused": {str(status): len(s) for status, s in outcome.latencies_s.items() if status != 200},
            "refusal": percentiles(refused),
        }

    rows = [at(share) for share in LOADS]
    overloads = [at(4.0, saturate(service, send, bodies, seconds).per_s) for _ in range(rounds)]
    return {"rows": rows, "overloads": overloads, "recovery": at(0.3)}


def refusals(overloads: Sequence[dict[str, Any]]) -> str | None:
    """What the overloads show, in a sentence; ``None`` where nothing had to be refused."""
    pressed = [row for row in overloads if row["refusal"]]
    if not pressed:
        return None
    p50, p99 = (statistics.median(row["refusal"][key] for row in pressed) for key in ("p50_ms", "p99_ms"))
    worst = max(row["refusal"]["p99_ms"] for row in pressed)
    shares = [row["answered_of_saturated"] for row in pressed]
    return (
        f"At four times the saturated rate refusals take {p50:.1f} / {p99:.1f} ms (p50 / p99, median of {len(pressed)} "
        f"turns; the worst p99 is {worst:.1f} ms), and {statistics.median(shares):.0%} [{min(shares):.0%}, "
        f"{max(shares):.0%}] of the saturated rate is still answered."
    )


def devices(half: CloudHalf, url: str, send: Send, uploads: Sequence[Upload]) -> dict[str, Any]:
    """Many devices at once: each answer against the computation of that upload alone."""
    bodies = [upload.to_bytes() for upload in uploads]
    pending, answers, tries = list(range(len(bodies))), dict[int, bytes](), 0
    while pending and tries < 50:
        outcome = send(Offer(url, [bodies[i] for i in pending], 100, keep=True))
        got = {pending[row]: answer for row, (status, answer) in outcome.answers.items() if status == 200}
        answers |= got
        pending = [i for i in pending if i not in got]
        tries += 1
    expected = [half.generate([upload])[0].to_bytes() for upload in uploads]
    return {
        "devices": len(bodies),
        "answered": len(answers),
        "own_and_bit_equal": sum(answers.get(i) == own for i, own in enumerate(expected)),
        "different_answers": len(set(answers.values())),
        "rounds_of_asking": tries,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything; see the module's docstring for the keys.

    Raises:
        UserError: If the checkpoint is not usable or a service does not start.
    """
    import torch

    from lit_mmpg.checkpoint import read_checkpoint, trained_config
    from lit_mmpg.serving.cloud_half import CloudHalf

    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    half = CloudHalf.load(options.ckpt, device="cpu")
    config = trained_config(options.ckpt, read_checkpoint(options.ckpt))
    batch = config["data"]["init_args"].get("batch", {})
    clips, frames = int(batch.get("context_clips", 16)), int(batch.get("max_frames", 16))
    anchors = int(config["model"]["init_args"].get("anchors", {}).get("count", 2)) or frames
    shapes = {"as trained": (clips, frames), "large": (64, max(16, frames))}
    workloads = {name: make_uploads(half, 8 * BATCH, *shape, anchors) for name, shape in shapes.items()}
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "lit_mmpg", "serve", "--ckpt", str(options.ckpt), "--port", str(port)]
    command += ["--threads", "1", "--workers", str(options.workers), "--log-level", "warning"]
    found: dict[str, Any] = {
        "checkpoint": half.checkpoint_digest,
        "machine": {"cores": os.cpu_count(), "load_average": os.getloadavg()[0], "torch": torch.__version__},
        "contexts": {name: {"clips": c, "frames": f, "anchors": anchors} for name, (c, f) in shapes.items()},
        "cores": {"service": cores[0], "generator": cores[1]} if len(cores) > 1 else None,
        "workers": options.workers,
        "seconds": options.seconds,
        "rounds": options.rounds,
    }
    context, pin = multiprocessing.get_context("spawn"), len(cores) > 1
    with (
        concurrent.futures.ProcessPoolExecutor(
            1, context, *((os.sched_setaffinity, (0, cores[1:2])) if pin else ())
        ) as generator,
        pinned(cores[:1] if pin else cores),  # what is started here inherits it
        running(command, port, folder / "service.log", "/readyz") as service,
        litserve(options.ckpt, folder) if options.with_litserve else nullcontext() as rival,
        sampled(service.rss_bytes) as memory,
    ):

        def send(order: Offer) -> Outcome:
            return generator.submit(offer, order).result()

        services = {"service": service} | ({"litserve": rival} if rival else {})
        found["throughput"] = {}
        for name, uploads in workloads.items():
            print(f"throughput, contexts {name}", flush=True)
            tell(f"throughput, contexts {name}")
            row = throughput(half, services, send, uploads, options.rounds, options.seconds)
            found["throughput"][name] = row | {"target": TARGETS[name]}
        print("latency against offered load", flush=True)
        tell("latency against offered load")
        saturated = statistics.median(found["throughput"]["as trained"]["per_s"]["service"])
        bodies = [upload.to_bytes() for upload in workloads["as trained"]]
        found["latency"] = latency(service, send, bodies, saturated, options.rounds, options.seconds)
        print(f"{options.devices} devices at once", flush=True)
        tell(f"{options.devices} devices at once")
        many = make_uploads(half, options.devices, *shapes["as trained"], anchors, seed=1)
        found["devices"] = devices(half, service.url, send, many)
    found["memory"] = memory
    return found


def table(found: dict[str, Any], command: str) -> dict[str, Any]:
    """The report as a small result."""
    from lit_mmpg.tracking.address import git_commit

    rival = any("litserve_over_service" in row for row in found["throughput"].values())
    columns = ["contexts", "batch of 32", "bare forward, /s", "service, /s", "service / forward", "by processor time"]
    columns += ["target", *(["LitServe / service", "its processor time / ours"] if rival else [])]
    rows = []
    for name, row in found["throughput"].items():
        rates = {key: statistics.median(values) for key, values in row["per_s"].items()}
        target = f"{row['target']:.0%}, {'met' if row['ratio_median'] >= row['target'] else 'missed'}"
        cells = [
            f"{name} ({found['contexts'][name]['clips']} clips, {found['contexts'][name]['anchors']} anchors)",
            f"{row['batch_forward_ms']:.1f} ms",
            f"{rates['forward']:,.0f}",
            f"{rates['service']:,.0f}",
            f"{row['ratio_median']:.0%} [{row['ratio_low']:.0%}, {row['ratio_high']:.0%}]",
            f"{row['cpu_ratio']:.0%}",
            target,
        ]
        if rival:
            busier = row["cpu_ms"]["litserve"] / row["cpu_ms"]["service"]
            cells += [f"{row['litserve_over_service']:.2f}", f"{busier:.2f}"]
        rows.append(cells)
    own = found["devices"]
    cores = "the service on one core, the load generator on the other" if found["cores"] else "cores shared"
    notes = [
        f"{found['workers']} worker, one thread, {CONNECTIONS} connections, {cores}; median and range of "
        f"{found['rounds']} rounds in turns.",
        f"{own['own_and_bit_equal']} of {own['devices']} devices at once got their own parameters, bit-equal.",
    ]
    if (refused := refusals(found["latency"]["overloads"])) is not None:
        notes.append(refused)
    return result("Throughput of the service", command, columns, rows, git_commit(), notes, figures=found)


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process to some cores."""
    before = os.sched_getaffinity(0) if cores else set()
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, before)


@contextmanager
def sampled(read: Callable[[], int], every_s: float = 1.0) -> Iterator[dict[str, list[float]]]:
    """Memory over time, ``seconds`` and ``mib``, while the block runs."""
    series: dict[str, list[float]] = {"seconds": [], "mib": []}
    stop, begin = threading.Event(), time.monotonic()

    def run() -> None:
        while not stop.wait(every_s):
            series["seconds"].append(time.monotonic() - begin)
            series["mib"].append(read() / 2**20)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield series
    finally:
        stop.set()
        thread.join()


@working("serving load", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and write ``report.json``, ``report.html`` and ``result.json``, the small form of it."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a cloud half")
    parser.add_argument("--output", type=Path, default=Path("outputs/serving_load"), help="folder of the report")
    parser.add_argument("--rounds", type=int, default=5, help="turns of the forward pass and of the service")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a measurement")
    parser.add_argument("--workers", type=int, default=1, help="workers of the service")
    parser.add_argument("--devices", type=int, default=DEVICES, help="simulated devices")
    parser.add_argument("--with-litserve", action="store_true", help="install LitServe beside this and compare with it")
    options = parser.parse_args(argv)
    if min(options.rounds, options.workers, options.devices) < 1 or not 0 < options.seconds < math.inf:
        parser.error("--rounds, --workers, --devices and --seconds must be positive")
    try:
        found = measure(options)
    except (UserError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, text in (("report.json", json.dumps(found, indent=1) + "\n"), ("report.html", page(found))):
        (options.output / name).write_text(text, encoding="utf-8")
    litserve = " --with-litserve" if options.with_litserve else ""
    command = f"python -m {MODULE} --ckpt CKPT --rounds {options.rounds} --seconds {options.seconds:g}{litserve}"
    write_result(options.output / "result.json", table(found, command))
    for name, row in found["throughput"].items():
        rate = statistics.median(row["per_s"]["service"])
        print(
            f"{name}: {rate:.0f} requests/s, {row['ratio_median']:.0%} of the bare forward "
            f"(target {row['target']:.0%}), {row['cpu_ratio']:.0%} by processor time"
        )
        if "litserve_over_service" in row:
            busier = row["cpu_ms"]["litserve"] / row["cpu_ms"]["service"]
            print(f"{name}: LitServe {row['litserve_over_service']:.2f} of it, with {busier:.2f} of its processor time")
    if (refused := refusals(found["latency"]["overloads"])) is not None:
        print(refused)
    own = found["devices"]
    print(f"{own['own_and_bit_equal']} of {own['devices']} devices got their own parameters, bit-equal")
    print(f"report: {options.output / 'report.html'}")
    return 0 if own["own_and_bit_equal"] == own["devices"] else 1


if __name__ == "__main__":
    sys.exit(main())
