"""Readers of public layouts: questions, captions and clip lists as plain records. No torch.

Each layout is one small module and one entry of the table in :mod:`lit_mmpg.data.readers.registry`, or an entry point
of another package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_mmpg.data.readers.clip_list import read_clips
from lit_mmpg.data.readers.files import fingerprint_files, recording, require_file, require_path
from lit_mmpg.data.readers.identity import Names, bare_name, clip_name, number_repeated_ids, resolve_ids
from lit_mmpg.data.readers.registry import READERS, Reader, read
from lit_mmpg.errors import UserError, fault
from lit_mmpg.records import Caption, Clip, Question

__all__ = [
    "READERS",
    "Names",
    "Reader",
    "bare_name",
    "clip_name",
    "clips_of_questions",
    "fingerprint_files",
    "read_aliases",
    "read_captions",
    "read_clips",
    "read_questions",
    "recording",
    "require_file",
    "require_path",
    "resolve_ids",
]


def read_questions(layout: str, path: str | Path) -> dict[str, list[Question]]:
    """Questions by split, for those splits whose file is there.

    Args:
        layout: Name of a layout that holds questions.
        path: Folder of the layout.

    Raises:
        UserError: If the layout is unknown, or the files are missing, malformed or without a single question.
    """
    by_split = {split: number_repeated_ids(q) for split, q in read(layout, "questions", path).items()}
    found = ", ".join(f"{split} ({len(asked)})" for split, asked in by_split.items() if asked) or "none"
    for split, asked in by_split.items():
        if not asked:
            raise UserError(
                f"{path} (layout {layout}): split '{split}' is empty (splits with entries: {found}); add its file or "
                "rows"
            )
    return by_split


def read_aliases(layout: str, path: str | Path) -> dict[str, str]:
    """Second names of a layout's clips, for :func:`resolve_ids`; empty for layouts without such."""
    aliases: dict[str, str] = read(layout, "aliases", path)
    return aliases


def read_captions(layout: str, path: str | Path) -> list[Caption]:
    """Captions of a file.

    Args:
        layout: Name of a layout that holds captions.
        path: The file.

    Raises:
        UserError: If the layout is unknown, or the file is missing, malformed or without a single caption.
    """
    captions: list[Caption] = read(layout, "captions", path)
    if not captions:
        raise UserError(f"{path} (layout {layout}): no captions in the file")
    return captions


def clips_of_questions(by_split: Mapping[str, Sequence[Question]]) -> list[Clip]:
    """The clips that questions ask about, each in the split of its questions: a clip list where none is published.

    Raises:
        UserError: If a clip has questions in two splits, by one spelling of its name or by two.
    """
    clips: dict[str, Clip] = {}
    first: dict[str, tuple[str, Question]] = {}
    for split, questions in by_split.items():
        for question in questions:
            clips.setdefault(question.clip, Clip(question.clip, split, place=question.place))
            earlier, one = first.setdefault(clip_name(question.clip), (split, question))
            if earlier != split:
                places = f" ({one.place}; {question.place})" if one.place.file else ""
                fault(
                    f"clip '{question.clip}' has questions in '{earlier}' and in '{split}'{places}; give a clip list "
                    "that says where it belongs"
                )
    return list(clips.values())
