"""Layouts ``nextqa_mc`` and ``nextqa_oe``: folders with ``{train,val,test}.csv`` (Xiao et al., CVPR 2021).

Both have ``video, frame_count, width, height, question, answer, qid, type``; multiple choice adds ``a0`` to ``a4``,
and its ``answer`` is the index of the correct one. A ``qid`` counts within its video, so a question's id is
``video_qid``, as in the benchmark's own result files. Further reference answers, which some releases of the
open-ended test have, are not read: a question has one answer here.
"""

from __future__ import annotations

from pathlib import Path

from lit_mmpg.data.readers.files import read_splits, split_files
from lit_mmpg.data.readers.tables import table_questions
from lit_mmpg.records import SPLITS, Question

COLUMNS = ("video", "question", "answer", "qid", "type")
OPTIONS = {"nextqa_mc": ("a0", "a1", "a2", "a3", "a4"), "nextqa_oe": ()}
"""Layout -> columns of the candidates."""


def read_nextqa(path: Path, layout: str) -> dict[str, list[Question]]:
    """Questions of each split file that exists."""

    def read(file: Path) -> list[Question]:
        return table_questions(
            file, COLUMNS, OPTIONS[layout], "video", lambda row: f"{row['video']}_{row['qid']}", lambda row: row["type"]
        )

    return read_splits(split_files(path, {s: f"{s}.csv" for s in SPLITS}, f"layout {layout}"), read)
