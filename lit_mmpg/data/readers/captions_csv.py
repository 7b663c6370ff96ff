"""Layout ``captions_csv``: a table ``video, caption``, or ``video, shot, description`` for single shots.

The same as JSON (a list of objects) or JSON Lines may have a list of captions. A description of a shot may be trained
on but is never a retrieval query, so it is marked ``extra``.
"""

from __future__ import annotations

from pathlib import Path

from lit_mmpg.data.readers.files import header_of, json_entries, read_annotations, read_rows, require_file, texts_of
from lit_mmpg.records import Caption, Place


def read_captions_csv(path: Path) -> list[Caption]:
    """All captions, in the order of the file."""
    path = require_file(path, "layout captions_csv")
    if path.suffix.lower() in (".json", ".jsonl"):
        entries = json_entries(path, read_annotations(path), ("video", "caption"), lists=("caption",))
        return [
            Caption(str(entry["video"]).strip(), text, place=Place(path, number, "entry"))
            for number, entry in entries
            for text in texts_of(entry["caption"])
        ]
    extra = "caption" not in (header := header_of(path, ("video", "caption"))) and "description" in header
    column = "description" if extra else "caption"
    rows = read_rows(path, ("video", column))
    return [Caption(row["video"], row[column], extra, Place(path, line)) for line, row in rows]
