"""Every endpoint and every refusal of a real service, over real HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import jsonschema
import pytest

from lit_mmpg.link import PROTOCOL_VERSION, Upload
from lit_mmpg.runtime.client import CloudClient
from tests.link.test_message_fuzz import resigned
from tests.serving.conftest import MAX_BODY, TIMEOUT_S, Guarded
from tests.serving.making import make_uploads


def sealed(upload: Upload, payload: bytes, version: int = PROTOCOL_VERSION) -> bytes:
    """The message of an upload with another payload and a right digest: what a hostile device would send."""
    data = upload.to_bytes()
    head = data[:4] + version.to_bytes(2, "little") + data[6 : len(data) - upload.payload_bytes]
    return resigned(head + payload)


def with_anchors(upload: Upload, value: float) -> bytes:
    """The fp32 upload with one anchor value replaced, whatever its encoder would have said to that."""
    return sealed(upload, struct.pack("<f", value) + upload.payload[4:])


@pytest.fixture(scope="module")
def upload(guarded: Guarded) -> Upload:
    return make_uploads(1, guarded.info, codec="fp32", clips=(2, 2), anchors=(2, 2), frames=(4, 4), prefix="kitchen-")[
        0
    ]


def test_pages_and_probes(guarded: Guarded) -> None:
    server = guarded.server
    assert server.get("/healthz").json() == {"status": "ok"} == server.get("/readyz").json()
    document = server.get("/openapi.json").json()
    schemas = {"components": document["components"]}
    info = {"$ref": "#/components/schemas/Info", **schemas}
    jsonschema.validate(guarded.info, info)
    assert guarded.info["protocol_version"] == PROTOCOL_VERSION
    page = server.get("/docs").text
    for path, operations in document["paths"].items():
        assert path in page
        assert server.get(path).status_code == (405 if "post" in operations else 200), path
    error = server.get("/nowhere")
    assert error.status_code == 404
    jsonschema.validate(error.json(), {"$ref": "#/components/schemas/Error", **schemas})
    assert document["paths"]["/v1/adapt"]["post"]["security"] == [{"key": []}]


def test_an_answer_is_counted_and_logged_without_payload_and_key(guarded: Guarded, upload: Upload) -> None:
    def count() -> float:
        text = guarded.server.get("/metrics").text
        line = next(s for s in text.splitlines() if s.startswith('lit_mmpg_adapt_requests_total{reason="ok"'))
        return float(line.rsplit(" ", 1)[1])

    before = count()
    body = upload.to_bytes()
    response = guarded.post(body, key=guarded.kitchen)
    assert response.status_code == 200 and response.headers["content-type"] == "application/octet-stream"
    assert count() == before + 1
    log = guarded.server.log.read_text()
    entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    entry = next(entry for entry in entries if entry.get("request") == upload.request_id)
    assert (entry["event"], entry["status"], entry["device"], entry["key"]) == ("adapt", 200, "kitchen-0", "kitchen")
    assert entry["upload_bytes"] == len(body) and entry["download_bytes"] == len(response.content)
    assert guarded.kitchen not in log and guarded.fleet not in log and "anchors" not in log


REFUSALS: dict[str, tuple[Callable[[Guarded, Upload], bytes], int, str]] = {
    "empty": (lambda g, u: b"", 400, "malformed"),
    "text": (lambda g, u: b"hello", 400, "malformed"),
    "truncated": (lambda g, u: u.to_bytes()[:-5], 400, "malformed"),
    "longer": (lambda g, u: u.to_bytes() + b"\0", 400, "malformed"),
    "too large": (lambda g, u: bytes(MAX_BODY + 1), 413, "too_large"),
    "older protocol": (lambda g, u: sealed(u, b"", 1), 409, "protocol_version"),
    "newer protocol": (lambda g, u: sealed(u, b"", 99), 409, "protocol_version"),
    "checkpoint": (lambda g, u: make_uploads(1, g.info | {"checkpoint_digest": "0" * 64})[0].to_bytes(), 409, "model"),
    "specification": (lambda g, u: make_uploads(1, g.info | {"spec_digest": "0" * 64})[0].to_bytes(), 409, "model"),
    "NaN": (lambda g, u: with_anchors(u, float("nan")), 422, "implausible"),
    "infinity": (lambda g, u: with_anchors(u, float("-inf")), 422, "implausible"),
    "absurd norm": (lambda g, u: with_anchors(u, 1e9), 422, "implausible"),
    "context": (lambda g, u: make_uploads(1, g.info, frames=(60000, 60000))[0].to_bytes(), 422, "context_too_large"),
    "width": (
        lambda g, u: make_uploads(1, g.info | {"anchor_width": g.info["anchor_width"] + 1})[0].to_bytes(), 422, "width",
    ),
    "pickle": (lambda g, u: sealed(u, b"\x80\x04\x95cos\nsystem\n(S'true'\ntR."), 400, "malformed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(guarded: Guarded, upload: Upload, name: str) -> None:
    make, status, error = REFUSALS[name]
    response = guarded.post(make(guarded, upload))
    assert (response.status_code, response.json()["error"]) == (status, error), response.text
    assert set(response.json()) == {"error", "detail"} and len(response.text) < 500


def test_flipped_bits_are_never_answered(guarded: Guarded, upload: Upload) -> None:
    rng, body = random.Random(0), upload.to_bytes()
    statuses = set()
    for _ in range(80):
        at = rng.randrange(len(body))
        damaged = body[:at] + bytes([body[at] ^ (1 << rng.randrange(8))]) + body[at + 1 :]
        statuses.add(guarded.post(damaged).status_code)
    assert statuses <= {400, 409}
    assert guarded.post(body).status_code == 200


def test_keys(guarded: Guarded, upload: Upload) -> None:
    body, other = upload.to_bytes(), dataclasses.replace(upload, device_id="garage").to_bytes()
    assert guarded.post(body, key=guarded.kitchen).status_code == 200
    for key in ("", "wrong", guarded.kitchen[:-1], guarded.kitchen + "x"):
        response = guarded.post(body, key=key)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    basic = guarded.post(body, key="", authorization=f"Basic {guarded.kitchen}")
    assert basic.status_code == 401
    foreign = guarded.post(other, key=guarded.kitchen)
    assert (foreign.status_code, foreign.json()["error"]) == (403, "device")
    assert guarded.post(other, key=guarded.fleet).status_code == 200


def test_keys_over_plain_http_from_elsewhere_are_refused(guarded: Guarded, upload: Upload) -> None:
    """A believed proxy tells where a request came from, and whether it came by https."""
    body = upload.to_bytes()
    plain = guarded.post(body, x_forwarded_for="203.0.113.9", x_forwarded_proto="http")
    assert (plain.status_code, plain.json()["error"]) == (403, "insecure")
    assert guarded.post(body, x_forwarded_for="203.0.113.9", x_forwarded_proto="https").status_code == 200


# -- bytes -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def relay(port: int) -> Iterator[tuple[str, list[list[int]]]]:
    """Its address; and for each connection the bytes that it passed on so far, up and down."""
    passed: list[list[int]] = []

    def pump(source: socket.socket, drain: socket.socket, count: list[int], way: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                count[way] += len(data)
                drain.sendall(data)
            drain.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
                passed.append([0, 0])
                for arguments in ((near, far, passed[-1], 0), (far, near, passed[-1], 1)):
                    threading.Thread(target=pump, args=arguments, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", passed
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("codec", ["int8", "pq"])
def test_an_adaptation_costs_few_bytes_beside_its_payload(guarded: Guarded, codec: str) -> None:
    """Counted on the sockets between the device's client and the service, request line and headers included."""
    name = guarded.info["trained_upload_codec"] if codec == "int8" else guarded.info["upload_codecs"][-1]
    assert name.startswith(codec)
    uploads = make_uploads(3, guarded.info, codec=name, prefix="kitchen-")
    with relay(guarded.server.port) as (url, passed), CloudClient(url, guarded.kitchen) as client:
        for number, upload in enumerate(uploads):
            before = list(passed[0]) if passed else [0, 0]
            download, traffic = client.adapt(upload)
            up, down = (after - start for after, start in zip(passed[0], before, strict=True))
            assert (traffic.upload_wire_bytes, traffic.download_wire_bytes) == (up, down)
            assert len(passed) == 1, f"request {number} opened a connection of its own"
            for message, wire in ((upload, up), (download, down)):
                assert len(message.to_bytes()) <= message.payload_bytes + 64
                assert message.payload_bytes < wire <= message.payload_bytes + 300, (codec, wire, message)


def test_a_device_of_the_version_before_is_told_what_to_upgrade(guarded: Guarded) -> None:
    before = struct.pack("<4sHHI", b"MMPG", 2, 0, 0) + b"{}"
    response = guarded.post(before)
    assert (response.status_code, response.json()["error"]) == (409, "protocol_version")
    assert response.json()["detail"].endswith("upgrade lit-mmpg on the device")


# -- below HTTP --------------------------------------------------------------------------------------------------


def exchange(guarded: Guarded, sent: bytes, wait_s: float = 10.0) -> bytes:
    """What comes back for raw bytes, until the server hangs up or stays silent."""
    with socket.create_connection(("127.0.0.1", guarded.server.port), wait_s) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
            if b"\r\n\r\n" in received and b"connection: close" not in received.lower():
                break
        return received


def head(guarded: Guarded, length: str, key: str | None = None, more: str = "") -> bytes:
    key = guarded.fleet if key is None else key
    lines = ["POST /v1/adapt HTTP/1.1", "host: x", f"authorization: Bearer {key}", length, more]
    return "\r\n".join([*filter(None, lines), "", ""]).encode()


def test_wrong_keys_and_large_bodies_are_refused_before_the_body_is_read(guarded: Guarded) -> None:
    began = time.monotonic()
    assert b" 401 " in exchange(guarded, head(guarded, "content-length: 60000", key="wrong"))
    assert b" 413 " in exchange(guarded, head(guarded, "content-length: 99999999999"))
    assert b" 413 " in exchange(guarded, head(guarded, "content-length: 9" + "9" * 17))
    assert time.monotonic() - began < TIMEOUT_S, "nobody waited for bodies that never came"


def test_bodies_without_a_length_are_counted(guarded: Guarded) -> None:
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    assert b" 413 " in exchange(guarded, head(guarded, "transfer-encoding: chunked") + 5 * chunk)


def test_stalls_resets_and_nonsense_do_no_harm(guarded: Guarded, upload: Upload) -> None:
    body = upload.to_bytes()
    length = f"content-length: {len(body)}"
    assert b" 400 " in exchange(guarded, head(guarded, length) + body[:50])  # the rest never comes
    assert exchange(guarded, b"POST /v1/adapt HTTP/1.1\r\nhost:") == b""  # nor do the headers
    assert b" 400 " in exchange(guarded, b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    for sent in (head(guarded, length), head(guarded, length) + body[:50], head(guarded, length) + body):
        connection = socket.create_connection(("127.0.0.1", guarded.server.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(sent)
        connection.close()  # a reset
    assert guarded.post(body).status_code == 200
    assert '"level": "error"' not in guarded.server.log.read_text()
