"""Limits that hold before any work is done: rate per client, size and time of a body, time of the headers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lit_mmpg.serving.errors import Refused

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MOST_CLIENTS = 10_000
"""Clients that a rate limiter remembers; beyond, those that have been quiet for longest are forgotten."""


class RateLimiter:
    """A token bucket per client.

    Args:
        per_s: Requests per second that a client may send on average; 0 for no limit.
        burst: Requests that it may send at once.
        clock: Seconds from a clock that never goes back.
    """

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s, self.burst, self._clock = per_s, max(1.0, burst), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count one request.

        Raises:
            Refused: 429 if it comes too early; says when to try again.
        """
        if not self.per_s:
            return
        now = self._clock()
        tokens, before = self._buckets.pop(client, (self.burst, now))
        tokens = min(self.burst, tokens + (now - before) * self.per_s)
        self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        if tokens < 1:
            wait_s = (1 - tokens) / self.per_s
            raise Refused(429, "rate", f"more than {self.per_s:g} requests per second", retry_after_s=wait_s)


async def read_body(receive: Receive, declared: bytes | None, max_bytes: int, timeout_s: float) -> bytes:
    """Read a request's body, and no more than is allowed.

    Args:
        receive: ASGI channel.
        declared: Value of ``Content-Length``, if there is one.
        max_bytes: Largest body.
        timeout_s: Longest time for the whole body.

    Raises:
        Refused: 413 if it is, or says that it will be, too large (nothing more is read); 400 if it does not arrive in
            time or the client hangs up.
    """
    if declared is not None and (not declared.isdigit() or len(declared) > 12 or int(declared) > max_bytes):
        raise Refused(413, "too_large", f"a body has at most {max_bytes} bytes")
    message = await _within(receive(), timeout_s)
    body: bytes = message.get("body", b"")
    if not message.get("more_body") and message["type"] == "http.request":  # the usual case: all in one piece
        _check_size(len(body), max_bytes)
        return body
    pieces, size, deadline = [], 0, time.monotonic() + timeout_s
    while True:
        if message["type"] == "http.disconnect":
            raise Refused(400, "truncated", "the client hung up before the end of the body")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        _check_size(size, max_bytes)
        if not message.get("more_body"):
            return b"".join(pieces)
        message = await _within(receive(), deadline - time.monotonic())


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise Refused(413, "too_large", f"a body has at most {max_bytes} bytes")


async def _within(message: Awaitable[MutableMapping[str, Any]], timeout_s: float) -> MutableMapping[str, Any]:
    try:
        return await asyncio.wait_for(message, max(timeout_s, 0.001))
    except asyncio.TimeoutError as error:
        raise Refused(400, "slow", "the body did not arrive in time") from error


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also hangs up on clients that never finish their headers."""

    header_timeout_s = 10.0

    def connection_made(self, transport: Any) -> None:
        """Start the watch."""
        super().connection_made(transport)
        self._watch: asyncio.TimerHandle | None = None
        self._await_headers()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._await_headers()

    def on_headers_complete(self) -> None:
        """Its headers are there."""
        self._rest()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._rest()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        self._rest()
        self._watch = self.loop.call_later(self.header_timeout_s, self._hang_up)

    def _rest(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _hang_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
