"""A load generator for one HTTP endpoint: closed loop (as much as it takes) or open loop (so many requests a second).

Standard library only, and little work per request: on a small machine the generator takes its time from the service
that it measures. In open loop a latency counts from the moment at which the request was due, so a service that stalls
cannot hide it by delaying the requests behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

ACCEPTED_S = 0.5
"""Between the last connect and the first request: a service is to have accepted all connections, which is no part of a
request."""


@dataclass(frozen=True)
class Offer:
    """What is offered to the service.

    Attributes:
        url: Address of the endpoint, ``http://``.
        bodies: Bodies of the requests, taken in turn.
        connections: Connections that are kept open; also the most requests at once.
        seconds: How long; ``math.inf``: until every body was sent once.
        per_s: Requests per second; ``None``: closed loop.
        keep: Whether the answers are kept.
        media_type: Type of the bodies.
    """

    url: str
    bodies: Sequence[bytes]
    connections: int
    seconds: float = math.inf
    per_s: float | None = None
    keep: bool = False
    media_type: str = "application/octet-stream"


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        seconds: From the first request to the last answer.
        latencies_s: Status -> latencies of the answers, seconds. Status 0: the connection was lost.
        answers: Body number -> status and answer, where they are kept.
    """

    seconds: float = 0.0
    latencies_s: dict[int, list[float]] = field(default_factory=dict)
    answers: dict[int, tuple[int, bytes]] = field(default_factory=dict)

    def count(self, status: int | None = None) -> int:
        """Answers of one status, or all."""
        return sum(len(each) for key, each in self.latencies_s.items() if status in (None, key))

    def per_s(self, status: int = 200) -> float:
        """Answers per second."""
        return self.count(status) / self.seconds if self.seconds else 0.0


def offer(order: Offer) -> Outcome:
    """Send the requests and wait for the answers."""
    return asyncio.run(_Load(order).run())


class _Load:
    def __init__(self, order: Offer) -> None:
        self.order, self.outcome = order, Outcome()
        parts = urlsplit(order.url)
        assert parts.scheme == "http" and parts.hostname and parts.port
        self.host, self.port = parts.hostname, parts.port
        start = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: {order.media_type}\r\n"
        self.requests = [f"{start}content-length: {len(body)}\r\n\r\n".encode() + body for body in order.bodies]
        self.idle: deque[_Connection] = deque()
        self.due: deque[tuple[int, float]] = deque()
        self.sent = self.open = 0
        self.more = asyncio.Event()

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        for _ in range(self.order.connections):
            await self.connect(loop)
        await asyncio.sleep(ACCEPTED_S)
        begin = time.perf_counter()
        end = begin + self.order.seconds
        if self.order.per_s is None:
            await self.closed(begin, end)
        else:
            await self.scheduled(begin, end, self.order.per_s)
        self.outcome.seconds = time.perf_counter() - begin
        while self.idle:
            self.idle.pop().transport.close()
        return self.outcome

    async def connect(self, loop: asyncio.AbstractEventLoop) -> None:
        _, protocol = await loop.create_connection(lambda: _Connection(self), self.host, self.port)
        self.idle.append(protocol)

    def next(self) -> int | None:
        number = self.sent
        if self.order.seconds == math.inf and number >= len(self.requests):
            return None
        self.sent += 1
        return number % len(self.requests)

    async def closed(self, begin: float, end: float) -> None:
        while True:
            while self.idle and time.perf_counter() < end:
                number = self.next()
                if number is None:
                    break
                self.send(number, time.perf_counter())
            done = time.perf_counter() >= end or (self.order.seconds == math.inf and self.sent >= len(self.requests))
            if done and not self.open:
                return
            await self.wait(1.0)

    async def scheduled(self, begin: float, end: float, per_s: float) -> None:
        while True:
            now = time.perf_counter()
            while begin + self.sent / per_s <= min(now, end):
                at = begin + self.sent / per_s
                number = self.next()
                assert number is not None
                self.due.append((number, at))
            while self.due and self.idle:
                self.send(*self.due.popleft())
            if now >= end and not self.open and not self.due:
                return
            await self.wait(max(0.0, begin + self.sent / per_s - now) if now < end else 1.0)

    async def wait(self, seconds: float) -> None:
        self.more.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.more.wait(), max(seconds, 5e-4))

    def send(self, number: int, at: float) -> None:
        connection = self.idle.popleft()
        connection.number, connection.since = number, at
        self.open += 1
        connection.transport.write(self.requests[number])

    def answered(self, connection: _Connection, status: int, body: bytes) -> None:
        assert connection.number is not None
        self.outcome.latencies_s.setdefault(status, []).append(time.perf_counter() - connection.since)
        if self.order.keep:
            self.outcome.answers[connection.number] = status, body
        connection.number = None
        self.open -= 1
        if not connection.transport.is_closing():
            self.idle.append(connection)
        self.more.set()

    def lost(self, connection: _Connection) -> None:
        if connection.number is not None:
            self.answered(connection, 0, b"")
        with contextlib.suppress(ValueError):
            self.idle.remove(connection)


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self.load = load
        self.buffer = b""
        self.number: int | None = None
        self.since = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        lines = self.buffer[:head].lower()
        at = lines.find(b"content-length:")
        length = int(lines[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.buffer) < head + 4 + length:
            return
        body, self.buffer = self.buffer[head + 4 :], b""
        self.load.answered(self, int(lines[9:12]), body)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost(self)
