"""Pages of the documentation, and the blocks of commands and code in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "jetson/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
NEEDS = {  # what a block may need that a test does not have -> whether it is run where that is there
    "a Jetson": False,
    "an NVIDIA GPU": False,
    "two machines": False,
    "a certificate": False,
    "an interrupted run": False,
    "frames of a fleet": False,
    "MSR-VTT": True,
}
RUNS_ON = "runs on"


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: File.
        line: Of its text.
        language: As it is marked.
        text: What it holds.
        needs: What must be there to run it, blank for nothing.
        runs_on: Whether it only ends when it is stopped: a service.
    """

    page: Path
    line: int
    language: str
    text: str
    needs: str = ""
    runs_on: bool = False

    @property
    def commands(self) -> list[str]:
        """Its commands without comments, one a line."""
        joined = self.text.replace("\\\n", " ")
        lines = (re.sub(r"(?:^|\s+)#\s.*$", "", line).strip() for line in joined.splitlines())
        return [" ".join(line.split()) for line in lines if line]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _BLOCK.finditer(text):
        marks = (match["mark"] or "").split("; ")
        needs = next((mark.removeprefix("needs: ") for mark in marks if mark.startswith("needs: ")), "")
        line = text[: match.start("text")].count("\n") + 1
        found.append(Block(page, line, match["language"], match["text"], needs, RUNS_ON in marks))
    return found


def headings(page: Path) -> dict[str, str]:
    """Anchor -> heading, as the site and code hosts make anchors."""
    lines = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    included = re.search(r"^```\{include\} (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    others = headings(page.parent / included[1]) if included else {}
    titles = re.findall(r"^#+ (.+)$", lines, re.MULTILINE)
    return others | {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"): title for title in titles}
