from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_mmpg.profiling.svg import Bar, Line, bars, lines, share_below, ticks


@given(st.floats(1e-9, 1e12))
def test_ticks_are_few_round_and_reach_the_end(high: float) -> None:
    marks = ticks(high)
    assert marks[0] == 0 and marks[-1] >= high * (1 - 1e-6) and 3 <= len(marks) <= 12
    steps = np.diff(marks)
    assert np.allclose(steps, steps[0], rtol=1e-6)


def test_charts_are_well_formed_whatever_the_labels() -> None:
    items = [Bar("<b>&", 1.0, 2.0, 'p95 "2"', "a"), Bar("x", 0.0, None, "", "b", estimate=True)]
    for text in (bars(items, "ms", "<title>"), lines([Line("a&b", [0, 1], [1.0, None])], "s", "<ms>", "t")):
        ElementTree.fromstring(text)
    assert bars([], "ms", "t") == "" and lines([Line("a", [0.0], [None])], "s", "ms", "t") == ""


def test_length_of_a_bar_is_its_share_of_the_axis() -> None:
    chart = bars([Bar("a", 10.0), Bar("b", 5.0)], "ms", "t")
    long, short = (float(w) for w in re.findall(r'<rect x="[\d.]+" y="\d+" width="([\d.]+)"', chart))
    assert short == pytest.approx(long / 2, rel=1e-3)


def test_a_huge_whisker_does_not_hide_the_bars() -> None:
    calm, wild = (bars([Bar("a", 1.0, high)], "ms", "t") for high in (1.5, 1e6))
    width = re.compile(r'<rect x="[\d.]+" y="\d+" width="([\d.]+)"')
    assert float(width.findall(wild)[0]) > 0.4 * float(width.findall(calm)[0])


def test_share_below_is_the_empirical_distribution() -> None:
    x, y = share_below([3.0, 1.0, 2.0, 2.0])
    assert (x, y) == ([1.0, 2.0, 2.0, 3.0], [25.0, 50.0, 75.0, 100.0])
    x, y = share_below(np.random.default_rng(0).normal(size=10_000).tolist())
    assert len(x) <= 120 and y[-1] == 100 and x == sorted(x)
