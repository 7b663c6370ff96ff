from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from lit_mmpg.report import format_bytes, format_row, print_rows, write_rows


def row(**changes: Any) -> dict[str, Any]:
    base = {"method": "static", "split": "test_unseen", "metric": "accuracy", "value": 0.51234, "low": 0.4, "high": 0.6}
    return base | {"seeds": 3, "upload_bytes": 1536, "download_bytes": None} | changes


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "n/a"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (13 * 1024, "13.0 KiB"), (3 << 20, "3.0 MiB")],
)
def test_bytes_for_people(count: int | None, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "51.2 [40.0, 60.0]"),
        ({"low": None}, "51.2"),
        ({"metric": "accuracy_minus_static", "value": 0.0511, "low": -0.01, "high": 0.12}, "+5.1 [-1.0, +12.0]"),
        ({"metric": "t2v/MedR", "value": 23.0, "low": None}, "23"),
        ({"metric": "t2v/R@10", "value": 1.0, "low": None}, "100.0"),
        ({"metric": "t2v/mean_log_rank", "value": 2.7183, "low": 2.5, "high": 3.0}, "2.72 [2.5, 3]"),
        ({"value": None, "low": None}, "n/a"),
    ],
)
def test_values_for_people(changes: dict[str, Any], text: str) -> None:
    assert format_row(row(**changes)) == text


def test_one_line_per_method_and_split(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([row(), row(metric="accuracy_macro", value=0.4, low=None), row(method="cdc_mmpg", low=None)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "test_unseen" in line]
    assert len(lines) == 2
    assert "51.2 [40.0, 60.0]" in lines[0] and "40.0 " in lines[0] and "1.5 KiB" in lines[0]
    assert "cdc_mmpg" in lines[1] and "[" not in lines[1]


@pytest.mark.parametrize("columns", [80, 100])
def test_a_narrow_terminal_cuts_no_number(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    monkeypatch.setenv("COLUMNS", str(columns))
    metrics = ("accuracy", "accuracy_macro", "accuracy_worst_decile", "accuracy_minus_static")
    print_rows([row(method="shuffled_device", metric=metric) for metric in metrics])
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, text.splitlines())) <= columns
    assert "\u2026" not in text
    assert text.count("[40.0,") == 3 and text.count("[+40.0,") == 1 and text.count("60.0]") == 4
    for whole in ("test_unseen", "shuffled_device", "+51.2", "1.5 KiB"):
        assert whole in text


def test_json_is_exact_and_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "rows.json"
    write_rows([row(value=1.0)], target)
    write_rows([row(value=1 / 3, low=math.nan)], target)
    assert json.loads(target.read_text()) == {"rows": [row(value=1 / 3, low=None)]}
    assert [p.name for p in target.parent.iterdir()] == ["rows.json"]
