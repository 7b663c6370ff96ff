"""Long work gives signs of life; the clock and the waiting are those of the test."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Sequence

import pytest
from rich.console import Console

from lit_mmpg import heartbeat
from lit_mmpg.cli import LONG, VERBS, main
from lit_mmpg.heartbeat import EVERY_S, Heartbeat, tell, working


class Clock:
    """Seconds that pass while somebody waits, and what happens meanwhile."""

    def __init__(self, *meanwhile: Callable[[], None]) -> None:
        self.now_s, self.meanwhile, self.waits = 100.0, iter(meanwhile), 0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> bool:
        """Let the next thing happen; True when nothing more does."""
        act = next(self.meanwhile, None)
        if act is None:
            return True
        act()
        self.now_s += seconds
        self.waits += 1
        return False


class Silent(Heartbeat):
    """A heartbeat whose thread never runs."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.started = 0
        super().__init__(self.lines.append, Clock())

    def start(self, over: threading.Event) -> None:
        self.started += 1


@pytest.fixture
def heart(monkeypatch: pytest.MonkeyPatch) -> Silent:
    silent = Silent()
    monkeypatch.setattr(heartbeat, "_HEART", silent)
    return silent


def beat(clock: Clock) -> None:
    heartbeat._HEART.clock = clock
    heartbeat._HEART.beat(clock.wait)


def test_a_line_each_half_minute_tells_of_the_innermost_work(heart: Silent) -> None:
    with working("test", bar=False) as outer:
        with working("filming", 40, "cameras") as work:
            clock = Clock(lambda: None, lambda: work.advance(8), lambda: work.advance(2))
            beat(clock)
        assert clock.now_s == 100 + 3 * EVERY_S and EVERY_S <= 30
        assert heart.lines == [
            "... filming, 0 of 40 cameras, 25 s so far",
            "... filming, 8 of 40 cameras, 50 s so far, about 3 min to go",
            "... filming, 10 of 40 cameras, 75 s so far, about 4 min to go",
        ]
        heart.lines.clear()
        outer.begun_s = clock.now_s
        beat(clock := Clock(lambda: tell("cloud half: test", 3, 12, "batches"), lambda: None))
        assert heart.lines[0] == "... cloud half: test, 3 of 12 batches, 25 s so far, about 75 s to go"
        assert heart.lines[1].startswith("... cloud half: test, 3 of 12 batches, 50 s so far")
    assert not heartbeat._HEART.works
    tell("nobody is at work")
    beat(Clock(lambda: None))
    assert len(heart.lines) == 2


def test_work_that_fails_is_over(heart: Silent) -> None:
    with pytest.raises(ValueError, match="no"), working("outer", bar=False), working("inner"):
        raise ValueError("no")
    assert not heartbeat._HEART.works


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_bar_and_no_lines(heart: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    with working("verb", bar=False):
        assert screen.getvalue() == ""
        with working("filming", 4, "cameras", console=Console(file=screen)) as work, working("decoding"):
            work.advance(3)
    assert "filming" in screen.getvalue() and "decoding" not in screen.getvalue()
    assert heart.started == 0


def test_one_thread_per_process_and_none_in_the_others_of_a_distributed_run(
    heart: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working("verb"), working("loop"):
        pass
    assert heart.started == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    with working("verb"):
        pass
    assert heart.started == 1


def test_a_piped_verb_is_heard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    heard = threading.Event()

    def say(line: str) -> None:
        print(line, flush=True)
        heard.set()

    def verb(arguments: Sequence[str]) -> int:
        assert heard.wait(60)
        return 0

    assert set(VERBS) >= LONG
    monkeypatch.setattr(heartbeat, "EVERY_S", 0.001)
    monkeypatch.setattr(heartbeat, "_HEART", Heartbeat(say))
    monkeypatch.setattr("lit_mmpg.runtime.search.main", verb)
    assert main(["search", "a dog"]) == 0
    assert capsys.readouterr().out.startswith("... search, ")
