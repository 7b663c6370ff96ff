from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lit_mmpg.errors import UserError
from profiling.benchmarks.latency_meter import OURS, compare, main
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
    def sleeps(seconds: float) -> float:
        begin = time.perf_counter()
        time.sleep(seconds)
        return (time.perf_counter() - begin) * 1e3

    meters = {OURS: lambda: sleeps(0.01), "right": lambda: sleeps(0.01), "wrong": lambda: 1.1 * sleeps(0.01)}
    rows = {row["meter"]: row for row in compare(meters, rounds=9)}
    assert rows[OURS]["ratio"] == 1 and not rows["wrong"]["within_target"]
    assert rows["wrong"]["ratio"] == pytest.approx(1.1, abs=0.05)


def test_too_few_rounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rounds"):
        main(["--bundle", str(tmp_path), "--rounds", "2"])
