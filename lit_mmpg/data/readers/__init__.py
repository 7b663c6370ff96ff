"""Readers of public layouts: questions, captions and clip lists as plain records. No torch.

Each layout is one small module and one entry in a table below; a new layout is added by adding both.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lit_mmpg.data.readers.captions_csv import read_captions_csv
from lit_mmpg.data.readers.clip_list import read_clips
from lit_mmpg.data.readers.files import fingerprint_files, recording, require_file, require_path
from lit_mmpg.data.readers.identity import Names, bare_name, number_repeated_ids, resolve_id, resolve_ids
from lit_mmpg.data.readers.msrvtt_captions import read_msrvtt_captions
from lit_mmpg.data.readers.msvd_captions import read_msvd_captions
from lit_mmpg.data.readers.nextqa import read_nextqa_mc, read_nextqa_oe
from lit_mmpg.data.readers.qa_csv import read_qa_csv
from lit_mmpg.data.readers.qa_json import read_msrvtt_qa, read_msvd_aliases, read_msvd_qa
from lit_mmpg.data.readers.tgif_qa import TASKS as TGIF_TASKS
from lit_mmpg.data.readers.tgif_qa import aliases_reader as tgif_aliases_reader
from lit_mmpg.data.readers.tgif_qa import reader as tgif_reader
from lit_mmpg.data.records import Caption, Clip, Question
from lit_mmpg.errors import UserError, fault

__all__ = [
    "ALIAS_READERS",
    "CAPTION_LAYOUTS",
    "QUESTION_LAYOUTS",
    "Names",
    "bare_name",
    "clips_of_questions",
    "fingerprint_files",
    "read_aliases",
    "read_captions",
    "read_clips",
    "read_questions",
    "recording",
    "require_file",
    "require_path",
    "require_splits",
    "resolve_id",
    "resolve_ids",
]

QUESTION_LAYOUTS: dict[str, Callable[[Path], dict[str, list[Question]]]] = {
    "qa_csv": read_qa_csv,
    "msrvtt_qa": read_msrvtt_qa,
    "msvd_qa": read_msvd_qa,
    "nextqa_mc": read_nextqa_mc,
    "nextqa_oe": read_nextqa_oe,
    **{f"tgif_qa_{task}": tgif_reader(task) for task in TGIF_TASKS},
}
"""Layout -> reader of its folder: split -> questions."""

ALIAS_READERS: dict[str, Callable[[Path], dict[str, str]]] = {
    "msvd_qa": read_msvd_aliases,
    **{f"tgif_qa_{task}": tgif_aliases_reader(task) for task in TGIF_TASKS},
}
"""Layouts whose clips have second names -> reader of those."""

CAPTION_LAYOUTS: dict[str, Callable[[Path], list[Caption]]] = {
    "captions_csv": read_captions_csv,
    "msrvtt_captions": read_msrvtt_captions,
    "msvd_captions": read_msvd_captions,
}
"""Layout -> reader of its file."""


def read_questions(layout: str, path: str | Path) -> dict[str, list[Question]]:
    """Questions by split, for those splits whose file is there.

    Args:
        layout: A key of :data:`QUESTION_LAYOUTS`.
        path: Folder of the layout.

    Raises:
        UserError: If the layout is unknown, or the files are missing, malformed or without a single question.
    """
    read = _lookup(QUESTION_LAYOUTS, layout, "question layout")
    by_split = {split: number_repeated_ids(q) for split, q in read(Path(path).expanduser()).items()}
    require_splits(by_split, by_split, f"{path} (layout {layout})")
    return by_split


def read_aliases(layout: str, path: str | Path) -> dict[str, str]:
    """Second names of a layout's clips, for :func:`resolve_ids`; empty for layouts without such."""
    _lookup(QUESTION_LAYOUTS, layout, "question layout")
    return ALIAS_READERS[layout](Path(path).expanduser()) if layout in ALIAS_READERS else {}


def read_captions(layout: str, path: str | Path) -> list[Caption]:
    """Captions of a file.

    Args:
        layout: A key of :data:`CAPTION_LAYOUTS`.
        path: The file.

    Raises:
        UserError: If the layout is unknown, or the file is missing, malformed or without a single caption.
    """
    captions = _lookup(CAPTION_LAYOUTS, layout, "caption layout")(Path(path).expanduser())
    if not captions:
        raise UserError(f"{path} (layout {layout}): no captions in the file")
    return captions


def clips_of_questions(by_split: Mapping[str, Sequence[Question]]) -> list[Clip]:
    """The clips that questions ask about, each in the split of its questions: a clip list where none is published.

    Raises:
        UserError: If a clip has questions in two splits.
    """
    first: dict[str, tuple[str, Question]] = {}
    for split, questions in by_split.items():
        for question in questions:
            earlier, one = first.setdefault(question.clip, (split, question))
            if earlier != split:
                places = f" ({one.place}; {question.place})" if one.place.file else ""
                fault(
                    f"clip '{question.clip}' has questions in '{earlier}' and in '{split}'{places}; give a clip list "
                    "that says where it belongs"
                )
    return [Clip(clip, split, place=question.place) for clip, (split, question) in first.items()]


def require_splits(by_split: Mapping[str, Sequence[object]], splits: Iterable[str], where: str) -> None:
    """Checks that splits have entries.

    Args:
        by_split: Split -> entries.
        splits: The splits that are needed.
        where: File or folder, for the message.

    Raises:
        UserError: If one is missing or empty.
    """
    for split in splits:
        if not by_split.get(split):
            found = ", ".join(f"{name} ({len(rows)})" for name, rows in by_split.items() if rows) or "none"
            raise UserError(f"{where}: split '{split}' is empty (splits with entries: {found}); add its file or rows")


def _lookup(table: Mapping[str, Callable], name: str, what: str) -> Callable:
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UserError(f"{what} '{name}' is unknown (known: {', '.join(table)}){hint}")
