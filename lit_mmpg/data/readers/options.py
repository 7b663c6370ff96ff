"""Multiple-choice questions from the rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lit_mmpg.data.readers.files import option_number
from lit_mmpg.errors import fault
from lit_mmpg.records import Place, Question


def choice_questions(
    path: Path,
    rows: Iterable[tuple[int, dict[str, str]]],
    columns: Sequence[str],
    clip: str,
    question_id: Callable[[dict[str, str]], str],
    kind: Callable[[dict[str, str]], str],
) -> list[Question]:
    """Questions whose candidates stand in ``columns`` and whose column ``answer`` is the index of the correct one.

    Args:
        path: The table.
        rows: Its rows, with their line numbers.
        columns: Columns of the candidates.
        clip: Column of the clip's name.
        question_id: Id of a row's question.
        kind: Type of a row's question.

    Raises:
        UserError: If (outside ``collected``) an index is not one of the candidates'.
    """
    questions = []
    for line, row in rows:
        options, text = tuple(row[column] for column in columns), row["answer"]
        correct = option_number(text, len(options))
        if correct is None:
            fault(
                f"{path}, line {line}: column 'answer' is '{text}', the index of the correct option is needed "
                f"(0 to {len(options) - 1})"
            )
            continue
        questions.append(
            Question(
                row[clip],
                row["question"],
                options[correct],
                question_id(row),
                kind(row),
                options,
                correct,
                Place(path, line),
            )
        )
    return questions
