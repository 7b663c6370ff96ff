"""Result rows: one readable table on the screen, exact values in a JSON file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
"""``method, split, metric, value, low, high, seeds, upload_bytes, download_bytes``; None where not measured."""


def print_rows(rows: Sequence[Row], title: str | None = None) -> None:
    """Print rows as a table.

    Args:
        rows: Result rows; the interval is left out where ``low`` or ``high`` is None.
        title: Line above the table.
    """
    table = Table(title=title)
    for column in ("method", "split", "metric"):
        table.add_column(column, overflow="fold")
    for column in ("value", "95 % interval", "seeds", "upload", "download"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        low, high = row.get("low"), row.get("high")
        table.add_row(
            str(row["method"]),
            str(row["split"]),
            str(row["metric"]),
            format_value(row["value"]),
            "" if low is None or high is None else f"{format_value(low)} to {format_value(high)}",
            "" if row.get("seeds") is None else str(row["seeds"]),
            format_bytes(row.get("upload_bytes")),
            format_bytes(row.get("download_bytes")),
        )
    # Outside a terminal nothing is cut to 80 columns.
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write ``{"rows": [...]}`` in one step, so that a reader never sees half a file.

    NaN and infinity, which JSON cannot hold, become null.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    finite = [{key: None if _not_finite(value) else value for key, value in row.items()} for row in rows]
    text = json.dumps({"rows": finite}, indent=2, allow_nan=False)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def format_value(value: float | None) -> str:
    """Four significant digits; ``n/a`` for None."""
    return "n/a" if value is None else f"{value:.4g}"


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
