"""What single connections can do to a service: one in this process, with short patience, and what it keeps of them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from lit_mmpg.link import Upload, codecs, register
from lit_mmpg.link.product import learn
from lit_mmpg.serving import app as serving_app
from lit_mmpg.serving.app import create_app
from lit_mmpg.serving.cloud_half import CloudHalf
from lit_mmpg.serving.config import ServeConfig
from lit_mmpg.serving.protocol import MAX_DROPPED_BYTES, MAX_HEAD_BYTES, MAX_PIPELINED, GuardedProtocol
from tests.serving.conftest import make_certificate
from tests.serving.making import make_uploads
from tests.serving.test_faults import wait_until

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
MOST = 20


@dataclass
class Local:
    """A service in a thread of this process."""

    app: Any
    server: uvicorn.Server

    @property
    def port(self) -> int:
        return int(self.server.servers[0].sockets[0].getsockname()[1])

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        connection = socket.socket()
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def quiet(self) -> bool:
        return not self.server.server_state.connections


@contextlib.contextmanager
def running(app: Any, **options: Any) -> Iterator[Local]:
    config = uvicorn.Config(
        app, port=0, lifespan="on", log_config=None, access_log=False, ws="none", server_header=False,
        date_header=False, http=GuardedProtocol, loop="lit_mmpg.serving.protocol:ServiceLoop", **options,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Local(app, server)
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def half(checkpoint: Path) -> CloudHalf:
    return CloudHalf.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def service(half: CloudHalf) -> Iterator[Local]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GuardedProtocol, "request_timeout_s", 0.3)
        patch.setattr(GuardedProtocol, "max_connections", MOST)
        with running(create_app(half, ServeConfig("")), timeout_keep_alive=0.4) as local:
            yield local


def rest(connection: socket.socket) -> bytes:
    """What comes until the service hangs up, which it has to; TimeoutError where it does not."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


def answer(connection: socket.socket) -> bytes:
    """One answer of a few bytes."""
    received = b""
    while b"}" not in received:
        part = connection.recv(65536)
        assert part, received
        received += part
    return received


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (GET[:10], b""),
        (GET + b"\r\n", b""),
        (GET + b"\r\n", b"\r\n"),
        (GET + b"\r\n", b"G"),
        (GET + b"Content-Length: 1000\r\n\r\n", b""),
        (GET + b"Content-Length: 1000\r\n\r\n", b"a"),
        (b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"a"),
        (b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b""),
        (GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b"xx"),
        (GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", GET),
        (GET + CHUNKED, b"5\r\n"),
        (b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"1\r\n", b""),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", b""),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"\x16"),
    ],
)
def test_every_connection_ends(service: Local, before: bytes, after: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(before)
        if after:
            assert connection.recv(65536)
            connection.sendall(after)
        rest(connection)


def test_a_byte_now_and_then_buys_no_time(service: Local) -> None:
    sent = 0
    with service.connect() as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.settimeout(0.05)
        while True:
            with contextlib.suppress(TimeoutError):
                if not connection.recv(100):
                    break
            connection.sendall(b"a")
            sent += 1
            assert sent < 500


def test_who_does_not_take_its_answers_is_cut_off(service: Local) -> None:
    with service.connect(receive_buffer=4096) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            connection.sendall(b"GET /docs HTTP/1.1\r\n\r\n")
    wait_until(service.quiet)


def test_connections_beyond_the_limit_are_told_so_and_it_passes(service: Local) -> None:
    wait_until(service.quiet)
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(service.connect()) for _ in range(MOST + 10)]
        assert b" 503 " in rest(many[-1])
        for connection in many[:MOST]:
            assert not rest(connection)
    with service.connect() as connection:
        connection.sendall(GET + b"\r\n")
        assert b" 200 " in answer(connection)


def test_a_handshake_that_never_ends_ends(service: Local, half: CloudHalf, tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    options = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key), "timeout_keep_alive": 0.4}
    with running(create_app(half, ServeConfig("")), **options) as tls:
        with tls.connect() as connection:
            assert not rest(connection)
        trusted = ssl.create_default_context(cafile=str(certificate))
        for sent in (b"", GET + b"\r\n", GET + b"Content-Length: 10\r\n\r\na"):
            with trusted.wrap_socket(tls.connect(), server_hostname="127.0.0.1") as connection:
                connection.sendall(sent)
                assert (b" 200 " in rest(connection)) == (b"\r\n\r\n" in sent)


# -- bytes that are no body --------------------------------------------------------------------------------------------

LONG = b"a" * MAX_HEAD_BYTES
BIG = {
    "target": b"GET /" + LONG + b" HTTP/1.1\r\n\r\n",
    "header": GET + b"A: " + LONG + b"\r\n\r\n",
    "name": GET + LONG + b": a\r\n\r\n",
    "many": GET + b"a:b\r\n" * 200 + b"\r\n",
    "endless": GET + b"A: " + LONG,
    "blank": b"\r\n" * MAX_HEAD_BYTES,
    "extension": b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"1;" + LONG,
    "trailer": b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"0\r\nA: " + LONG,
    "whole": b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"1;" + LONG + LONG[:9000] + b"\r\na\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", BIG)
@pytest.mark.parametrize("piece", [2**20, 8000])
def test_bytes_that_are_no_body_have_a_limit(service: Local, name: str, piece: int) -> None:
    with service.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, len(BIG[name]), piece):
                connection.sendall(BIG[name][start : start + piece])
        assert b" 431 " in rest(connection)


def test_a_head_within_the_limits_is_read(service: Local) -> None:
    with service.connect() as connection:
        connection.sendall(GET + b"A: " + LONG[:-100] + b"\r\n" + b"a: b\r\n" * 5 + b"\r\n")
        assert b" 200 " in answer(connection)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: -1\r\n\r\n",
        b"Content-Length: +1\r\n\r\na",
        b"Content-Length: 99999999999999999999\r\n\r\n",
        b"Content-Length : 1\r\n\r\na",
        b"A\x00: b\r\n\r\n",
    ],
)
def test_ambiguous_requests_are_refused(service: Local, lines: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\n" + lines + GET + b"\r\n")
        received = rest(connection)
    assert b" 400 " in received and received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("piece", [2**20, 100])
def test_who_asks_for_another_protocol_is_answered_as_if_it_had_not(service: Local, piece: int) -> None:
    """``curl --http2`` adds these lines to every request over plain HTTP."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAA\r\n"
    body = make_uploads(1, httpx.get(f"http://127.0.0.1:{service.port}/v1/info").json())[0].to_bytes()
    asked = b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\n" + upgrade + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with service.connect() as connection:
        for start in range(0, len(asked), piece):
            connection.sendall(asked[start : start + piece])
        assert rest(connection).startswith(b"HTTP/1.1 200 ")
    with service.connect() as connection:
        connection.sendall(b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\n" + upgrade + CHUNKED + b"1\r\na\r\n0\r\n\r\n")
        received = rest(connection)
        assert b" 400 " in received and b"leave Upgrade out" in received


@pytest.mark.parametrize(
    "sent",
    [
        GET[:20],
        b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc",
        b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"5\r\nab",
    ],
)
def test_what_is_cut_off_is_told_so(service: Local, sent: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = rest(connection)
    assert received.startswith(b"HTTP/1.1 400 ") and b"cut off" in received


def test_old_clients_and_odd_targets(service: Local) -> None:
    for sent, status in (
        (b"GET /healthz HTTP/1.0\r\n\r\n", b" 200 "),
        (b"HEAD /metrics HTTP/1.1\r\nConnection: close\r\n\r\n", b" 200 "),
        (b"TRACE /docs HTTP/1.1\r\nConnection: close\r\n\r\n", b" 405 "),
        (b"GET http://elsewhere/healthz HTTP/1.1\r\nConnection: close\r\n\r\n", b" 200 "),
        (b"GET /healthz/ HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n", b" 404 "),
        (b"GET /%ff%00%zz HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n", b" 404 "),
        (b"GET /\xff HTTP/1.1\r\nHost: elsewhere\r\n\r\n", b" 400 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b" 400 "),
    ):
        with service.connect() as connection:
            connection.sendall(sent)
            received = rest(connection)
        assert status in received and received.count(b"HTTP/1.1 ") == 1, sent
        assert b"elsewhere" not in received


# -- bodies that nobody needs, and requests that do not wait -----------------------------------------------------------


def test_a_small_body_that_nobody_needs_is_dropped_and_the_connection_goes_on(service: Local) -> None:
    with service.connect() as connection:
        for _ in range(2):
            connection.sendall(GET + b"Content-Length: %d\r\n\r\n" % MAX_DROPPED_BYTES)
            assert b"connection: close" not in answer(connection)
            connection.sendall(b"x" * MAX_DROPPED_BYTES)
        connection.sendall(GET + b"\r\n")
        assert b" 200 " in answer(connection)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: %d\r\n" % (MAX_DROPPED_BYTES + 1),
        CHUNKED[:-2],
        b"Content-Length: 9\r\nExpect: 100-continue\r\n",
    ],
)
def test_other_bodies_that_nobody_needs_end_the_connection(service: Local, lines: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(GET + lines + b"\r\n")
        received = rest(connection)
        assert b" 200 " in received and b"connection: close" in received and b" 100 " not in received


def test_pipelined_requests_are_answered_in_order_and_bounded(service: Local) -> None:
    with service.connect() as connection:
        connection.sendall((GET + b"\r\n") * 5 + b"GET /docs HTTP/1.1\r\nConnection: close\r\n\r\n" + GET + b"\r\n")
        received = rest(connection)
        assert received.count(b"HTTP/1.1 200") == 6 and b"<html" in received.rsplit(b"HTTP/1.1 200", 1)[1]
    with service.connect() as connection:
        connection.sendall((GET + b"\r\n") * 1000)
        assert rest(connection).count(b"HTTP/1.1 200") == MAX_PIPELINED


# -- uploads -----------------------------------------------------------------------------------------------------------


def info(half: CloudHalf) -> dict:
    return {"anchor_width": half.width, "checkpoint_digest": half.checkpoint_digest, "spec_digest": half.spec_digest}


def post(service: Local, body: bytes) -> socket.socket:
    connection = service.connect()
    connection.sendall(b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return connection


def test_a_small_body_that_would_become_large_is_never_decoded(
    service: Local, half: CloudHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "_CODECS", dict(codecs._CODECS))
    quantiser = learn(np.random.default_rng(0).normal(size=(300, half.width)), 1, rounds=1)
    register(quantiser)
    monkeypatch.setattr(quantiser, "decode", lambda *_: pytest.fail("decoded"))
    shape = 1000, 240, half.width
    upload = make_uploads(1, info(half), codec=quantiser.name, clips=shape[:1] * 2, anchors=shape[1:2] * 2)[0]
    assert upload.anchor_shape == shape and 15 * upload.message_bytes < 4 * upload.num_values
    with post(service, upload.to_bytes()) as connection:
        assert b"context_too_large" in answer(connection)


def test_what_takes_long_is_done_beside_the_event_loop(
    service: Local, half: CloudHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def seen(function: Any) -> Any:
        return lambda *arguments: (threads.append(threading.current_thread().name), function(*arguments))[1]

    monkeypatch.setattr(serving_app, "parse", seen(serving_app.parse))
    monkeypatch.setattr(serving_app, "check_values", seen(serving_app.check_values))
    anchors = -(-(2**17) // half.width // 64)
    large, small = (
        make_uploads(1, info(half), codec="fp32", clips=(c, c), anchors=(k, k), frames=(k, k))[0]
        for c, k in ((64, anchors), (2, 2))
    )
    limits = serving_app.ServeConfig("").context
    monkeypatch.setattr(half, "limits", type(limits)(64, anchors, 64 * anchors))
    for upload in (large, small):
        with post(service, upload.to_bytes()) as connection:
            assert b" 200 " in connection.recv(65536)
    assert [name.startswith("decode") for name in threads] == [True, True, False, False]


def test_an_overload_is_answered_when_the_head_is_there(half: CloudHalf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made for such a request, its body need not come first, and the connection serves the next one."""
    body, gate = make_uploads(1, info(half))[0].to_bytes(), threading.Event()
    head = b"POST /v1/adapt HTTP/1.1\r\nHost: x\r\n"
    declared = head + b"Content-Length: %d\r\n\r\n" % len(body)
    with running(create_app(half, ServeConfig("", max_queue=2, max_batch=1))) as local, contextlib.ExitStack() as open_:
        compute, tasks = local.app.state.batcher._compute, local.server.server_state.tasks
        monkeypatch.setattr(local.app.state.batcher, "_compute", lambda uploads: gate.wait(30) and compute(uploads))
        open_.callback(gate.set)
        accepted = [open_.enter_context(post(local, body))]
        wait_until(lambda: local.app.state.batcher.computing_s > 0)
        accepted += [open_.enter_context(post(local, body)) for _ in range(2)]
        wait_until(lambda: len(tasks) == 3 and local.app.state.batcher.waiting == 2)
        refused = open_.enter_context(local.connect())
        for _ in range(3):
            refused.sendall(declared)
            said = answer(refused)
            assert b" 503 " in said and b"overloaded" in said and b"\r\nretry-after: 1\r\n" in said
            assert b"connection: close" not in said
            refused.sendall(body)
        assert len(tasks) == 3
        for other in (CHUNKED, b"Content-Length: 99999\r\n\r\n", b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"):
            ended = open_.enter_context(local.connect())
            ended.sendall(head + other)
            assert b" 503 " in (said := rest(ended)) and b"connection: close" in said
        broken = open_.enter_context(local.connect())
        broken.sendall(head + b"Content-Length: 3\r\n\r\nabcnonsense\r\n\r\n")
        assert rest(broken).count(b"HTTP/1.1 ") == 2
        refused.sendall(GET + b"\r\n")
        assert b" 200 " in answer(refused), "probes are answered in an overload"
        gate.set()
        for connection in accepted:
            assert b" 200 " in connection.recv(65536)
        wait_until(lambda: not tasks)
        refused.sendall(declared + body)
        assert b" 200 " in refused.recv(65536)
        refused.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        counted = b""
        while b"lit_mmpg_queue_length 0" not in counted:
            counted += refused.recv(65536)
        assert b'requests_total{reason="overloaded",status="503"} 7.0' in counted


def test_nothing_is_computed_for_clients_that_hung_up(
    service: Local, half: CloudHalf, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher, gate, computed = service.app.state.batcher, threading.Event(), []
    compute = batcher._compute

    def gated(uploads: list[Upload]) -> list[bytes]:
        computed.extend(upload.device_id for upload in uploads)
        assert gate.wait(30)
        return compute(uploads)

    monkeypatch.setattr(batcher, "_compute", gated)
    bodies = [upload.to_bytes() for upload in make_uploads(3, info(half))]
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(post(service, bodies[0]))
        wait_until(lambda: computed == ["device-0"])
        leaving = stack.enter_context(post(service, bodies[1]))
        wait_until(lambda: batcher.waiting == 1)
        staying = stack.enter_context(post(service, bodies[2]))
        wait_until(lambda: batcher.waiting == 2)
        leaving.close()
        wait_until(lambda: [future.cancelled() for _, future in batcher._waiting] == [True, False])
        gate.set()
        assert b" 200 " in first.recv(65536) and b" 200 " in staying.recv(65536)
    assert computed == ["device-0", "device-2"]
