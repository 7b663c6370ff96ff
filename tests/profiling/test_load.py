"""The load generator against a server whose answers are known."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from lit_mmpg.profiling.benchmarks.load import Offer, offer

DELAY_S = 0.02


class Server(threading.Thread):
    """Answers a body with itself after a while; ``busy`` with 503; hangs up on ``bye``; one at a time on ``slow``."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ready = threading.Event()
        self.port = 0

    def run(self) -> None:
        asyncio.run(self.serve())

    async def serve(self) -> None:
        self.turn = asyncio.Lock()
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        async with server:
            await server.serve_forever()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                if body == b"bye":
                    break
                if body == b"slow":
                    async with self.turn:
                        await asyncio.sleep(DELAY_S)
                else:
                    await asyncio.sleep(DELAY_S)
                status = b"503 No" if body == b"busy" else b"200 OK"
                for part in (b"HTTP/1.1 " + status + b"\r\nContent-Length: ", b"%d\r\n\r\n" % len(body), body):
                    writer.write(part)
                    await writer.drain()
        writer.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Server()
    server.start()
    assert server.ready.wait(10)
    yield f"http://127.0.0.1:{server.port}/x"


def test_every_body_is_sent_once_and_its_answer_kept(url: str) -> None:
    bodies = [f"body {number}".encode() * (1 + number % 7 * 300) for number in range(60)]
    outcome = offer(Offer(url, bodies, 8, keep=True))
    assert outcome.answers == {number: (200, body) for number, body in enumerate(bodies)}
    assert set(outcome.latencies_s) == {200} and min(outcome.latencies_s[200]) >= DELAY_S
    assert outcome.seconds >= 60 / 8 * DELAY_S


def test_refusals_and_lost_connections_are_counted_apart(url: str) -> None:
    outcome = offer(Offer(url, [b"fine", b"busy", b"bye", b"fine"], 4, keep=True))
    assert {number: status for number, (status, _) in outcome.answers.items()} == {0: 200, 1: 503, 2: 0, 3: 200}
    assert (outcome.count(), outcome.count(200), outcome.count(503), outcome.count(0)) == (4, 2, 1, 1)


def test_an_open_loop_keeps_its_rate_and_hides_no_wait(url: str) -> None:
    """What answers one at a time falls behind at four times its rate, and the last requests show the whole wait."""
    assert offer(Offer(url, [b"fine"], 50, 1.0, 100.0)).count(200) in range(97, 103)
    begin = time.perf_counter()
    outcome = offer(Offer(url, [b"slow"], 20, 1.0, 200.0))
    assert outcome.count(200) in range(195, 205)
    served_s = outcome.count(200) * DELAY_S
    assert max(outcome.latencies_s[200]) > 0.8 * (served_s - 1.0)
    assert time.perf_counter() - begin >= served_s
