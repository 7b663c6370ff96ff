from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_mmpg.profiling.benchmarks.latency_meter import OURS, compare, main
from tests.profiling.bundles import make_bundle


def test_three_meters_time_one_session_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    main(["--bundle", str(bundle), "--rounds", "3", "--calls", "10", "--output", str(tmp_path / "rows.json")])
    result = json.loads((tmp_path / "rows.json").read_text())
    assert [row["meter"] for row in result["rows"]] == [OURS, "torch.utils.benchmark", "polygraphy"]
    assert result["skipped"] == {}
    for row in result["rows"]:
        assert len(row["round_medians_ms"]) == 3 and min(row["round_medians_ms"]) > 0 and row["version"]
    assert "within 3 %" in capsys.readouterr().out


def test_a_meter_that_is_wrong_is_found_out() -> None:
    meters = {OURS: lambda: 10.0, "right": lambda: 10.1, "wrong": lambda: 11.0}
    rows = {row["meter"]: row for row in compare(meters, rounds=9)}
    assert rows[OURS]["ratio"] == 1 and rows["right"]["within_target"] and not rows["wrong"]["within_target"]
    assert rows["wrong"]["ratio"] == pytest.approx(1.1)


def test_too_few_rounds_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", str(tmp_path), "--rounds", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: --rounds must be")
