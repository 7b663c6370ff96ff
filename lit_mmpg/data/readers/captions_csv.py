"""Layout ``captions_csv``: a table ``video, caption``, or ``video, shot, description`` for single shots.

A description of a shot may be trained on but is never a retrieval query, so it is marked ``extra``.
"""

from __future__ import annotations

import csv
from pathlib import Path

from lit_mmpg.data.readers.files import read_rows, require_file
from lit_mmpg.data.records import Caption


def read_captions_csv(path: Path) -> list[Caption]:
    """All captions, in the order of the file."""
    path = require_file(path, "layout captions_csv")
    extra = "caption" not in (header := _header(path)) and "description" in header
    column = "description" if extra else "caption"
    return [Caption(row["video"], row[column], extra) for _, row in read_rows(path, ("video", column))]


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [name.strip() for name in next(csv.reader(file), [])]
