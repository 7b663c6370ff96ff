"""Long runs: memory under load, and a thousand devices. ``LIT_MMPG_SOAK_MINUTES`` says how long the load lasts."""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import statistics
import time
from pathlib import Path

import pytest

from profiling.benchmarks import serving_load
from profiling.benchmarks.load import Offer, Outcome, offer
from tests.serving.conftest import Start
from tests.serving.making import make_uploads

pytestmark = pytest.mark.soak

MINUTES = float(os.environ.get("LIT_MMPG_SOAK_MINUTES", "1"))


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_memory_is_flat_under_good_and_hostile_load(start: Start) -> None:
    server = start("--log-level", "error")
    info = server.get("/v1/info").json()
    rng = random.Random(0)
    bodies = [upload.to_bytes() for upload in make_uploads(300, info)]
    for body in bodies[:60]:  # every sixth message is damaged somewhere, or cut off
        at = rng.randrange(len(body))
        bodies.append(body[:at] + bytes([body[at] ^ (1 << rng.randrange(8))]) + body[at + 1 :])
        bodies.append(body[:at])
    rng.shuffle(bodies)
    order = Offer(f"{server.url}/v1/adapt", bodies, 32, 60 * MINUTES)
    samples: list[float] = []
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        pending = thread.submit(offer, order)
        while not pending.done():
            time.sleep(0.5)
            samples.append(resident_mib(server.process.pid))
        outcome: Outcome = pending.result()
    early, late = (samples[len(samples) * k // 8 : len(samples) * (k + 1) // 8] for k in (2, 7))
    growth = statistics.median(late) - statistics.median(early)
    print(f"{outcome.count()} requests, {statistics.median(late):.0f} MiB, grown by {growth:.1f} MiB")
    assert growth < 8, samples
    # Nothing crashed or was lost; 409 only where a flipped bit met the version.
    assert {200, 400} <= set(outcome.latencies_s) <= {200, 400, 409}


def test_a_thousand_devices_get_their_own_parameters(checkpoint: Path, tmp_path: Path) -> None:
    options = ["--ckpt", str(checkpoint), "--output", str(tmp_path), "--rounds", "1", "--seconds", "1"]
    assert serving_load.main(options) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["devices"] == {
        "devices": 1000, "answered": 1000, "own_and_bit_equal": 1000, "different_answers": 1000,
        "rounds_of_asking": report["devices"]["rounds_of_asking"],
    }  # fmt: skip
    overload = report["latency"]["overload"]
    assert set(overload["refused"]) <= {"503"}
    assert not report["latency"]["recovery"]["refused"]
    assert "own parameters" in (tmp_path / "report.html").read_text()
