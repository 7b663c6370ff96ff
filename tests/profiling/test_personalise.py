"""The benchmark of ways to personalise: that it runs and judges; its figures are nobody's test."""

from __future__ import annotations

import json

from lit_mmpg.profiling.benchmarks import personalise
from tests.profiling.bundles import make_bundle


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


def test_one_failing_bundle_or_way_costs_no_other_row(tmp_path, capsys, monkeypatch):
    output = tmp_path / "rows.json"
    folders = [make_bundle(tmp_path / name, wrong=name == "wrong") for name in ("wrong", "right")]
    real = personalise.create_engine

    def create(name, bundle, role, **options):
        if options.get("personalise") == "rebind":
            raise RuntimeError("no memory")
        return real(name, bundle, role, **options)

    monkeypatch.setattr(personalise, "create_engine", create)
    monkeypatch.setattr(personalise, "BLOCK", 2)
    monkeypatch.setattr(personalise, "_extra_bytes", lambda *_: None)
    command = ["--bundle", *map(str, folders), "--rounds", "1", "--swaps", "1", "--output", str(output)]
    assert personalise.main(command) == 1
    rows = {(r["case"], r["way"]): r for r in json.loads(output.read_text())["rows"] if r["engine"] == "onnxruntime"}
    assert rows["right", "inputs"]["ratio"] and rows["right", "reload"]["ratio"]
    assert rows["right", "rebind"]["reason"] == "RuntimeError: no memory"
    assert "wrong, not timed" in rows["wrong", "inputs"]["reason"]
    assert "failed: right, onnxruntime by rebind: RuntimeError: no memory" in capsys.readouterr().out
    monkeypatch.setattr(personalise, "measure", lambda case, *_: [][0] if case == "wrong" else [])
    assert personalise.main(command) == 1
    assert {row["case"] for row in json.loads(output.read_text())["rows"] if row["failed"]} == {"wrong"}


def test_targets():
    row = personalise.Row("x", "onnxruntime", "inputs", 1, 1, 1.0, 0.05, 0.1, 1.04, 1.0, 1.1)
    assert row.target_met is True
    assert personalise.Row("x", "onnxruntime", "inputs", 1, 1, 1.0, 0.2, 0.1, 1.04, 1.0, 1.1).target_met is False
    assert personalise.Row("x", "onnxruntime", "inputs", 1, 1, 1.0, 0.05, 0.1, 1.2, 1.0, 1.1).target_met is False
    assert personalise.Row("x", "onnxruntime", "reload", 1, 1, 1.0, 0.05, 0.1, 1.2, 1.0, 1.1).target_met is None
