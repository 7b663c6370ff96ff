"""A small cloud half with weights that no training ever made equal; and services in processes of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from lit_mmpg.checkpoint import load_module
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.profiling.benchmarks.services import free_port
from lit_mmpg.serving.keys import add_key
from tests import forked
from tests.integration.conftest import best_checkpoint
from tests.serving.making import make_cloud_checkpoint
from tests.shared import made_once

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small, and the services beside need the other cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """A checkpoint of both halves, trained for three epochs on tiny data."""
    return best_checkpoint(made_once("served", make_cloud_checkpoint), "cloud")


@pytest.fixture(scope="session")
def module(checkpoint: Path) -> CloudModule:
    """The cloud module of that checkpoint, for offline answers."""
    return load_module(checkpoint, CloudModule)[0]


class Server:
    """A service in a process of its own."""

    def __init__(self, checkpoint: Path, log: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"{'https' if '--ssl-certfile' in options else 'http'}://127.0.0.1:{self.port}"
        self.log = log
        command = ["serve", "--ckpt", str(checkpoint), "--port", str(self.port), "--threads", "1", *options]
        with log.open("ab") as file:
            self.process = forked.Process(command, cwd=ROOT, stdout=file, stderr=file)

    def wait_ready(self, timeout_s: float = 120) -> Server:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz", timeout=5, verify=False).status_code == 200:
                    return self
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=600, verify=False)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


Start = Callable[..., Server]


def make_certificate(folder: Path, names: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    """Private key and self-signed certificate; skips where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=cloud", "-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


@pytest.fixture(scope="session")
def start(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start servers; they are ended with the session."""
    started: list[Server] = []
    folder = tmp_path_factory.mktemp("servers")

    def launch(*options: str, wait: bool = True, port: int | None = None) -> Server:
        server = Server(checkpoint, folder / f"{len(started)}.log", *options, port=port)
        started.append(server)
        return server.wait_ready() if wait else server

    yield launch
    for server in started:
        server.kill()


@dataclass(frozen=True)
class Guarded:
    """A service that asks for keys.

    Attributes:
        server: Its process.
        info: What ``/v1/info`` says.
        fleet: Key for every device.
        kitchen: Key for the devices ``kitchen`` and ``kitchen-*``.
    """

    server: Server
    info: dict
    fleet: str
    kitchen: str

    def post(self, body: bytes, key: str | None = None, **headers: str) -> httpx.Response:
        """Ask for an adaptation; with the key of the fleet, unless another or an empty one is given."""
        sent = {"authorization": f"Bearer {self.fleet if key is None else key}"} if key != "" else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{self.server.url}/v1/adapt", content=body, headers=sent, timeout=600)


MAX_BODY = 65536
TIMEOUT_S = 1.0


@pytest.fixture(scope="session")
def guarded(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    """One service for most tests: keys, a log line for every request, a proxy that is believed, short patience."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    fleet, kitchen = add_key(keys, "fleet", ["*"]), add_key(keys, "kitchen", ["kitchen", "kitchen-*"])
    limits = ["--max-body-bytes", str(MAX_BODY), "--request-timeout-s", str(TIMEOUT_S)]
    options = ["--keys", str(keys), "--log-requests", "--proxy-ips", "127.0.0.1", *limits]
    server = start(*options, "--max-queue", "500", "--max-wait-ms", "20")
    return Guarded(server, server.get("/v1/info").json(), fleet, kitchen)
