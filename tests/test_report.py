from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lit_mmpg.report import format_bytes, print_rows, write_rows


def row(**changes: Any) -> dict[str, Any]:
    base = {"method": "static", "split": "test_unseen", "metric": "accuracy", "value": 0.51234, "low": 0.4, "high": 0.6}
    return base | {"seeds": 3, "upload_bytes": 1536, "download_bytes": None} | changes


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "n/a"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (13 * 1024, "13.0 KiB"), (3 << 20, "3.0 MiB")],
)
def test_bytes_for_people(count: int | None, text: str) -> None:
    assert format_bytes(count) == text


def test_table_shows_value_interval_and_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([row(), row(method="cdc_mmpg", low=None)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "accuracy" in line]
    assert ["0.5123" in line and "1.5 KiB" in line and "n/a" in line for line in lines] == [True, True]
    assert ["0.4 to 0.6" in line for line in lines] == [True, False]


def test_json_is_exact_and_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "new" / "rows.json"
    write_rows([row(value=1.0)], target)
    write_rows([row(value=1 / 3, low=math.nan)], target)
    assert json.loads(target.read_text()) == {"rows": [row(value=1 / 3, low=None)]}
    assert [p.name for p in target.parent.iterdir()] == ["rows.json"]
