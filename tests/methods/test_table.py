"""Statistics of the table against plain NumPy, and how often intervals hold the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_mmpg.methods.comparison.plan import Comparison, TrainedRun
from lit_mmpg.methods.comparison.table import NotPaired, Row, aggregate, pool
from lit_mmpg.metrics.statistics import clustered_mean
from tests.methods.synthetic import CLIPS, DEVICES, answers, cell, labels, merged, seeds


def comparison(**fields: object) -> Comparison:
    runs = {"static": TrainedRun("a"), "ours": TrainedRun("b", also={"other_device": "shuffled"})}
    return Comparison(Path("c.yaml"), (0, 1, 2), **{"runs": runs, **fields})  # type: ignore[arg-type]


def test_seeds_are_averaged_before_the_interval() -> None:
    values = seeds(0.7)
    pooled = pool(Row("ours", [cell({"m": v}, seed=s) for s, v in enumerate(values)]), "test_unseen", "accuracy")
    assert pooled is not None and pooled.per_seed == tuple(v.mean() for v in values)
    np.testing.assert_allclose(pooled.values, np.mean(values, axis=0))
    device, clip = labels()
    assert pooled.interval() == clustered_mean(np.mean(values, axis=0), device, clip).interval()
    assert pooled.interval().value == pytest.approx(np.mean(values))


def test_other_devices_in_every_seed_are_other_clusters() -> None:
    values = seeds(0.7)
    same = [cell({"m": v}, seed=s) for s, v in enumerate(values)]
    other = [cell({"m": v}, seed=s, data=f"data{s}") for s, v in enumerate(values)]
    together, apart = (pool(Row("ours", cells), "test_unseen", "accuracy") for cells in (same, other))
    assert together is not None and apart is not None
    assert len(np.unique(together.device)) == DEVICES and len(np.unique(apart.device)) == 3 * DEVICES
    assert len(np.unique(apart.clip)) == CLIPS  # the clips are the same
    assert apart.values.mean() == pytest.approx(together.values.mean())


def test_macro_and_worst_decile_equal_numpy() -> None:
    values = answers(0.6, 5, spread=0.2)
    pooled = pool(Row("ours", [cell({"m": values})]), "test_unseen", "accuracy")
    assert pooled is not None
    means = np.sort(values.reshape(DEVICES, CLIPS).mean(1))
    assert pooled.macro().value == pytest.approx(means.mean())
    assert pooled.worst_decile(False).value == pytest.approx(means[0])  # a tenth of 12 devices is one
    assert pooled.worst_decile(True).value == pytest.approx(means[-1])
    _, low, high, _ = pooled.worst_decile(False)
    assert low <= means[0] <= high <= means[3]


def test_a_paired_difference_needs_the_same_items() -> None:
    ours, fewer = cell({"m": answers(0.7, 0)}), cell({"s": answers(0.7, 0)[:50]})
    with pytest.raises(NotPaired, match="different items"):
        pool(Row("ours", [ours]), "test_unseen", "accuracy", (Row("static", [fewer]), "test_unseen"))
    assert pool(Row("ours", [ours]), "test_seen", "accuracy") is None


def test_rows_are_compared_seed_by_seed_whatever_is_finished() -> None:
    ours, theirs = seeds(0.8, first=10), seeds(0.6)
    full = Row("static", [cell({"s": v}, seed=s) for s, v in enumerate(theirs)])
    part = Row("ours", [cell({"o": ours[s]}, seed=s) for s in (2, 0)])
    for row, other, sign in ((part, full, 1), (full, part, -1)):
        gain = pool(row, "test_unseen", "accuracy", (other, "test_unseen"))
        assert gain is not None
        assert sorted(gain.per_seed) == pytest.approx(sorted(sign * (ours[s] - theirs[s]).mean() for s in (0, 2)))
    later = Row("ours", [cell({"o": ours[0]}, seed=7)])
    with pytest.raises(NotPaired, match="ours and static have no finished seed in common"):
        pool(later, "test_unseen", "accuracy", (full, "test_unseen"))


def test_a_row_that_draws_nothing_is_held_against_every_seed() -> None:
    fixed, drawn = answers(0.8, 9), seeds(0.6)
    static = Row("static", [cell({"s": v}, seed=s) for s, v in enumerate(drawn)])
    gain = pool(Row("ridge", [cell({"r": fixed})], once=True), "test_unseen", "accuracy", (static, "test_unseen"))
    assert gain is not None and gain.per_seed == pytest.approx([fixed.mean() - v.mean() for v in drawn])


def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says() -> None:
    """Devices and clips both matter: 200 worlds in which the true difference is 0.3."""
    device, clip = labels()
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        shared = rng.normal(size=DEVICES)[device] + rng.normal(size=CLIPS)[clip]
        own = 0.3 + 0.5 * rng.normal(size=DEVICES)[device] + 0.3 * rng.normal(size=CLIPS)[clip]
        noise = 0.5 * rng.normal(size=(2, len(device)))
        rows = (Row("a", [cell({"a": shared + own + noise[0]})]), Row("b", [cell({"b": shared + noise[1]})]))
        gain = pool(rows[0], "test_unseen", "accuracy", (rows[1], "test_unseen"))
        assert gain is not None
        _, low, high, _ = gain.interval()
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_controls_keep_their_own_rows_and_reference_is_named() -> None:
    static = [cell({"static": v}, seed=s) for s, v in enumerate(seeds(0.6))]
    ours = [
        merged(
            cell({"own": a, "shuffled": b}, seed=s),
            cell({"own": b, "shuffled": a}, seed=s, split="test_seen"),
        )
        for s, (a, b) in enumerate(zip(seeds(0.8, first=10), seeds(0.5, first=20), strict=True))
    ]
    rows = aggregate(comparison(), {"static": static, "ours": ours})
    by = {(r["method"], r["split"], r["metric"]): r for r in rows}
    assert by["other_device", "test_unseen", "accuracy"]["value"] == pytest.approx(np.mean(seeds(0.5, first=20)))
    assert by["ours", "test_seen", "accuracy"]["value"] == pytest.approx(np.mean(seeds(0.5, first=20)))
    gain = by["ours", "test_unseen", "accuracy_minus_static"]
    assert gain["value"] == pytest.approx(np.mean(seeds(0.8, first=10)) - np.mean(seeds(0.6)))
    assert ("static", "test_unseen", "accuracy_minus_static") not in by
    assert len(by["ours", "test_unseen", "accuracy"]["per_seed"]) == 3
    assert by["other_device", "test_unseen", "accuracy"]["upload_bytes"] == 100.0
