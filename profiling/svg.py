"""Small charts as SVG text: bars with whiskers, intervals, and lines. No library, so a board can draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lit_mmpg.texts import escape_html as escape

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#4d7c0f", "#be185d")

_ROW, _TOP, _AXIS, _WIDTH = 26, 6, 34, 420
_LONGEST_WHISKER = 2.0
"""Of the longest bar."""


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Text to its left.
        value: Its length.
        high: End of the whisker, which ``text`` tells, too; None for no whisker.
        text: Text at its end.
        group: Bars of one group share a colour.
        estimate: Drawn hatched.
    """

    label: str
    value: float
    high: float | None = None
    text: str = ""
    group: str = ""
    estimate: bool = False


@dataclass(frozen=True)
class Interval:
    """A point with the ends of its interval (None: not known), on an axis with a marked zero."""

    label: str
    value: float
    low: float | None
    high: float | None
    text: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Line:
    """One line: ``x`` and ``y`` of equal length; a None in ``y`` is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]


def ticks(high: float, count: int = 5, low: float = 0.0) -> list[float]:
    """Round numbers from ``low`` up to at least ``high``."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return [low, low + 1.0]
    rough = span / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def bars(items: Sequence[Bar], unit: str, title: str) -> str:
    """Horizontal bars, one below the other.

    Args:
        items: The bars.
        unit: Text of the axis.
        title: Spoken by screen readers.
    """
    if not items:
        return ""
    # A whisker far longer than every bar would hide them on a common axis: left out, its end stands in the text.
    most = _LONGEST_WHISKER * max(max(item.value for item in items), 1e-12)
    items = [replace(item, high=None) if item.high is not None and item.high > most else item for item in items]
    marks = ticks(max(max(item.value, item.high or 0.0) for item in items))
    groups = list(dict.fromkeys(item.group for item in items))
    left, scale, parts = _rows(items, marks, unit, title)
    parts.append(
        '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="3" height="6" fill="#fff" fill-opacity=".55"/></pattern></defs>'
    )
    for i, item in enumerate(items):
        y = _TOP + i * _ROW + 4
        colour = COLOURS[groups.index(item.group) % len(COLOURS)]
        length = max(1.0, item.value * scale)
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 13}" text-anchor="end">{escape(item.label)}</text>')
        parts.append(
            f'<rect x="{left:.1f}" y="{y}" width="{length:.1f}" height="18" rx="2" fill="{colour}">'
            f"<title>{escape(f'{item.label}: {item.text}')}</title></rect>"
        )
        if item.estimate:
            parts.append(f'<rect x="{left:.1f}" y="{y}" width="{length:.1f}" height="18" fill="url(#hatch)"/>')
        end = left + length
        if item.high is not None and item.high > item.value:
            end = left + item.high * scale
            tip = f"M{end:.1f} {y + 4}V{y + 14}"
            parts.append(f'<path d="M{left + length:.1f} {y + 9}H{end:.1f}{tip}" class="whisker"/>')
        parts.append(f'<text x="{end + 6:.1f}" y="{y + 13}">{escape(item.text)}</text>')
    return "".join([*parts, "</svg>"])


def intervals(items: Sequence[Interval], unit: str, title: str) -> str:
    """Points with their intervals, one below the other, around zero.

    Args:
        items: The points.
        unit: Text of the axis.
        title: Spoken by screen readers.
    """
    if not items:
        return ""
    ends = [0.0] + [v for item in items for v in (item.value, item.low, item.high) if v is not None]
    marks = ticks(max(ends), low=min(ends))
    left, scale, parts = _rows(items, marks, unit, title)
    zero = left - marks[0] * scale
    parts.append(f'<path d="M{zero:.1f} {_TOP}V{_TOP + _ROW * len(items)}" class="whisker"/>')
    for i, item in enumerate(items):
        y = _TOP + i * _ROW + 13
        colour = COLOURS[4] if item.bad else COLOURS[0]
        x = left + (item.value - marks[0]) * scale
        low, high = (None if v is None else left + (v - marks[0]) * scale for v in (item.low, item.high))
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 4}" text-anchor="end">{escape(item.label)}</text>')
        if low is not None and high is not None:
            parts.append(
                f'<path d="M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 5}v10M{high:.1f} {y - 5}v10" stroke="{colour}"/>'
            )
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="{colour}">'
            f"<title>{escape(f'{item.label}: {item.text}')}</title></circle>"
        )
        parts.append(f'<text x="{left + _WIDTH + 8:.1f}" y="{y + 4}">{escape(item.text)}</text>')
    return "".join([*parts, "</svg>"])


def _rows(
    items: Sequence[Bar] | Sequence[Interval], marks: Sequence[float], unit: str, title: str
) -> tuple[float, float, list[str]]:
    """Left end, units of length per unit of the axis, and the beginning of a chart with one row for each item."""
    left = 14 + 6.6 * max(len(item.label) for item in items)
    right = 20 + 6.4 * max(len(item.text) for item in items)
    scale, base = _WIDTH / (marks[-1] - marks[0]), _TOP + _ROW * len(items)
    parts = [_open(left + _WIDTH + right, base + _AXIS, title)]
    for mark in marks:
        x = left + (mark - marks[0]) * scale
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{base}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 14}" text-anchor="middle" class="tick">{mark:g}</text>')
    middle = left + _WIDTH / 2
    parts.append(f'<text x="{middle:.0f}" y="{base + _AXIS - 4}" text-anchor="middle">{escape(unit)}</text>')
    return left, scale, parts


def lines(series: Sequence[Line], x_label: str, y_label: str, title: str, from_zero: bool = True) -> str:
    """Lines over a common axis, with a legend below.

    Args:
        series: The lines; those without a value are left out.
        x_label: Text of the horizontal axis.
        y_label: Text of the vertical axis.
        title: Spoken by screen readers.
        from_zero: Whether the vertical axis starts at 0.
    """
    series = [line for line in series if any(y is not None for y in line.y)]
    if not series:
        return ""
    values = [y for line in series for y in line.y if y is not None]
    xs = [x for line in series for x in line.x]
    y_marks = ticks(max(values), low=0.0 if from_zero else min(values))
    x_marks = ticks(max(xs), low=min(0.0, *xs))
    left, width, height, top = 64.0, 640.0, 240.0, 22.0
    x_scale = (width - left - 12) / (x_marks[-1] - x_marks[0])
    y_scale = (height - top - 8) / (y_marks[-1] - y_marks[0])
    legend = 18 * len(series) if len(series) > 1 or series[0].label else 0
    parts = [_open(width, height + 42 + legend, title)]
    parts.append(f'<text x="4" y="12">{escape(y_label)}</text>')
    for mark in y_marks:
        y = height - (mark - y_marks[0]) * y_scale
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - 12}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" class="tick">{mark:g}</text>')
    for mark in x_marks:
        x = left + (mark - x_marks[0]) * x_scale
        parts.append(f'<text x="{x:.1f}" y="{height + 16}" text-anchor="middle" class="tick">{mark:g}</text>')
    parts.append(f'<text x="{(left + width) / 2:.0f}" y="{height + 34}" text-anchor="middle">{escape(x_label)}</text>')
    for i, line in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        path, pen = [], "M"
        for x_value, y_value in zip(line.x, line.y, strict=True):
            if y_value is None:
                pen = "M"
                continue
            x = left + (x_value - x_marks[0]) * x_scale
            path.append(f"{pen}{x:.1f} {height - (y_value - y_marks[0]) * y_scale:.1f}")
            pen = "L"
        parts.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if legend:
            y = height + 46 + 18 * i
            parts.append(f'<rect x="{left}" y="{y:.0f}" width="14" height="4" fill="{colour}"/>')
            parts.append(f'<text x="{left + 20}" y="{y + 6:.0f}">{escape(line.label)}</text>')
    return "".join([*parts, "</svg>"])


def share_below(samples: Sequence[float], points: int = 120) -> tuple[list[float], list[float]]:
    """Empirical distribution: values and the share (per cent) of samples at or below each."""
    ordered = sorted(samples)
    count = len(ordered)
    index = sorted({round(i * (count - 1) / (points - 1)) for i in range(points)}) if count > points else range(count)
    return [ordered[i] for i in index], [100 * (i + 1) / count for i in index]


def _open(width: float, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )
