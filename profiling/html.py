"""The pages of a profile and of two side by side: each one HTML file, without scripts and anything from a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_mmpg.profiling import svg
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
)
from lit_mmpg.report import format_bytes
from lit_mmpg.texts import escape_html as escape

Row = Mapping[str, Any]

_STYLE = """
:root{color-scheme:light dark;--fg:#1f2937;--muted:#6b7280;--line:#e5e7eb;--bg:#fff;--head:#f9fafb;--badge:#e5e7eb;
--good:#d1fae5;--bad:#fecaca;--note:#dbeafe;--warn:#fef3c7}
@media(prefers-color-scheme:dark){:root{--fg:#e5e7eb;--muted:#9ca3af;--line:#374151;--bg:#111827;--head:#1f2937;
--badge:#374151;--good:#065f46;--bad:#991b1b;--note:#1e40af;--warn:#78350f}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);margin:0 auto;
max-width:1320px;padding:16px}
h1{font-size:1.6rem;margin:.2em 0}h2{font-size:1.2rem;margin:2em 0 .4em;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.2em 0 .3em}p{margin:.4em 0;max-width:80ch}
.muted{color:var(--muted)}.scroll{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse;font-size:.88rem}th,td{padding:4px 10px;text-align:left;
border-bottom:1px solid var(--line);vertical-align:top}th{background:var(--head);white-space:nowrap}
td.n{text-align:right;white-space:nowrap;
font-variant-numeric:tabular-nums}td.w{min-width:16em}td.s{min-width:17em}td.e{min-width:15em}td b{white-space:nowrap}
.badge{display:inline-block;border-radius:9px;padding:0 8px;font-size:.8rem;background:var(--badge);white-space:nowrap}
.ok,.within{background:var(--good)}.wrong,.failed,.worse,.lost{background:var(--bad)}.compiled{background:var(--note)}
.warn,.unsure{background:var(--warn)}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin:.8em 0}
.card{border:1px solid var(--line);border-radius:8px;padding:8px 14px;
min-width:150px}.card b{display:block;font-size:1.25rem}
svg{max-width:100%;height:auto;font:12px system-ui,sans-serif;fill:var(--fg)}
svg .grid{stroke:var(--line)}svg .tick{fill:var(--muted)}
svg .whisker{stroke:var(--fg);fill:none}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;font-size:.9rem}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:600px){dl{grid-template-columns:1fr}dt{margin-top:.4em}.scroll svg{max-width:none}}
"""


def render(profile: Mapping[str, Any]) -> str:
    """The page.

    Args:
        profile: A document.
    """
    rows: Sequence[Row] = profile["rows"]
    timed = [row for row in rows if row["status"] == "ok" and row["latency"]]
    parts = [_head(profile, rows, timed)]
    parts += [
        _latency(timed),
        _throughput(rows),
        _layers(rows),
        _table(rows),
        _energy(rows, timed),
        _memory(timed),
        _adaptation(timed),
        _finetune(timed),
    ]
    parts += [_series(timed), _verdicts(rows), _absent(profile, rows), _environment(profile), _reading()]
    return _page(f"Profile of {profile['bundle']['path']} on {profile['name']}", parts)


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """The page of two profiles side by side.

    Args:
        comparison: A document of :data:`lit_mmpg.profiling.compare.KIND`.
    """
    badge = (
        '<span class="badge ok">passed</span>' if comparison["passed"] else '<span class="badge worse">FAILED</span>'
    )
    sides = "".join(
        f"<tr><th>{letter.upper()}</th><td>{escape(comparison[letter]['bundle'])}</td>"
        f"<td>{escape(comparison[letter]['name'])}</td><td>{escape(comparison[letter]['machine'] or 'unknown')}</td>"
        f"<td>{escape(comparison[letter]['created'])}</td></tr>"
        for letter in ("a", "b")
    )
    head = "<tr><th></th><th>bundle</th><th>configuration</th><th>machine</th><th>measured</th></tr>"
    problems = "".join(f"<li>{escape(problem)}</li>" for problem in comparison["problems"])
    told = "".join(f"<p class='muted'>{escape(remark)}.</p>" for remark in comparison["remarks"])
    parts = [
        f"<h1>{escape(comparison['a']['bundle'])} and {escape(comparison['b']['bundle'])} {badge}</h1>",
        _scroll(f"<table>{head}{sides}</table>"),
        f"<p>Limits: {escape(', '.join(comparison['limits']) or 'none')}.</p>",
        f"<ul>{problems}</ul>" if problems else "",
        told,
        _change_chart(comparison),
        *(_changes(row) for row in comparison["rows"]),
        "<p class='muted'>Change: B's figure over A's, less one; in brackets the interval that holds the true change "
        "in 95 % of cases. worse: beyond the limit, and the interval lies on the worse side of zero. unsure: beyond "
        "the limit, and the interval holds zero.</p>",
    ]
    return _page(f"{comparison['a']['bundle']} and {comparison['b']['bundle']}", parts)


def _change_chart(comparison: Mapping[str, Any]) -> str:
    items = []
    for row in comparison["rows"]:
        limited = [name for name, figure in row["figures"].items() if figure["verdict"]]
        for name in dict.fromkeys([*limited, *(n for n in ("p50_ms",) if n in row["figures"])]):
            figure = row["figures"][name]
            low, high = (None if figure[key] is None else figure[key] * 100 for key in ("low", "high"))
            bad = figure["verdict"] == "worse"
            label = f"{row['title']}, {name}"
            items.append(svg.Interval(label, figure["change"] * 100, low, high, describe_change(figure), bad))
    return _scroll(svg.intervals(items, "change from A to B, %", "Changes from A to B"))


def _changes(row: Mapping[str, Any]) -> str:
    if row["status"] == "lost":
        return f"<h3>{escape(row['title'])} <span class='badge lost'>lost</span></h3><p>{escape(row['reason'])}</p>"
    body = ""
    for name, figure in row["figures"].items():
        verdict = figure["verdict"]
        badge = f'<span class="badge {verdict}">{verdict}</span> {escape(figure["limit"])}' if verdict else ""
        body += f"<tr><td>{escape(name)}</td>" + "".join(
            f"<td class=n>{text}</td>" for text in (*format_pair(name, figure), escape(describe_change(figure)))
        )
        body += f"<td>{badge}</td></tr>"
    notes = "".join(f"<p class='muted'>{escape(note)}</p>" for note in row["notes"])
    head = "<tr><th>figure</th><th>A</th><th>B</th><th>change</th><th>limit</th></tr>"
    unit = f"<p class='muted'>{escape(row['unit'])}</p>" if row["unit"] else ""
    return f"<h3>{escape(row['title'])}</h3>{unit}{_scroll(f'<table>{head}{body}</table>')}{notes}"


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _name(row: Row, scenario: bool = False) -> str:
    text = f"{engine_label(row)} {row['precision']}"
    text += f" ×{row['batch']}" if row["batch"] > 1 else ""
    return f"{text} {row['scenario']}" if scenario else text


def _name_of_path(row: Row) -> str:
    return _name(row) + (" pixels" if row["encoder_included"] else "")


def _path(row: Row) -> str:
    return "from pixels (frame encoder included)" if row["encoder_included"] else "from features (no frame encoder)"


def _head(profile: Mapping[str, Any], rows: Sequence[Row], timed: Sequence[Row]) -> str:
    environment = profile["environment"]
    machine = environment.get("board") or environment.get("cpu") or environment.get("architecture") or "unknown machine"
    gpu = (environment.get("gpu") or {}).get("name")
    counts = {status: sum(row["status"] == status for row in rows) for status in ("ok", "compiled", "absent")}
    bad = [row for row in rows if row["status"] in ("wrong", "failed")]
    cards = [("rows measured", str(counts["ok"])), ("compiled only", str(counts["compiled"]))]
    cards.append(("cannot run here", str(counts["absent"])))
    answers = [row for row in timed if row["scenario"] == "answer" and row["batch"] == 1]
    for encoder, label in ((False, "features"), (True, "pixels")):
        chosen = [row for row in answers if row["encoder_included"] == encoder]
        if chosen:
            best = min(chosen, key=lambda row: row["latency"]["wall"]["p50_ms"])
            cards.append((f"fastest from {label}: {_name(best)}", f"{format_ms(best['latency']['wall']['p50_ms'])} ms"))
    told = "".join(f'<div class="card"><b>{escape(value)}</b>{escape(label)}</div>' for label, value in cards)
    state = "" if profile["state"] == "complete" else f' <span class="badge warn">{escape(profile["state"])}</span>'
    alarm = ""
    if bad:
        items = "".join(f"<li>{escape(_name(row, True))}: {escape(row['reason'] or '')}</li>" for row in bad)
        alarm = f'<p><span class="badge wrong">not right</span> these rows were not timed:</p><ul>{items}</ul>'
    return (
        f"<h1>{escape(profile['name'])}{state}</h1>"
        f"<p>{escape(machine)}{escape(f', {gpu}' if gpu else '')}. Bundle <b>{escape(profile['bundle']['path'])}</b>, "
        f"task {escape(profile['bundle']['task'])}. Measured {escape(profile['created'])}.</p>"
        f'<div class="cards">{told}</div>{alarm}'
    )


def _latency(timed: Sequence[Row]) -> str:
    parts = []
    for encoder in (False, True):
        chosen = [row for row in timed if row["scenario"] == "answer" and row["encoder_included"] == encoder]
        if not chosen:
            continue
        items = []
        for row in chosen:
            wall = row["latency"]["wall"]
            text = f"{format_ms(wall['p50_ms'])} (p95 {format_ms(wall['p95_ms'])})"
            items.append(svg.Bar(_name(row), wall["p50_ms"], wall["p95_ms"], text, row["engine"]))
        lines = [svg.Line(_name(row), *svg.share_below(row["latency"]["wall"]["samples_ms"])) for row in chosen]
        parts.append(f"<h3>{escape(chosen[0]['unit'] or '')}</h3>")
        parts.append(f"<p class='muted'>{_path(chosen[0])}; bar: median, whisker: 95th percentile.</p>")
        parts.append(_scroll(svg.bars(items, "ms", "Median latency of an answer")))
        chart = svg.lines(lines[:8], "ms", "samples at or below, %", "Distribution of latency")
        parts.append(f"<details><summary>Distribution of the single samples</summary>{_scroll(chart)}</details>")
    return f"<h2>Latency of an answer</h2>{''.join(parts)}" if parts else ""


def _throughput(rows: Sequence[Row]) -> str:
    """Answers per second by mode; a curve of latency against the rate for Server."""
    parts = []
    for mode in ("Offline", "MultiStream", "Server"):
        own = [row for row in rows if (row.get("throughput") or {}).get("mode") == mode]
        known = [row for row in own if row["throughput"]["answers_per_s"] is not None]
        items = [
            svg.Bar(
                _name_of_path(row),
                row["throughput"]["answers_per_s"],
                None,
                f"{row['throughput']['answers_per_s']:,.4g}",
                row["engine"],
            )
            for row in known
        ]
        if own:
            parts.append(f"<h3>{mode}</h3>")
            notes = dict.fromkeys(note for row in own for note in row["notes"])
            parts += [f"<p class='muted'>{escape(note)}.</p>" for note in notes]
            parts.append(_scroll(svg.bars(items, "answers per second", f"Throughput, {mode}")))
        for row in own:
            probes = sorted(row["throughput"].get("probes", ()), key=lambda probe: probe["rate_per_s"])
            if probes:
                rates = [probe["rate_per_s"] for probe in probes]
                label = f"{_name(row)}, {'pixels' if row['encoder_included'] else 'features'}"
                curve = svg.Line(label, rates, [probe["p99_ms"] for probe in probes])
                parts.append(_scroll(svg.lines([curve], "questions per second", "p99, ms", "Latency against the rate")))
    return f"<h2>Throughput</h2>{''.join(parts)}" if any(parts) else ""


def _layers(rows: Sequence[Row]) -> str:
    """The slowest layers of each graph, and the sentence what bounds it."""
    parts = []
    for row in rows:
        found = row["series"].get("layers") if row["status"] == "ok" else None
        for role, graph in (found or {}).get("graphs", {}).items():
            parts.append(f"<h3>{escape(_name(row))}: {escape(role)}, {format_ms(graph['time_ms'])} ms</h3>")
            roof = graph.get("roofline")
            if roof:
                parts.append(
                    f"<p>Bound by <b>{roof['bound']}</b>: {roof['multiply_adds'] / 1e6:,.1f} million multiply-adds "
                    f"alone would take {format_ms(roof['arithmetic_ms'])} ms, {format_bytes(roof['traffic_bytes'])} "
                    f"of memory {format_ms(roof['memory_ms'])} ms.</p>"
                )
                items = [
                    svg.Bar("measured", graph["time_ms"], None, f"{format_ms(graph['time_ms'])} ms", "a"),
                    svg.Bar("arithmetic", roof["arithmetic_ms"], None, f"{format_ms(roof['arithmetic_ms'])} ms", "b"),
                    svg.Bar("memory", roof["memory_ms"], None, f"{format_ms(roof['memory_ms'])} ms", "c"),
                ]
                parts.append(_scroll(svg.bars(items, "ms", f"Ceilings of {role}")))
            layers = sorted(graph["layers"] or (), key=lambda layer: -layer["time_ms"])
            total = sum(layer["time_ms"] for layer in layers)
            items = [
                svg.Bar(
                    f"{layer['operator']} {layer['name']}"[:60],
                    layer["time_ms"],
                    None,
                    f"{format_ms(layer['time_ms'])} ms, {layer['time_ms'] / total:.0%}",
                    layer["operator"],
                )
                for layer in layers[:10]
                if total > 0
            ]
            if items:
                parts.append(f"<p class='muted'>The {len(items)} slowest of {len(layers)} layers.</p>")
                parts.append(_scroll(svg.bars(items, "ms", f"Slowest layers of {role}")))
    return f"<h2>Where the time goes</h2>{''.join(parts)}" if parts else ""


def _table(rows: Sequence[Row]) -> str:
    header = ["engine, scenario", "p50 ms", "p95 ms", "p99 ms", "cold ms", "n", "peak RSS", "energy per unit", "status"]
    body = []
    for row in rows:
        if row["status"] == "absent":
            continue
        latency = row["latency"] or {}
        wall = latency.get("wall") or {}
        reading = primary_energy(row)
        energy = escape(format_energy(reading)) if row["energy"] else ""
        energy += f'<br><span class="muted">{escape(describe_energy(reading))}</span>' if reading else ""
        status = f'<span class="badge {row["status"]}">{escape(NOT_TIMED.get(row["status"], "ok"))}</span>'
        told = remarks(row) if row["status"] == "ok" else row["reason"] or ""
        peak = (row["memory"] or {}).get("peak_rss_bytes")
        batch = "" if row["batch"] == 1 else f", batch {row['batch']}"
        cells = [
            f"<td><b>{escape(engine_label(row))} {row['precision']}</b><br><span class=muted>{row['scenario']}{batch}, "
            f"{'pixels' if row['encoder_included'] else 'features'}</span></td>",
            *(f"<td class=n>{format_ms(wall.get(key))}</td>" for key in ("p50_ms", "p95_ms", "p99_ms")),
            f"<td class=n>{format_ms(latency.get('cold_ms'))}</td><td class=n>{wall.get('count', '')}</td>",
            f"<td class=n>{format_bytes(peak) if peak else ''}</td><td class=e>{energy}</td>",
            f"<td class=s>{status}{f' {escape(told)}' if told else ''}</td>",
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in header)
    table = f"<table><tr>{head}</tr>{''.join(body)}</table>"
    absent = "".join(f"<li>{escape(line)}</li>" for line in absent_lines(rows))
    return (f"<h2>All rows</h2>{_scroll(table)}" if body else "") + (f"<ul>{absent}</ul>" if absent else "")


def _energy(rows: Sequence[Row], timed: Sequence[Row]) -> str:
    lines = energy_lines(rows)
    items, estimates = [], False
    for row in timed:
        reading = primary_energy(row)
        if reading is not None and row["scenario"] == "answer":
            estimates |= reading["estimate"]
            high = reading["gross_j_per_unit"] + (reading["bound_j_per_unit"] or 0.0)
            text = format_energy(reading)
            label = _name_of_path(row)
            items.append(
                svg.Bar(
                    label,
                    max(0.0, reading["gross_j_per_unit"]) * 1e3,
                    high * 1e3,
                    text,
                    row["engine"],
                    reading["estimate"],
                )
            )
    if not lines and not items:
        return ""
    told = "".join(f"<p>{escape(line)}</p>" for line in lines)
    mark = (
        "<p><span class='badge warn'>ESTIMATE</span> hatched bars are a model, not a measurement.</p>"
        if estimates
        else ""
    )
    chart = _scroll(svg.bars(items, "mJ per answer, gross", "Energy per answer")) if items else ""
    return f"<h2>Energy</h2>{told}{mark}{chart}"


def _memory(timed: Sequence[Row]) -> str:
    items, seen = [], set()
    for row in timed:
        memory = row["memory"] or {}
        key = (engine_label(row), row["precision"], row["batch"], row["encoder_included"])
        if memory.get("peak_rss_bytes") and key not in seen and row["scenario"] == "answer":
            seen.add(key)
            label = _name_of_path(row)
            peak = memory["peak_rss_bytes"]
            base = memory.get("base_rss_bytes") or 0
            text = f"{format_bytes(peak)}, {format_bytes(max(0, peak - base))} above the bare process"
            items.append(svg.Bar(label, peak / 2**20, None, text, row["engine"]))
    if not items:
        return ""
    return (
        "<h2>Memory</h2><p class='muted'>Peak resident memory of a fresh process that only runs this engine, "
        f"interpreter and libraries included.</p>{_scroll(svg.bars(items, 'MiB', 'Peak memory'))}"
    )


def _adaptation(timed: Sequence[Row]) -> str:
    parts = []
    for scenario in ("adapt", "stream"):
        rows = [row for row in timed if row["scenario"] == scenario and row["stages"]]
        if not rows:
            continue
        names = list(rows[0]["stages"])
        head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
        body = ""
        for row in rows:
            cells = "".join(f"<td class=n>{_stage(row['stages'].get(name))}</td>" for name in names)
            path = "pixels" if row["encoder_included"] else "features"
            body += f"<tr><td>{escape(_name(row))}</td><td>{path}</td>{cells}</tr>"
        notes = dict.fromkeys(note for row in rows for note in row["notes"])
        told = "".join(f"<p class='muted'>{escape(note)}.</p>" for note in notes)
        parts.append(
            f"<h3>{scenario}: {escape(rows[0]['unit'] or '')}</h3><p class='muted'>Median (95th percentile), ms.</p>"
        )
        parts.append(_scroll(f"<table><tr><th>engine</th><th>from</th>{head}</tr>{body}</table>") + told)
    return f"<h2>Adaptation</h2>{''.join(parts)}{_messages(timed)}" if parts else ""


def _finetune(timed: Sequence[Row]) -> str:
    """Fine-tuning on the device beside adaptations by generated parameters."""
    trained = [row for row in timed if row["scenario"] == "finetune"]
    if not trained:
        return ""
    body = ""
    for row in [*trained, *(row for row in timed if row["scenario"] == "adapt")]:
        path = " from pixels" if row["encoder_included"] else ""
        peak = (row["memory"] or {}).get("peak_rss_bytes")
        reading = primary_energy(row)
        body += (
            f"<tr><td>{escape(_name(row))} {row['scenario']}{path}</td>"
            f"<td class=n>{format_ms(row['latency']['wall']['p50_ms'])}</td><td>{escape(format_energy(reading))} "
            f"<span class=muted>{escape(describe_energy(reading))}</span></td>"
            f"<td class=n>{format_bytes(peak) if peak else ''}</td></tr>"
        )
    head = "<th>way</th><th>p50 ms</th><th>energy</th><th>peak RSS</th>"
    notes = "".join(f"<p class='muted'>{escape(note)}.</p>" for note in trained[0]["notes"])
    return (
        f"<h2>Fine-tuning on the device instead</h2><p>{escape(trained[0]['unit'] or '')}. An adaptation by generated "
        "parameters includes one answer here; network and cloud are not in it.</p>"
        + _scroll(f"<table><tr>{head}</tr>{body}</table>")
        + notes
    )


def _stage(stage: Mapping[str, Any] | None) -> str:
    return f"{format_ms(stage['p50_ms'])} ({format_ms(stage['p95_ms'])})" if stage else "not measured"


def _messages(timed: Sequence[Row]) -> str:
    """Bytes and modelled costs; the same messages cost the same, whatever engine made them."""
    seen: dict[str, str] = {}
    for row in timed:
        if not row["bytes"]:
            continue
        sizes = ""
        for way in ("upload", "download"):
            size = row["bytes"][way]
            sizes += f"{way}: {size['payload_bytes']:,} B payload, {size['message_bytes']:,} B message"
            sizes += f", {size['wire_bytes']:,} B with HTTP. " if "wire_bytes" in size else ". "
        links = "".join(
            f"<tr><td>{escape(link['link'])}</td><td class=n>{format_ms(link['time_ms'])}</td>"
            f"<td class=n>{'n/a' if link['energy_j'] is None else format_ms(link['energy_j'] * 1e3)}</td>"
            f"<td class=w>{escape(link['source'])}</td></tr>"
            for link in row["network"]
        )
        seen.setdefault(sizes, links)
    found = ""
    for sizes, links in seen.items():
        found += f"<p>{escape(sizes)}</p>"
        if links:
            table = f"<table><tr><th>link</th><th>ms</th><th>mJ</th><th>source</th></tr>{links}</table>"
            found += (
                "<p><span class='badge warn'>model</span> what these messages would cost on named links; nothing was "
            )
            found += f"sent over them:</p>{_scroll(table)}"
    return f"<h3>Messages</h3>{found}" if found else ""


def _series(timed: Sequence[Row]) -> str:
    parts = []
    for row in timed:
        title = f"<h3>{escape(_name(row, True))}, {_path(row)}</h3>"
        sustained = row["series"].get("sustained")
        if sustained:
            time_s = sustained["time_s"]
            parts.append(title)
            chart = svg.lines([svg.Line("", time_s, sustained["p50_ms"])], "s", "median ms", "Latency over time")
            parts.append(_scroll(chart))
            heat = svg.lines(
                [svg.Line("", time_s, sustained["temperature_c"])], "s", "hottest zone, °C", "Temperature", False
            )
            parts.append(_scroll(heat) or "<p class='muted'>This machine shows no temperature.</p>")
            clocks = [
                svg.Line(domain, time_s, mhz)
                for domain, mhz in sustained.get("clocks_mhz", {}).items()
                if not domain.startswith("core ")
            ]
            parts.append(_scroll(svg.lines(clocks, "s", "MHz", "Clocks of GPU and memory")))
            for name, power in row["series"].get("power", {}).items():
                if name != "rapl" and "counter" not in name:
                    line = svg.Line("", power["times_s"], power["power_w"])
                    parts.append(_scroll(svg.lines([line], "s", f"W, {name} ({power['scope']})", "Power")))
        stream = row["series"].get("stream")
        if stream:
            numbers = list(range(1, len(stream["clip_ms"]) + 1))
            parts.append(title)
            line = svg.Line("", numbers, stream["clip_ms"])
            parts.append(_scroll(svg.lines([line], "clip", "ms on the device", "Latency of each clip")))
    return f"<h2>As time goes by</h2>{''.join(parts)}" if parts else ""


def _verdicts(rows: Sequence[Row]) -> str:
    seen: dict[tuple[Any, ...], str] = {}
    for row in rows:
        for verdict in row["verdicts"]:
            figures = verdict["figures"]
            key = (row["engine"], verdict["role"], verdict["precision"])
            shares = ["" if figures[k] is None else f"{figures[k]:.4g}" for k in ("top1_agreement", "rank_correlation")]
            badge = '<span class="badge ok">right</span>' if verdict["ok"] else '<span class="badge wrong">WRONG</span>'
            seen[key] = (
                f"<tr><td>{escape(row['engine'])}</td><td>{verdict['role']}</td><td>{verdict['precision']}</td>"
                f"<td class=n>{'n/a' if figures['error'] is None else format(figures['error'], '.1e')}</td>"
                f"<td class=n>{verdict['limits']['error']:g}</td>"
                f"<td class=n>{shares[0]}</td><td class=n>{shares[1]}</td>"
                f"<td>{badge} {escape('; '.join(verdict['problems']))}</td></tr>"
            )
    if not seen:
        return ""
    head = "<th>engine</th><th>graph</th><th>precision</th><th>relative error</th><th>limit</th>"
    head += "<th>same choice</th><th>rank correlation</th><th>result</th>"
    table = _scroll(f"<table><tr>{head}</tr>{''.join(seen.values())}</table>")
    return f"<h2>Right before fast</h2><p>Outputs against the bundle's reference, before anything was timed.</p>{table}"


def _absent(profile: Mapping[str, Any], rows: Sequence[Row]) -> str:
    engines = "".join(
        f"<tr><td>{escape(e['name'])}</td><td class=w>{escape(e['reason'] or 'can run here')}</td></tr>"
        for e in profile["engines"]
    )
    return (
        "<h2>Engines on this machine</h2>" + _scroll(f"<table><tr><th>engine</th><th>here</th></tr>{engines}</table>")
        if engines
        else ""
    )


def _environment(profile: Mapping[str, Any]) -> str:
    environment = dict(profile["environment"])
    environment["digest of the checkpoint"] = profile["bundle"]["checkpoint_digest"]
    environment["training run"] = profile["bundle"]["run_id"]
    items = "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(_value(value))}</dd>"
        for key, value in environment.items()
    )
    return f"<h2>Machine</h2><dl>{items}</dl>"


def _value(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_value(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(_value(v) for v in value) or "none"
    return str(value)


def _reading() -> str:
    return (
        "<h2>How to read this</h2><p>Latency is the synchronised wall clock of one unit, the timer's own cost "
        "subtracted; the first call (cold) stands apart. A row is unstable where the halves of its run differ by more "
        "than 5 %. "
        "Gross energy is what the source read; net is without what idling as long would have taken; ± is the bound of "
        "the sampling error, not of the sensor. What could not be measured says why. Raw samples "
        "are in profile.json.</p>"
    )


def _scroll(content: str) -> str:
    return f'<div class="scroll">{content}</div>' if content else ""
