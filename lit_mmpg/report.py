"""Result rows: one readable table on the screen, every metric and exact values in a JSON file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rich import box, markup
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table

from lit_mmpg.errors import UserError
from lit_mmpg.texts import printable, printable_lines
from lit_mmpg.writing import write_text

Row = Mapping[str, Any]
"""``method, split, metric, value, low, high, clusters, seeds, upload_bytes, download_bytes``; None: not measured."""

SHOWN = {
    "accuracy": "accuracy",
    "accuracy_macro": "macro",
    "accuracy_worst_decile": "worst decile",
    "accuracy_minus_static": "minus static",
    "t2v/mean_log_rank": "mean log-rank",
    "t2v/R@1": "R@1",
    "t2v/R@5": "R@5",
    "t2v/R@10": "R@10",
    "t2v/MedR": "MedR",
    "v2t/R@10": "v2t R@10",
    "t2v/mean_log_rank_minus_static": "log-rank minus static",
}
"""Metrics that have a column on the screen, and its title; all others are in the JSON file."""

FEW_CLUSTERS = 10
"""Devices or clips; an interval that stands on fewer is marked wherever it is shown."""
FEW_MARK = "†"
FEW_EXPLAINED = f"fewer than {FEW_CLUSTERS} devices or clips, so the interval is a rough guide"

FRACTIONS = ("accuracy", "t2v/R@", "v2t/R@", "local_t2v/R@", "local_v2t/R@")


def print_rows(rows: Sequence[Row], title: str | None = None) -> None:
    """Print one line per method and split, one column per important metric.

    Args:
        rows: Result rows.
        title: Line above the table.
    """
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((str(row["split"]), str(row["method"])), {})[str(row["metric"])] = row
    present = dict.fromkeys(metric for line in lines.values() for metric in line)
    columns = [metric for metric in SHOWN if metric in present] or list(
        present
    )  # all of a task with metrics of its own
    table = Table(title=title, caption=escape(_caption(rows)), caption_justify="left")
    table.add_column("split", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for metric in columns:
        table.add_column(SHOWN.get(metric, metric), justify="right", overflow="fold")
    table.add_column("up", justify="right", no_wrap=True)
    table.add_column("down", justify="right", no_wrap=True)
    previous = None
    for (split, method), line in lines.items():
        if previous not in (None, split):
            table.add_section()
        previous = split
        first = next(iter(line.values()))
        table.add_row(
            split,
            method,
            *(escape(format_row(line[metric])) if metric in line else "" for metric in columns),
            format_bytes(first.get("upload_bytes")),
            format_bytes(first.get("download_bytes")),
        )
    console = wide_console()
    if (
        console.is_terminal
        and Measurement.get(console, console.options.update(width=1000), table).maximum > console.width
    ):
        # Too narrow: numbers may stand below each other, but none is cut.
        table.box, table.pad_edge, table.padding = box.SIMPLE, False, (0, 0, 1, 0)
    console.print(table)


def _caption(rows: Sequence[Row]) -> str:
    seeds = sorted({int(row["seeds"]) for row in rows if row.get("seeds")})
    if not seeds:
        return ""
    few = f" {FEW_MARK}: {FEW_EXPLAINED}." if any(_few(row) for row in rows) else ""
    return (
        f"Seeds: {seeds[-1]}. [low, high]: 95 % interval over devices and clips.{few} "
        "up, down: bytes of the messages of one adaptation."
    )


def format_row(row: Row) -> str:
    """A value with its interval; fractions in per cent, differences of fractions in points."""
    metric = str(row["metric"])
    scale = 100.0 if metric.startswith(FRACTIONS) else 1.0
    sign = "+" if "_minus_" in metric else ""

    def number(value: float | None) -> str:
        if value is None:
            return "n/a"
        if scale == 100.0:
            return f"{value * scale:{sign}.1f}"
        return f"{value:+.3f}" if sign else f"{value:.3g}"  # a difference near 0 needs no exponent

    text = number(row["value"])
    low, high = row.get("low"), row.get("high")
    return text if low is None or high is None else f"{text} [{number(low)}, {number(high)}]{FEW_MARK * _few(row)}"


def _few(row: Row) -> bool:
    """Whether the interval of a row stands on too few devices or clips to be trusted."""
    clusters = row.get("clusters")
    return row.get("low") is not None and clusters is not None and clusters < FEW_CLUSTERS


def check_output(path: str | None) -> None:
    """Check the file that was named for the rows, before anything is computed.

    Raises:
        UserError: If it is no JSON file.
    """
    if path is not None and not path.endswith(".json"):
        raise UserError(f"--output {path}: rows are written as JSON; name a file that ends in .json")


def escape(text: str) -> str:
    """A text that somebody else chose, for a console: one line, no codes of the terminal, no markup."""
    return markup.escape(printable(text))


def wide_console(width: int = 180) -> Console:
    """The terminal; or, in a pipe or a file, lines of a width at which nothing is cut.

    Whatever is printed passes through :func:`lit_mmpg.texts.printable`: no file name, bundle or cloud sends codes to
    the terminal, even where :func:`escape` was forgotten.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=width)
    console.push_render_hook(_Printable())
    return console


class _Printable(RenderHook):
    """Escapes what is no text in all that a console prints; Rich's own codes are styles and control segments."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self._renderable, options):
            yield Segment(text if control else printable_lines(text), style, control)


def print_facts(console: Console, facts: Sequence[tuple[str, str]], notes: Sequence[str]) -> None:
    """Print pairs of a name and a text below each other, then notes."""
    grid = Table.grid(padding=(0, 2))
    for name, text in facts:
        grid.add_row(name, escape(text))
    console.print(grid)
    for note in notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}")


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write :func:`rows_text` in one step, so that a reader never sees half a file."""
    write_text(Path(path), rows_text(rows) + "\n")


def rows_text(rows: Sequence[Row]) -> str:
    """``{"rows": [...]}``; NaN and infinity become null."""
    return json.dumps(json_ready({"rows": list(rows)}), indent=2, allow_nan=False)


def json_ready(value: Any) -> Any:
    """Plain data: NumPy numbers and dataclasses become Python's; NaN and infinity, which JSON cannot hold, None."""
    if is_dataclass(value):
        return {entry.name: json_ready(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): json_ready(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(entry) for entry in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def json_alone(wanted: object) -> Iterator[Callable[[str], None]]:
    """Keep stdout for one JSON document, where that is wanted; everything else that is printed goes to stderr.

    Yields:
        What writes the document; it does nothing where none is wanted.
    """
    if not wanted:
        yield lambda text: None
        return
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        yield lambda text: print(text, file=stdout, flush=True)


def format_bytes(count: float | None) -> str:
    """Bytes with a binary unit, for people: ``13.0 KiB``; ``n/a`` for None."""
    if count is None:
        return "n/a"
    if count < 1024:
        return f"{count:.0f} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1024 or unit == "GiB":
            break
    return f"{amount:.1f} {unit}"
