"""Other tools beside ours: that all of them run on one file, and that one which is wrong is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.benchmarks.agreement import BOUND, OURS, PERF_TEST, compare, main, read_perf_test
from tests.profiling.bundles import make_bundle

NEW = """Session creation time cost: 0.0127 s
Total inference time cost: 1.6 s
Total inference requests: 1000
Average inference time cost total: 1.600000 ms
Total inference run time: 1.61 s
Number of inferences per second: 621.1
P50 Latency: 0.0015 s
"""
OLD = "Average time cost:58.8053 ms\nTotal run time:58.8102 s\nP50 Latency is 0.0587108sec\n"


@pytest.mark.soak
def test_all_tools_measure_one_file_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, output = make_bundle(tmp_path / "bundle"), tmp_path / "rows.json"
    main(["--bundle", str(bundle), "--rounds", "6", "--calls", "10", "--batches", "4", "--output", str(output)])
    rows = json.loads(output.read_text())["values"]
    assert [row["tool"] for row in rows] == [OURS, BOUND, "torch.utils.benchmark", "polygraphy", "onnxruntime"]
    for row in rows:
        assert len(row["rounds"]) == 6 and all(min(figures.values()) > 0 for figures in row["rounds"])
        assert row["latency_low"] <= row["latency_ratio"] <= row["latency_high"] and row["version"]
    told = capsys.readouterr().out
    assert "within 3 %" in told and f"skipped: {PERF_TEST}" in told


def test_a_tool_that_is_wrong_in_latency_or_throughput_is_found_out() -> None:
    def tool(ms: float, per_s: float, **more: float):
        return lambda: {"mean_ms": ms, "per_s": per_s, **more}

    tools = {
        OURS: tool(10.0, 100.0, median_ms=9.0),
        "right": tool(10.1, 99.0),
        "late": tool(11.0, 100.0),
        "slow": tool(10.0, 90.0, median_ms=9.0),
    }
    rows = {row["tool"]: row for row in compare(tools, rounds=7)}
    assert {name: row["within_target"] for name, row in rows.items()} == {
        OURS: True, "right": True, "late": False, "slow": False
    }  # fmt: skip
    assert rows["late"]["latency_ratio"] == pytest.approx(1.1) and rows["late"]["latency_of"] == "mean"
    assert rows["slow"]["throughput_ratio"] == pytest.approx(0.9)


def test_what_the_program_of_onnx_runtime_prints_is_read() -> None:
    assert read_perf_test(NEW, 2) == {"median_ms": 1.5, "mean_ms": 1.6, "per_s": pytest.approx(1242.2)}
    old = read_perf_test(OLD, 1)
    assert (old["median_ms"], old["mean_ms"]) == (pytest.approx(58.7108), 58.8053)
    with pytest.raises(UserError, match="printed no average"):
        read_perf_test("usage: ...", 1)


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rounds"):
        main(["--bundle", str(tmp_path), "--rounds", "2"])
    with pytest.raises(UserError, match="--perf-test nowhere is no program"):
        main(["--bundle", str(make_bundle(tmp_path / "bundle")), "--perf-test", "nowhere"])
