"""Clouds that mean harm, or are broken: what each of them sends to whoever asks, over plain sockets or TLS."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import itertools
import random
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from lit_mmpg.link import Download, Upload
from lit_mmpg.parameters import ParameterEntry, ParameterSpec

SPEC = ParameterSpec((ParameterEntry("head.u", (4, 2)), ParameterEntry("head.c", (4,))))
PACE_S = 0.004


def make_upload(number: int = 0) -> Upload:
    return Upload.encode(
        anchors=np.ones((2, 3, 4), np.float32),
        anchor_mask=np.ones((2, 3), bool),
        positions=np.zeros((2, 3)),
        num_frames=np.array([9, 3 + number]),
        device_id="lamp",
        codec="fp16",
        checkpoint_digest="c" * 64,
        spec_digest=SPEC.digest(),
    )


def right_answer(upload: Upload) -> bytes:
    return Download.answer(upload, SPEC, {e.name: np.ones(e.shape, np.float32) for e in SPEC}, codec="fp16").to_bytes()


def response(body: bytes, *lines: str, status: str = "200 OK", length: bool = True) -> bytes:
    sized = [f"content-length: {len(body)}"] if length else []
    return "\r\n".join([f"HTTP/1.1 {status}", *sized, *lines, "", ""]).encode("latin-1") + body


def refusal(status: str, body: bytes = b'{"detail": "\\u001b[2Jno\\u202e"}') -> Kind:
    return Kind({"busy" if status[:3] in ("429", "503") else "refused"}, lambda u, r: [response(body, status=status)])


@dataclass(frozen=True)
class Kind:
    """One way to answer.

    Attributes:
        reasons: Reasons of the CloudError that are right; ``{"ok"}``: the device gets its parameters.
        parts: From the upload and a random generator to what is sent, part by part.
        ends: ``close``: the connection is closed after the last part; ``wait``: it stays open and silent;
            ``reset``: it is torn down; ``keep``: the next request is answered on it.
        paced: Whether the parts come slowly.
        reads: Whether the request is read.
    """

    reasons: set[str]
    parts: Callable[[Upload, random.Random], Iterable[bytes]]
    ends: str = "close"
    paced: bool = False
    reads: bool = True

    @property
    def stalls(self) -> bool:
        """Whether only the device's own deadline ends it."""
        return self.paced or self.ends == "wait" or not self.reads


def bomb(layers: int) -> bytes:
    data = bytes(1 << 20)
    for _ in range(layers):
        data = gzip.compress(data)
    return data


BOMBS = {layers: bomb(layers) for layers in (1, 2)}
CHUNKED = response(b"", "transfer-encoding: chunked", length=False)
LATE, LOST, ODD = (
    {"timeout", "garbage", "unreachable"},
    {"unreachable"},
    {"garbage", "unreachable", "timeout", "refused"},
)


def forever(start: bytes, part: bytes) -> Callable[[Upload, random.Random], Iterable[bytes]]:
    return lambda u, r: itertools.chain([start], itertools.repeat(part))


def mutated(upload: Upload, rng: random.Random) -> list[bytes]:
    data = bytearray(response(right_answer(upload)))
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(data))
        data[at : at + rng.choice([0, 1, 9])] = rng.randbytes(rng.choice([0, 1, 8]))
    return [bytes(data)]


def encoded(coding: str, data: bytes) -> Kind:
    return Kind({"garbage"}, lambda u, r: [response(data, f"content-encoding: {coding}")])


KINDS: dict[str, Kind] = {
    "right": Kind({"ok"}, lambda u, r: [response(right_answer(u))], "keep"),
    "right, chunked": Kind(
        {"ok"}, lambda u, r: [CHUNKED, b"%x\r\n" % len(a := right_answer(u)), a, b"\r\n0\r\n\r\n"], "keep"
    ),
    "right, after 100 and until the end": Kind(
        {"ok"}, lambda u, r: [b"HTTP/1.1 100 Continue\r\n\r\n", response(right_answer(u), length=False)]
    ),
    # stalling
    "silence": Kind({"timeout"}, lambda u, r: [], "wait"),
    "nothing is read": Kind({"timeout"}, lambda u, r: [], "wait", reads=False),
    "slow headers": Kind(LATE, forever(b"HTTP/1.1 200 OK\r\nx-y: ", b"z"), paced=True),
    "slow interim answers": Kind(LATE, forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), paced=True),
    "slow body": Kind(LATE, forever(response(b"", "content-length: 9999", length=False), b"M"), paced=True),
    "slow chunks": Kind(LATE, forever(CHUNKED, b"1\r\nx\r\n"), paced=True),
    "slow refusal": Kind({"refused"}, forever(b"HTTP/1.1 409 No\r\ncontent-length: 999\r\n\r\n", b"x"), paced=True),
    "half an answer, then silence": Kind({"timeout"}, lambda u, r: [response(right_answer(u))[:-9]], "wait"),
    # without end
    "endless headers": Kind(LATE, forever(b"HTTP/1.1 200 OK\r\n", b"x-y: z\r\n" * 500)),
    "one endless header": Kind(LATE, forever(b"HTTP/1.1 200 OK\r\nx-y: ", b"z" * 4096)),
    "endless interim answers": Kind(LATE, forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 200)),
    "endless early hints": Kind(LATE, forever(b"", b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" * 200)),
    "endless status line": Kind(LATE, forever(b"HTTP/1.1 200 ", b"O" * 4096)),
    "endless chunk extension": Kind(LATE, forever(CHUNKED + b"1;", b"x" * 4096)),
    "endless trailers": Kind(LATE, forever(CHUNKED + b"0\r\n", b"x-y: z\r\n" * 500)),
    "endless tiny chunks": Kind(LATE, forever(CHUNKED, b"1\r\nx\r\n" * 700)),
    "endless body": Kind(LATE, forever(response(b"", length=False), b"x" * 65536)),
    "endless refusal": Kind(LATE | {"refused"}, forever(response(b"", status="500 No", length=False), b"x" * 65536)),
    "a length of terabytes": Kind(
        LATE, forever(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\n", b"x" * 9999)
    ),
    # encodings
    "gzip bomb": encoded("gzip", BOMBS[1]),
    "two layers of gzip": encoded("gzip, gzip", BOMBS[2]),
    "two headers of encoding": Kind(
        {"garbage"}, lambda u, r: [response(BOMBS[2], "content-encoding: identity", "Content-Encoding: gzip")]
    ),
    "gzip of nothing, for ever": Kind(
        {"garbage"},
        forever(response(b"", "content-encoding: gzip", length=False), gzip.compress(b"")[:10] + b"\0\0\0\xff\xff"),
    ),
    "deflate": encoded("deflate", zlib.compress(bytes(999))),
    "br": encoded("br", b"\x1b\xff\xff"),
    "zstd": encoded("zstd", b"\x28\xb5\x2f\xfd"),
    "gzip as transfer": Kind(LOST, lambda u, r: [response(BOMBS[1], "transfer-encoding: gzip, chunked", length=False)]),
    # not HTTP, not whole
    "hung up": Kind(LOST, lambda u, r: []),
    "reset": Kind(LOST, lambda u, r: [], "reset"),
    "reset in the body": Kind(LOST, lambda u, r: [response(right_answer(u))[:-9]], "reset"),
    "cut off": Kind(LOST, lambda u, r: [response(right_answer(u))[:-9]]),
    "cut off in the headers": Kind(LOST, lambda u, r: [b"HTTP/1.1 200 OK\r\nx-y"]),
    "random bytes": Kind(ODD, lambda u, r: [r.randbytes(300)]),
    "another protocol": Kind(LOST, lambda u, r: [b"SSH-2.0-OpenSSH_9.6\r\n"]),
    "HTTP/2": Kind(LOST, lambda u, r: [b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64"]),
    "switching protocols": Kind(ODD, lambda u, r: [response(b"", "upgrade: h2c", status="101 Switching Protocols")]),
    "two lengths": Kind(ODD, lambda u, r: [response(right_answer(u), "content-length: 3")]),
    "negative length": Kind(ODD, lambda u, r: [response(b"x", "content-length: -5", length=False)]),
    "odd chunk sizes": Kind(
        ODD, lambda u, r: [CHUNKED + r.choice([b"-1\r\n", b"f" * 30 + b"\r\n", b"0x5\r\nabcde\r\n"])]
    ),
    "control characters in headers": Kind(ODD, lambda u, r: [response(b"x", "x: \x00\x1b[2J", "\x1b]0;y\x07: z")]),
    "mutated": Kind({"ok", *ODD, "busy"}, mutated),
    # HTTP, but no answer
    "nothing": Kind(
        {"garbage", "refused"}, lambda u, r: [response(b"", status=r.choice(["200 OK", "204 No Content"]))]
    ),
    "a page": Kind({"garbage"}, lambda u, r: [response(b"<html>welcome to the hotel\x1b[2J</html>")]),
    "somebody else's answer": Kind(
        {"garbage"}, lambda u, r: [response(right_answer(dataclasses.replace(u, device_id="other")))]
    ),
    "an answer of before": Kind(
        {"garbage"}, lambda u, r: [response(right_answer(dataclasses.replace(u, model="0" * 32)))]
    ),
    "two answers at once": Kind({"ok"}, lambda u, r: [2 * response(right_answer(u))], "keep"),
    "redirect": refusal("307 Elsewhere"),
    "401": refusal("401 Unauthorized"),
    "403": refusal("403 Forbidden", b"\xff\xfe\x1b[31m"),
    "404": refusal("404 Not Found", b""),
    "409": refusal("409 Conflict"),
    "422": refusal("422 Odd", b'{"detail": ' + b"[" * 3000),
    "429": refusal("429 Busy", b"[1]"),
    "500": refusal("500 \x1b[2J", b"x" * 9000),
    "503": refusal("503 Busy"),
    "409, torn": Kind({"refused"}, lambda u, r: [response(b"x" * 99, status="409 Conflict")[:-9]], "reset"),
    "409 in gzip": Kind({"refused"}, lambda u, r: [response(BOMBS[2], "content-encoding: gzip", status="409 No")]),
}


@dataclass
class Hostile:
    """A server that answers every request in one way.

    Attributes:
        url: Its address.
        kind: How it answers.
        rng: Randomness of the answers.
        requests: What it was sent; the heads alone.
        hung_up: How many connections the device closed before the server did.
        served: Threads of connections.
    """

    url: str
    kind: Kind
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    requests: list[bytes] = field(default_factory=list)
    hung_up: int = 0
    served: list[threading.Thread] = field(default_factory=list)

    def finish(self) -> None:
        """Wait until all connections have ended: a device that kept one waiting would hang here."""
        while self.served:
            thread = self.served.pop()
            thread.join(30)
            assert not thread.is_alive()

    def serve(self, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        kind, gone = self.kind, False
        with contextlib.suppress(OSError), connection:
            connection.settimeout(20)
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            while True:
                try:
                    body = self._request(connection) if kind.reads else b""
                    if body is None:
                        return
                    upload = Upload.from_bytes(body) if kind.reads else make_upload()
                    for part in kind.parts(upload, self.rng):
                        connection.sendall(part)
                        if kind.paced:
                            time.sleep(PACE_S)
                    if kind.ends == "wait":
                        gone = bool(connection.recv(1) == b"") if kind.reads else self._watch(connection)
                except (BrokenPipeError, ConnectionResetError):
                    gone = True
                self.hung_up += gone
                if kind.ends == "reset":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if kind.ends != "keep" or gone:
                    return

    @staticmethod
    def _watch(connection: socket.socket) -> bool:
        """Wait for the end of a connection without reading what it brings first."""
        while connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1:  # established
            time.sleep(PACE_S)
        return True

    def _request(self, connection: socket.socket) -> bytes | None:
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                return None
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        self.requests.append(head)
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        while len(body) < length:
            part = connection.recv(65536)
            if not part:
                return None
            body += part
        return body


@contextlib.contextmanager
def hostile(kind: str | Kind = "right", context: ssl.SSLContext | None = None) -> Iterator[Hostile]:
    """A server on loopback."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    scheme = "https" if context is not None else "http"
    server = Hostile(
        f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", KINDS[kind] if isinstance(kind, str) else kind
    )

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                thread = threading.Thread(target=server.serve, args=(connection, context), daemon=True)
                server.served.append(thread)
                thread.start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(10)
