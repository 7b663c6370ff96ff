"""Verdicts: what holds, what does not, what is open, and what was not tested."""

from __future__ import annotations

import numpy as np
import pytest

from lit_mmpg.methods.comparison.claims import FAILS, HOLDS, NOT_TESTED, UNDECIDED, judge
from lit_mmpg.methods.comparison.plan import GAP, Claim
from lit_mmpg.methods.comparison.table import Row
from lit_mmpg.metrics.statistics import clustered_mean, holm
from tests.methods.synthetic import cell, labels, merged, seeds

COSTS = {"ours": {"answer_flops": 100.0, "adapt_flops": 160.0}, "static": {"answer_flops": 100.0, "adapt_flops": 0.0}}


def row(name: str, rate: float, first: int = 0, **fields: object) -> Row:
    cells = [cell({name: v}, seed=s, **fields) for s, v in enumerate(seeds(rate, first=first))]  # type: ignore[arg-type]
    return Row(name, cells)


def rows(*made: Row) -> dict[str, Row]:
    return {entry.name: entry for entry in made}


def verdict(claim: Claim, *made: Row, costs: dict = COSTS, n_a: dict | None = None, primary: str = "accuracy"):  # type: ignore[no-untyped-def]
    (found,) = judge((claim,), rows(*made), primary, costs, n_a)
    return found


CLAIM = Claim("c", "ours is better", "ours", ("static",))


def test_a_clear_advantage_holds_and_the_contrary_does_not() -> None:
    good = verdict(CLAIM, row("ours", 0.9), row("static", 0.6, 10))
    assert good.verdict == HOLDS and good.against[0].low > 0 and good.against[0].p_value < 0.05
    bad = verdict(CLAIM, row("ours", 0.6), row("static", 0.9, 10))
    assert bad.verdict == FAILS and bad.against[0].high < 0


def test_no_difference_is_undecided_and_a_margin_can_make_it_hold() -> None:
    ours = row("ours", 0.7)
    same = Row(
        "static", [cell({"static": c.items["ours|test_unseen|accuracy"][::-1].copy()}, seed=c.seed) for c in ours.cells]
    )
    assert verdict(CLAIM, ours, same).verdict == UNDECIDED
    never_worse = Claim("c", "never much worse", "ours", ("static",), margin=-0.3)
    assert verdict(never_worse, ours, same).verdict == HOLDS
    twin = Row("static", [cell({"static": c.items["ours|test_unseen|accuracy"]}, seed=c.seed) for c in ours.cells])
    # Exactly equal values: "better" is refuted (the interval lies at the margin), "never 1 point worse" holds.
    assert verdict(CLAIM, ours, twin).verdict == FAILS
    assert verdict(Claim("c", "t", "ours", ("static",), margin=-0.01), ours, twin).verdict == HOLDS


def test_lower_is_better_turns_the_sign() -> None:
    ours = row("ours", 0.2, metric="t2v/mean_log_rank")
    static = row("static", 0.8, 10, metric="t2v/mean_log_rank")
    found = verdict(CLAIM, ours, static, primary="t2v/mean_log_rank")
    assert found.verdict == HOLDS and found.against[0].advantage == pytest.approx(0.6, abs=0.15)


def test_missing_rows_are_not_tested_even_when_the_rest_holds() -> None:
    claim = Claim("c", "t", "ours", ("static", "tent"))
    found = verdict(claim, row("ours", 0.9), row("static", 0.6, 10))
    assert found.verdict == NOT_TESTED
    assert [entry.verdict for entry in found.against] == [HOLDS, NOT_TESTED]
    assert "tent" in found.against[1].note
    assert verdict(claim, row("ours", 0.6), row("static", 0.9, 10)).verdict == FAILS  # one refutation is enough
    applies_not = verdict(claim, row("ours", 0.9), row("static", 0.6, 10), n_a={"tent": "no norm layer"})
    assert applies_not.verdict == HOLDS and applies_not.against[1].note == "no norm layer"
    assert verdict(CLAIM, row("static", 0.6)).verdict == NOT_TESTED
    assert verdict(claim, row("ours", 0.9), n_a={"tent": "x", "static": "y"}).verdict == NOT_TESTED


def test_holm_is_over_the_rivals_of_a_claim() -> None:
    rivals = [row("static", 0.66, 10), row("tent", 0.69, 30), row("lora", 0.72, 50)]
    ours = row("ours", 0.75, 5)
    claim = Claim("c", "t", "ours", tuple(rival.name for rival in rivals))
    found = verdict(claim, ours, *rivals)
    raw = []
    device, clip = labels()
    mine = np.mean([c.items["ours|test_unseen|accuracy"] for c in ours.cells], 0)
    for rival in rivals:
        theirs = np.mean([c.items[f"{rival.name}|test_unseen|accuracy"] for c in rival.cells], 0)
        raw.append(clustered_mean(mine - theirs, device, clip).p_value())
    assert [entry.p_value for entry in found.against] == pytest.approx(list(holm(raw)))
    assert max(entry.p_value for entry in found.against) > max(raw) - 1e-12


def test_a_condition_on_cost_decides_too() -> None:
    made = row("ours", 0.9), row("static", 0.6, 10)
    cheap = Claim("c", "t", "ours", ("static",), max_device_flops_ratio=1.1, reuse=16)
    assert verdict(cheap, *made).verdict == HOLDS  # 100 + 160 / 16 = 1.10 x
    dear = Claim("c", "t", "ours", ("static",), max_device_flops_ratio=1.1, reuse=8)
    found = verdict(dear, *made)
    assert found.verdict == FAILS and found.against[0].flops_ratio == pytest.approx(1.2)
    assert "once one adaptation serves 16 clips" in found.against[0].note
    greedy = {**COSTS, "ours": {"answer_flops": 111.0, "adapt_flops": 0.0}}
    assert "however many" in verdict(cheap, *made, costs=greedy).against[0].note
    assert verdict(cheap, *made, costs={}).verdict == UNDECIDED


def gap_rows(method: float) -> tuple[Row, Row]:
    static = [
        merged(cell({"static": shifted}, seed=s), cell({"static": clean}, seed=s, split="test_clean"))
        for s, (shifted, clean) in enumerate(zip(seeds(0.4), seeds(0.9, first=40), strict=True))
    ]
    return row("ours", method, 70), Row("static", static)


def test_the_share_of_a_gap_that_is_closed() -> None:
    claim = Claim("g", "half the gap", "ours", ("static",), kind=GAP, share=0.5)
    assert verdict(claim, *gap_rows(0.85)).verdict == HOLDS
    assert verdict(claim, *gap_rows(0.45)).verdict == FAILS
    assert verdict(claim, *gap_rows(0.65)).verdict == UNDECIDED
    ours, static = gap_rows(0.85)
    assert verdict(claim, ours, row("static", 0.4)).verdict == NOT_TESTED  # nobody measured clean data
    assert verdict(claim, static).verdict == NOT_TESTED
