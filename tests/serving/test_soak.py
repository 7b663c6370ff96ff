"""Long runs: memory under load, and a thousand devices. ``LIT_MMPG_SOAK_MINUTES`` says how long the load lasts."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import json
import logging
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_mmpg.link import codecs, register
from lit_mmpg.link.product import learn
from lit_mmpg.profiling.benchmarks import serving_load
from lit_mmpg.profiling.benchmarks.load import Offer, Outcome, offer
from lit_mmpg.serving.app import create_app
from lit_mmpg.serving.cloud_half import CloudHalf
from lit_mmpg.serving.config import ServeConfig
from tests.link.test_message_fuzz import FIELDS, resigned
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


def mutated(message: bytes, rng: random.Random) -> bytes:
    """Bytes changed, left out and repeated, half of the time with the digest made right again."""
    data = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        if rng.random() < 0.3:  # a field of the header
            field = rng.choice(FIELDS)
            data[field] = rng.randbytes(field.stop - field.start)
        else:
            data[at : at + rng.choice([0, 1, 1, 9])] = rng.randbytes(rng.choice([0, 1, 1, 8]))
    return resigned(bytes(data)) if rng.random() < 0.5 else bytes(data)


def test_100_000_mutated_uploads_crash_nothing_and_memory_is_bounded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so that what is counted is the service alone, with a codec that makes much of few bytes."""
    logging.getLogger("lit_mmpg.serving").setLevel(logging.ERROR)
    half = CloudHalf.load(checkpoint, device="cpu")
    info = {"anchor_width": half.width, "checkpoint_digest": half.checkpoint_digest, "spec_digest": half.spec_digest}
    monkeypatch.setattr(codecs, "_CODECS", dict(codecs._CODECS))
    quantiser = learn(np.random.default_rng(0).normal(size=(300, half.width)), 2, rounds=1)
    register(quantiser)
    seeds = []
    for codec in ("fp32", "fp16", "int8", "int7", "int6", "int4", quantiser.name):
        seeds += make_uploads(20, info, codec=codec)
        seeds += make_uploads(2, info, codec=codec, clips=(64, 64), anchors=(64, 64), frames=(1, 64))  # at the limits
    bodies = [upload.to_bytes() for upload in seeds]
    app = create_app(half, ServeConfig(""))
    endpoint: Any = next(route for route in app.routes if route.path == "/v1/adapt").endpoint
    rng, statuses, resident = random.Random(0), collections.Counter[int](), list[float]()

    async def one(body: bytes) -> None:
        pieces = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return pieces.pop() if pieces else await asyncio.Event().wait()

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses[message["status"]] += 1

        await endpoint({"type": "http", "headers": [], "client": ("127.0.0.1", 1)}, receive, send)

    async def all_of_them() -> None:
        app.state.batcher.start()
        for number in range(100_000 // 20):
            await asyncio.gather(*(one(mutated(rng.choice(bodies), rng)) for _ in range(20)))
            if number % 500 == 499:
                resident.append(resident_mib(os.getpid()))
        await app.state.batcher.stop()

    asyncio.run(all_of_them())
    print(dict(statuses), f"{resident[0]:.0f} to {max(resident):.0f} MiB")
    assert sum(statuses.values()) == 100_000 and min(statuses.values()) > 0
    assert not [status for status in statuses if status >= 500 and status != 503], statuses
    assert {200, 400, 409, 422} <= set(statuses)
    assert max(resident) - resident[0] < 64, resident


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
