"""Layouts ``tgif_qa_{action,transition,frameqa,count}``: a folder with ``{Train,Test}_{task}_question.csv``.

The files are tab-separated (Jang et al., CVPR 2017).

Action and transition are multiple choice: ``gif_name, question, a1 .. a5, answer, vid_id, key``, where ``answer``
counts the options from 0. Count has ``gif_name, question, answer, vid_id, key``; frameqa adds ``type`` (0 object,
1 number, 2 colour, 3 location) and ``description``. A clip's name is ``gif_name``; feature files often use ``key``,
which is therefore its alias. The id of a question is ``vid_id``.

There is no validation file. A tenth of the training GIFs, chosen by a hash of their names and hence the same on
every machine and for every task, becomes ``val`` (a choice of ours: the benchmark leaves it open).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from lit_mmpg.data.readers.files import read_rows, read_splits, split_files
from lit_mmpg.data.readers.tables import table_questions
from lit_mmpg.records import Question

TASKS = ("action", "transition", "frameqa", "count")
OPTION_COLUMNS = ("a1", "a2", "a3", "a4", "a5")
FRAMEQA_TYPES = {"0": "object", "1": "number", "2": "color", "3": "location"}
VALIDATION_ONE_IN = 10


def read_tgif_qa(path: Path, task: str) -> dict[str, list[Question]]:
    """Questions of one task, with a part of the training questions as those of the validation."""
    result: dict[str, list[Question]] = {}
    for part, questions in read_splits(_files(path, task), lambda file: _questions(file, task)).items():
        for question in questions:
            split = "val" if part == "train" and is_validation(question.clip) else part
            result.setdefault(split, []).append(question)
        result.setdefault(part, [])
    return result


def read_tgif_aliases(path: Path, task: str) -> dict[str, str]:
    """Second names of the clips of one task: ``gif_name`` -> ``key``."""
    files = _files(path, task).values()
    rows = (row for file in files for _, row in read_rows(file, ("gif_name",), delimiter="\t"))
    return {row["gif_name"]: row["key"] for row in rows if row.get("key")}


def is_validation(gif_name: str) -> bool:
    """Whether a training GIF is held out for validation."""
    return int.from_bytes(hashlib.sha256(gif_name.encode()).digest()[:8], "big") % VALIDATION_ONE_IN == 0


def _files(path: Path, task: str) -> dict[str, Path]:
    names = {split: f"{split.capitalize()}_{task}_question.csv" for split in ("train", "test")}
    return split_files(path, names, f"layout tgif_qa_{task}")


def _questions(file: Path, task: str) -> list[Question]:
    def kind(row: dict[str, str]) -> str:
        return FRAMEQA_TYPES.get(row["type"], row["type"]) if task == "frameqa" else task

    columns = ("gif_name", "question", "answer", "vid_id", *(["type"] if task == "frameqa" else []))
    options = OPTION_COLUMNS if task in ("action", "transition") else ()
    return table_questions(file, columns, options, "gif_name", lambda row: row["vid_id"], kind, "\t")
