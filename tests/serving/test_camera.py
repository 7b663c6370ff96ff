"""Queries about cameras to a real service that holds a memory: answers, refusals, overload, and its client."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest

from lit_mmpg.camera_memory import CameraMemory
from lit_mmpg.cli import main
from lit_mmpg.data.artefacts import Placement
from lit_mmpg.link.camera import _DIGEST, CameraAnswer, CameraQuery
from lit_mmpg.link.messages import digest_beside
from lit_mmpg.maps import Correction, PixelMaps
from lit_mmpg.runtime.client import CloudClient, CloudError
from lit_mmpg.serving.app import CAMERA_BYTES, CAMERAS_WAITING, create_app, recognise
from lit_mmpg.serving.cloud_half import CloudHalf
from lit_mmpg.serving.config import ServeConfig
from lit_mmpg.serving.keys import add_key
from tests.serving.conftest import Guarded, Start
from tests.serving.making import make_uploads
from tests.serving.test_connections import Local, running
from tests.serving.test_faults import wait_until
from tests.test_camera_memory import TOLD, H, W, film, world


def query_of(frames: np.ndarray, device_id: str = "kitchen") -> CameraQuery:
    return CameraQuery.encode(PixelMaps.of(frames).gradient, len(frames), device_id)


KNOWN = query_of(film(0, Placement(0.9, 1, -1), 4, 700))
CLEAN = query_of(world(4, 600))


def signed(data: bytes) -> bytes:
    """A message with a right digest, whatever it holds."""
    return data[: _DIGEST.start] + digest_beside(data, _DIGEST) + data[_DIGEST.stop :]


@pytest.fixture(scope="session")
def memory_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "memory.safetensors"
    TOLD.with_gates(world(100, 70)).save(path)
    return path


@pytest.fixture(scope="module")
def watching(start: Start, memory_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    """A service that holds a memory, and asks for keys."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    fleet, kitchen = add_key(keys, "fleet", ["*"]), add_key(keys, "kitchen", ["kitchen"])
    server = start("--keys", str(keys), "--log-requests", "--camera-memory", str(memory_file))
    return Guarded(server, server.get("/v1/info").json(), fleet, kitchen)


def post(guarded: Guarded, body: bytes, key: str | None = None, **headers: str) -> httpx.Response:
    sent = {"authorization": f"Bearer {guarded.kitchen if key is None else key}"} | headers
    return httpx.post(f"{guarded.server.url}/v1/camera", content=body, headers=sent, timeout=600)


def test_a_known_camera_is_corrected_and_a_clean_one_is_not(watching: Guarded, memory_file: Path) -> None:
    memory = CameraMemory.load(memory_file)
    assert (watching.info["camera_models"], watching.info["camera_memory_version"]) == (len(memory), memory.version)
    with CloudClient(watching.server.url, watching.kitchen) as client:
        answer, traffic = client.recognise(KNOWN)
        nothing, _ = client.recognise(CLEAN)
    assert answer == recognise(memory, KNOWN) and (answer.model, answer.version) == (0, memory.version)
    assert nothing.model == -1 and nothing.correction() is None
    assert traffic.upload_message_bytes == len(KNOWN.to_bytes()) < traffic.upload_wire_bytes < 3700
    clean, seen = world(4, 700), film(0, Placement(0.9, 1, -1), 4, 700)
    correction = answer.correction()
    assert correction is not None
    before, after = (abs(x.astype(float) - clean).mean() for x in (seen, correction(seen)))
    assert after < 0.6 * before
    counted = watching.server.get("/metrics").text
    for reason in ("recognised", "unknown"):
        assert f'lit_mmpg_camera_requests_total{{reason="{reason}",status="200"}} 1.0' in counted
    assert "lit_mmpg_camera_seconds_count 2.0" in counted
    log = watching.server.log.read_text()
    assert '"event": "camera"' in log and '"reason": "recognised"' in log and watching.kitchen not in log


def test_what_is_no_query_is_refused(watching: Guarded) -> None:
    body = KNOWN.to_bytes()
    start = len(body) - len(KNOWN.pictures)
    version = body[:4] + (99).to_bytes(2, "little") + body[6:]
    size = body[:23] + struct.pack("<HH", 600, 600) + body[27:]
    step = signed(body[:start] + struct.pack("<f", -1.0) + body[start + 4 :])
    refused = {
        "empty": (b"", 400, "malformed"),
        "an answer": (CameraAnswer.encode(KNOWN, None, -1, 0).to_bytes(), 400, "malformed"),
        "an upload": (make_uploads(1, watching.info)[0].to_bytes(), 400, "malformed"),
        "truncated": (body[:-1], 400, "malformed"),
        "pictures of nothing": (signed(body[: start + 4] + bytes(20)), 400, "malformed"),
        "version": (version, 409, "protocol_version"),
        "size": (signed(size), 422, "implausible"),
        "step": (step, 422, "implausible"),
        "too large": (bytes(CAMERA_BYTES + 1), 413, "too_large"),
    }
    for name, (sent, status, error) in refused.items():
        response = post(watching, sent)
        assert (response.status_code, response.json()["error"]) == (status, error), (name, response.text)
        assert set(response.json()) == {"error", "detail"}
    other = query_of(world(4, 600), "bath").to_bytes()
    assert (post(watching, other).status_code, post(watching, other, watching.fleet).status_code) == (403, 200)
    assert (post(watching, body, "wrong").status_code, post(watching, bytes(9000), "wrong").status_code) == (401, 401)
    assert httpx.get(f"{watching.server.url}/v1/camera").status_code == 405
    assert 'status="409"' in watching.server.get("/metrics").text


def test_keys_are_not_taken_over_plain_http_from_elsewhere(guarded: Guarded) -> None:
    response = post(guarded, KNOWN.to_bytes(), **{"x-forwarded-for": "192.0.2.7"})
    assert (response.status_code, response.json()["error"]) == (403, "insecure")


def test_a_service_without_a_memory_says_so(guarded: Guarded) -> None:
    assert guarded.info["camera_models"] is None and guarded.info["camera_memory_version"] is None
    response = post(guarded, KNOWN.to_bytes())
    assert (response.status_code, response.json()["error"]) == (404, "camera")
    with (
        CloudClient(guarded.server.url, guarded.kitchen) as client,
        pytest.raises(CloudError, match=r"no camera memory.*--camera-memory FILE") as caught,
    ):
        client.recognise(KNOWN)
    assert caught.value.lasting and caught.value.reason == "refused"


@pytest.fixture
def half(checkpoint: Path) -> CloudHalf:
    return CloudHalf.load(checkpoint, device="cpu")


def ask(local: Local, body: bytes) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{local.port}/v1/camera", content=body, timeout=60)


def test_adaptations_and_queries_share_the_rate(half: CloudHalf, memory_file: Path) -> None:
    config = ServeConfig("", camera_memory=str(memory_file), rate_per_s=1e-6, burst=2)
    with running(create_app(half, config)) as local:
        digests = {key: getattr(half, key) for key in ("checkpoint_digest", "spec_digest")}
        (upload,) = make_uploads(1, digests | {"anchor_width": half.width})
        adapted = httpx.post(f"http://127.0.0.1:{local.port}/v1/adapt", content=upload.to_bytes(), timeout=60)
        statuses = [adapted.status_code, *(ask(local, CLEAN.to_bytes()).status_code for _ in range(2))]
    assert statuses == [200, 200, 429]


def test_a_full_queue_refuses_and_who_hangs_up_is_not_computed(
    half: CloudHalf, memory_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, computed, statuses = threading.Event(), [], []
    with (
        running(create_app(half, ServeConfig("", camera_memory=str(memory_file)))) as local,
        contextlib.ExitStack() as stack,
    ):
        cameras = local.app.state.cameras
        compute = cameras._compute

        def held(queries: list[CameraQuery]) -> list[CameraAnswer]:
            assert gate.wait(30)
            computed.extend(query.device_id for query in queries)
            return compute(queries)

        monkeypatch.setattr(cameras, "_compute", held)
        stack.callback(gate.set)
        bodies = [query_of(world(1, 600), f"d{number}").to_bytes() for number in range(CAMERAS_WAITING + 1)]
        head = b"POST /v1/camera HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        connections = []
        for number, body in enumerate(bodies):
            connection = stack.enter_context(local.connect())
            connection.sendall(head % len(body) + body)
            connections.append(connection)
            wait_until(lambda number=number: cameras.waiting == number and cameras.computing_s > 0)
        full = ask(local, bodies[0])
        assert (full.status_code, full.json()["error"]) == (503, "overloaded") and full.headers["retry-after"] == "1"
        assert httpx.get(f"http://127.0.0.1:{local.port}/healthz").status_code == 200
        for connection in connections[3:]:
            connection.close()
        wait_until(lambda: len(local.server.server_state.tasks) == 3)
        gate.set()
        statuses = [connection.recv(65536)[:12] for connection in connections[:3]]
    assert statuses == [b"HTTP/1.1 200"] * 3 and computed == ["d0", "d1", "d2"]


def test_a_fault_of_ours_is_an_error_in_json(
    half: CloudHalf, memory_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(create_app(half, ServeConfig("", camera_memory=str(memory_file)))) as local:
        monkeypatch.setattr(local.app.state.cameras, "_compute", lambda queries: 1 / 0)
        response = ask(local, CLEAN.to_bytes())
    assert response.status_code == 500 and response.json() == {"error": "internal", "detail": "the computation failed"}


def test_a_wrong_memory_is_told_before_the_service_starts(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn, open_ = tmp_path / "torn.safetensors", tmp_path / "open.safetensors"
    torn.write_bytes(b"no memory")
    TOLD.save(open_)
    for file, said in (
        (tmp_path / "gone.safetensors", "is not a readable camera memory"),
        (torn, "is not a readable camera memory"),
        (open_, "holds no gates"),
    ):
        assert main(["serve", "--ckpt", str(checkpoint), "--camera-memory", str(file)]) == 2
        error = capsys.readouterr().err
        assert said in error and file.name in error


@pytest.mark.parametrize("fault", ["another query", "another size", "no picture", "text", "flood"])
def test_a_garbage_answer_is_none(fault: str) -> None:
    image = np.ones((3, H, W))
    good = CameraAnswer.encode(KNOWN, Correction.affine(image, image), 0, 1)
    told = {
        "another query": CameraAnswer.encode(CLEAN, Correction.affine(image, image), 0, 1).to_bytes(),
        "another size": dataclasses.replace(good, size=(H, W + 8)).to_bytes(),
        "no picture": dataclasses.replace(good, pictures=b"\0\0\x80?" + bytes(30)).to_bytes(),
        "text": b"<html>welcome to the hotel</html>",
        "flood": bytes(2**20),
    }
    with answering(told[fault]) as url, CloudClient(url) as client:
        with pytest.raises(CloudError) as caught:
            client.recognise(KNOWN)
        assert caught.value.reason == "garbage" and not caught.value.lasting


@contextlib.contextmanager
def answering(data: bytes) -> Iterator[str]:
    """A server that answers everything with the same bytes."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
