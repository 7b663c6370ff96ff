"""Result rows: one readable table on the screen, every metric and exact values in a JSON file."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from lit_mmpg.errors import UserError
from lit_mmpg.writing import write_text

Row = Mapping[str, Any]
"""``method, split, metric, value, low, high, seeds, upload_bytes, download_bytes``; None where not measured."""

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
    columns = [metric for metric in SHOWN if any(metric in line for line in lines.values())]
    table = Table(title=title, caption=escape(_caption(rows)), caption_justify="left")
    table.add_column("split", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for metric in columns:
        table.add_column(SHOWN[metric], justify="right", overflow="fold")
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
    over = "devices and clips" if any("per_seed" in row for row in rows) else "devices"
    return (
        f"Seeds: {seeds[-1]}. [low, high]: 95 % bootstrap interval over {over}. "
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
    return text if low is None or high is None else f"{text} [{number(low)}, {number(high)}]"


def check_output(path: str | None) -> None:
    """Check the file that was named for the rows, before anything is computed.

    Raises:
        UserError: If it is no JSON file.
    """
    if path is not None and not path.endswith(".json"):
        raise UserError(f"--output {path}: rows are written as JSON; name a file that ends in .json")


def wide_console() -> Console:
    """The terminal; or, in a pipe or a file, lines wide enough that nothing is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=180)


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write :func:`rows_text` in one step, so that a reader never sees half a file."""
    write_text(Path(path), rows_text(rows) + "\n")


def rows_text(rows: Sequence[Row]) -> str:
    """``{"rows": [...]}``; NaN and infinity, which JSON cannot hold, become null."""
    finite = [{key: None if _not_finite(value) else value for key, value in row.items()} for row in rows]
    return json.dumps({"rows": finite}, indent=2, allow_nan=False)


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


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
