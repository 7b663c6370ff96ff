"""Multiple-choice questions from one row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_mmpg.data.records import Question
from lit_mmpg.errors import UserError


def choice_question(
    path: Path, line: int, row: dict[str, str], columns: Sequence[str], *, clip: str, question_id: str, type_name: str
) -> Question:
    """A question whose candidates stand in ``columns`` and whose column ``answer`` is the index of the correct one.

    Raises:
        UserError: If the index is not one of the candidates'.
    """
    options = tuple(row[column] for column in columns)
    text = row["answer"]
    if not (text.isdecimal() and int(text) < len(options)):
        raise UserError(
            f"{path}, line {line}: column 'answer' is '{text}', the index of the correct option is needed "
            f"(0 to {len(options) - 1})"
        )
    correct = int(text)
    return Question(clip, row["question"], options[correct], question_id, type_name, options, correct)
