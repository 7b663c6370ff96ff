"""Layout ``qa_csv``: a folder with ``{train,val,test}.csv`` of questions.

Columns ``video, question, answer, qid`` and, where known, ``type``; for multiple choice ``options``, separated by
``|``, one of which is the answer. MSRVTT-QA circulates in this form beside its original JSON; ``type`` is then the
clip's category number.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from lit_mmpg.data.readers.files import option_number, read_rows, read_splits, split_files
from lit_mmpg.errors import fault
from lit_mmpg.records import SPLITS, Place, Question

OPTION_SEPARATOR = "|"
COLUMNS = ("video", "question", "answer", "qid")


def correct_option(options: Sequence[str], answer: str) -> int | None:
    """Index of the option that is the answer, or that the answer numbers (from 0); ``None`` where there is none."""
    composed = [unicodedata.normalize("NFC", text) for text in (answer, *options)]
    if composed[0] in composed[1:]:
        return composed.index(composed[0], 1) - 1
    return option_number(answer, len(options))


def read_qa_csv(path: Path) -> dict[str, list[Question]]:
    """Questions of each split file that exists."""

    def read(file: Path) -> list[Question]:
        questions = []
        for line, row in read_rows(file, COLUMNS):
            options = tuple(o.strip() for o in row.get("options", "").split(OPTION_SEPARATOR) if o.strip())
            correct = correct_option(options, row["answer"]) if options else -1
            if correct is None:
                fault(f"{file}, line {line}: the answer '{row['answer']}' is none of the options {', '.join(options)}")
                continue
            answer = options[correct] if options else row["answer"]
            place = Place(file, line)
            questions.append(
                Question(
                    row["video"], row["question"], answer, row["qid"], row.get("type", ""), options, correct, place
                )
            )
        return questions

    return read_splits(split_files(path, {s: f"{s}.csv" for s in SPLITS}, "layout qa_csv"), read)
