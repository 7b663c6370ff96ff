"""What the report shows, as text: the same for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lit_mmpg.methods.comparison.code import code_lines
from lit_mmpg.methods.comparison.results import Results
from lit_mmpg.methods.comparison.table import amortised, lower_is_better
from lit_mmpg.report import FEW_EXPLAINED, FEW_MARK, format_bytes, format_row
from lit_mmpg.tasks import all_tasks, metric_of

REUSE = (1, 16, 256)
"""Clips that are answered with one adaptation, for the amortised costs."""
SHOWN_REUSE = 16
"""The one of them that stands in the main table and in the plots."""

SPLITS = {
    "test_unseen": "devices that no training has seen",
    "test_seen": "training devices, with new clips",
    "test_clean": "unseen devices without any shift (clean data)",
}
ROWS = {
    "shuffled_device": "Control: the same model with parameters that were generated for another device.",
    "ridge": "Closed form: ridge regression from mean frame features to TF-IDF captions; no training by gradient.",
}
"""What rows are that need no sentence in the comparison file."""
MEASURED = ("device time", "device energy", "cloud time")
"""Columns whose values another run of the same machine would not repeat."""
CHOSEN = ("row", "settings", "seeds")
"""Headings of :func:`chosen_rows`."""


@dataclass(frozen=True)
class Column:
    """One column of the main table.

    Attributes:
        title: Heading.
        cell: Row name -> text; empty where there is nothing.
        explain: What it means.
    """

    title: str
    cell: Callable[[str], str]
    explain: str = ""


def columns(results: Results) -> list[Column]:
    """Columns of the main table that hold anything."""
    split, primary = results.splits[0], results.primary

    def metric(name: str, split: str = split) -> Callable[[str], str]:
        def cell(row: str) -> str:
            found = results.find(row, split, name)
            return "" if found is None else format_row(found)

        return cell

    def value(name: str) -> Callable[[str], str]:
        return lambda row: metric(name)(row).partition(" [")[0]

    def cost(show: Callable[[dict[str, Any]], str]) -> Callable[[str], str]:
        return lambda row: show(results.costs.get(row, {}))

    def share(unit: str, show: Callable[[float | None], str]) -> Callable[[str], str]:
        return cost(lambda c: show(amortised(c, unit, SHOWN_REUSE)))

    reference = results.comparison.reference
    found = [
        Column(_title(primary), metric(primary), metric_of(primary).explain),
        Column(f"minus {reference}", metric(f"{primary}_minus_{reference}"), "Difference from that row, item by item."),
        *(
            Column(
                f"{test}: minus {reference}", metric(f"{primary}_minus_{reference}", f"test_{test}"), "Its own test."
            )
            for test in results.comparison.tests
        ),
        Column("mean over devices", value(f"{primary}_macro"), "Each device weighs the same."),
        Column("worst tenth", metric(f"{primary}_worst_decile"), "Mean over the worst tenth of the devices."),
        *(Column(_title(name), metric(name)) for name in ("t2v/R@1", "t2v/R@10", "t2v/MedR")),
        Column("up", cost(lambda c: format_sent(c.get("upload_bytes"))), "Bytes of the messages of one adaptation."),
        Column("down", cost(lambda c: format_sent(c.get("download_bytes"))), "Bytes back to the device."),
        Column("device FLOPs", share("flops", format_flops), "Per answered clip, from pixels to answer."),
        Column("device time", share("s", format_seconds), "Per answered clip."),
        Column("device energy", share("j", format_joules), "Per answered clip; an estimate."),
        Column("device memory", cost(lambda c: format_known(c.get("peak_memory_bytes"))), "Peak, of tensors."),
        Column("cloud time", cost(lambda c: format_seconds(c.get("cloud_s"))), "Of one adaptation."),
    ]
    return [column for column in found if any(column.cell(name) for name in results.names)]


def _title(metric: str) -> str:
    titles = {"t2v/MedR": "median rank"} | {task.primary.name: task.primary.title for task in all_tasks()}
    return titles.get(metric, metric.removeprefix("t2v/") + (", %" if "R@" in metric else ""))


def split_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """The primary metric on every group of devices that more than one row was measured on; nothing for one group."""
    cells = {s: [results.find(name, s, results.primary) for name in results.names] for s in results.splits}
    shown = [split for split, found in cells.items() if split == results.splits[0] or sum(map(bool, found)) > 1]
    if len(shown) < 2:
        return [], []
    header = ["row", *(f"{split}: {SPLITS[split]}" if split in SPLITS else split for split in shown)]
    values = [["" if row is None else format_row(row) for row in cells[split]] for split in shown]
    return header, [list(row) for row in zip(results.names, *values, strict=True)]


def cost_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """The table of device costs at several numbers of answered clips per adaptation."""
    header = ["row", "one adaptation: FLOPs", "time"]
    header += [f"FLOPs at {r}" for r in REUSE] + [f"time at {r}" for r in REUSE] + [f"energy at {r}" for r in REUSE]
    rows = []
    for name in results.names:
        cost = results.costs.get(name, {})
        if cost.get("answer_flops") is None:
            continue
        row = [name, format_flops(cost.get("adapt_flops")), format_seconds(cost.get("adapt_s"))]
        row += [format_flops(amortised(cost, "flops", reuse)) for reuse in REUSE]
        row += [format_seconds(amortised(cost, "s", reuse)) for reuse in REUSE]
        row += [format_joules(amortised(cost, "j", reuse)) for reuse in REUSE]
        rows.append(row)
    kept = [i for i in range(len(header)) if not rows or any(row[i] for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def cost_notes(results: Results) -> list[str]:
    """How the costs were measured, each sentence once."""
    notes: dict[str, None] = {}
    for cost in results.costs.values():
        notes |= dict.fromkeys(str(text) for text in cost.get("how", ()))
    return list(notes)


def introduction(results: Results) -> list[str]:
    """Sentences on what was compared, for a reader who has never seen the project."""
    seeds = _seeds(results)
    lines = [results.comparison.about] if results.comparison.about else []
    where = SPLITS.get(results.splits[0], results.splits[0])
    lines.append(
        f"{len(results.names)} rows are compared on {where}: all get the same clips, questions, training budget and "
        "rule of selection. "
        + metric_of(results.primary).explain
        + f" Every number is the mean over {seeds} seed{'s' if seeds != 1 else ''}."
    )
    fewer = [
        f"{name} ({len(runs)})"
        for name, runs in results.links.items()
        if len(runs) < seeds and name not in results.comparison.baselines
    ]
    if fewer:
        lines.append(
            f"Not everything is finished: fewer seeds have {', '.join(fewer)}. Differences are taken over common seeds."
        )
    return lines


def _seeds(results: Results) -> int:
    return max((len(runs) for runs in results.links.values()), default=0)


def method_sentences(results: Results) -> dict[str, str]:
    """Row -> what it is."""
    papers = {row["method"]: row["paper"] for row in results.applicability}
    sentences = {}
    for name in results.comparison.row_names:
        run, adapted = results.comparison.runs.get(name), results.comparison.adapted.get(name)
        text = (run.about if run else "") or (adapted.about if adapted else "") or ROWS.get(name, "")
        if adapted is not None:
            paper = papers.get(adapted.method, "")
            text = " ".join(part for part in (text, f"({paper})" if paper else "") if part)
        sentences[name] = text
    return sentences


def method_lines(results: Results) -> list[str]:
    """How it was measured, one statement a line."""
    reads = results.reads
    cells = {(entry["row"], entry["seed"], entry["split"]) for entry in reads}
    measured = sum(len(runs) for runs in results.links.values())
    repeated = len(reads) - len(cells)
    again = (
        f"{repeated} of them repeated a reading, after an interruption or changed settings"
        if repeated
        else "none twice"
    )
    better = "lower" if lower_is_better(results.primary) else "higher"
    lines = [
        "Intervals are 95 % intervals of Student's t with variances clustered by device and by clip (that of the worst "
        "tenth: a bootstrap over devices); the values of an item are averaged over seeds first. Differences are taken "
        f"item by item. {FEW_MARK} marks {FEW_EXPLAINED}. {better.capitalize()} is better.",
        "A claim holds when its method beats every rival by more than the margin, with p-values adjusted by Holm over "
        "the rivals of the claim (family-wise error 5 %). It does not hold when an interval shows the contrary, or its "
        "cost exceeds the condition. Otherwise it is undecided; with a row missing it is not tested.",
        "Models, epochs and settings are selected on validation devices alone.",
        f"The test split was read {len(reads)} times for {measured} cells of this table ({again}). A control is "
        "measured in the reading of the row that it belongs to.",
        *code_lines(results.code, always=True),
    ]
    return lines


def chosen_rows(results: Results) -> list[list[str]]:
    """Settings that validation devices chose: row, settings, and the seeds where it was these."""
    rows = []
    for name, by_seed in results.notes.items():
        seeds: dict[str, list[str]] = {}
        for seed, notes in by_seed.items():
            options = notes.get("selection", {}).get("options")
            if options:
                seeds.setdefault(", ".join(f"{k} {v}" for k, v in options.items()), []).append(str(seed))
        rows += [[name, settings, ", ".join(where)] for settings, where in seeds.items()]
    return rows


def environment_lines(results: Results) -> list[str]:
    """Where it ran."""
    return [f"{name}: {value}" for name, value in results.environment.items() if value is not None]


def claim_costs(results: Results) -> list[str]:
    """What each method that a claim is about costs, a line each."""
    methods = dict.fromkeys(verdict.claim.method for verdict in results.verdicts)
    return [text for method in methods if (text := _cost_text(results, method))]


def _cost_text(results: Results, row: str) -> str:
    """What a row costs, in one line."""
    cost = results.costs.get(row, {})
    parts = []
    if cost.get("upload_bytes") or cost.get("download_bytes"):
        up, down = format_bytes(cost.get("upload_bytes")), format_bytes(cost.get("download_bytes"))
        parts.append(f"{up} up and {down} down per adaptation")
    flops = format_flops(amortised(cost, "flops", SHOWN_REUSE))
    if flops:
        time = format_seconds(amortised(cost, "s", SHOWN_REUSE))
        parts.append(f"{flops} FLOPs and {time} on the device per answered clip")
    if cost.get("cloud_s") is not None:
        parts.append(f"{format_seconds(cost['cloud_s'])} in the cloud per adaptation")
    return f"Cost of {row}: {'; '.join(parts)}." if parts else ""


def format_flops(value: float | None) -> str:
    """Floating-point operations for people."""
    if value is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def format_seconds(value: float | None) -> str:
    """Seconds for people."""
    if value is None:
        return ""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def format_joules(value: float | None) -> str:
    """Energy for people."""
    if value is None:
        return ""
    return f"{value:.3g} J" if value >= 1 else f"{value * 1e3:.3g} mJ"


def format_known(value: float | None) -> str:
    """Bytes, or nothing where they are not known."""
    return "" if value is None else format_bytes(value)


def format_sent(value: float | None) -> str:
    """Bytes of messages; nothing for a method that sends none."""
    return format_bytes(value) if value else ""
