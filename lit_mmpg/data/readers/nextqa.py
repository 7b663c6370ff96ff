"""Layouts ``nextqa_mc`` and ``nextqa_oe``: folders with ``{train,val,test}.csv`` (Xiao et al., CVPR 2021).

Both have ``video, frame_count, width, height, question, answer, qid, type``; multiple choice adds ``a0`` to ``a4``,
and its ``answer`` is the index of the correct one. A ``qid`` counts within its video, so a question's id is
``video_qid``, as in the benchmark's own result files. Further reference answers, which some releases of the
open-ended test have, are not read: a question has one answer here.
"""

from __future__ import annotations

from pathlib import Path

from lit_mmpg.data.readers.files import read_rows, read_splits, split_files
from lit_mmpg.data.readers.options import choice_questions
from lit_mmpg.records import SPLITS, Place, Question

COLUMNS = ("video", "question", "answer", "qid", "type")
OPTION_COLUMNS = ("a0", "a1", "a2", "a3", "a4")


def read_nextqa_mc(path: Path) -> dict[str, list[Question]]:
    """Multiple-choice questions of each split file that exists."""

    def read(file: Path) -> list[Question]:
        rows = read_rows(file, (*COLUMNS, *OPTION_COLUMNS))
        return choice_questions(
            file, rows, OPTION_COLUMNS, "video", lambda row: f"{row['video']}_{row['qid']}", lambda row: row["type"]
        )

    return read_splits(_files(path, "nextqa_mc"), read)


def read_nextqa_oe(path: Path) -> dict[str, list[Question]]:
    """Open-ended questions of each split file that exists."""

    def read(file: Path) -> list[Question]:
        return [
            Question(
                row["video"],
                row["question"],
                row["answer"],
                f"{row['video']}_{row['qid']}",
                row["type"],
                place=Place(file, line),
            )
            for line, row in read_rows(file, COLUMNS)
        ]

    return read_splits(_files(path, "nextqa_oe"), read)


def _files(path: Path, layout: str) -> dict[str, Path]:
    return split_files(path, {s: f"{s}.csv" for s in SPLITS}, f"layout {layout}")
