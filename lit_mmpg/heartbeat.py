"""Signs of life of long work: a bar on a terminal, elsewhere a line at least every half minute. No torch.

Work nests: a line tells of the innermost one, so a verb as a whole needs one :func:`working`, and a long loop in it
another, or a :func:`tell` where it advances.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_mmpg.texts import duration

if TYPE_CHECKING:
    from rich.console import Console

EVERY_S = 25.0
"""Seconds between lines: half a minute with some to spare, for threads that wait for the interpreter."""


@dataclass
class Work:
    """Long work that is going on.

    Attributes:
        what: What is done, for people.
        total: How much there is to do; ``None``: nobody knows.
        unit: What is counted.
        begun_s: When it began, by the clock of the heartbeat.
        done: How much is done.
        moved: Is told whenever ``done`` grows.
    """

    what: str
    total: int | None = None
    unit: str = ""
    begun_s: float = 0.0
    done: int = 0
    moved: Callable[[int], None] | None = None

    def advance(self, count: int = 1) -> None:
        """Note that more is done."""
        self.done += count
        if self.moved is not None:
            self.moved(count)

    def line(self, now_s: float) -> str:
        """How far it is."""
        spent = now_s - self.begun_s
        part = left = ""
        if self.total:
            part = f", {self.done} of {self.total} {self.unit}".rstrip()
            left = f", about {duration(spent / self.done * (self.total - self.done))} to go" if self.done else ""
        return f"... {self.what}{part}, {duration(spent)} so far{left}"


def _print(line: str) -> None:
    print(line, flush=True)  # looked up at each call: whoever redirects stdout is heard


class Heartbeat:
    """Tells of the innermost work from time to time.

    Args:
        say: Prints a line.
        clock: Seconds that only grow.
    """

    def __init__(self, say: Callable[[str], None] = _print, clock: Callable[[], float] = time.monotonic) -> None:
        self.say, self.clock = say, clock
        self.works: list[Work] = []
        self.bar = False
        """Whether a bar is on the terminal; there is never a second one."""

    def start(self, over: threading.Event) -> None:
        """Tell in a thread, until it is over."""
        threading.Thread(target=self.beat, args=(over.wait,), name="heartbeat", daemon=True).start()

    def beat(self, wait: Callable[[float], bool]) -> None:
        """Tell until ``wait``, which is given the seconds, says that it is over."""
        while not wait(EVERY_S):
            work = self.works[-1] if self.works else None
            if work is not None:
                self.say(work.line(self.clock()))


_HEART = Heartbeat()


def _first_process() -> bool:
    return all(os.environ.get(name, "0") in ("", "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


@contextmanager
def working(
    what: str, total: int | None = None, unit: str = "", bar: bool = True, console: Console | None = None
) -> Iterator[Work]:
    """Long work: a bar while it lasts where stdout is a terminal, elsewhere a line at least every half minute.

    Args:
        what: What is done, for people.
        total: How much there is to do, as ``Work.advance`` counts it.
        unit: What is counted.
        bar: ``False``: something else shows on a terminal how far it is.
        console: Where the bar is drawn; others that print meanwhile have to use it.
    """
    heart = _HEART
    work, over = Work(what, total, unit, heart.clock()), threading.Event()
    terminal = sys.stdout.isatty()
    first = _first_process()
    if first and not terminal and not heart.works:
        heart.start(over)
    depth = len(heart.works)
    heart.works.append(work)
    try:
        if first and terminal and bar and not heart.bar:
            with _drawn(work, console):
                yield work
        else:
            yield work
    finally:
        del heart.works[depth:]
        over.set()


def tell(what: str, done: int = 0, total: int | None = None, unit: str = "") -> None:
    """Say how far the innermost work is, where there is one; printed when its next line is due.

    Args:
        what: What is done, for people; anything new begins anew.
        done: How much of it is done.
        total: How much there is to do.
        unit: What is counted.
    """
    if not _HEART.works:
        return
    work = _HEART.works[-1]
    if what != work.what:
        work.what, work.begun_s = what, _HEART.clock()
    work.done, work.total, work.unit = done, total, unit


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM (a service manager, a time limit) ends the work as Ctrl-C does; in the main thread alone.

    Who sends it again does not interrupt what the first one has begun to put in order.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _drawn(work: Work, console: Console | None) -> Iterator[None]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counted: tuple[Any, ...] = (BarColumn(), MofNCompleteColumn(), TextColumn(f"{work.unit}, elapsed".lstrip(", ")))
    left: tuple[Any, ...] = (TextColumn("left"), TimeRemainingColumn())
    known = work.total is not None
    shown = (
        TextColumn("{task.description}"),
        *(counted if known else ()),
        TimeElapsedColumn(),
        *(left if known else ()),
    )
    with Progress(*shown, console=console, transient=True) as progress:
        task = progress.add_task(work.what, total=work.total)
        work.moved = lambda count: progress.advance(task, count)
        _HEART.bar = True
        try:
            yield
        finally:
            _HEART.bar, work.moved = False, None
