"""Layout ``qa_csv``: a folder with ``{train,val,test}.csv`` of open-ended questions.

Columns ``video, question, answer, qid`` and, where known, ``type``. MSRVTT-QA circulates in this form beside its
original JSON; ``type`` is then the clip's category number.
"""

from __future__ import annotations

from pathlib import Path

from lit_mmpg.data.readers.files import read_rows, read_splits, split_files
from lit_mmpg.data.records import SPLITS, Place, Question

COLUMNS = ("video", "question", "answer", "qid")


def read_qa_csv(path: Path) -> dict[str, list[Question]]:
    """Questions of each split file that exists."""

    def read(file: Path) -> list[Question]:
        return [
            Question(
                row["video"], row["question"], row["answer"], row["qid"], row.get("type", ""), place=Place(file, line)
            )
            for line, row in read_rows(file, COLUMNS)
        ]

    return read_splits(split_files(path, {s: f"{s}.csv" for s in SPLITS}, "layout qa_csv"), read)
