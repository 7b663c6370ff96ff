"""Charts of a page: rows of bars or intervals, and lines and points over two axes.

SVG whose places are shares of its width, with labels in HTML beside it: text keeps its size on a telephone. No axis and
no whisker is cut; exact values stand beside the bars, or appear where a mark is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from lit_mmpg.texts import Html, html

Show = Callable[[float], str]
"""A value as a text."""

SPREAD = 20.0
"""From how many times the median magnitude on the axis of a chart of rows is logarithmic away from zero."""
_LEAST = 1e-6
"""Share of the largest value below which a logarithmic axis shows nothing finer."""
_PHONE = 300.0
"""Narrowest width of a chart, pixels; points that would touch each other there are drawn apart."""


@dataclass(frozen=True)
class Item:
    """One row of a chart.

    Attributes:
        label: Text before it.
        value: Length of its bar, or place of its point.
        low: Beginning of its whisker or interval; the value itself for None.
        high: The end of that.
        text: Exact values.
        kind: Items of one kind share a colour; ``good``, ``bad`` and ``even`` have their own.
        estimate: Drawn hatched.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    text: str = ""
    kind: str = ""
    estimate: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of the whisker or interval."""
        return self.value if self.low is None else self.low, self.value if self.high is None else self.high


@dataclass(frozen=True)
class Line:
    """One line: ``x`` and ``y`` of equal length; a None in ``y`` is a gap; ``marks``: points alone, by their names."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    marks: Sequence[str] = ()


@dataclass(frozen=True)
class Point:
    """A point with a short text in it and a name that appears where it is touched."""

    text: str
    name: str
    x: float
    y: float
    strong: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``."""
    span = high - low
    if not math.isfinite(span) or span < 1e-300:
        return [low, low + 1.0]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= span / count * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def rows(items: Sequence[Item], unit: str, title: str, intervals: bool = False) -> Html:
    """Bars from zero with whiskers, or points with intervals beside a marked zero, one below the other.

    The axis holds everything. Where a few values are far larger than the others, it is logarithmic away from zero, and
    says so.

    Args:
        items: From top to bottom; nothing is drawn for none.
        unit: Text of the axis.
        title: Spoken by screen readers.
        intervals: Points with intervals.
    """
    if not items:
        return Html()
    ends = [0.0, *(end for item in items for end in (*item.ends, item.value))]
    largest = max(map(abs, ends))
    usual = max(median([abs(item.value) for item in items if item.value] or [1.0]), _LEAST * largest)
    wide = largest > SPREAD * usual
    power = 10.0 ** math.floor(math.log10(usual))
    if wide:
        decades = [power * 10**k for k in range(1 + math.ceil(math.log10(largest / power)))]
        below, above = (
            [d for i, d in enumerate(decades) if far > 0 and (i == 0 or d < 10 * far)]
            for far in (-min(ends), max(ends))
        )
        marks = [-d for d in reversed(below)] + [0.0] + above
        unit += f" (logarithmic beyond {power:g})"
    else:
        marks = ticks(min(ends), max(ends))

    def scaled(value: float) -> float:
        return math.asinh(value / power) if wide else value

    start, span = scaled(marks[0]), scaled(marks[-1]) - scaled(marks[0])

    def place(value: float) -> str:
        return f"{100 * (scaled(value) - start) / span:.2f}%"

    grid = "".join(
        f'<line x1="{place(m)}" x2="{place(m)}" y1="-6" y2="26" class="{"grid" if m else "zero"}"/>' for m in marks
    )
    kinds = list(dict.fromkeys(item.kind for item in items if item.kind not in ("good", "bad", "even")))
    parts = []
    for item in items:
        colour = f"var(--{item.kind})" if item.kind not in kinds else f"var(--c{kinds.index(item.kind) % 8})"
        low, high = item.ends
        drawn = ""
        if intervals:
            drawn += _rule(place(low), place(high), 10, colour) if low < high else ""
            drawn += f'<circle cx="{place(item.value)}" cy="10" r="5" fill="{colour}"/>'
        else:
            left, right = sorted((0.0, item.value), key=scaled)
            width = f"{100 * (scaled(right) - scaled(left)) / span:.2f}%"
            for fill in [colour] + ["url(#hatch)"] * item.estimate:
                drawn += f'<rect x="{place(left)}" y="2" width="{width}" height="16" rx="2" fill="{fill}"/>'
            drawn += _rule(place(low), place(high), 10, "var(--fg)") if low < high else ""
        said = html(f"{item.label}: {item.text}")
        parts.append(
            f'<span class="label">{html(item.label)}</span><svg class="track">{grid}<g><title>{said}</title>'
            f'<rect width="100%" height="20" fill="transparent"/>{drawn}</g></svg>'
            f'<span class="value">{html(item.text)}</span>'
        )
    step = -(-len(marks) // 6)
    shown = [m for i, m in enumerate(marks) if i % step == 0]
    axis = "".join(_tick(place(m), "12", f"{m:g}") for m in shown)
    axis += f'<text x="50%" y="30" class="middle">{html(unit)}</text>'
    return Html(
        f'<div class="rows" role="figure" aria-label="{html(title)}">{HATCH}{"".join(parts)}'
        f'<svg class="track axis">{axis}</svg></div>'
    )


HATCH = (
    '<svg width="0" height="0" class="defs"><defs><pattern id="hatch" width="6" height="6" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="3" height="6" fill="var(--bg)" '
    'fill-opacity=".6"/></pattern></defs></svg>'
)


def _rule(left: str, right: str, y: int, colour: str) -> str:
    """A horizontal line with strokes at its ends."""
    caps = "".join(f'<line x1="{x}" x2="{x}" y1="{y - 5}" y2="{y + 5}"/>' for x in (left, right))
    return f'<g stroke="{colour}" stroke-width="2"><line x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>{caps}</g>'


def _tick(x: str, y: str, text: str, dy: str = "0") -> str:
    share = float(x[:-1])
    side = ' class="first"' if share < 4 else ' class="last"' if share > 96 else ' class="middle"'
    return f'<text x="{x}" y="{y}" dy="{dy}"{side}>{html(text)}</text>'


def pareto(points: Sequence[Point], lower_is_better: bool) -> list[Point]:
    """Points that no other beats in both: ``x`` is better where it is lower, ``y`` as said; from left to right."""
    sign = 1.0 if lower_is_better else -1.0
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, sign * p.y)):
        if not kept or sign * point.y < sign * kept[-1].y:
            kept.append(point)
    return kept


def xy(
    x_label: str,
    y_label: str,
    title: str,
    lines: Sequence[Line] = (),
    points: Sequence[Point] = (),
    front: Sequence[Point] = (),
    log_x: bool = False,
    from_zero: bool = True,
    x_text: Show = "{:g}".format,
    nothing: str = "0",
) -> Html:
    """Lines and points over common axes, with a legend below.

    Args:
        x_label: Text of the horizontal axis.
        y_label: Text of the vertical axis.
        title: Spoken by screen readers.
        lines: The lines; those without a value are left out.
        points: The points. Those that would touch each other are drawn apart, joined to their places.
        front: Points that a broken line joins.
        log_x: Whether the horizontal axis is logarithmic; an ``x`` of zero has a place of its own at the left.
        from_zero: Whether the vertical axis holds 0.
        x_text: Value of the horizontal axis -> text.
        nothing: Text of that place for zero.
    """
    lines = [line for line in lines if any(y is not None for y in line.y)]
    xs = [x for line in lines for x in line.x] + [p.x for p in points]
    ys = [y for line in lines for y in line.y if y is not None] + [p.y for p in points]
    if not ys:
        return Html()
    margin = 0.0 if from_zero else 0.06 * (max(ys) - min(ys)) or 0.05 * abs(ys[0])
    y_marks = ticks(min([0.0] * from_zero + ys) - margin, max(ys) + margin)
    y_span = y_marks[-1] - y_marks[0]
    zero_place = 12.0 if log_x and min(xs) <= 0 else 0.0
    if log_x:
        positive = [x for x in xs if x > 0] or [1.0]
        low, high = math.log10(min(positive)) - 0.15, math.log10(max(positive)) + 0.15
        decades = [f * 10.0**k for k in range(math.floor(low), math.ceil(high)) for f in (1, 2, 5)]
        x_marks = decades[:: 3 if high - low > 2 else 1] if high - low > 0.6 else ticks(10**low, 10**high)
        x_marks = [m for m in x_marks if m > 0 and low <= math.log10(m) <= high] or [min(positive), max(positive)]
    else:
        x_marks = ticks(min(0.0, *xs), max(xs))
        low, high = x_marks[0], x_marks[-1]

    def across(x: float) -> float:
        """Share of the width, per cent."""
        if log_x and x <= 0:
            return zero_place / 2
        return zero_place + (100 - zero_place) * ((math.log10(x) if log_x else x) - low) / (high - low)

    def down(y: float) -> float:
        return 100 * (y_marks[-1] - y) / y_span

    parts = [f'<line x1="0" x2="100%" y1="{down(m):.2f}%" y2="{down(m):.2f}%" class="grid"/>' for m in y_marks]
    places = [(zero_place / 2, nothing)] * bool(zero_place)
    places += [(across(m), x_text(m)) for m in x_marks if not zero_place or across(m) > zero_place + 8]
    parts += [_tick(f"{place:.2f}%", "100%", text, "16") for place, text in places]
    if front:
        parts.append(_path([(across(p.x), down(p.y)) for p in front], "front", "var(--c0)"))
    legend = ""
    for i, line in enumerate(lines):
        colour = f"var(--c{i % 8})"
        placed = [None if y is None else (across(x), down(y)) for x, y in zip(line.x, line.y, strict=True)]
        parts += [] if line.marks else [_path(placed, "line", colour)]
        hover = range(len(placed)) if line.marks else range(0, len(placed), -(-len(placed) // 120))
        for j in hover:
            point = placed[j]
            if point is None:
                continue
            said = f"{line.label}{', ' if line.label else ''}{line.marks[j] if line.marks else x_text(line.x[j])}"
            look = f'r="4" fill="{colour}"' if line.marks else 'r="7" fill="transparent"'
            parts.append(
                f'<circle cx="{point[0]:.2f}%" cy="{point[1]:.2f}%" {look}>'
                f"<title>{html(f'{said}: {line.y[j]:.4g}')}</title></circle>"
            )
        if line.label:
            legend += f'<li><i style="background:{colour}"></i>{html(line.label)}</li>'
    parts += _apart(points, across, down)
    labels = "".join(f'<text x="92%" y="{down(m):.2f}%" dy="4" class="last">{m:g}</text>' for m in y_marks)
    return Html(
        f'<div class="xy" role="figure" aria-label="{html(title)}"><div>{html(y_label)}</div>'
        f'<svg class="y">{labels}</svg><svg class="area">{"".join(parts)}</svg><div class="x">{html(x_label)}</div>'
        f"{f'<ul>{legend}</ul>' if legend else ''}</div>"
    )


def _path(points: Sequence[tuple[float, float] | None], kind: str, colour: str) -> str:
    steps, pen = "", "M"
    for point in points:
        steps += f"{pen}{point[0]:.2f} {point[1]:.2f}" if point else ""
        pen = "L" if point else "M"
    return (
        '<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none">'
        f'<path d="{steps}" class="{kind}" stroke="{colour}" vector-effect="non-scaling-stroke"/></svg>'
    )


def _apart(points: Sequence[Point], across: Callable[[float], float], down: Callable[[float], float]) -> list[str]:
    parts = []
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: not p.strong):
        x, y = across(point.x), down(point.y)
        exact = (x / 100 * _PHONE, y / 100 * _PHONE)
        (dx, dy), step = (0.0, 0.0), 0
        while step < 80 and any(math.dist((exact[0] + dx, exact[1] + dy), other) < 20 for other in taken):
            step += 1
            dx, dy = 10 * math.sqrt(step) * math.cos(2.4 * step), 10 * math.sqrt(step) * math.sin(2.4 * step)
        taken.append((exact[0] + dx, exact[1] + dy))
        kind = "dot strong" if point.strong else "dot"
        # The joining line starts at the exact place; `overflow` shows what lies left of and above it.
        join = f'<line x2="{dx:.1f}" y2="{dy:.1f}" class="join"/>' if step else ""
        parts.append(
            f'<svg x="{x:.2f}%" y="{y:.2f}%" class="point">{join}<g transform="translate({dx:.1f} {dy:.1f})">'
            f'<title>{html(point.name)}</title><circle r="9" class="{kind}"/><text y="3.5" class="inside">'
            f"{html(point.text)}</text></g></svg>"
        )
    return parts


def share_below(samples: Sequence[float], points: int = 120) -> tuple[list[float], list[float]]:
    """Empirical distribution: values and the share (per cent) of samples at or below each."""
    ordered = sorted(samples)
    count = len(ordered)
    index = sorted({round(i * (count - 1) / (points - 1)) for i in range(points)}) if count > points else range(count)
    return [ordered[i] for i in index], [100 * (i + 1) / count for i in index]
