"""Limits that hold before any work is done: rate per client, bytes of bodies, descriptors, clients that left."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from lit_mmpg.errors import UserError
from lit_mmpg.serving.errors import Refused

_T = TypeVar("_T")
Receive = Callable[[], Coroutine[Any, Any, MutableMapping[str, Any]]]

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


class Budget:
    """Bytes of bodies that are held at the same time, over all connections.

    Args:
        most: Most bytes.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Gives a callable that takes bytes; what it took is given back at the end.

        Raises:
            Refused: 503 from the callable if there are not as many left.
        """
        own = 0

        def take(num_bytes: int) -> None:
            nonlocal own
            if self.held + num_bytes > self.most:
                raise Refused(503, "overloaded", "too many bodies arrive at once", retry_after_s=1)
            own += num_bytes
            self.held += num_bytes

        try:
            yield take
        finally:
            self.held -= own


async def read_body(
    receive: Receive, declared: bytes | None, max_bytes: int, take: Callable[[int], None] = lambda num_bytes: None
) -> bytes:
    """Read a request's body, and no more than is allowed. How long that may take is the connection's matter.

    Args:
        receive: ASGI channel.
        declared: Value of ``Content-Length``, if there is one.
        max_bytes: Largest body.
        take: Told the size of each piece (see :meth:`Budget.holding`).

    Raises:
        Refused: 413 if it is, or says that it will be, too large (nothing more is read); 400 if it does not arrive in
            time or the client hangs up.
    """
    if declared is not None and (not declared.isdigit() or len(declared) > 12 or int(declared) > max_bytes):
        raise Refused(413, "too_large", f"a body has at most {max_bytes} bytes")
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "truncated", "the body did not arrive whole and in time")
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise Refused(413, "too_large", f"a body has at most {max_bytes} bytes")
        take(len(piece))
        pieces.append(piece)
        if not message.get("more_body"):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


GONE = "lit_mmpg.gone"
"""ASGI extension of our protocol: under ``call`` a list of callables, all called when the client hangs up before its
answer."""


async def unless_gone(scope: Mapping[str, Any], answer: asyncio.Future[_T]) -> _T:
    """Wait for an answer, and cancel it when the client hangs up, where the server tells that by :data:`GONE`.

    A task that waits for the end of the connection would cost a tenth of a request's time.

    Raises:
        Refused: 499 if it does; nobody is there to read that.
    """
    left = False

    def leave() -> None:
        nonlocal left
        left = True
        answer.cancel()

    scope.get("extensions", {}).get(GONE, {"call": []})["call"].append(leave)
    try:
        return await answer
    except asyncio.CancelledError as error:
        if left:
            raise Refused(499, "gone", "the client hung up") from error
        raise


_OWN_DESCRIPTORS = 64
"""Files of the process itself: libraries, event loop, log, shared metrics, checkpoint."""


def spare_connections(most: int) -> int:
    """Connections beyond the limit that are held for the moment in which they are told so."""
    return max(16, most // 8)


def affordable_connections(wanted: int) -> int:
    """Raise the soft limit of open files to what so many connections need; where that is not allowed, say how many go.

    Raises:
        UserError: If not even one does.
    """
    try:
        import resource
    except ImportError:  # not a POSIX system
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + spare_connections(wanted) + _OWN_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    fit = soft - _OWN_DESCRIPTORS
    most = min(wanted, max(fit - 16, 0), fit * 8 // 9)
    if most < 1:
        raise UserError(f"the limit of open files is {soft}; allow at least {_OWN_DESCRIPTORS + 32} ('ulimit -n')")
    return most
