"""What a connection may cost: the one place that knows uvicorn's HTTP protocol and asyncio's event loop.

A connection is always in one of these states, and a timer ends every one but "computed":

==================  ===========================================================================================
nothing sent yet    ``request_timeout_s`` from the connect (under TLS as long for the handshake, before that)
a request arrives   ``request_timeout_s`` from its first byte to the end of its body, however little comes at once
computed            none: the queue is bounded, and ``/healthz`` tells when a batch never ends
not taken           ``timeout_keep_alive`` (of uvicorn) from when the buffer of answers is full
answered            ``timeout_keep_alive`` until the first byte of the next request
hanging up          :data:`LINGER_S`; ``timeout_keep_alive`` where an answer is still to be taken
==================  ===========================================================================================

It uses what uvicorn does not document; tried with uvicorn 0.36, 0.40 and 0.54.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import sys
import time
from collections import deque
from functools import lru_cache
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from lit_mmpg.serving.errors import Refused
from lit_mmpg.serving.limits import GONE, spare_connections

_log = logging.getLogger("lit_mmpg.serving")

MAX_HEAD_BYTES = 32 * 1024
"""Most bytes of a request that are not body: request line, headers, framing of chunks, trailers."""
MAX_HEADERS = 128
MAX_DROPPED_BYTES = 16 * 1024
"""Most bytes of a declared body that are read although nobody needs them, so that the connection can stay open."""
MAX_PIPELINED = 16
"""Most requests of one connection that wait for their answers; what follows is not read."""
SLICE_BYTES = 4096
"""So much is parsed at once: what is not body is counted to the slice, however much came in one reading."""
LINGER_S = 2.0
"""How long a client may go on sending after its last answer: a connection that is cut at once can lose the answer."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits on time, bytes and requests.

    ``request_timeout_s`` and ``max_connections`` are set before the service starts. The application's lifespan may
    leave two callables in its state: ``turned_away`` gets method and target of a request of which only the head is
    there and the number of requests at work, and gives a :class:`Refused` where it need not be looked at; ``refused``
    is told every :class:`Refused` that never reaches the application.
    """

    request_timeout_s = 10.0
    max_connections = 4000

    _timer: asyncio.TimerHandle | None = None
    _deadline = math.inf
    _blocked: asyncio.TimerHandle | None = None
    _dropping = False  # a request has its answer and is received to its end for the sake of the next one
    _upgraded = False  # the parser has stopped before the body of a request that would change the protocol
    _in_head: bool
    _chunked: bool
    _owed_bytes: int | None
    _head_bytes: int
    _raw_bytes: int

    def connection_made(self, transport: Any) -> None:
        """Somebody is there; those beyond ``max_connections`` are told so."""
        super().connection_made(transport)
        self._unanswered: deque[Any] = deque()  # uvicorn's cycles, the oldest request first
        self._receiving = False  # a request has begun and is not whole
        self._deaf = False  # whatever else comes is dropped
        self._expect_message()
        self._arm(self.request_timeout_s)
        excess = len(self.connections) - self.max_connections
        if excess > 0:
            self._refuse(Refused(503, "connections", f"{self.max_connections} connections are open", retry_after_s=1))
        if excess > spare_connections(self.max_connections):
            transport.abort()  # no descriptor is left for a polite end

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more; whoever works for this client gets to know."""
        super().connection_lost(exc)
        self._abandon()
        self._disarm()
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()

    # -- what comes in -----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what came, within the limits."""
        for start in range(0, len(data), SLICE_BYTES):
            if self._deaf:
                return
            self._parse(data[start : start + SLICE_BYTES])

    def _parse(self, data: bytes) -> None:
        if not self._receiving:
            self._begin()
        self._body_bytes, self._completed = 0, False
        try:
            if self._upgraded:
                self._rest(data)
                return
            self.parser.feed_data(data)
            if self._receiving and not self._completed:
                self._raw_bytes = self._limited(self._raw_bytes + len(data) - self._body_bytes)
        except httptools.HttpParserUpgrade as stopped:
            if self._upgraded:
                self._rest(data[stopped.args[0] :])
            else:
                self._deaf = True  # the request is answered as if it had not asked
        except (httptools.HttpParserError, Refused) as error:
            if not self._deaf:
                cause = error.__context__ if isinstance(error, httptools.HttpParserError) else error
                self._refuse(cause if isinstance(cause, Refused) else Refused(400, "http", "this is not HTTP/1.1"))

    def _rest(self, body: bytes) -> None:
        """The body of a request that asks for another protocol (``curl --http2``); it is answered as if it had not."""
        self.on_body(body[: self._owed_bytes])
        if not self._owed_bytes:
            self._upgraded = False
            self._completed_message()

    def eof_received(self) -> None:
        """The client sends nothing more: what it began and did not end is refused, and asyncio ends the connection."""
        if self._receiving and not self._deaf and not self._unanswered_whole():
            self._refuse(Refused(400, "http", "the request is cut off"))
        super().eof_received()

    def _unanswered_whole(self) -> list[Any]:
        return [cycle for cycle in self._unanswered if not cycle.more_body]

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._deaf:
            raise Refused(400, "http", "nothing is read any more")
        self._expect_message()
        if not self._receiving:
            self._begin()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._head_bytes = self._limited(self._head_bytes + len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers of a body are left out, nothing here wants them."""
        self._head_bytes = self._limited(self._head_bytes + len(name) + len(value) + 4)
        if self._in_head:
            if len(self.headers) >= MAX_HEADERS:
                raise Refused(431, "headers", f"a request has at most {MAX_HEADERS} headers")
            if name.lower() == b"content-length":
                self._owed_bytes = int(value)  # the parser has checked it
            self._chunked = self._chunked or name.lower() == b"transfer-encoding"
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head of a request is there; it is begun unless another is being answered."""
        if len(self._unanswered) >= MAX_PIPELINED:
            raise Refused(400, "http", f"at most {MAX_PIPELINED} requests may wait for their answers")
        if not self._unanswered and self._turned_away():
            return
        if self._owed_bytes is None and self.parser.should_upgrade() and self._chunked:
            raise Refused(400, "http", "this service does not change the protocol; leave Upgrade out")
        self.scope["extensions"] = {GONE: {"call": []}}
        super().on_headers_complete()
        self._in_head = False
        cycle: Any = self.cycle
        cycle.keep_alive = cycle.keep_alive and self.parser.should_keep_alive() and not self.parser.should_upgrade()
        self._unanswered.append(cycle)
        send = cycle.send

        async def guarded(message: Any) -> None:
            await send(self._outgoing(cycle, message))

        cycle.send = guarded

    def _turned_away(self) -> bool:
        """Answer with a refusal, where there is one, before anything is made for the request."""
        judge = self.app_state.get("turned_away")
        refusal = judge and judge(self.parser.get_method(), self.url, len(self.tasks))
        if not refusal:
            return False
        owed, parser = self._owed_bytes, self.parser
        stays = owed is not None and owed <= MAX_DROPPED_BYTES and not self.expect_100_continue
        if not stays or not parser.should_keep_alive() or parser.should_upgrade() or self.flow.write_paused:
            raise refusal  # the connection ends with it
        self.app_state["refused"](refusal)
        self.transport.write(_turned_away_bytes(refusal))
        self._dropping, self._in_head = True, False
        return True

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._body_bytes += len(body)
        if self._dropping:
            return
        if self._owed_bytes is not None:
            self._owed_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole, or the parser stops before its body."""
        self._upgraded = not self._dropping and self.parser.should_upgrade() and bool(self._owed_bytes)
        if not self._upgraded:
            self._completed_message()

    def _completed_message(self) -> None:
        if self._dropping:
            self._dropping = False
        else:
            super().on_message_complete()
            self._deaf = self._deaf or not self.cycle.keep_alive
        self._receiving, self._completed, self._in_head = False, True, True
        self._settle()

    def _begin(self) -> None:
        """The first byte of a request: from here on it has its time."""
        self._receiving = True
        self._arm(self.request_timeout_s)

    def _expect_message(self) -> None:
        self._in_head, self._owed_bytes, self._chunked = True, None, False
        # Bytes that came out of the parser, and bytes that went into it without becoming body: of a head that comes
        # in many pieces nothing comes out until it is whole, of one in a single piece everything does.
        self._head_bytes = self._raw_bytes = 0

    def _limited(self, num_bytes: int) -> int:
        if num_bytes > MAX_HEAD_BYTES:
            raise Refused(431, "headers", f"what is not body has at most {MAX_HEAD_BYTES} bytes")
        return num_bytes

    # -- what goes out -----------------------------------------------------------------------------------------------

    def _outgoing(self, cycle: Any, message: Any) -> Any:
        """Decide at an answer's start whether the connection outlives it, and say so in the answer."""
        if message["type"] == "http.response.start":
            owed = self._owed_bytes
            if cycle.more_body and (owed is None or owed > MAX_DROPPED_BYTES or cycle.waiting_for_100_continue):
                cycle.keep_alive = False
            if not cycle.keep_alive:
                message = message | {"headers": [*message.get("headers", []), (b"connection", b"close")]}
        elif not cycle.keep_alive and not message.get("more_body"):
            cycle.keep_alive = True  # or uvicorn cuts the connection at once; it ends in on_response_complete
            self._deaf = True
            self.pipeline.clear()
            self._unanswered = deque([cycle])
        return message

    def on_response_complete(self) -> None:
        """An answer is out."""
        if self._unanswered:
            self._unanswered.popleft()
        super().on_response_complete()
        self._unset_keepalive_if_required()  # uvicorn's timer: _settle knows better
        if self._deaf and not self._unanswered:
            self._hang_up()
        else:
            self._settle()

    def _refuse(self, refusal: Refused) -> None:
        """Answer what is being received with an error and hang up, after the answers to what came before it."""
        if "refused" in self.app_state:
            self.app_state["refused"](refusal)
        self._deaf, self._receiving = True, False
        earlier = self._unanswered_whole()
        if earlier:
            earlier[-1].keep_alive = False
            self._disarm()
            return
        begun = self._dropping or (not self._in_head and self.cycle.response_started)
        self._abandon()
        if begun:
            self.transport.abort()  # what is received has its answer, or a part of it
        elif not self.transport.is_closing():
            self.transport.write(_answer(refusal, b"connection: close\r\n"))
            self._hang_up()

    def _abandon(self) -> None:
        """Let whoever works for this client know that it is gone."""
        self.pipeline.clear()
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
            for leave in cycle.scope["extensions"][GONE]["call"]:
                leave()
        self._unanswered.clear()

    # -- time --------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The client does not take what was sent."""
        super().pause_writing()
        if self._blocked is None:
            self._blocked = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._blocked is not None:
            self._blocked.cancel()
            self._blocked = None

    def _settle(self) -> None:
        """Set the timer of the present state; that of a request runs on until it is whole."""
        if self._unanswered and not self._receiving:
            self._disarm()
        elif not self._receiving:
            self._arm(self.timeout_keep_alive)

    def _hang_up(self) -> None:
        """Say that nothing more comes, and wait a little for the client to leave."""
        self._deaf, self._receiving = True, False
        if self.transport.can_write_eof() and not self.transport.is_closing():
            try:
                self.transport.write_eof()
            except OSError:  # the client has cut the connection
                self.transport.abort()
        else:
            self.transport.close()
        self._arm(self.timeout_keep_alive if self.transport.get_write_buffer_size() else LINGER_S)

    def _arm(self, seconds: float) -> None:
        # States change several times a request and timers cost more than a look at the clock: one that comes too early
        # is left, and set anew when it comes.
        self._deadline = deadline = self.loop.time() + seconds
        if self._timer is not None and self._timer.when() > deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._expired)

    def _disarm(self) -> None:
        self._deadline = math.inf

    def _expired(self) -> None:
        self._timer = None
        if self._deadline > self.loop.time():
            if self._deadline < math.inf:
                self._timer = self.loop.call_at(self._deadline, self._expired)
        elif self._receiving and self._unanswered:
            self._refuse(Refused(400, "slow", "the request did not arrive in time"))
        else:
            self.transport.abort()


def _answer(refusal: Refused, more: bytes = b"") -> bytes:
    body = refusal.body()
    headers = b"".join(b"%s: %s\r\n" % header for header in refusal.headers(body)) + more
    return STATUS_LINE[refusal.status] + headers + b"\r\n" + body


@lru_cache(maxsize=4)
def _turned_away_bytes(refusal: Refused) -> bytes:
    return _answer(refusal)  # of one that many get: it is made when there is least time


class ServiceLoop(asyncio.SelectorEventLoop):
    """asyncio's event loop, which gives a TLS handshake no more time than a request and does not flood the log."""

    _said_at = float("-inf")

    async def create_server(self, *args: Any, **kwargs: Any) -> Any:
        """As asyncio's, with the service's times for TLS."""
        if kwargs.get("ssl") is not None:
            kwargs["ssl_handshake_timeout"] = GuardedProtocol.request_timeout_s
            if sys.version_info >= (3, 11):
                kwargs["ssl_shutdown_timeout"] = LINGER_S
        return await super().create_server(*args, **kwargs)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """As asyncio's; that no descriptor is left is said once a minute, not for every client that knocks."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            if time.monotonic() - self._said_at > 60:
                self._said_at = time.monotonic()
                _log.error("connection not accepted", extra={"event": "connections", "detail": str(error)})
        elif not (isinstance(error, OSError) and error.errno == errno.ENOTCONN):  # the client cut the connection first
            super().call_exception_handler(context)
