from __future__ import annotations

from lit_mmpg.methods.comparison.table import Row, pool
from lit_mmpg.profiling.benchmarks.verdict_changes import COLUMNS, SAME, bootstrap, changes, sign
from tests.methods.synthetic import cell, seeds


def test_an_interval_says_better_worse_or_undecided() -> None:
    assert [sign(0.1, 0.2, "accuracy"), sign(-0.2, -0.1, "accuracy"), sign(-0.1, 0.1, "accuracy")] == [
        "better",
        "worse",
        "undecided",
    ]
    assert sign(-0.2, -0.1, "t2v/mean_log_rank") == "better" and sign(0.1, 0.2, "t2v/mean_log_rank") == "worse"


def test_published_intervals_stand_beside_those_of_today() -> None:
    rows = {
        "static": Row("static", [cell({"static": v}, seed=s) for s, v in enumerate(seeds(0.6))]),
        "ours": Row("ours", [cell({"ours": v}, seed=s) for s, v in enumerate(seeds(0.7, first=10))]),
    }
    pooled = pool(rows["ours"], "test_unseen", "accuracy", (rows["static"], "test_unseen"))
    assert pooled is not None
    interval = pooled.interval()
    value = {"method": "ours", "split": "test_unseen", "metric": "accuracy_minus_static", **interval._asdict()}
    seen = {**value, "split": "test_seen", "low": -1.0, "high": 1.0}  # another group of devices, never shown
    claim = {"claim": {"id": "beats", "text": "Ours beats."}, "verdict": "holds"}
    earlier = {
        "columns": ["method", "accuracy, %", "minus static, points", "up"],
        "rows": [["ours", "70", "**+10.0 [-1.0, +21.0]**", "1.0 [0.5, 2.0]"], ["gone", "1", "+1 [+0.5, +2]", ""]],
        "verdicts": {"beats": "undecided", "absent": "holds"},
    }
    found = list(changes(earlier, {"values": [value, seen], "verdicts": [claim]}, rows))
    assert [tuple(line) for line in found] == [COLUMNS] * 2
    ours, beats = found
    assert (ours["row"], ours["published"], ours["verdict published"]) == ("ours", "+10.0 [-1.0, +21.0]", "undecided")
    assert ours["verdict now"] == "better" and ours["changed"] == "yes"
    assert f"{100 * interval.low:+.1f}, {100 * interval.high:+.1f}" in ours["now"]
    assert ours[SAME].startswith(ours["now"].partition(" ")[0]) and "[" in ours[SAME]
    assert (beats["row"], beats["verdict published"], beats["verdict now"]) == ("Ours beats.", "undecided", "holds")
    assert beats["changed"] == "yes"
    unpublished = {**earlier, "columns": ["method", "accuracy, %"], "rows": [["ours", "70"]], "verdicts": {}}
    (line,) = changes(unpublished, {"values": [value]}, rows)
    assert line["published"] == "" and line["changed"] == ("no" if line[f"verdict, {SAME}"] == "better" else "yes")
    (line,) = changes(unpublished, {"values": [value]}, {})
    assert line[SAME] == "" and line["changed"] == ""
    assert bootstrap(rows, "gone", "test_unseen", "accuracy", "static") is None
