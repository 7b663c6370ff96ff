"""The page of a load test."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from lit_mmpg.pages.blocks import Block, Cell, Figure, Heading, Table, Text, render
from lit_mmpg.pages.charts import Line, xy

Cells = list[str | Cell | None]


def page(result: Mapping[str, Any]) -> str:
    """The page of a report of :mod:`lit_mmpg.profiling.benchmarks.serving_load`."""
    return render("The service under load", _blocks(result))


def _blocks(result: Mapping[str, Any]) -> Iterator[Block]:
    machine, devices, memory = result["machine"], result["devices"], result["memory"]
    yield Heading("The service under load", 1)
    shared = "the first of them for the service, the second for the load generator" if result["cores"] else "shared"
    yield Text(
        f"Checkpoint {result['checkpoint'][:12]}, {result['workers']} worker, {machine['cores']} cores, {shared}, "
        f"load average {machine['load_average']:.1f} at the start, torch {machine['torch']}. Ratios "
        "within this run mean something; rates belong to this machine and hour."
    )
    yield from (Heading("Throughput against the bare batched forward"), _throughput(result))
    yield from (Heading("Latency against offered load"), *_latency(result["latency"]))
    yield Heading(f"{devices['devices']} devices at once")
    yield Text(
        f"{devices['own_and_bit_equal']} of {devices['devices']} got their own parameters, byte-equal to the "
        f"computation of their upload alone ({devices['different_answers']} different answers)."
    )
    if memory["mib"]:
        yield Heading("Memory of the service over this run")
        line = Line("", memory["seconds"], list(memory["mib"]))
        yield Figure(xy("seconds", "resident memory, MiB", "Memory over time", [line]))


def _number(value: float | None, form: str) -> Cell | None:
    return None if value is None else Cell(format(value, form), value)


def _throughput(result: Mapping[str, Any]) -> Table:
    rival = any("litserve" in row["per_s"] for row in result["throughput"].values())
    head = ["contexts", "batch of 32, ms", "bare forward, /s", "service, /s", "service / forward", "by processor time"]
    head += ["target", *(["LitServe, /s", "LitServe / service", "its processor time / ours"] if rival else [])]
    rows = []
    for name, row in result["throughput"].items():
        shape = result["contexts"][name]
        rates = {key: statistics.median(values) for key, values in row["per_s"].items()}
        met = "met" if row["ratio_median"] >= row["target"] else "missed"
        cells: Cells = [
            f"{name}: {shape['clips']} clips x {shape['anchors']} anchors, {shape['frames']} frames",
            _number(row["batch_forward_ms"], ".1f"),
            *(_number(rates[key], ".0f") for key in ("forward", "service")),
            Cell(
                f"{row['ratio_median']:.0%} [{row['ratio_low']:.0%}, {row['ratio_high']:.0%}]",
                exact=row["ratio_median"],
            ),
            _number(row["cpu_ratio"], ".0%"),
            f"{row['target']:.0%} {met}",
        ]
        if rival:
            busier = row["cpu_ms"]["litserve"] / row["cpu_ms"]["service"]
            cells += [_number(rates["litserve"], ".0f"), _number(row["litserve_over_service"], ".2f")]
            cells += [_number(busier, ".2f")]
        rows.append(cells)
    return Table(head, rows)


def _latency(latency: Mapping[str, Any]) -> Iterator[Block]:
    yield Text(
        "Open loop: a latency counts from the moment at which the request was due. The load is a share of the "
        "saturated throughput."
    )
    overloads = sorted(latency["overloads"], key=lambda row: row["answered_of_saturated"])
    typical = overloads[len(overloads) // 2]
    names = [f"{row['load']:.0%}" for row in latency["rows"]] + ["overload, 400%", "right after it, 30%"]
    rows = []
    for name, row in zip(names, [*latency["rows"], typical, latency["recovery"]], strict=True):
        refused = ", ".join(f"{count} x {status}" for status, count in row["refused"].items()) or "none"
        cells: Cells = [name, *(_number(row[key], ".0f") for key in ("offered_per_s", "answered_per_s"))]
        cells += [_number(row.get(key), ".1f") for key in ("p50_ms", "p99_ms")]
        rows.append([*cells, refused, _number(row["refusal"]["p99_ms"], ".1f") if row["refusal"] else None])
    yield Table(["load", "offered, /s", "answered, /s", "p50, ms", "p99, ms", "refused", "p99 of refusals, ms"], rows)
    under = [row for row in latency["rows"] if "p99_ms" in row]
    offered = [row["offered_per_s"] for row in under]
    lines = [Line(name, offered, [row[f"{name}_ms"] for row in under]) for name in ("p50", "p99")]
    yield Figure(xy("offered, requests per second", "latency, ms", "Latency against offered load", lines))
