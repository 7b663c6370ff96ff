"""The pages of a profile, of two side by side, and of several boards: each one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lit_mmpg.pages.blocks import Block, Bullets, Cards, Cell, Facts, Figure, Heading, Table, Text, badge
from lit_mmpg.pages.blocks import render as render_page
from lit_mmpg.pages.charts import Item, Line, Point, pareto, rows, share_below, xy
from lit_mmpg.profiling.tables import (
    NOT_TIMED,
    absent_lines,
    describe_change,
    describe_energy,
    energy_lines,
    engine_label,
    format_energy,
    format_ms,
    format_pair,
    primary_energy,
    remarks,
    row_name,
    start_of,
)
from lit_mmpg.report import format_bytes

Row = Mapping[str, Any]

KINDS = {
    "ok": "good",
    "wrong": "bad",
    "failed": "bad",
    "worse": "bad",
    "lost": "bad",
    "unsure": "open",
    "within": "good",
}
"""Status or verdict -> kind of a badge."""
READING = (
    "Latency is the synchronised wall clock of one unit, the timer's own cost subtracted; the first call (cold) "
    "stands apart. A row is unstable where the halves of its run differ by more than 5 %. Gross energy is what the "
    "source read; net is without what idling as long would have taken; ± is the bound of the sampling error, not of "
    "the sensor. What could not be measured says why. Raw samples are in profile.json."
)


def render(profile: Mapping[str, Any]) -> str:
    """The page of a profile.

    Args:
        profile: A document.
    """
    return render_page(f"Profile of {profile['bundle']['path']} on {profile['name']}", _profile(profile))


def _profile(profile: Mapping[str, Any]) -> Iterator[Block]:
    measured: Sequence[Row] = profile["rows"]
    timed = [row for row in measured if row["status"] == "ok" and row["latency"]]
    yield from _head(profile, measured, timed)
    for heading, parts in (
        ("Latency of an answer", _latency(timed)),
        ("Throughput", _throughput(measured)),
        ("Where the time goes", _layers(measured)),
        ("All rows", _table(measured)),
        ("Energy", _energy(measured, timed)),
        ("Memory", _memory(timed)),
        ("Adaptation", _adaptation(timed)),
        ("Fine-tuning on the device instead", _finetune(timed)),
        ("As time goes by", _series(timed)),
        ("Right before fast", _verdicts(measured)),
    ):
        found = list(parts)
        if found:
            yield from (Heading(heading), *found)
    engines = [[engine["name"], engine["reason"] or "can run here"] for engine in profile["engines"]]
    if engines:
        yield from (Heading("Engines on this machine"), Table(["engine", "here"], engines, -1))
    environment = {
        **profile["environment"],
        "digest of the checkpoint": profile["bundle"]["checkpoint_digest"],
        "training run": profile["bundle"]["run_id"],
    }
    yield from (Heading("Machine"), Facts([(k.replace("_", " "), _value(v)) for k, v in environment.items()]))
    yield from (Heading("How to read this"), Text(READING))


def _value(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_value(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(_value(v) for v in value) or "none"
    return str(value)


def _name_of_scenario(row: Row) -> str:
    return f"{row_name(row)} {row['scenario']}"


def _name_of_path(row: Row) -> str:
    return row_name(row) + (" pixels" if row["encoder_included"] else "")


def _path(row: Row) -> str:
    return "from pixels (frame encoder included)" if row["encoder_included"] else "from features (no frame encoder)"


def _ms(value: float | None) -> Cell:
    return Cell(format_ms(value), value)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _peak(row: Row) -> Cell | None:
    peak = (row["memory"] or {}).get("peak_rss_bytes")
    return Cell(format_bytes(peak), peak) if peak else None


def _joules(row: Row) -> Cell | None:
    reading = primary_energy(row)
    if reading is None:
        return Cell("n/a") if row["energy"] else None
    return Cell(format_energy(reading), reading["gross_j_per_unit"], small=describe_energy(reading))


def _notes(chosen: Sequence[Row]) -> list[Block]:
    return [Text(f"{note}.", soft=True) for note in dict.fromkeys(note for row in chosen for note in row["notes"])]


def _head(profile: Mapping[str, Any], measured: Sequence[Row], timed: Sequence[Row]) -> Iterator[Block]:
    environment = profile["environment"]
    machine = environment.get("board") or environment.get("cpu") or environment.get("architecture") or "unknown machine"
    gpu = (environment.get("gpu") or {}).get("name")
    state = profile["state"]
    yield Heading(profile["name"], 1, badge(state, "open") if state != "complete" else badge(""))
    yield Text(
        f"{machine}{f', {gpu}' if gpu else ''}. Bundle {profile['bundle']['path']}, task {profile['bundle']['task']}. "
        f"Measured {profile['created']}."
    )
    counts = {status: sum(row["status"] == status for row in measured) for status in ("ok", "compiled", "absent")}
    cards = [(str(counts["ok"]), "rows measured"), (str(counts["compiled"]), "compiled only")]
    cards.append((str(counts["absent"]), "cannot run here"))
    for encoder, label in ((False, "features"), (True, "pixels")):
        chosen = [r for r in timed if (r["scenario"], r["batch"], r["encoder_included"]) == ("answer", 1, encoder)]
        if chosen:
            best = min(chosen, key=lambda row: row["latency"]["wall"]["p50_ms"])
            cards.append(
                (f"{format_ms(best['latency']['wall']['p50_ms'])} ms", f"fastest from {label}: {row_name(best)}")
            )
    yield Cards(cards)
    bad: dict[str, list[str]] = {}
    for row in measured:
        if row["status"] in ("wrong", "failed"):
            bad.setdefault(row["reason"] or "no reason is known", []).append(_name_of_scenario(row))
    if bad:
        yield Text("These rows are not right and were not timed:")
        yield Bullets([f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in bad.items()])


def _latency(timed: Sequence[Row]) -> Iterator[Block]:
    for encoder in (False, True):
        chosen = [row for row in timed if row["scenario"] == "answer" and row["encoder_included"] == encoder]
        if not chosen:
            continue
        items, lines = [], []
        for row in chosen:
            wall = row["latency"]["wall"]
            text = f"{format_ms(wall['p50_ms'])} (p95 {format_ms(wall['p95_ms'])})"
            items.append(Item(row_name(row), wall["p50_ms"], None, wall["p95_ms"], text, row["engine"]))
            lines.append(Line(row_name(row), *share_below(wall["samples_ms"])))
        yield Heading(chosen[0]["unit"] or "", 3)
        said = f"{_path(chosen[0])}; bar: median, whisker: 95th percentile."
        yield Figure(rows(items, "ms", "Median latency of an answer"), said)
        chart = xy("ms", "samples at or below, %", "Distribution of latency", lines[:8])
        yield Figure(chart, "Distribution of the single samples", folded=True)


def _throughput(measured: Sequence[Row]) -> Iterator[Block]:
    """Answers per second by mode; a curve of latency against the rate for Server."""
    for mode in ("Offline", "MultiStream", "Server"):
        own = [row for row in measured if (row.get("throughput") or {}).get("mode") == mode]
        if own:
            yield Heading(mode, 3)
            yield from _notes(own)
        rates = [(row, row["throughput"]["answers_per_s"]) for row in own]
        items = [
            Item(_name_of_path(row), rate, text=_rate(rate), kind=row["engine"])
            for row, rate in rates
            if rate is not None
        ]
        yield from _figures(rows(items, "answers per second", f"Throughput, {mode}"))
        for row in own:
            probes = sorted(row["throughput"].get("probes", ()), key=lambda probe: probe["rate_per_s"])
            curve = Line(
                f"{row_name(row)}, {start_of(row)}", [p["rate_per_s"] for p in probes], [p["p99_ms"] for p in probes]
            )
            yield from _figures(xy("questions per second", "p99, ms", "Latency against the rate", [curve]))


def _figures(chart: Any, caption: str = "") -> list[Block]:
    return [Figure(chart, caption)] if chart else []


def _layers(measured: Sequence[Row]) -> Iterator[Block]:
    """The slowest layers of each graph, and the sentence what bounds it."""
    for row in measured:
        found = row["series"].get("layers") if row["status"] == "ok" else None
        for role, graph in (found or {}).get("graphs", {}).items():
            yield Heading(f"{row_name(row)}: {role}, {format_ms(graph['time_ms'])} ms", 3)
            roof = graph.get("roofline")
            if roof:
                yield Text(
                    f"Bound by {roof['bound']}: {roof['multiply_adds'] / 1e6:,.1f} million multiply-adds alone would "
                    f"take {format_ms(roof['arithmetic_ms'])} ms, {format_bytes(roof['traffic_bytes'])} of memory "
                    f"{format_ms(roof['memory_ms'])} ms."
                )
                bounds = {"measured": graph["time_ms"], **{k: roof[f"{k}_ms"] for k in ("arithmetic", "memory")}}
                items = [Item(name, ms, text=f"{format_ms(ms)} ms", kind=name) for name, ms in bounds.items()]
                yield Figure(rows(items, "ms", f"Ceilings of {role}"))
            layers = sorted(graph["layers"] or (), key=lambda layer: -layer["time_ms"])
            total = sum(layer["time_ms"] for layer in layers)
            if total > 0:
                items = [
                    Item(
                        f"{layer['operator']} {layer['name']}"[:60],
                        layer["time_ms"],
                        text=f"{format_ms(layer['time_ms'])} ms, {layer['time_ms'] / total:.0%}",
                        kind=layer["operator"],
                    )
                    for layer in layers[:10]
                ]
                chart = rows(items, "ms", f"Slowest layers of {role}")
                yield Figure(chart, f"The {len(items)} slowest of {len(layers)} layers.")


def _table(measured: Sequence[Row]) -> Iterator[Block]:
    head = ["engine", "p50 ms", "p95 ms", "p99 ms", "cold ms", "n", "peak RSS", "energy per unit", "status", "remarks"]
    body: list[list[str | Cell | None]] = []
    for row in measured:
        if row["status"] == "absent":
            continue
        latency = row["latency"] or {}
        wall = latency.get("wall") or {}
        batch = "" if row["batch"] == 1 else f", batch {row['batch']}"
        count = wall.get("count")
        body.append(
            [
                Cell(f"{engine_label(row)} {row['precision']}", small=f"{row['scenario']}{batch}, {start_of(row)}"),
                *(_ms(wall.get(key)) for key in ("p50_ms", "p95_ms", "p99_ms")),
                _ms(latency.get("cold_ms")),
                None if count is None else Cell(str(count), count),
                _peak(row),
                _joules(row),
                Cell(badge(NOT_TIMED.get(row["status"], "ok"), KINDS.get(row["status"], ""))),
                remarks(row) if row["status"] == "ok" else row["reason"],
            ]
        )
    yield from [Table(head, body, long=(9,))] if body else []
    absent = absent_lines(measured)
    yield from [Bullets(absent)] if absent else []


def _energy(measured: Sequence[Row], timed: Sequence[Row]) -> Iterator[Block]:
    yield from map(Text, energy_lines(measured))
    items = []
    for row in timed:
        reading = primary_energy(row)
        if reading is not None and row["scenario"] == "answer":
            gross = reading["gross_j_per_unit"]
            value, high = (1e3 * max(0.0, v) for v in (gross, gross + (reading["bound_j_per_unit"] or 0.0)))
            label, text = _name_of_path(row), format_energy(reading)
            items.append(Item(label, value, None, high, text, row["engine"], reading["estimate"]))
    if any(item.estimate for item in items):
        yield Text("Hatched bars are an ESTIMATE: a model, not a measurement.")
    yield from _figures(rows(items, "mJ per answer, gross", "Energy per answer"))


def _memory(timed: Sequence[Row]) -> Iterator[Block]:
    items: dict[str, Item] = {}
    for row in timed:
        memory = row["memory"] or {}
        peak, base = memory.get("peak_rss_bytes"), memory.get("base_rss_bytes") or 0
        if peak and row["scenario"] == "answer":
            text = f"{format_bytes(peak)}, {format_bytes(max(0, peak - base))} above the bare process"
            label = _name_of_path(row)
            items.setdefault(label, Item(label, peak / 2**20, text=text, kind=row["engine"]))
    said = "Peak resident memory of a fresh process that only runs this engine, interpreter and libraries included."
    yield from _figures(rows(list(items.values()), "MiB", "Peak memory"), said)


def _adaptation(timed: Sequence[Row]) -> Iterator[Block]:
    for scenario in ("adapt", "stream"):
        chosen = [row for row in timed if row["scenario"] == scenario and row["stages"]]
        if not chosen:
            continue
        names = list(chosen[0]["stages"])
        body: list[list[str | Cell | None]] = [
            [row_name(row), start_of(row), *(_stage(row["stages"].get(name)) for name in names)] for row in chosen
        ]
        yield Heading(f"{scenario}: {chosen[0]['unit'] or ''}", 3)
        yield Text("Median (95th percentile), ms.", soft=True)
        yield Table(["engine", "from", *(name.replace("_", " ") for name in names)], body, 2)
        yield from _notes(chosen)
    yield from _messages(timed)


def _stage(stage: Mapping[str, Any] | None) -> Cell:
    if stage is None:
        return Cell("not measured")
    return Cell(f"{format_ms(stage['p50_ms'])} ({format_ms(stage['p95_ms'])})", stage["p50_ms"])


def _finetune(timed: Sequence[Row]) -> Iterator[Block]:
    """Fine-tuning on the device beside adaptations by generated parameters."""
    trained = [row for row in timed if row["scenario"] == "finetune"]
    if not trained:
        return
    yield Text(
        f"{trained[0]['unit'] or ''}. An adaptation by generated parameters includes one answer here; network and "
        "cloud are not in it."
    )
    body = [
        [
            f"{_name_of_scenario(row)}{' from pixels' if row['encoder_included'] else ''}",
            _ms(row["latency"]["wall"]["p50_ms"]),
            _joules(row),
            _peak(row),
        ]
        for row in [*trained, *(row for row in timed if row["scenario"] == "adapt")]
    ]
    yield Table(["way", "p50 ms", "energy", "peak RSS"], body)
    yield from _notes(trained[:1])


def _messages(timed: Sequence[Row]) -> Iterator[Block]:
    """Bytes and modelled costs; the same messages cost the same, whatever engine made them."""
    seen: dict[str, list[list[str | Cell | None]]] = {}
    for row in timed:
        if not row["bytes"]:
            continue
        sizes = ""
        for way in ("upload", "download"):
            size = row["bytes"][way]
            sizes += f"{way}: {size['payload_bytes']:,} B payload, {size['message_bytes']:,} B message"
            sizes += f", {size['wire_bytes']:,} B with HTTP. " if "wire_bytes" in size else ". "
        links: list[list[str | Cell | None]] = []
        for link in row["network"]:
            energy = Cell("n/a") if link["energy_j"] is None else _ms(link["energy_j"] * 1e3)
            links.append([link["link"], _ms(link["time_ms"]), energy, link["source"]])
        seen.setdefault(sizes, links)
    if seen:
        yield Heading("Messages", 3)
    for sizes, links in seen.items():
        yield Text(sizes)
        if links:
            yield Text("A model of what these messages would cost on named links; nothing was sent over them:")
            yield Table(["link", "ms", "mJ", "source"], links, long=(3,))


def _series(timed: Sequence[Row]) -> Iterator[Block]:
    for row in timed:
        sustained, stream = row["series"].get("sustained"), row["series"].get("stream")
        if sustained or stream:
            yield Heading(f"{_name_of_scenario(row)}, {_path(row)}", 3)
        if sustained:
            time_s = sustained["time_s"]
            yield Figure(xy("s", "median ms", "Latency over time", [Line("", time_s, sustained["p50_ms"])]))
            heat = [Line("", time_s, sustained["temperature_c"])]
            chart = xy("s", "hottest zone, °C", "Temperature", heat, from_zero=False)
            yield Figure(chart) if chart else Text("This machine shows no temperature.", soft=True)
            clocks = [
                Line(domain, time_s, mhz)
                for domain, mhz in sustained.get("clocks_mhz", {}).items()
                if not domain.startswith("core ")
            ]
            yield from _figures(xy("s", "MHz", "Clocks of GPU and memory", clocks))
            for name, power in row["series"].get("power", {}).items():
                if name != "rapl" and "counter" not in name:
                    drawn = [Line("", power["times_s"], power["power_w"])]
                    yield from _figures(xy("s", f"W, {name} ({power['scope']})", "Power", drawn))
        if stream:
            numbers = list(range(1, len(stream["clip_ms"]) + 1))
            chart = xy("clip", "ms on the device", "Latency of each clip", [Line("", numbers, stream["clip_ms"])])
            yield from _figures(chart)


def _verdicts(measured: Sequence[Row]) -> Iterator[Block]:
    seen: dict[tuple[Any, ...], list[str | Cell | None]] = {}
    for row in measured:
        for verdict in row["verdicts"]:
            figures, limit = verdict["figures"], verdict["limits"]["error"]
            error = figures["error"]
            seen[row["engine"], verdict["role"], verdict["precision"]] = [
                f"{row['engine']} {verdict['role']} {verdict['precision']}",
                Cell("n/a") if error is None else Cell(f"{error:.1e}", error),
                Cell(f"{limit:g}", limit),
                *("" if figures[k] is None else f"{figures[k]:.4g}" for k in ("top1_agreement", "rank_correlation")),
                Cell(badge("right", "good") if verdict["ok"] else badge("WRONG", "bad")),
                "; ".join(verdict["problems"]),
            ]
    if seen:
        yield Text("Outputs against the bundle's reference, before anything was timed.")
        head = ["graph", "relative error", "limit", "same choice", "rank correlation", "result", "problems"]
        yield Table(head, list(seen.values()), long=(6,))


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """The page of two profiles side by side.

    Args:
        comparison: A document of :data:`lit_mmpg.profiling.compare.KIND`.
    """
    return render_page(f"{comparison['a']['bundle']} and {comparison['b']['bundle']}", _comparison(comparison))


def _comparison(comparison: Mapping[str, Any]) -> Iterator[Block]:
    mark = badge("passed", "good") if comparison["passed"] else badge("FAILED", "bad")
    yield Heading(f"{comparison['a']['bundle']} and {comparison['b']['bundle']}", 1, mark)
    sides = [
        [which.upper(), *(comparison[which][k] for k in ("bundle", "name", "machine", "created"))] for which in "ab"
    ]
    yield Table(["", "bundle", "configuration", "machine", "measured"], sides, -1)
    yield Text(f"Limits: {', '.join(comparison['limits']) or 'none'}.")
    yield Bullets(comparison["problems"])
    yield from (Text(f"{remark}.", soft=True) for remark in comparison["remarks"])
    items = []
    for row in comparison["rows"]:
        limited = [name for name, figure in row["figures"].items() if figure["verdict"]]
        for name in dict.fromkeys([*limited, *(n for n in ("p50_ms",) if n in row["figures"])]):
            figure = row["figures"][name]
            low, high = (None if figure[key] is None else figure[key] * 100 for key in ("low", "high"))
            kind = "bad" if figure["verdict"] == "worse" else "even"
            label = f"{row['title']}, {name}"
            items.append(Item(label, figure["change"] * 100, low, high, describe_change(figure), kind))
    yield from _figures(rows(items, "change from A to B, %", "Changes from A to B", intervals=True))
    for row in comparison["rows"]:
        lost = row["status"] == "lost"
        yield Heading(row["title"], 3, badge("lost", "bad") if lost else badge(""))
        yield from (Text(text) for text in (row["reason"], row["unit"]) if text)
        body = []
        for name, figure in row["figures"].items():
            a, b = format_pair(name, figure)
            verdict = figure["verdict"]
            shown = Cell(badge(f"{verdict}: {figure['limit']}", KINDS[verdict])) if verdict else None
            cells = [Cell(a, figure["a"]), Cell(b, figure["b"]), Cell(describe_change(figure), figure["change"])]
            body.append([name, *cells, shown])
        yield Table(["figure", "A", "B", "change", "limit"], body)
        yield from (Text(note, soft=True) for note in row["notes"])
    yield Text(
        "Change: B's figure over A's, less one; in brackets the interval that holds the true change in 95 % of cases. "
        "worse: beyond the limit, and the interval lies on the worse side of zero. unsure: beyond the limit, and the "
        "interval holds zero.",
        soft=True,
    )


def render_boards(boards: Mapping[str, Any]) -> str:
    """The page of one bundle on several boards.

    Args:
        boards: A document of :data:`lit_mmpg.profiling.boards.KIND`.
    """
    return render_page(f"{boards['bundle']} on {len(boards['boards'])} boards", _boards(boards))


def _boards(boards: Mapping[str, Any]) -> Iterator[Block]:
    names = [board["name"] for board in boards["boards"]]
    yield Heading(f"{boards['bundle']} on {len(names)} boards and power modes", 1)
    yield Text(
        f"Task {boards['task']}, checkpoint {boards['checkpoint_digest'][:12]}. Answers alone; energy is gross, per "
        "answered clip, and compared only within one kind of reading."
    )
    head = ["board", "fastest answer", "ms", "least energy", "mJ", "answers per joule"]
    for path in ("features", "pixels"):
        best = []
        for board in boards["boards"]:
            own = [row for row in board["rows"] if row["path"] == path]
            if own:
                fast = min(own, key=lambda row: row["p50_ms"])
                thrifty = min((row for row in own if row["energy_j"]), key=lambda row: row["energy_j"], default=None)
                last = [thrifty["title"], *_thrift(thrifty)] if thrifty else ["not measured", None, None]
                best.append([board["name"], fast["title"], _ms(fast["p50_ms"]), *last])
        if best:
            yield from (Heading(f"From {path}"), Table(head, best))
        yield from _board_charts(boards, path)
    for board in boards["boards"]:
        yield Heading(board["name"])
        yield Text(f"{board['machine']}. Measured {board['created']}, profile {board['digest'][:12]}.", soft=True)
        body = [
            [f"{r['title']} from {r['path']}", *(_ms(r[k]) for k in ("p50_ms", "p95_ms")), *_thrift(r), r["source"]]
            for r in board["rows"]
        ]
        yield Table(["engine", "p50 ms", "p95 ms", "mJ", "answers per joule", "energy by"], body, long=(5,))
        yield Bullets(board["absent"])


def _thrift(row: Row) -> tuple[Cell | None, Cell | None]:
    """Millijoules and answers per joule."""
    if not row["energy_j"]:
        return None, None
    mark = "~" if row["estimate"] else ""
    mj, rate = 1e3 * row["energy_j"], 1 / row["energy_j"]
    return Cell(f"{mark}{mj:.3g}", mj), Cell(mark + _rate(rate), rate)


def _board_charts(boards: Mapping[str, Any], path: str) -> Iterator[Block]:
    """Latency against energy, one chart for each kind of reading: a module's joules are not a whole board's."""
    found = [(b["name"], r) for b in boards["boards"] for r in b["rows"] if r["path"] == path and r["energy_j"]]
    for scope in dict.fromkeys(row["scope"] for _, row in found):
        own = [(name, row) for name, row in found if row["scope"] == scope]
        points = [Point("", "", row["p50_ms"], 1e3 * row["energy_j"]) for _, row in own]
        lines = []
        for board in dict.fromkeys(name for name, _ in own):
            mine = [row for name, row in own if name == board]
            said = [f"{row['title']}, {row['p50_ms']:.4g} ms, {row['energy_j'] * 1e3:.4g} mJ" for row in mine]
            lines.append(Line(board, [r["p50_ms"] for r in mine], [1e3 * r["energy_j"] for r in mine], said))
        front = pareto(points, lower_is_better=True)
        best = [f"{name}: {row['title']}" for (name, row), point in zip(own, points, strict=True) if point in front]
        yield Heading(f"Latency against energy, {scope}", 3)
        chart = xy("median latency, ms", "mJ per answer", "Latency against energy", lines, front=front, log_x=True)
        yield Figure(chart, "Down and to the left is better. The broken line is the Pareto front: no other row is both "
                     f"faster and thriftier than {'; '.join(best)}.")  # fmt: skip
        items = [
            Item(f"{name}: {row['title']}", 1 / row["energy_j"], text=_rate(1 / row["energy_j"]), kind=name,
                 estimate=row["estimate"])
            for name, row in sorted(own, key=lambda entry: entry[1]["energy_j"])
        ]  # fmt: skip
        yield Figure(rows(items, "answers per joule", "Answers per joule"))
