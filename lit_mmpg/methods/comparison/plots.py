"""The plots of the report."""

from __future__ import annotations

from lit_mmpg.methods.comparison import svg
from lit_mmpg.methods.comparison.results import Results
from lit_mmpg.methods.comparison.table import amortised, lower_is_better
from lit_mmpg.methods.comparison.view import SHOWN_REUSE
from lit_mmpg.report import format_row
from lit_mmpg.tasks import metric_of

BARS = 3
"""Rows in the plot of devices."""


def highlighted(results: Results) -> list[str]:
    """The reference and the methods of the claims."""
    names = [results.comparison.reference, *(claim.method for claim in results.comparison.claims)]
    found = [name for name in dict.fromkeys(names) if name in results.names]
    return found or results.names[:1]


def plots(results: Results) -> list[tuple[str, str, str]]:
    """Heading, explanation and SVG of each plot."""
    found = [_differences(results), _bytes(results), _time(results), _devices(results)]
    return [plot for plot in found if plot is not None]


def _points(results: Results, cost: dict[str, float | None]) -> list[svg.Point]:
    strong = highlighted(results)
    points = []
    for i, name in enumerate(results.names, 1):
        row, x = results.find(name, results.splits[0], results.primary), cost.get(name)
        if row is not None and x is not None:
            points.append(svg.Point(i, name, x, _scale(results) * row["value"], name in strong))
    return points


def _scale(results: Results) -> float:
    return 100.0 if metric_of(results.primary).percent else 1.0


def _unit(results: Results) -> str:
    known = metric_of(results.primary)
    return f"{known.title} (lower is better)" if known.lower_is_better else known.title


def _bytes(results: Results) -> tuple[str, str, str] | None:
    cost = {
        name: (own.get("upload_bytes") or 0.0) + (own.get("download_bytes") or 0.0)
        for name, own in results.costs.items()
    }
    points = _points(results, dict(cost))
    if not any(point.x for point in points):
        return None
    text = [(2.0**k, f"{2 ** (k - 10)} KiB" if k >= 10 else f"{2**k} B") for k in range(5, 31, 1)]
    picture = svg.pareto(
        points, "bytes up and down, of one adaptation", _unit(results), lower_is_better(results.primary), text, "none"
    )
    return (
        "Quality against bytes",
        "Each number is a row of the table. Up and to the left is better; the line joins the rows that no other row "
        "beats in both. Rows that send nothing stand at the left.",
        picture,
    )


def _time(results: Results) -> tuple[str, str, str] | None:
    cost = {name: amortised(own, "s", SHOWN_REUSE) for name, own in results.costs.items()}
    points = _points(results, cost)
    if not points:
        return None
    text = [(f * 10.0**k, _duration(f * 10.0**k)) for k in range(-6, 4) for f in (1, 2, 5)]
    picture = svg.pareto(
        points,
        f"device time per answered clip, one adaptation serving {SHOWN_REUSE} clips",
        _unit(results),
        lower_is_better(results.primary),
        text,
        "0",
    )
    return (
        "Quality against device time",
        "From pixels to answer on this machine's processor, one thread; see the notes on costs for what is included.",
        picture,
    )


def _duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1e3:g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:g} µs"


def _differences(results: Results) -> tuple[str, str, str] | None:
    split, reference = results.splits[0], results.comparison.reference
    sign = -1.0 if lower_is_better(results.primary) else 1.0
    ranges = []
    for name in results.names:
        row = results.find(name, split, f"{results.primary}_minus_{reference}")
        if row is None:
            continue
        ends = sorted(sign * row[key] for key in ("low", "high")) if row["low"] is not None else [None, None]
        shown = {**row, "value": sign * row["value"], "low": ends[0], "high": ends[1]}
        ranges.append(svg.Range(name, shown["value"], ends[0], ends[1], format_row(shown)))
    if not ranges:
        return None
    ranges.sort(key=lambda entry: -entry.value)
    known = metric_of(results.primary)
    unit = f"points of {known.title.removesuffix(', %')}" if known.percent else known.title
    unit += ", turned so that right is better" if known.lower_is_better else ""
    return (
        f"Differences from {reference}",
        "Right of the line is better. Bars are 95 % intervals of the difference, item by item; grey where they hold 0. "
        "An arrow: further off than the axis goes.",
        svg.forest(ranges, f"advantage over {reference}, {unit}", _scale(results)),
    )


def _devices(results: Results) -> tuple[str, str, str] | None:
    names = [name for name in highlighted(results) if name in results.devices]
    others = sorted(set(results.devices) - set(names), key=results.names.index)
    controls = [name for name in others if results.settings.get(name) == "control"]
    names = (names + controls + [name for name in others if name not in controls])[:BARS]
    if not names:
        return None
    order = results.devices[names[0]].names
    series = []
    for name in names:
        known = dict(zip(results.devices[name].names, results.devices[name].values, strict=True))
        if set(known) != set(order):
            continue
        series.append((name, [_scale(results) * known[device] for device in order]))
    return (
        "Every device",
        f"Sorted by {names[0]}, from the worst device to the best.",
        svg.device_bars(order, series, _unit(results)),
    )
