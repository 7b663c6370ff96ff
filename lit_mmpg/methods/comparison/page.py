"""The report as blocks of a page: what is said and drawn, the same for HTML and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lit_mmpg.methods.comparison.results import Results
from lit_mmpg.methods.comparison.table import amortised, lower_is_better
from lit_mmpg.methods.comparison.view import (
    CHOSEN,
    REUSE,
    SHOWN_REUSE,
    SPLITS,
    chosen_rows,
    claim_costs,
    columns,
    cost_notes,
    cost_rows,
    environment_lines,
    format_seconds,
    introduction,
    method_lines,
    method_sentences,
    split_rows,
)
from lit_mmpg.pages import charts
from lit_mmpg.pages.blocks import Block, Bullets, Cell, Claim, Claims, Figure, Heading, Table, Text
from lit_mmpg.report import format_bytes, format_row
from lit_mmpg.tasks import metric_of

KINDS = {"holds": "good", "does not hold": "bad", "undecided": "open", "not tested": ""}
DEVICE_ROWS = 3
"""Rows in the plot of devices."""


def blocks(results: Results) -> Iterator[Block]:
    """The report."""
    yield Heading(results.comparison.title, 1)
    yield from map(Text, introduction(results))
    if results.verdicts:
        yield Heading("What holds and what does not")
        yield Claims([Claim(v.verdict, KINDS[v.verdict], v.claim.text, v.lines()) for v in results.verdicts])
        yield from (Text(line, soft=True) for line in claim_costs(results))
    yield from _main_table(results)
    yield from figures(results)
    head, rows = cost_rows(results)
    if rows:
        yield Heading("What a device pays")
        yield Text(
            "Per answered clip with all its questions, from pixels to answer. One adaptation serves several clips; its "
            f"cost is spread over them, here over {', '.join(map(str, REUSE))}."
        )
        yield Table(head, rows)
        yield Bullets(cost_notes(results))
    head, rows = split_rows(results)
    if rows:
        yield from (Heading("Other groups of devices"), Table(head, rows))
    yield from _seeds(results)
    said = [[name, text] for name, text in method_sentences(results).items() if text]
    if said:
        yield from (Heading("What the rows are"), Table(["row", "what it is"], said, -1))
    if results.applicability:
        head = list(results.applicability[0])
        rows = [[str(row[name]) for name in head] for row in results.applicability]
        yield from (Heading("Which method applies to which task"), Table([h.replace("_", " ") for h in head], rows, -1))
    chosen = chosen_rows(results)
    if chosen:
        yield from (Heading("Settings chosen on validation devices"), Table(CHOSEN, chosen, -1))
    yield from (Heading("How it was measured"), Bullets(method_lines(results)))
    yield Text("; ".join(environment_lines(results)), soft=True)


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
