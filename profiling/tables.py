"""The result on the screen: one line per row, in words that say where each figure comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lit_mmpg.report import escape, format_bytes, wide_console
from lit_mmpg.runtime.engines import EngineRow
from lit_mmpg.runtime.engines.cache import Kept

Row = Mapping[str, Any]

NOT_TIMED = {"wrong": "WRONG", "failed": "failed", "absent": "not here", "compiled": "compiled"}


def engine_label(row: Row) -> str:
    """Engine with the options that make it another one, for example ``onnxruntime personalise=rebind``."""
    options = {key: value for key, value in row["options"].items() if key not in ("threads", "device", "cache", "keep")}
    return " ".join([row["engine"], *(f"{key}={value}" for key, value in options.items())])


def row_name(row: Row) -> str:
    """Engine, precision and, of several clips at once, their number: ``onnxruntime fp32 ×4``."""
    size = f" ×{row['batch']}" if row["batch"] > 1 else ""
    return f"{engine_label(row)} {row['precision']}{size}"


def start_of(row: Row) -> str:
    """What the measured path starts from, in a word."""
    return "pixels" if row["encoder_included"] else "features"


def primary_energy(row: Row) -> Mapping[str, Any] | None:
    """The first energy figure that there is: measured before modelled."""
    for reading in row["energy"]:
        if reading["gross_j_per_unit"] is not None:
            return reading
    return None


def format_ms(value: float | None) -> str:
    """Milliseconds with three digits."""
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def format_energy(reading: Mapping[str, Any] | None) -> str:
    """``12.3 mJ (net 4.5) ±0.1``; an estimate carries a tilde."""
    if reading is None:
        return "n/a"
    scale, unit = (1e3, "mJ") if abs(reading["gross_j_per_unit"]) < 1 else (1.0, "J")
    gross, net = reading["gross_j_per_unit"], reading["net_j_per_unit"]
    share = f"{net * scale:.3g}" if abs(net) >= 0.01 * abs(gross) else "under 1 %"
    text = f"{gross * scale:.3g} {unit} (net {share})"
    if reading.get("bound_j_per_unit") is not None:
        text += f" ±{reading['bound_j_per_unit'] * scale:.2g}"
    return f"~{text}" if reading["estimate"] else text


def describe_energy(reading: Mapping[str, Any] | None) -> str:
    """Source and scope; an estimate is called one."""
    if reading is None:
        return ""
    return f"ESTIMATE, {reading['source']}" if reading["estimate"] else f"{reading['source']}, {reading['scope']}"


def flags(row: Row) -> list[str]:
    """What makes a row's figures doubtful."""
    found = []
    latency = row.get("latency")
    if latency and not latency["stable"]:
        found.append(f"unstable: halves differ by {latency['halves'][-1]:.0%}")
    if latency and latency["cut_short"]:
        found.append("few samples")
    if row.get("throttled"):
        found.append("throttled: " + "; ".join(row["throttled"]))
    before, after = (
        ((row.get(key) or {}).get("memory") or {}).get("swap_used_bytes") for key in ("state_before", "state_after")
    )
    if before is not None and after is not None and after > before:
        found.append(f"swapped out {format_bytes(after - before)} meanwhile")
    return found


def remarks(row: Row) -> str:
    """Bytes of the messages, and what makes the figures doubtful."""
    found = flags(row)
    if row.get("bytes"):
        up, down = (format_bytes(row["bytes"][way]["message_bytes"]) for way in ("upload", "download"))
        found.insert(0, f"up {up}, down {down}")
    throughput = row.get("throughput")
    if throughput:
        rate = throughput["answers_per_s"]
        limit = f", p99 <= {format_ms(throughput['p99_limit_ms'])} ms" if "p99_limit_ms" in throughput else ""
        found.insert(0, f"{throughput['mode']}{limit}: {'none' if rate is None else f'{rate:,.4g}'} answers/s")
    personal = row.get("personalisation")
    if personal and personal["baked_ratio"] is not None:
        found.insert(0, f"{personal['baked_ratio']:.3g} x baked ({personal['baked_by']})")
    device = (row.get("latency") or {}).get("device")
    if device:
        found.insert(0, f"GPU alone {format_ms(device['p50_ms'])} ms")
    return "; ".join(found)


def print_document(document: Mapping[str, Any]) -> None:
    """Print a profile."""
    console = wide_console()
    rows: Sequence[Row] = document["rows"]
    table = Table(title=escape(f"{document['name']}: {document['bundle']['path']}"), title_justify="left")
    for name in ("engine", "precision", "batch", "scenario", "path"):
        table.add_column(name, no_wrap=name != "scenario", justify="right" if name == "batch" else "left")
    for name in ("p50 ms", "p95 ms", "cold ms", "peak RSS"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("energy per unit", no_wrap=True)
    table.add_column("remarks", overflow="fold")
    previous = None
    for row in rows:
        if row["status"] == "absent":
            continue
        if previous not in (None, engine_label(row)):
            table.add_section()
        previous = engine_label(row)
        wall = (row["latency"] or {}).get("wall") or {}
        note = remarks(row) if row["status"] == "ok" else f"{NOT_TIMED[row['status']]}: {row['reason']}"
        table.add_row(
            escape(engine_label(row)),
            escape(row["precision"]),
            str(row["batch"]),
            escape(row["scenario"]),
            f"from {start_of(row)}",
            format_ms(wall.get("p50_ms")),
            format_ms(wall.get("p95_ms")),
            format_ms((row["latency"] or {}).get("cold_ms")),
            format_bytes(row["memory"]["peak_rss_bytes"]) if (row["memory"] or {}).get("peak_rss_bytes") else "",
            format_energy(primary_energy(row)) if row["energy"] else "",
            escape(note),
        )
    console.print(table)
    bounds = [f"Where the time goes: {title}, {describe_bound(graph)}" for title, graph in layer_graphs(rows)]
    for line in [
        *personalisation_lines(rows),
        *apart_lines(rows),
        *bounds,
        *stream_memory_lines(rows),
        *absent_lines(rows),
        *energy_lines(rows),
    ]:
        console.print(escape(line), highlight=False)


def describe_change(figure: Mapping[str, Any]) -> str:
    """``+3.2 % [+1.0, +5.4]``."""
    text = f"{figure['change'] * 100:+.1f} %"
    if figure["low"] is None or figure["high"] is None:
        return text
    return f"{text} [{figure['low'] * 100:+.1f}, {figure['high'] * 100:+.1f}]"


def format_pair(name: str, figure: Mapping[str, Any]) -> tuple[str, str]:
    """A's and B's figure with the unit that is in its name."""
    if name.endswith("_bytes"):
        return format_bytes(figure["a"]), format_bytes(figure["b"])
    if name.endswith("_ms"):
        return f"{format_ms(figure['a'])} ms", f"{format_ms(figure['b'])} ms"
    if name.endswith("_j"):
        return f"{figure['a'] * 1e3:.3g} mJ", f"{figure['b'] * 1e3:.3g} mJ"
    return f"{figure['a']:.4g}", f"{figure['b']:.4g}"


def print_comparison(comparison: Mapping[str, Any], shown: Sequence[str]) -> None:
    """Print two profiles side by side.

    Args:
        comparison: The document.
        shown: Figures beside those that have a limit.
    """
    console = wide_console()
    a, b = comparison["a"], comparison["b"]
    table = Table(title=escape(f"A {a['bundle']} ({a['created']}), B {b['bundle']} ({b['created']})"))
    for name in ("row", "figure", "A", "B", "change [95 %]", "verdict"):
        table.add_column(name, justify="right" if name in ("A", "B", "change [95 %]") else "left")
    for row in comparison["rows"]:
        if row["status"] == "lost":
            table.add_row(escape(row["title"]), "", "", "", "", escape(f"LOST: {row['reason']}"))
        title = escape(row["title"])
        for name, figure in row["figures"].items():
            if figure["verdict"] is None and name not in shown:
                continue
            verdict = figure["verdict"] or ""
            verdict = f"{verdict.upper() if verdict == 'worse' else verdict} ({figure['limit']})" if verdict else ""
            table.add_row(title, name, *format_pair(name, figure), escape(describe_change(figure)), verdict)
            title = ""
        table.add_section()
    console.print(table)
    for remark in comparison["remarks"]:
        console.print(f"note: {escape(remark)}", highlight=False)
    for problem in comparison["problems"]:
        console.print(f"FAILED: {escape(problem)}", highlight=False)


def personalisation_lines(rows: Sequence[Row]) -> list[str]:
    """What new parameters cost each engine, at once and from then on: a line for each row that measured it."""
    return [
        f"Personalisation: {engine_label(row)} {row['precision']} from {start_of(row)}: "
        f"{describe_personalisation(row['personalisation'])}"
        for row in rows
        if row.get("personalisation")
    ]


def apart_lines(rows: Sequence[Row]) -> list[str]:
    """Building and copies apart from computing: a line for each engine and precision, of answers to one clip."""
    lines = []
    for row in rows:
        apart = row["stages"] if row["status"] == "ok" and row["scenario"] == "answer" and row["batch"] == 1 else {}
        if "compute" not in apart:
            continue
        parts = ", ".join(f"{name.replace('_', ' ')} {format_ms(part['p50_ms'])}" for name, part in apart.items())
        built = [ms for ms in row.get("build_ms", {}).values() if ms is not None]
        start = f"built in {format_ms(sum(built))} ms" if built else "not built here"
        name = f"{engine_label(row)} {row['precision']} from {start_of(row)}"
        lines.append(f"Apart: {name}: {start}; ms of an answer: {parts}")
    return lines


def stream_memory_lines(rows: Sequence[Row]) -> list[str]:
    """The peak of a process that lived through a whole stream."""
    lines = []
    for row in rows:
        memory = row["memory"] or {}
        if memory.get("clips") and memory.get("peak_rss_bytes"):
            grown, asked = memory["inference_rss_bytes"], memory["workspace_bytes"]
            lines.append(
                f"Memory of a stream of {memory['clips']} clips: {engine_label(row)} {row['precision']} from "
                f"{start_of(row)}: peak {format_bytes(memory['peak_rss_bytes'])}"
                + ("" if grown is None else f", {format_bytes(grown)} above the engines when they were ready")
                + ("" if asked is None else f"; workspace on the accelerator {format_bytes(asked)}")
            )
    return lines


def describe_personalisation(found: Mapping[str, Any]) -> str:
    """A row's personalisation in words, without its engine."""
    first = found["first_right_answer_ms"]
    text = (
        f"{_with_interval(first['median'], first['low'], first['high'])} ms from the bytes of a download "
        f"({format_bytes(found['download_bytes'])}) to the first right answer, by {found['way']}"
    )
    if found["baked_ratio"] is None:
        return f"{text}; no ratio to baked parameters: {found['baked_reason']}"
    ratio = _with_interval(found["baked_ratio"], found["baked_ratio_low"], found["baked_ratio_high"])
    return f"{text}; from then on {ratio} times the inference with baked parameters ({found['baked_by']})"


def _with_interval(middle: float, low: float | None, high: float | None) -> str:
    return f"{middle:.3g}" + ("" if low is None or high is None else f" [{low:.3g}, {high:.3g}]")


def layer_graphs(rows: Sequence[Row]) -> list[tuple[str, Mapping[str, Any]]]:
    """Graphs of the scenario ``layers`` with their titles."""
    return [
        (f"{engine_label(row)} {row['precision']}: {role}", graph)
        for row in rows
        if row["status"] == "ok"
        for role, graph in row["series"].get("layers", {}).get("graphs", {}).items()
    ]


def describe_bound(graph: Mapping[str, Any]) -> str:
    """What bounds a graph, and its slowest layer."""
    text = f"{format_ms(graph['time_ms'])} ms"
    roof = graph.get("roofline")
    if roof:
        text += f", bound by {roof['bound']} (arithmetic alone {format_ms(roof['arithmetic_ms'])} ms, memory alone "
        text += f"{format_ms(roof['memory_ms'])} ms)"
    layers = graph["layers"] or ()
    total = sum(layer["time_ms"] for layer in layers)
    if total > 0:
        slowest = max(layers, key=lambda layer: layer["time_ms"])
        name = slowest["operator"] or slowest["name"]
        text += f"; slowest of {len(layers)} layers: {name}, {slowest['time_ms'] / total:.0%}"
    return text


def print_layers(title: str, graph: Mapping[str, Any], most: int) -> None:
    """Print the slowest layers of a graph.

    Args:
        title: What it is.
        graph: ``time_ms``, ``layers``, perhaps ``roofline``.
        most: So many layers.
    """
    console = wide_console()
    console.print(escape(f"{title}: {describe_bound(graph)}"), highlight=False)
    table = Table()
    for name in ("layer", "operator", "ms", "share"):
        table.add_column(name, overflow="fold", justify="right" if name in ("ms", "share") else "left")
    layers = sorted(graph["layers"] or (), key=lambda layer: -layer["time_ms"])
    total = sum(layer["time_ms"] for layer in layers)
    for layer in layers[:most]:
        share = f"{layer['time_ms'] / total:.0%}" if total > 0 else ""
        table.add_row(escape(layer["name"]), escape(layer["operator"]), format_ms(layer["time_ms"]), share)
    console.print(table)


def absent_lines(rows: Sequence[Row]) -> list[str]:
    """Cells that cannot run here, those with the same reason together."""
    groups: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row["status"] == "absent":
            what = f"{row['precision']} {row['scenario']}{' from pixels' if row['encoder_included'] else ''}"
            groups.setdefault((engine_label(row), row["reason"]), {})[what] = None
    lines = []
    for (engine, reason), cells in groups.items():
        shown = ", ".join(cells) if len(cells) <= 4 else f"{len(cells)} cells ({next(iter(cells))}, ...)"
        lines.append(f"Not here: {engine}: {shown}: {reason}")
    return lines


def energy_lines(rows: Sequence[Row]) -> list[str]:
    """Where the joules come from, and why some are missing: each said once."""
    lines: dict[str, None] = {}
    for row in rows:
        for reading in row["energy"]:
            if reading["gross_j_per_unit"] is not None:
                note = reading["scope_note"] or ""
                kind = "Energy is an ESTIMATE" if reading["estimate"] else "Energy"
                lines[f"{kind} by {reading['source']} ({reading['scope']}): {note}."] = None
                lines |= dict.fromkeys(f"  {note}" for note in reading["notes"])
            elif reading["reason"]:
                lines[f"Not measured: {reading['reason']}."] = None
    return list(lines)


def print_engines(rows: Iterable[EngineRow]) -> None:
    """Print the engines and why this machine cannot run some of them."""
    table = Table(title="engines", title_justify="left")
    for name in ("engine", "what", "precisions", "personal parameters by", "here"):
        table.add_column(name, overflow="fold")
    for row in rows:
        here = "yes" if row.reason is None else f"no: {row.reason}"
        table.add_row(row.name, escape(row.help), ", ".join(row.precisions), ", ".join(row.ways), escape(here))
    wide_console().print(table)


def print_built(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print what became of each engine of a configuration."""
    table = Table(title=title, title_justify="left")
    for name in ("engine", "graph", "precision", "state", "took", "size", "reason"):
        table.add_column(name, overflow="fold", justify="right" if name in ("took", "size") else "left")
    for row in rows:
        took_ms = row["load_ms"] if row["build_s"] is None else row["build_s"] * 1e3
        table.add_row(
            row["engine"],
            row["role"],
            row["precision"],
            row["state"],
            "" if took_ms is None else f"{format_ms(took_ms)} ms",
            "" if row["bytes"] is None else format_bytes(row["bytes"]),
            escape(row["reason"] or ""),
        )
    wide_console().print(table)


def print_kept(found: Sequence[tuple[Kept, str | None]], folder: Path) -> None:
    """Print kept engines, what each was built for, and why it does not fit here."""
    console = wide_console()
    if not found:
        console.print(escape(f"{folder}: nothing is kept; 'lit-mmpg profile engines build' builds"), highlight=False)
        return
    table = Table(title=f"engines kept in {escape(str(folder))}", title_justify="left")
    for name in ("engine", "bundle", "graph", "precision", "built for", "size", "built", "here"):
        table.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for kept, reason in found:
        machine = kept.key.get("machine")
        named = machine.items() if isinstance(machine, Mapping) else [("machine", machine)]
        built_for = [f"{kept.key.get('library')} {kept.key.get('version')}"]
        built_for += [f"{name.replace('_', ' ')} {value}" for name, value in named if value]
        label = (escape(kept.label.get(name, "")) for name in ("engine", "bundle", "role", "precision"))
        here = "fits" if reason is None else f"no: {reason}"
        size = format_bytes(kept.size_bytes)
        table.add_row(*label, escape(", ".join(built_for)), size, kept.built, escape(here))
    console.print(table)
