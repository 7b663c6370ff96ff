"""A device's clips in sum: what the screen and MLflow get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lit_mmpg.report import escape, format_bytes
from lit_mmpg.runtime.adaptation import GUARD, Source
from lit_mmpg.runtime.journal import Record

STAGES = ("decode", "encode", "cloud", "swap", "guard", "camera", "answer", "total")
COLOURS = {"cloud": "green", "cached": "cyan", "static": "yellow"}
WORDS: dict[Source, str] = {"cloud": "adapted", "cached": "cached", "static": "static"}


def print_line(console: Console, record: Record) -> None:
    """One live line: number, clip, answer, parameters, bytes, milliseconds."""
    head = f"{record.number:>4}  {escape(record.clip)}"
    if record.unreadable:
        console.print(f"{head}  [red]left out[/red]  {escape(record.error or '')}", soft_wrap=True)
        return
    said = "no question"
    if record.replies:
        first = record.replies[0]
        sure = f" {first.confidence:.2f}" if first.similarity else f" {first.confidence:.0%}"
        more = f" (+{len(record.replies) - 1})" if len(record.replies) > 1 else ""
        mark = {True: " [green]✓[/green]", False: " [red]✗[/red]", None: ""}[first.right]
        said = f"[bold]{escape(first.answer)}[/bold]{sure}{mark}{more}"
    parts = [f"[{COLOURS[record.source]}]{WORDS[record.source]}[/{COLOURS[record.source]}]"]
    if record.traffic is not None:
        up, down = record.traffic.upload_wire_bytes, record.traffic.download_wire_bytes
        parts.append(f"up {format_bytes(up)} down {format_bytes(down)}, cloud {record.times_ms['cloud']:.0f} ms")
    if record.reason == GUARD:
        parts.append("[yellow]parameters refused[/yellow]")
    elif record.reason:
        parts.append(f"[yellow]cloud {escape(record.reason)}[/yellow] after {record.times_ms['cloud']:.0f} ms")
    parts.append(f"{record.times_ms['total']:.0f} ms")
    console.print(f"{head}  {said}  {'  '.join(parts)}", soft_wrap=True)


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Figures over clips.

    Returns:
        ``clips``, ``unreadable``, ``requests``, ``adaptations``, ``requests_per_clip``; ``answered_SOURCE`` clips by
        parameters; ``faults`` by reason; the six sums of bytes; ``STAGE_p50_ms`` and ``STAGE_p95_ms``; ``accuracy``
        over the questions whose answer is known, else ``None``.
    """
    read = [record for record in records if not record.unreadable]
    asked = [record for record in read if record.asked]
    figures: dict[str, Any] = {
        "clips": len(records),
        "unreadable": len(records) - len(read),
        "requests": len(asked),
        "adaptations": sum(record.source == "cloud" for record in asked),
        "requests_per_clip": len(asked) / len(read) if read else 0.0,
    }
    sources = Counter(record.source for record in read)
    figures |= {f"answered_{source}": sources[source] for source in WORDS}
    figures["faults"] = dict(Counter(record.reason for record in asked if record.reason))
    for name in ("payload", "message", "wire"):
        for direction in ("upload", "download"):
            key = f"{direction}_{name}_bytes"
            figures[key] = sum(getattr(record.traffic, key) for record in asked if record.traffic)
    for stage in STAGES:
        values = [record.times_ms[stage] for record in read if stage in record.times_ms]
        for share in (50, 95):
            figures[f"{stage}_p{share}_ms"] = float(np.percentile(values, share)) if values else None
    right = [reply.right for record in read for reply in record.replies if reply.right is not None]
    figures["accuracy"] = sum(right) / len(right) if right else None
    return figures


def never_helped(figures: dict[str, Any]) -> bool:
    """Whether the cloud was asked, and no clip got parameters from it."""
    return figures["requests"] > 0 and figures["adaptations"] == 0


def print_summary(console: Console, figures: dict[str, Any]) -> None:
    """Two small tables: what was done, and how long the stages took."""
    table = Table(title="summary", show_header=False, title_justify="left")
    answered = ", ".join(f"{figures[f'answered_{source}']} {word}" for source, word in WORDS.items())
    left_out = f", {figures['unreadable']} left out" if figures["unreadable"] else ""
    table.add_row("clips", f"{figures['clips']} ({answered}{left_out})")
    share = f"{figures['requests_per_clip']:.0%} of the clips"
    table.add_row("requests", f"{figures['requests']} ({share}), {figures['adaptations']} answered by the cloud")
    faults = ", ".join(f"{count} {reason}" for reason, count in sorted(figures["faults"].items())) or "none"
    faults += "; the cloud never helped" if never_helped(figures) else ""
    table.add_row("faults", faults)
    for direction in ("upload", "download"):
        kinds = [
            f"{name} {format_bytes(figures[f'{direction}_{name}_bytes'])}" for name in ("payload", "message", "wire")
        ]
        table.add_row(direction, ", ".join(kinds))
    if figures["accuracy"] is not None:
        table.add_row("accuracy", f"{100 * figures['accuracy']:.1f} % of the questions whose answer is known")
    console.print(table)
    times = Table(title="milliseconds per clip", title_justify="left")
    times.add_column("")
    for stage in STAGES:
        times.add_column(stage, justify="right")
    for percent in (50, 95):
        values = [figures[f"{stage}_p{percent}_ms"] for stage in STAGES]
        times.add_row(f"p{percent}", *("" if value is None else f"{value:.2f}" for value in values))
    console.print(times)
