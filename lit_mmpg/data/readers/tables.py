"""Questions from the rows of a table whose columns every layout calls otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lit_mmpg.data.readers.files import option_number, read_rows
from lit_mmpg.errors import fault
from lit_mmpg.records import Place, Question

Told = Callable[[dict[str, str]], str]
"""What a row says."""


def table_questions(
    path: Path,
    columns: Sequence[str],
    options: Sequence[str],
    clip: str,
    question_id: Told,
    kind: Told,
    delimiter: str | None = None,
) -> list[Question]:
    """Questions of a table with the columns ``question`` and ``answer``.

    Args:
        path: The table.
        columns: Columns that it must have.
        options: Columns of the candidates, of which ``answer`` is the index of the correct one; none: open-ended.
        clip: Column of the clip's name.
        question_id: Id of a row's question.
        kind: Type of a row's question.
        delimiter: As for :func:`~lit_mmpg.data.readers.files.read_rows`.

    Raises:
        UserError: If the table is faulty, or (outside ``collected``) an index is not one of the candidates'.
    """
    questions = []
    for line, row in read_rows(path, (*columns, *options), delimiter):
        candidates, answer = tuple(row[column] for column in options), row["answer"]
        correct = option_number(answer, len(options)) if options else -1
        if correct is None:
            fault(
                f"{path}, line {line}: column 'answer' is '{answer}', the index of the correct option is needed "
                f"(0 to {len(options) - 1})"
            )
            continue
        answer = candidates[correct] if candidates else answer
        place = Place(path, line)
        questions.append(
            Question(row[clip], row["question"], answer, question_id(row), kind(row), candidates, correct, place)
        )
    return questions
