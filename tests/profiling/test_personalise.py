"""The benchmark of ways to personalise: that it runs and judges; its figures are nobody's test."""

from __future__ import annotations

import json

from profiling.benchmarks import personalise


def test_all_ways_are_measured_and_open_ones_named(tmp_path, capsys):
    output = tmp_path / "rows.json"
    folder = tmp_path / "core"
    folder.mkdir()
    personalise.make_bundle("core", folder)
    assert personalise.main(["--bundle", str(folder), "--rounds", "1", "--swaps", "2", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    measured = {row["way"]: row for row in rows if row["engine"] == "onnxruntime"}
    assert set(measured) == {"inputs", "rebind", "reload"}
    for row in measured.values():
        assert 0 < row["load_ms"] < row["swap_ms"] and row["ratio"] > 0 and row["reason"] is None
        assert row["download_bytes"] > 2 * row["parameters"] == 2 * 756
    text = capsys.readouterr().out
    for row in rows:
        if row["engine"] != "onnxruntime" and row["ratio"] is None:
            assert row["reason"] and f"open: {row['engine']}" in text


def test_targets():
    row = personalise.Row("x", "onnxruntime", "inputs", 1, 1, 1.0, 0.05, 0.1, 1.04, 1.0, 1.1)
    assert row.target_met is True
    assert personalise.Row("x", "onnxruntime", "inputs", 1, 1, 1.0, 0.2, 0.1, 1.04, 1.0, 1.1).target_met is False
    assert personalise.Row("x", "onnxruntime", "inputs", 1, 1, 1.0, 0.05, 0.1, 1.2, 1.0, 1.1).target_met is False
    assert personalise.Row("x", "onnxruntime", "reload", 1, 1, 1.0, 0.05, 0.1, 1.2, 1.0, 1.1).target_met is None
