"""Dynamic batching inside one process: who asks while a batch is computed is in the next one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from lit_mmpg.serving.errors import Refused

_log = logging.getLogger(__name__)
_Q = TypeVar("_Q")
_A = TypeVar("_A")


class Batcher(Generic[_Q, _A]):
    """Collects questions, computes them together in one thread, and hands each asker its own answer.

    The queue is bounded: a question that does not fit is refused at once, so that an overloaded service answers quickly
    and never works for clients that have given up long ago.

    Args:
        compute: Answers to several questions, in order. Called in a thread of its own, one batch at a time.
        max_batch: Most questions in a batch.
        max_wait_ms: How long the first question of a batch waits for others while nothing is being computed.
        max_queue: Most questions that wait.
        on_batch: Told the size of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[_Q]], Sequence[_A]],
        max_batch: int = 32,
        max_wait_ms: float = 1.0,
        max_queue: int = 128,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._compute, self._on_batch = compute, on_batch
        self.max_batch, self.max_wait_ms, self.max_queue = max_batch, max_wait_ms, max_queue
        self._waiting: deque[tuple[_Q, asyncio.Future[_A]]] = deque()
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._task: asyncio.Task[None] | None = None
        self._begun: float | None = None

    @property
    def computing_s(self) -> float:
        """Seconds for which the batch at hand has been computed; 0 between batches."""
        return 0.0 if self._begun is None else time.monotonic() - self._begun

    @property
    def waiting(self) -> int:
        """Questions in the queue."""
        return len(self._waiting)

    def start(self) -> None:
        """Begin to compute; call inside the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Answer everybody who waits, then end."""
        while self._waiting:
            await asyncio.sleep(0.005)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    def check_room(self) -> None:
        """Check that another question may wait.

        Raises:
            Refused: 503 when the queue is full.
        """
        if len(self._waiting) >= self.max_queue:
            raise self.full()

    def full(self) -> Refused:
        """What is answered where the queue is full."""
        return Refused(503, "overloaded", f"{self.max_queue} requests are waiting already", retry_after_s=1)

    def enqueue(self, question: _Q) -> asyncio.Future[_A]:
        """The answer to one question: where its future is cancelled before its batch begins, it is not computed.

        The future raises :class:`Refused` with 500 where the computation failed.

        Raises:
            Refused: 503 when the queue is full.
        """
        self.check_room()
        future: asyncio.Future[_A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        self._arrived.set()
        if len(self._waiting) >= self.max_batch:
            self._full.set()
        return future

    async def _run(self) -> None:
        while True:
            idle = not self._waiting  # otherwise they have waited for the last batch already
            await self._arrived.wait()
            if idle and self.max_wait_ms and len(self._waiting) < self.max_batch:
                self._full.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self.max_wait_ms / 1000)
            batch: list[tuple[_Q, asyncio.Future[_A]]] = []
            while self._waiting and len(batch) < self.max_batch:
                question, future = self._waiting.popleft()
                if not future.done():  # the client may be gone
                    batch.append((question, future))
            if not self._waiting:
                self._arrived.clear()
            if batch:
                self._on_batch(len(batch))
                await self._answer(batch)

    async def _answer(self, batch: list[tuple[_Q, asyncio.Future[_A]]]) -> None:
        try:
            answers = await self._computed([question for question, _ in batch])
        except Exception as error:
            if len(batch) > 1:  # one question must not take the others with it
                for single in batch:
                    await self._answer([single])
                return
            _log.exception("a request could not be computed")
            known = error if isinstance(error, Refused) else Refused(500, "internal", "the computation failed")
            if not batch[0][1].done():
                batch[0][1].set_exception(known)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    async def _computed(self, questions: list[_Q]) -> Sequence[_A]:
        self._begun = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, questions)
        finally:
            self._begun = None
