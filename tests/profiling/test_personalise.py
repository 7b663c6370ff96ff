"""The scenario that says what new parameters cost, and the benchmark of ways to personalise: how they judge."""

from __future__ import annotations

import json

import pytest

from lit_mmpg.profiling.benchmarks import personalise
from lit_mmpg.profiling.config import EngineSelection, ProfileConfig
from lit_mmpg.profiling.harness import Harness, Instruments
from lit_mmpg.profiling.meters.latency import LatencyConfig
from lit_mmpg.profiling.pipeline import Pipeline
from lit_mmpg.profiling.plan import Cell
from lit_mmpg.profiling.scenarios.personalise import turns
from lit_mmpg.runtime.bundle import Bundle
from tests.profiling.bundles import make_bundle

QUICK = LatencyConfig(warmup=0, min_count=8, min_time_s=0.0, attempts=1)


def test_turns_give_the_ratio_whatever_the_machine_does_meanwhile():
    now = [0.0]

    def takes(seconds: float):
        def call() -> None:
            now[0] += seconds * (1 + now[0] / 100)  # the machine slows down all the time

        return call

    ratios = turns(takes(0.3), takes(0.2), QUICK, clock=lambda: now[0])
    assert len(ratios) == 20 and all(ratio == pytest.approx(1.5, rel=0.02) for ratio in ratios)


def test_an_answer_with_old_parameters_is_found(tmp_path, monkeypatch):
    bundle = Bundle.open(make_bundle(tmp_path / "bundle"))
    config = ProfileConfig(
        "t", (EngineSelection("onnxruntime"),), measure_memory=False, measure_energy=False, latency=QUICK
    )
    harness = Harness(bundle, config, Instruments(*[object(), [], []]))
    cell = Cell(config.engines[0], "fp32", 1, "personalise", False)
    assert harness.measure(cell)["personalisation"]["baked_ratio"] > 0
    real, loads = Pipeline.load, [0]

    def third_is_lost(self, parameters):
        loads[0] += 1
        if loads[0] != 4:  # two for the expected answers, then one a turn
            real(self, parameters)

    monkeypatch.setattr(Pipeline, "load", third_is_lost)
    row = harness.measure(cell)
    assert row["status"] == "failed" and "not that of the new parameters" in row["reason"]


def test_all_ways_are_measured_and_open_ones_named(tmp_path, capsys, monkeypatch):
    fresh = personalise._extra_bytes

    def extra_bytes(path, name, way):  # one way in a process of its own, as it is; the others without starting one
        return fresh(path, name, way) if way == "inputs" else personalise.child(name, way, Bundle.open(path))

    monkeypatch.setattr(personalise, "_extra_bytes", extra_bytes)
    output = tmp_path / "rows.json"
    folder = tmp_path / "core"
    folder.mkdir()
    personalise.make_bundle("core", folder)
    assert personalise.main(["--bundle", str(folder), "--rounds", "1", "--swaps", "2", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["values"]
    measured = {row["way"]: row for row in rows if row["engine"] == "onnxruntime"}
    assert set(measured) == {"inputs", "settled", "rebind", "reload"}
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
    rows = {(r["case"], r["way"]): r for r in json.loads(output.read_text())["values"] if r["engine"] == "onnxruntime"}
    assert rows["right", "inputs"]["ratio"] and rows["right", "reload"]["ratio"]
    assert rows["right", "rebind"]["reason"] == "RuntimeError: no memory"
    assert "wrong, not timed" in rows["wrong", "inputs"]["reason"]
    assert "failed: right, onnxruntime by rebind: RuntimeError: no memory" in capsys.readouterr().out
    monkeypatch.setattr(personalise, "measure", lambda case, *_: [][0] if case == "wrong" else [])
    assert personalise.main(command) == 1
    assert {row["case"] for row in json.loads(output.read_text())["values"] if row["failed"]} == {"wrong"}


def test_targets():
    row = personalise.Row("x", "onnxruntime", "inputs", 1, 1, 1.0, 0.05, 0.1, 1.04, 1.0, 1.1)
    assert row.target_met is True
    assert personalise.Row("x", "onnxruntime", "inputs", 1, 1, 1.0, 0.2, 0.1, 1.04, 1.0, 1.1).target_met is False
    assert personalise.Row("x", "onnxruntime", "inputs", 1, 1, 1.0, 0.05, 0.1, 1.2, 1.0, 1.1).target_met is False
    assert personalise.Row("x", "onnxruntime", "reload", 1, 1, 1.0, 0.05, 0.1, 1.2, 1.0, 1.1).target_met is None
