"""Plots as small SVG documents that follow the page's colours, light or dark. Text only, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_mmpg.texts import escape_html as escape

WIDTH = 760
OUTLIER = 3.0
"""How many times as far from zero as the next row a row must lie to be left out of the axis."""
COLOURS = ("var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)")


@dataclass(frozen=True)
class Point:
    """A numbered point: what it costs, and how good it is."""

    number: int
    name: str
    x: float
    y: float
    strong: bool = False


@dataclass(frozen=True)
class Range:
    """A value with its interval."""

    name: str
    value: float
    low: float | None
    high: float | None
    text: str


def _document(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "axis") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover a range."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    start = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(start, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.6g}"


def pareto(
    points: Sequence[Point],
    x_title: str,
    y_title: str,
    lower_is_better: bool,
    x_text: Sequence[tuple[float, str]],
    nothing: str,
) -> str:
    """Quality against cost: up and to the left is better. The line joins the points that no other point beats.

    Args:
        points: The points; their numbers stand in them.
        x_title: What the cost is.
        y_title: What the quality is.
        lower_is_better: Turn the vertical axis round.
        x_text: Ticks of the (logarithmic) cost axis with their text.
        nothing: Text of the tick for a cost of zero, which has a place of its own at the left.
    """
    left, right, top, bottom = 70.0, WIDTH - 20.0, 20.0, 330.0
    zero = any(point.x <= 0 for point in points)
    positive = [point.x for point in points if point.x > 0] or [1.0]
    low, high = math.log10(min(positive)) - 0.25, math.log10(max(positive)) + 0.25
    start = left + (90 if zero else 20)
    sign = -1.0 if lower_is_better else 1.0
    bad, good = min(sign * p.y for p in points), max(sign * p.y for p in points)
    margin = 0.12 * (good - bad) or 0.1
    bad, good = bad - margin, good + margin

    def place(point: Point) -> tuple[float, float]:
        x = left + 35
        if point.x > 0:
            x = start + (math.log10(point.x) - low) / (high - low) * (right - start)
        return x, bottom - (sign * point.y - bad) / (good - bad) * (bottom - top)

    parts = [_line(left, bottom, right, bottom), _line(left, top, left, bottom)]
    for value in ticks(min(sign * bad, sign * good), max(sign * bad, sign * good)):
        y = bottom - (sign * value - bad) / (good - bad) * (bottom - top)
        parts += [_line(left, y, right, y, "grid"), _text(left - 8, y + 4, _number(value), "end")]
    if zero:
        parts.append(_text(left + 35, bottom + 18, nothing))
    for value, text in x_text:
        if low <= math.log10(value) <= high:
            x = start + (math.log10(value) - low) / (high - low) * (right - start)
            parts += [_line(x, bottom, x, bottom + 5), _text(x, bottom + 18, text)]
    parts.append(_text((left + right) / 2, bottom + 40, x_title))
    parts.append(f'<g transform="rotate(-90 16 {(top + bottom) / 2:.0f})">{_text(16, (top + bottom) / 2, y_title)}</g>')
    front = []
    best = -math.inf
    for point in sorted(points, key=lambda p: (max(p.x, 0.0), -sign * p.y)):
        if sign * point.y > best:
            best = sign * point.y
            front.append(place(point))
    parts.append(f'<polyline class="front" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in front)}"/>')
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: not p.strong):
        x, y = place(point)
        exact = (x, y)
        step = 0
        while any(abs(x - a) < 19 and abs(y - b) < 19 for a, b in taken) and step < 40:
            step += 1
            angle = step * 2.4
            x, y = (
                exact[0] + 5 * math.sqrt(step) * 2.2 * math.cos(angle),
                exact[1] + 5 * math.sqrt(step) * math.sin(angle),
            )
            x, y = min(max(x, left + 11), right - 4), min(max(y, top), bottom - 11)
        taken.append((x, y))
        if step:
            parts.append(_line(*exact, x, y, "axis"))
        kind = "dot strong" if point.strong else "dot"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" class="{kind}"><title>{escape(point.name)}</title></circle>'
        )
        parts.append(_text(x, y + 3.5, str(point.number), kind="inside"))
    return _document(bottom + 52, parts, f"{y_title} against {x_title}")


def reach(ranges: Sequence[Range]) -> float:
    """How far from zero an axis should go: a few rows that lie far from all others do not squeeze those."""
    ends = sorted((max(abs(b) for b in (r.value, r.low, r.high) if b is not None) for r in ranges), reverse=True)
    for i in range(len(ends) // 4):
        if ends[i] > OUTLIER * ends[i + 1]:
            return ends[i + 1]
    return ends[0] if ends else 0.0


def forest(ranges: Sequence[Range], title: str, scale: float = 1.0) -> str:
    """Values with their intervals below each other, against zero; more is better. An arrow stands for what is far off.

    Args:
        ranges: From top to bottom.
        title: What the value is.
        scale: Factor of the axis.
    """
    texts = max((len(r.text) for r in ranges), default=0)
    left, right, top, step = 210.0, WIDTH - max(150.0, 20 + 7.0 * texts), 14.0, 26.0
    limit = reach(ranges)
    near = [r for r in ranges if abs(r.value) <= limit]
    bounds = [b * scale for r in near for b in (r.value, r.low, r.high) if b is not None] + [0.0]
    low, high = min(bounds), max(bounds)
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    bottom = top + step * len(ranges)

    def place(value: float) -> float:
        return left + (value * scale - low) / (high - low) * (right - left)

    parts = [_line(left, bottom, right, bottom), _line(place(0), top - 6, place(0), bottom, "zero")]
    for value in ticks(low, high):
        x = left + (value - low) / (high - low) * (right - left)
        parts += [_line(x, top - 6, x, bottom, "grid"), _text(x, bottom + 18, f"{value:+.6g}" if value else "0")]
    for i, entry in enumerate(ranges):
        y = top + (i + 0.5) * step
        sure = entry.low is not None and entry.high is not None
        kind = "even"
        if entry.low is not None and entry.high is not None:
            kind = "better" if entry.low > 0 else "worse" if entry.high < 0 else "even"
        parts.append(_text(left - 10, y + 4, entry.name, "end"))
        if abs(entry.value) > limit:
            tip, back = (left, left + 10) if entry.value < 0 else (right, right - 10)
            parts.append(f'<path d="M{tip:.1f} {y:.1f}L{back:.1f} {y - 5:.1f}V{y + 5:.1f}Z" class="mark {kind}"/>')
        else:
            if sure:
                parts.append(_line(place(entry.low or 0.0), y, place(entry.high or 0.0), y, f"bar {kind}"))
            parts.append(f'<circle cx="{place(entry.value):.1f}" cy="{y:.1f}" r="5" class="mark {kind}"/>')
        parts.append(_text(right + 10, y + 4, entry.text, "start"))
    parts.append(_text((left + right) / 2, bottom + 40, title))
    return _document(bottom + 52, parts, title)


def device_bars(devices: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], y_title: str) -> str:
    """One group of bars per device, one bar per row.

    Args:
        devices: Names of the devices, from left to right.
        series: Row -> its value on each device.
        y_title: What the value is.
    """
    left, right, top, bottom = 60.0, WIDTH - 10.0, 34.0, 270.0
    values = [value for _, row in series for value in row]
    low, high = 0.0, max(values) or 1.0
    parts = []
    for value in ticks(low, high):
        y = bottom - (value - low) / (high - low) * (bottom - top)
        parts += [_line(left, y, right, y, "grid"), _text(left - 8, y + 4, _number(value), "end")]
    slot = (right - left) / len(devices)
    width = 0.84 * slot / len(series)
    for i, (name, row) in enumerate(series):
        for d, value in enumerate(row):
            x = left + d * slot + 0.08 * slot + i * width
            y = bottom - (value - low) / (high - low) * (bottom - top)
            hint = f"{devices[d]}, {name}: {value:.4g}"
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(0.0, bottom - y):.1f}" '
                f'fill="{COLOURS[i % len(COLOURS)]}"><title>{escape(hint)}</title></rect>'
            )
    x = left
    for i, (name, _) in enumerate(series):
        parts.append(f'<rect x="{x:.1f}" y="8" width="12" height="12" fill="{COLOURS[i % len(COLOURS)]}"/>')
        parts.append(_text(x + 17, 18, name, "start"))
        x += 32 + 7.2 * len(name)
    parts.append(_line(left, bottom, right, bottom))
    for d, name in enumerate(devices):
        if len(devices) <= 60:
            place = left + (d + 0.5) * slot
            label = f'<text x="{place:.1f}" y="{bottom + 8:.1f}" text-anchor="end" class="small"'
            parts.append(f'{label} transform="rotate(-60 {place:.1f} {bottom + 8:.1f})">{escape(name)}</text>')
    parts.append(f'<g transform="rotate(-90 14 {(top + bottom) / 2:.0f})">{_text(14, (top + bottom) / 2, y_title)}</g>')
    return _document(bottom + 80, parts, y_title)
