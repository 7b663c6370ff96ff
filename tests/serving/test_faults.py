"""A real service that is killed, restarted, drained, overloaded, spoken to by TLS: what a device sees of it.

What a device does with answers that are damaged, late or somebody else's is tested with the device.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import shutil
import signal
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from lit_mmpg.cli import main
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.profiling.benchmarks.services import free_port
from lit_mmpg.runtime.adaptation import Adaptation, adapt, restore
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.client import CloudClient, CloudError
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.serving.keys import add_key
from tests.serving.conftest import Guarded, Server, Start, make_certificate
from tests.serving.making import loaded, make_uploads, offline, same_bits

HOLD_MS = 1500.0
"""How long the services here let a lone request wait for company: long enough to strike meanwhile."""


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("device") / "bundle"
    assert main(["export", "--ckpt", str(checkpoint), "--output", str(target), "--samples", "synthetic"]) == 0
    return Bundle.open(target)


class Device:
    """A device that answers the same question before and after whatever happens to its cloud."""

    def __init__(self, bundle: Bundle, url: str, key: str | None = None) -> None:
        self.session, self.state = DeviceSession(bundle), DeviceState(bundle)
        self.client = CloudClient(url, key, timeout_s=20)
        rng = np.random.default_rng(0)
        for frames in (3, 4):
            self.state.see(rng.normal(size=(frames, bundle.manifest.frames.width)).astype(np.float32))
        self.features = rng.normal(size=(4, bundle.manifest.frames.features)).astype(np.float32)
        restore(self.session, self.state)

    def adapt(self) -> Adaptation:
        return adapt(self.session, self.state, self.client, "kitchen")

    def ranking(self) -> tuple[tuple[str, float], ...]:
        return self.session.answer(self.features, "which paint covers the toy").ranking


@pytest.fixture
def device(bundle: Bundle) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(url: str, key: str | None = None) -> Device:
        made.append(Device(bundle, url, key))
        return made[-1]

    yield make
    for each in made:
        each.client.close()
        each.session.close()


def waiting(server: Server) -> float:
    """Uploads that the service holds."""
    found = re.search(r"^lit_mmpg_queue_length (\S+)$", server.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def shared_folders(server: Server) -> list[Path]:
    """What a service has made where temporary files are."""
    return list(Path(tempfile.gettempdir()).glob(f"lit-mmpg-metrics-{server.process.pid}-*"))


def test_killed_in_mid_request_restarted_and_drained(start: Start, device: Callable[..., Device]) -> None:
    port, options = free_port(), ("--max-wait-ms", str(HOLD_MS))
    server = start(*options, port=port)
    kitchen = device(server.url)
    static = kitchen.ranking()
    assert kitchen.adapt().source == "cloud"
    own = kitchen.ranking()
    assert own != static

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        pending = thread.submit(kitchen.adapt)
        wait_until(lambda: waiting(server) == 1)
        server.kill()  # SIGKILL
        outcome = pending.result(30)
    assert (outcome.source, outcome.reason) == ("cached", "unreachable")
    assert kitchen.ranking() == own
    assert kitchen.adapt().reason == "unreachable"  # nobody listens
    assert kitchen.ranking() == own

    server = start(*options, port=port)
    assert kitchen.adapt().source == "cloud"  # the same client, without a word
    assert kitchen.ranking() == own

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        pending = thread.submit(kitchen.adapt)
        wait_until(lambda: waiting(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        assert pending.result(30).source == "cloud", "what was accepted is answered"
    assert server.process.wait(30) in (0, -signal.SIGTERM)
    assert "Traceback" not in server.log.read_text()
    assert not shared_folders(server)


@pytest.fixture(scope="session")
def tls(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Guarded, Path]:
    """A service that speaks TLS, holds lone requests, queues two, and lets a key ask four times at once."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = make_certificate(folder)
    keys = folder / "keys.json"
    fleet, kitchen = add_key(keys, "fleet", ["*"]), add_key(keys, "kitchen", ["kitchen"])
    server = start(
        "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--keys", str(keys), "--max-queue", "2",
        "--max-wait-ms", str(HOLD_MS), "--rate", "0.5", "--burst", "8",
    )  # fmt: skip
    return Guarded(server, server.get("/v1/info").json(), fleet, kitchen), certificate


def test_tls_with_a_certificate_that_the_device_trusts(
    tls: tuple[Guarded, Path], device: Callable[..., Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded, certificate = tls
    stranger = device(guarded.server.url, guarded.kitchen)
    outcome = stranger.adapt()
    assert outcome.reason == "unreachable" and "certificate" in str(outcome.error).lower()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert device(guarded.server.url, guarded.kitchen).adapt().source == "cloud"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{guarded.server.port}/healthz")


def test_overload_is_answered_at_once_and_passes(tls: tuple[Guarded, Path]) -> None:
    guarded, certificate = tls
    uploads = [upload.to_bytes() for upload in make_uploads(5, guarded.info)]
    headers = {"authorization": f"Bearer {guarded.fleet}"}
    trusted = ssl.create_default_context(cafile=certificate)
    with httpx.Client(verify=trusted, headers=headers, timeout=600) as client:

        def post(body: bytes) -> tuple[httpx.Response, float]:
            began = time.monotonic()
            response = client.post(f"{guarded.server.url}/v1/adapt", content=body)
            return response, time.monotonic() - began

        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            held = [threads.submit(post, body) for body in uploads[:2]]
            wait_until(lambda: waiting(guarded.server) == 2)
            assert guarded.server.get("/readyz").status_code == 503
            refused, seconds = post(uploads[2])
            assert (refused.status_code, refused.json()["error"]) == (503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1 and seconds < HOLD_MS / 1e3 / 2
            assert [future.result()[0].status_code for future in held] == [200, 200]
        assert guarded.server.get("/readyz").status_code == 200
        assert post(uploads[3])[0].status_code == 200


def test_a_key_that_asks_too_often_waits_and_others_do_not(tls: tuple[Guarded, Path]) -> None:
    guarded, certificate = tls
    body = make_uploads(1, guarded.info)[0].to_bytes()[:50]  # refused later on, but counted
    with httpx.Client(verify=ssl.create_default_context(cafile=certificate), timeout=600) as client:

        def post(key: str) -> httpx.Response:
            url, headers = f"{guarded.server.url}/v1/adapt", {"authorization": f"Bearer {key}"}
            return client.post(url, content=body, headers=headers)

        answers = [post(guarded.fleet) for _ in range(9)]
        assert answers[-1].status_code == 429 and answers[-1].json()["error"] == "rate"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 2
        assert post(guarded.kitchen).status_code == 400


def test_workers_share_a_port_and_its_counts_and_one_may_die(start: Start, module: CloudModule) -> None:
    server = start("--workers", "2")
    assert len(shared_folders(server)) == 1, "where workers share their counts"

    def ready() -> set[int]:
        return {int(pid) for pid in re.findall(r'"message": "ready", "pid": (\d+)', server.log.read_text())}

    wait_until(lambda: len(ready()) == 2, 90)  # the first one answers while the second still starts
    info = server.get("/v1/info").json()
    uploads = make_uploads(60, info, seed=9)
    expected = offline(module, uploads, info["download_codec"])

    def ask(row: int) -> bytes:
        with httpx.Client(timeout=600) as client:  # a connection of its own: any worker may take it
            response = client.post(f"{server.url}/v1/adapt", content=uploads[row].to_bytes())
        assert response.status_code == 200, response.text
        return response.content

    def check() -> None:
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(ask, range(len(uploads))))
        assert all(same_bits(loaded(a, u, module), o) for a, u, o in zip(answers, uploads, expected, strict=True))

    check()
    total = re.search(r'^lit_mmpg_adapt_requests_total\{reason="ok",status="200"\} (\S+)$',
                      server.get("/metrics").text, re.MULTILINE)  # fmt: skip
    assert total and float(total[1]) == len(uploads)
    os.kill(min(ready()), signal.SIGKILL)
    wait_until(lambda: len(ready()) == 3, 90)
    check()
    assert server.stop() in (0, -signal.SIGTERM)
    assert not shared_folders(server)


def test_a_worker_without_its_checkpoint_says_so_and_none_outlives_the_command(
    checkpoint: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(checkpoint, tmp_path / "served.ckpt"))
    server = Server(copy, tmp_path / "log", "--workers", "2")
    pids: set[int] = set()
    try:
        server.wait_ready()

        def ready() -> set[int]:
            return {int(pid) for pid in re.findall(r'"message": "ready", "pid": (\d+)', server.log.read_text())}

        wait_until(lambda: len(ready()) == 2, 90)
        pids = ready()
        copy.unlink()
        os.kill(min(pids), signal.SIGKILL)
        wait_until(lambda: "error: " in server.log.read_text(), 90)
        assert re.search(r"^error: .*served.ckpt does not exist", server.log.read_text(), re.MULTILINE)
        assert "Traceback" not in server.log.read_text()
        os.kill(server.process.pid, signal.SIGKILL)  # the command alone, not its workers
        wait_until(lambda: not Path(f"/proc/{max(pids)}").exists(), 30)
    finally:
        server.kill()
        for folder in shared_folders(server):
            shutil.rmtree(folder)


def test_the_service_goes_on_while_devices_come_and_go(guarded: Guarded, bundle: Bundle) -> None:
    """Clients that give up early leave nothing behind that the others would notice."""
    upload = make_uploads(1, guarded.info)[0]
    stop, gave_up = threading.Event(), []

    def impatient() -> None:
        while not stop.wait(0.02):  # a flood would fill the queue, which is another test
            try:
                with CloudClient(guarded.server.url, guarded.fleet, timeout_s=0.005) as client:
                    client.adapt(upload)  # now and then it joins a batch that is about to end
            except CloudError as error:
                gave_up.append(error.reason)

    threads = [threading.Thread(target=impatient) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with CloudClient(guarded.server.url, guarded.fleet, timeout_s=20) as client:
            for _ in range(10):
                client.adapt(upload)[0].check_answers(upload)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert gave_up.count("timeout") > 10 and set(gave_up) == {"timeout"}
