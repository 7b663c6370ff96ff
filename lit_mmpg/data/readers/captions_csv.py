"""Layout ``captions_csv``: a table ``video, caption``, or ``video, shot, description`` for single shots.

A description of a shot may be trained on but is never a retrieval query, so it is marked ``extra``.
"""

from __future__ import annotations

from pathlib import Path

from lit_mmpg.data.readers.files import header_of, read_rows, require_file
from lit_mmpg.data.records import Caption, Place


def read_captions_csv(path: Path) -> list[Caption]:
    """All captions, in the order of the file."""
    path = require_file(path, "layout captions_csv")
    extra = "caption" not in (header := header_of(path, ("video", "caption"))) and "description" in header
    column = "description" if extra else "caption"
    rows = read_rows(path, ("video", column))
    return [Caption(row["video"], row[column], extra, Place(path, line)) for line, row in rows]
