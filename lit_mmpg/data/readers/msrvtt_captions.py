"""Layout ``msrvtt_captions``: the JSON of MSR-VTT (Xu et al., CVPR 2016).

``videos`` lists ``video_id, category, url, "start time", "end time", split, id`` with the splits ``train``,
``validate`` and ``test``; ``sentences`` lists ``video_id, caption, sen_id``. The release is either one file or a
folder with ``train_val_videodatainfo.json`` and ``test_videodatainfo.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_mmpg.data.readers.files import json_entries, read_annotations, require_path, split_files, texts_of
from lit_mmpg.errors import UserError, fault
from lit_mmpg.records import SPLITS, Caption, Clip, Place

FILES = {"train and val": "train_val_videodatainfo.json", "test": "test_videodatainfo.json"}
SPLIT_NAMES = {"validate": "val"}


def read_msrvtt_captions(path: Path) -> list[Caption]:
    """All sentences, in the order of the file; a list of sentences is several captions."""
    return [
        Caption(str(entry["video_id"]), text, place=Place(file, number, "'sentences', entry"))
        for file, content in _contents(path)
        for number, entry in json_entries(
            file, content.get("sentences"), ("video_id", "caption"), "sentences", lists=("caption",)
        )
        for text in texts_of(entry["caption"])
    ]


def read_msrvtt_clips(path: Path) -> list[Clip]:
    """All videos with their split; ``category`` (a number) becomes a column where it is given."""
    clips = []
    for file, content in _contents(path):
        for number, entry in json_entries(file, content.get("videos"), ("video_id", "split"), "videos"):
            split = SPLIT_NAMES.get(str(entry["split"]), str(entry["split"]))
            if split not in SPLITS:
                fault(f"{file}, 'videos', entry {number}: split '{split}' is unknown (train, validate, test)")
                continue
            columns = {}
            if "category" in entry:
                category = entry["category"]
                category = "" if category is None or category != category else category
                values = category if isinstance(category, list) else [category]
                if not all(isinstance(one, str | int | float) for one in values):
                    what = f"field 'category' is {category!r}, a text or a number is needed"
                    fault(f"{file}, 'videos', entry {number}: {what}")
                    continue
                columns = {"category": ", ".join(texts_of(category))}
            clips.append(Clip(str(entry["video_id"]), split, columns, Place(file, number, "'videos', entry")))
    return clips


def _contents(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    path = require_path(path, "layout msrvtt_captions")
    files = [path] if path.is_file() else list(split_files(path, FILES, "layout msrvtt_captions").values())
    contents = [(file, read_annotations(file)) for file in files]
    for file, content in contents:
        if not isinstance(content, dict):
            raise UserError(f"{file}: an object with 'videos' and 'sentences' is needed")
    return contents
