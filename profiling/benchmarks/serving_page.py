"""The report of a load test as one self-contained HTML page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lit_mmpg.profiling import svg
from lit_mmpg.texts import escape_html as escape

_STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:#1f2937;background:#fff;margin:0 auto;max-width:84rem;padding:16px}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:1.8em 0 .4em;border-bottom:1px solid #e5e7eb}p{max-width:80ch}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:4px 10px;border-bottom:1px solid #e5e7eb;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{background:#f9fafb}
svg{max-width:100%;height:auto;font:12px system-ui,sans-serif;fill:#374151}
svg .grid{stroke:#e5e7eb}svg .tick{fill:#6b7280}
"""


def page(result: Mapping[str, Any]) -> str:
    """The page of a report of :mod:`lit_mmpg.profiling.benchmarks.serving_load`."""
    machine = result["machine"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>The service under load</title><style>{_STYLE}</style></head><body><h1>The service under load</h1>"
        f"<p>Checkpoint <code>{escape(result['checkpoint'][:12])}</code>, {result['workers']} worker, "
        f"{machine['cores']} cores, "
        f"{'the first of them for the service, the second for the load generator' if result['cores'] else 'shared'}, "
        "load average "
        f"{machine['load_average']:.1f} at the start, torch {escape(machine['torch'])}. Ratios within this run mean "
        "something; rates belong to this machine and hour.</p>"
        f"{_throughput(result)}{_latency(result['latency'])}{_devices(result['devices'])}{_memory(result['memory'])}"
        "</body></html>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{cells}</tr>{body}</table></div>'


def _throughput(result: Mapping[str, Any]) -> str:
    rival = any("litserve" in row["per_s"] for row in result["throughput"].values())
    head = [
        "contexts",
        "batch of 32, ms",
        "bare forward, /s",
        "service, /s",
        "service / forward",
        "by processor time",
        "target",
    ]
    rows = []
    for name, row in result["throughput"].items():
        shape = result["contexts"][name]
        rates = {key: statistics.median(values) for key, values in row["per_s"].items()}
        met = "met" if row["ratio_median"] >= row["target"] else "missed"
        cells = [
            f"{name}: {shape['clips']} clips x {shape['anchors']} anchors, {shape['frames']} frames",
            f"{row['batch_forward_ms']:.1f}",
            f"{rates['forward']:.0f}",
            f"{rates['service']:.0f}",
            f"{row['ratio_median']:.0%} [{row['ratio_low']:.0%}, {row['ratio_high']:.0%}]",
            f"{row['cpu_ratio']:.0%}",
            f"{row['target']:.0%} {met}",
        ]
        if rival:
            busier = row["cpu_ms"]["litserve"] / row["cpu_ms"]["service"]
            cells += [f"{rates['litserve']:.0f}", f"{row['litserve_over_service']:.2f}", f"{busier:.2f}"]
        rows.append(cells)
    head += ["LitServe, /s", "LitServe / service", "its processor time / ours"] if rival else []
    return f"<h2>Throughput against the bare batched forward</h2>{_table(head, rows)}"


def _latency(latency: Mapping[str, Any]) -> str:
    rows = [*latency["rows"], latency["overload"], latency["recovery"]]
    names = [f"{row['load']:.0%}" for row in latency["rows"]] + ["overload, 400%", "right after it, 30%"]
    cells = []
    for name, row in zip(names, rows, strict=True):
        refused = ", ".join(f"{count} x {status}" for status, count in row["refused"].items()) or "none"
        times = [f"{row[key]:.1f}" if key in row else "" for key in ("p50_ms", "p99_ms")]
        quick = f"{row['refusal']['p99_ms']:.1f}" if row["refusal"] else ""
        rates = [f"{row['offered_per_s']:.0f}", f"{row['answered_per_s']:.0f}"]
        cells.append([name, *rates, *times, refused, quick])
    head = ["load", "offered, /s", "answered, /s", "p50, ms", "p99, ms", "refused", "p99 of refusals, ms"]
    quantiles = [("p50", "p50_ms"), ("p99", "p99_ms")]
    under = [row for row in latency["rows"] if "p99_ms" in row]
    chart = svg.lines(
        [svg.Line(name, [r["offered_per_s"] for r in under], [r[key] for r in under]) for name, key in quantiles],
        "offered, requests per second",
        "latency, ms",
        "Latency against offered load",
    )
    return (
        "<h2>Latency against offered load</h2><p>Open loop: a latency counts from the moment at which the request was "
        "due. The load is a share of the saturated throughput.</p>"
        f"{_table(head, cells)}{chart}"
    )


def _devices(devices: Mapping[str, Any]) -> str:
    return (
        f"<h2>{devices['devices']} devices at once</h2><p>{devices['own_and_bit_equal']} of {devices['devices']} got "
        "their own parameters, byte-equal to the computation of their upload alone "
        f"({devices['different_answers']} different answers).</p>"
    )


def _memory(memory: Mapping[str, Sequence[float]]) -> str:
    if not memory["mib"]:
        return ""
    chart = svg.lines(
        [svg.Line("", memory["seconds"], list(memory["mib"]))], "seconds", "resident memory, MiB", "Memory over time"
    )
    return f"<h2>Memory of the service over this run</h2>{chart}"
