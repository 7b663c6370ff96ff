"""The report as blocks of a page: what is said and drawn, the same for HTML and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lit_mmpg.methods.comparison.code import code_lines
from lit_mmpg.methods.comparison.results import Results
from lit_mmpg.methods.comparison.table import amortised, lower_is_better
from lit_mmpg.pages import charts
from lit_mmpg.pages.blocks import Block, Bullets, Cell, Claim, Claims, Figure, Heading, Table, Text
from lit_mmpg.report import FEW_EXPLAINED, FEW_MARK, format_bytes, format_row
from lit_mmpg.tasks import all_tasks, metric_of

KINDS = {"holds": "good", "does not hold": "bad", "undecided": "open", "not tested": ""}
DEVICE_ROWS = 3
"""Rows in the plot of devices."""
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


def blocks(results: Results) -> Iterator[Block]:
    """The report."""
    yield Heading(results.comparison.title, 1)
    yield from _introduction(results)
    if results.verdicts:
        yield Heading("What holds and what does not")
        yield Claims([Claim(v.verdict, KINDS[v.verdict], v.claim.text, v.lines()) for v in results.verdicts])
        methods = dict.fromkeys(verdict.claim.method for verdict in results.verdicts)
        yield from (Text(text, soft=True) for method in methods if (text := _cost_text(results, method)))
    yield from _main_table(results)
    yield from figures(results)
    yield from _costs(results)
    yield from _groups(results)
    yield from _seeds(results)
    said = [[name, text] for name, text in _method_sentences(results).items() if text]
    if said:
        yield from (Heading("What the rows are"), Table(["row", "what it is"], said, -1))
    if results.applicability:
        head = list(results.applicability[0])
        rows = [[str(row[name]) for name in head] for row in results.applicability]
        yield from (Heading("Which method applies to which task"), Table([h.replace("_", " ") for h in head], rows, -1))
    chosen = chosen_rows(results)
    if chosen:
        yield from (Heading("Settings chosen on validation devices"), Table(["row", "settings", "seeds"], chosen, -1))
    yield from (Heading("How it was measured"), Bullets(_method_lines(results)))
    environment = (f"{name}: {value}" for name, value in results.environment.items() if value is not None)
    yield Text("; ".join(environment), soft=True)


def _introduction(results: Results) -> Iterator[Block]:
    """What was compared, for a reader who has never seen the project."""
    if results.comparison.about:
        yield Text(results.comparison.about)
    seeds = max((len(runs) for runs in results.links.values()), default=0)
    yield Text(
        f"{len(results.names)} rows are compared on {SPLITS.get(results.splits[0], results.splits[0])}: all get the "
        f"same clips, questions, training budget and rule of selection. {metric_of(results.primary).explain} Every "
        f"number is the mean over {seeds} seed{'s' if seeds != 1 else ''}."
    )
    fewer = [
        f"{name} ({len(runs)})"
        for name, runs in results.links.items()
        if len(runs) < seeds and name not in results.comparison.baselines
    ]
    if fewer:
        yield Text(
            f"Not everything is finished: fewer seeds have {', '.join(fewer)}. Differences are taken over common seeds."
        )


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


def _main_table(results: Results) -> Iterator[Block]:
    shown = columns(results)
    strong = {claim.method for claim in results.comparison.claims}
    rows: list[list[str | Cell | None]] = [
        [name, results.settings.get(name, ""), *(Cell(c.cell(name), link=_target(results, name)) for c in shown)]
        for name in results.names
    ]
    rows += [[name, f"n/a: {reason}", *(None for _ in shown)] for name, reason in results.not_applicable.items()]
    yield Heading("All rows")
    yield Text(
        f"On {SPLITS.get(results.splits[0], results.splits[0])}. In brackets: 95 % interval. Device costs are per "
        f"answered clip (with all its questions), one adaptation serving {SHOWN_REUSE} clips; bytes and cloud time are "
        "of one adaptation. A value leads to its MLflow run, or to the runs of its seeds below.",
        soft=True,
    )
    yield Table(
        ["row", "kind", *((c.title, c.explain) for c in shown)],
        rows,
        2,
        [i for i, name in enumerate(results.names) if name in strong],
    )


def _target(results: Results, name: str) -> str:
    runs = results.links.get(name, {})
    own = _run_link(results, next(iter(runs.values()))) if len(runs) == 1 else ""
    return own or f"#seeds-{name}"


def _run_link(results: Results, run: Mapping[str, str | None]) -> str:
    """Address of a run in MLflow's page: of the tracking server, or where ``lit-mmpg ui`` serves the local store."""
    run_id = run.get("test_run_id") or run.get("run_id")
    if not run_id or not results.store:
        return ""
    uri = results.store["uri"]
    base = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{base}/#/experiments/{results.store['experiment_id']}/runs/{run_id}"


def _costs(results: Results) -> Iterator[Block]:
    """Device costs at several numbers of answered clips per adaptation."""
    header = ["row", "one adaptation: FLOPs", "time"]
    shows = {"FLOPs": ("flops", format_flops), "time": ("s", format_seconds), "energy": ("j", format_joules)}
    header += [f"{title} at {reuse}" for title in shows for reuse in REUSE]
    rows = []
    for name in results.names:
        cost = results.costs.get(name, {})
        if cost.get("answer_flops") is None:
            continue
        row = [name, format_flops(cost.get("adapt_flops")), format_seconds(cost.get("adapt_s"))]
        rows.append(row + [show(amortised(cost, unit, reuse)) for unit, show in shows.values() for reuse in REUSE])
    if not rows:
        return
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    yield Heading("What a device pays")
    yield Text(
        "Per answered clip with all its questions, from pixels to answer. One adaptation serves several clips; its "
        f"cost is spread over them, here over {', '.join(map(str, REUSE))}."
    )
    yield Table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])
    yield Bullets(list(dict.fromkeys(str(text) for cost in results.costs.values() for text in cost.get("how", ()))))


def _groups(results: Results) -> Iterator[Block]:
    """The primary metric on every group of devices that more than one row was measured on; nothing for one group."""
    cells = {s: [results.find(name, s, results.primary) for name in results.names] for s in results.splits}
    shown = [split for split, found in cells.items() if split == results.splits[0] or sum(map(bool, found)) > 1]
    if len(shown) < 2:
        return
    header = ["row", *(f"{split}: {SPLITS[split]}" if split in SPLITS else split for split in shown)]
    values = [["" if row is None else format_row(row) for row in cells[split]] for split in shown]
    yield Heading("Other groups of devices")
    yield Table(header, [list(row) for row in zip(results.names, *values, strict=True)])


def _seeds(results: Results) -> Iterator[Block]:
    seeds = sorted({seed for runs in results.links.values() for seed in runs})
    rows = []
    for name in results.names:
        found, runs = results.find(name, results.splits[0], results.primary) or {}, results.links.get(name, {})
        values = dict(zip(runs, found.get("per_seed") or [], strict=False))
        row: list[str | Cell | None] = [name]
        for seed in seeds:
            shown = None
            if seed in values:
                text = format_row({"metric": results.primary, "value": values[seed]})
                shown = Cell(text, values[seed], _run_link(results, runs[seed]))
            row.append(shown)
        rows.append([*row, ", ".join(str(run["run_id"])[:8] for run in runs.values() if run["run_id"])])
    yield Heading("Every seed")
    if results.store:
        yield Text("Each value leads to its MLflow run; 'lit-mmpg ui' opens a local store.", soft=True)
    ids = [f"seeds-{name}" for name in results.names]
    yield Table(["row", *(f"seed {seed}" for seed in seeds), "runs"], rows, ids=ids)


def _method_sentences(results: Results) -> dict[str, str]:
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


def _method_lines(results: Results) -> list[str]:
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
    return [
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


def figures(results: Results) -> Iterator[Block]:
    """The plots, each below its heading."""
    yield from _differences(results)
    sent = {
        name: (own.get("upload_bytes") or 0.0) + (own.get("download_bytes") or 0.0)
        for name, own in results.costs.items()
    }
    if any(sent.get(name) for name in results.names):
        yield from _against(results, "bytes", "bytes up and down, of one adaptation", dict(sent), format_bytes, "none")
    spent = {name: amortised(own, "s", SHOWN_REUSE) for name, own in results.costs.items()}
    title = f"device time per answered clip, one adaptation serving {SHOWN_REUSE} clips"
    yield from _against(results, "device time", title, spent, format_seconds, "0")
    yield from _devices(results)


def highlighted(results: Results) -> list[str]:
    """The reference and the methods of the claims."""
    names = [results.comparison.reference, *(claim.method for claim in results.comparison.claims)]
    return [name for name in dict.fromkeys(names) if name in results.names] or results.names[:1]


def _scale(results: Results) -> float:
    return 100.0 if metric_of(results.primary).percent else 1.0


def _unit(results: Results) -> str:
    known = metric_of(results.primary)
    return f"{known.title} (lower is better)" if known.lower_is_better else known.title


def _against(
    results: Results, what: str, title: str, cost: dict[str, float | None], show: charts.Show, nothing: str
) -> Iterator[Block]:
    strong, points = highlighted(results), []
    for i, name in enumerate(results.names, 1):
        row, x = results.find(name, results.splits[0], results.primary), cost.get(name)
        if row is not None and x is not None:
            y = _scale(results) * row["value"]
            said = f"{name}: {show(x) if x > 0 else nothing}, {format_row(row)}"
            points.append(charts.Point(str(i), said, x, y, name in strong))
    if not points:
        return
    lower = lower_is_better(results.primary)
    chart = charts.xy(
        title,
        _unit(results),
        title,
        points=points,
        front=charts.pareto(points, lower),
        log_x=True,
        from_zero=False,
        x_text=show,
        nothing=nothing,
    )
    names = ", ".join(f"{i} {name}" for i, name in enumerate(results.names, 1))
    yield Heading(f"Quality against {what}", 3)
    yield Figure(
        chart,
        f"{'Down' if lower else 'Up'} and to the left is better; the line joins the rows that no other row beats in "
        f"both. Rows: {names}.",
    )


def _differences(results: Results) -> Iterator[Block]:
    split, reference = results.splits[0], results.comparison.reference
    sign = -1.0 if lower_is_better(results.primary) else 1.0
    scale, items = _scale(results), []
    for name in results.names:
        row = results.find(name, split, f"{results.primary}_minus_{reference}")
        if row is None:
            continue
        low, high = sorted(sign * row[key] for key in ("low", "high")) if row["low"] is not None else (None, None)
        text = format_row({**row, "value": sign * row["value"], "low": low, "high": high})
        kind = "even"
        if low is not None and high is not None:
            kind = "good" if low > 0 else "bad" if high < 0 else "even"
            low, high = low * scale, high * scale
        items.append(charts.Item(name, sign * row["value"] * scale, low, high, text, kind))
    if not items:
        return
    items.sort(key=lambda item: -item.value)
    known = metric_of(results.primary)
    unit = f"points of {known.title.removesuffix(', %')}" if known.percent else known.title
    unit += ", turned so that right is better" if known.lower_is_better else ""
    yield Heading(f"Differences from {reference}", 3)
    yield Figure(
        charts.rows(items, f"advantage over {reference}, {unit}", "Differences", intervals=True),
        "Right of the line is better. Bars are 95 % intervals of the difference, item by item; grey where they hold 0.",
    )


def _devices(results: Results) -> Iterator[Block]:
    names = [name for name in highlighted(results) if name in results.devices]
    others = sorted(set(results.devices) - set(names), key=results.names.index)
    names += sorted(others, key=lambda name: results.settings.get(name) != "control")
    if not names:
        return
    order, lines = list(results.devices[names[0]]), []
    for name in names[:DEVICE_ROWS]:
        known = results.devices[name]
        if set(known) == set(order):
            values = [_scale(results) * known[device] for device in order]
            lines.append(charts.Line(name, range(1, len(order) + 1), values, order))
    yield Heading("Every device", 3)
    yield Figure(
        charts.xy(f"devices, sorted by {names[0]}", _unit(results), "Every device", lines),
        f"Sorted by {names[0]}, from the worst device to the best; touch a point for its name.",
    )
