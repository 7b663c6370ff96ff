"""Layouts ``msrvtt_qa`` and ``msvd_qa``: a folder with ``{train,val,test}_qa.json`` (Xu et al., ACM MM 2017).

Each file is a list of objects ``answer, id, question, video_id``; those of MSRVTT-QA have ``category_id`` too, which
becomes the question's type. MSVD-QA has no categories: there the type is the first word of the question, the
breakdown of the paper that introduced both. ``video_id`` is a number. MSVD's features and videos often carry the
names of the original clips instead; ``youtube_mapping.txt`` (lines ``name vidN``), published beside the questions,
translates where it is present.
"""

from __future__ import annotations

from pathlib import Path

from lit_mmpg.data.readers.files import json_entries, read_annotations, read_lines, read_splits, split_files
from lit_mmpg.errors import fault
from lit_mmpg.records import SPLITS, Place, Question

MAPPING_NAME = "youtube_mapping.txt"


def read_msvd_aliases(path: Path) -> dict[str, str]:
    """``video_id`` of MSVD-QA -> name of the clip, from ``youtube_mapping.txt`` in the folder or above; else empty.

    Raises:
        UserError: If a line of the mapping is not ``name vidN``.
    """
    mapping = next((f for f in (path / MAPPING_NAME, path.parent / MAPPING_NAME) if f.is_file()), None)
    if mapping is None:
        return {}
    aliases = {}
    for number, line in enumerate(read_lines(mapping), start=1):
        if not line.strip():
            continue
        name, _, video = line.strip().rpartition(" ")
        if not name or not video.removeprefix("vid").isdecimal():
            fault(f"{mapping}, line {number}: 'name vidN' is needed, found '{line.strip()}'")
            continue
        aliases[video.removeprefix("vid")] = name.strip()
    return aliases


def read_qa_json(path: Path, layout: str) -> dict[str, list[Question]]:
    """Questions of each split file that exists; the type is the category number, or of MSVD-QA the question word."""
    with_category = layout == "msrvtt_qa"
    required = ("answer", "id", "question", "video_id", *(["category_id"] if with_category else []))

    def read(file: Path) -> list[Question]:
        questions = []
        for number, entry in json_entries(file, read_annotations(file), required):
            text = str(entry["question"]).strip()
            kind = str(entry["category_id"]) if with_category else text.split()[0].lower()
            answer, place = str(entry["answer"]).strip(), Place(file, number, "entry")
            questions.append(
                Question(str(entry["video_id"]).strip(), text, answer, str(entry["id"]), kind, place=place)
            )
        return questions

    return read_splits(split_files(path, {s: f"{s}_qa.json" for s in SPLITS}, f"layout {layout}"), read)
