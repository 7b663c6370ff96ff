"""The list of clips: a table ``video, split`` with any further columns, which devices can be dealt by.

MSR-VTT's own JSON is read too.
"""

from __future__ import annotations

from pathlib import Path

from lit_mmpg.data.readers.files import read_rows, require_path
from lit_mmpg.data.readers.msrvtt_captions import read_msrvtt_clips
from lit_mmpg.errors import UserError, fault
from lit_mmpg.records import SPLITS, Clip, Place


def read_clips(path: str | Path) -> list[Clip]:
    """All clips, in the order of the file; further columns (``category``, ``num_frames``, ...) are kept as text.

    Args:
        path: A CSV file, or the JSON (file or folder) of the layout ``msrvtt_captions``.

    Raises:
        UserError: If the file is missing or malformed, a split is unknown, a clip occurs twice, or none is listed.
    """
    path = require_path(path, "clip list")
    if path.is_dir() or path.suffix.lower() == ".json":
        videos = read_msrvtt_clips(path)
        if not videos:
            raise UserError(f"{path}: 'videos' lists no clips")
        return videos
    clips: dict[str, Clip] = {}
    listed = False
    for line, row in read_rows(path, ("video", "split")):
        listed = True
        video, split = row.pop("video"), row.pop("split")
        if split not in SPLITS:
            fault(f"{path}, line {line}: split '{split}' is unknown; one of {', '.join(SPLITS)} is needed")
        elif video in clips:
            fault(
                f"{path}, line {line}: video '{video}' is listed a second time, after line {clips[video].place.line}; "
                "delete one of the lines"
            )
        else:
            clips[video] = Clip(video, split, row, Place(path, line))
    if not listed:
        raise UserError(f"{path}: no clips listed below the header")
    return list(clips.values())
