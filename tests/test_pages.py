"""Charts and tables of pages: nothing cut, well formed whatever the labels, exact values to touch and to sort by."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lit_mmpg.pages.blocks import Cell, Figure, Heading, Table, Text, markdown, render
from lit_mmpg.pages.charts import Item, Line, Point, pareto, rows, share_below, ticks, xy

WIDTH = re.compile(r'<rect x="([-\d.]+)%" y="2" width="([-\d.]+)%"')
WHISKER = re.compile(r'<line x1="([-\d.]+)%" x2="([-\d.]+)%" y1="10"')
POINT = re.compile(r'<circle cx="([-\d.]+)%"')


@given(st.floats(-1e3, 1e3), st.floats(1e-9, 1e12))
def test_ticks_are_few_round_and_reach_both_ends(share: float, span: float) -> None:
    low, near = share * span, 1e-6 * span
    marks = ticks(low, low + span)
    assert marks[0] <= low + near and marks[-1] >= low + span - near and 3 <= len(marks) <= 12
    assert np.allclose(np.diff(marks), marks[1] - marks[0], rtol=1e-3)


def test_charts_are_well_formed_whatever_the_labels() -> None:
    items = [Item("<b>&", 1.0, None, 2.0, 'p95 "2"', "a"), Item("x", 0.0, kind="b", estimate=True)]
    lines, points = [Line("a&b", [0, 1], [1.0, None]), Line("<i>", [1], [1], ["&"])], [Point("1", "<u>", 0.0, 3.0)]
    for chart in (rows(items, "<ms>", "<title>"), xy("s", "<ms>", "t", lines, points, points, log_x=True)):
        ElementTree.fromstring(chart)
    assert rows([], "ms", "t") == "" and xy("s", "ms", "t", [Line("a", [0.0], [None])]) == ""
    assert "<figure" not in render("t", [Figure(rows([], "ms", "t"), "nothing")])


def test_length_of_a_bar_is_its_share_of_the_axis() -> None:
    long, short = (float(w) for _, w in WIDTH.findall(rows([Item("a", 10.0), Item("b", 5.0)], "ms", "t")))
    assert short == pytest.approx(long / 2, rel=1e-2)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.floats(0, 1e6), st.booleans())
@example([1.0, -10.0, -201.0], 0.0, False)  # the smallest value alone on its side of zero, a tenth of a decade
@example([-1.0, 10.0, 201.0], 0.0, True)
def test_no_axis_and_no_whisker_is_cut(values: list[float], more: float, intervals: bool) -> None:
    chart = rows([Item(str(v), v, v - more, v + more) for v in values], "ms", "t", intervals)
    ends = [(float(a), float(b)) for a, b in WHISKER.findall(chart)]
    drawn = [place for pair in ends for place in pair] + [float(x) for x in POINT.findall(chart)]
    drawn += [end for x, width in WIDTH.findall(chart) for end in (float(x), float(x) + float(width))]
    assert drawn and all(-0.02 <= place <= 100.02 for place in drawn) and all(a <= b for a, b in ends)
    # One whisker each, unless it is too short to be one.
    assert len(ends) == sum(v - more < v + more for v in values)


def test_a_row_far_off_does_not_squeeze_the_others() -> None:
    near = [Item(f"row{i}", 0.01 * i, 0.01 * i - 0.01, 0.01 * i + 0.01) for i in range(1, 5)]
    far = Item("far", -3.0, -4.0, -2.0)
    calm, wild = (rows(items, "t", "t", intervals=True) for items in (near, [*near, far]))
    places = [float(x) for x in POINT.findall(wild)]
    assert places[4] < 30 and places[3] - places[0] > 10  # on a linear axis: 0.7
    assert "logarithmic beyond" in wild and "logarithmic" not in calm


@given(st.floats(-6, 6), st.floats(0, 5))
def test_a_logarithmic_axis_has_marks_whatever_its_range(start: float, decades: float) -> None:
    ends = [10.0**start, 10.0 ** (start + decades)]
    drawn = str(xy("x", "y", "t", points=[Point("", "p", x, 1.0) for x in ends], log_x=True, x_text="mark {:g}".format))
    assert "mark " in drawn and "mark 0<" not in drawn
    ElementTree.fromstring(f"<p>{drawn}</p>")


def test_points_that_coincide_are_drawn_apart() -> None:
    points = [Point(str(i), f"row {i}", 0.0, 0.5) for i in range(1, 9)]
    chart = xy("cost", "quality", "t", points=points, log_x=True)
    places = [tuple(map(float, p)) for p in re.findall(r'<g transform="translate\((\S+) (\S+)\)"><title>', chart)]
    assert len(places) == 8 and all(math.dist(a, b) >= 19.9 for i, a in enumerate(places) for b in places[:i])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1), st.booleans())
def test_the_front_is_what_nothing_beats(places: list[tuple[int, int]], lower: bool) -> None:
    worse: Callable[[int, int], bool] = (lambda a, b: a >= b) if lower else (lambda a, b: a <= b)
    points = [Point("", str(i), x, y) for i, (x, y) in enumerate(places)]
    front = {(p.x, p.y) for p in pareto(points, lower)}
    beaten = {(x, y) for x, y in places for a, b in places if (a, b) != (x, y) and x >= a and worse(y, b)}
    assert front == set(places) - beaten


def test_share_below_is_the_empirical_distribution() -> None:
    x, y = share_below([3.0, 1.0, 2.0, 2.0])
    assert (x, y) == ([1.0, 2.0, 2.0, 3.0], [25.0, 50.0, 75.0, 100.0])
    x, y = share_below(np.random.default_rng(0).normal(size=10_000).tolist())
    assert len(x) <= 120 and y[-1] == 100 and x == sorted(x)


def test_a_table_holds_exact_values_and_says_the_same_in_markdown() -> None:
    rows_ = [["a_b<", Cell("1.2 k", 1234.5, "#x"), None]]
    blocks = [Heading("<h>"), Text("t"), Table(["n", ("v", "why")], rows_), Table(["empty"], [])]
    page = render("t", blocks)
    assert 'data-v="1234.5" title="1234.5"><a href="#x">1.2 k</a>' in page and 'title="why"' in page
    assert "a_<wbr>b&lt;" in page and page.count("<table>") == 1
    assert markdown(blocks) == "## <h>\n\nt\n\n| n | v |\n| --- | --- |\n| a_b< | 1.2 k |  |\n"
