"""What a device is asked about its clips: the same questions of every clip, or a table that names the clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_mmpg.data.readers.files import read_lines, read_rows, require_file
from lit_mmpg.data.readers.identity import clip_name
from lit_mmpg.errors import UserError

OPTION_SEPARATOR = "|"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: The question; for a retrieval model, a sentence that may describe the clip.
        options: Candidate answers of a multiple-choice model.
        answer: The right answer where it is known: then the device counts its hits.
    """

    text: str
    options: tuple[str, ...] = ()
    answer: str | None = None


class Questions:
    """Questions by clip.

    Args:
        common: Questions about every clip.
        own: Name of a clip, without suffix, to further questions about it.
    """

    def __init__(self, common: Sequence[Question] = (), own: dict[str, list[Question]] | None = None) -> None:
        self.common, self.own = tuple(common), own or {}

    def about(self, clip: str) -> list[Question]:
        """All questions about a clip."""
        return [*self.common, *self.own.get(clip_name(clip), ())]

    def __len__(self) -> int:
        return len(self.common) + sum(map(len, self.own.values()))


def read_questions(file: str | None, asked: Sequence[str]) -> Questions:
    """Questions from the command line.

    Args:
        file: A text file with one question about every clip per line; or a table (CSV, TSV, JSON, JSON Lines) with the
            columns ``video`` and ``question`` and, if wanted, ``answer`` and ``options`` (separated by ``|``).
        asked: Further questions about every clip.

    Raises:
        UserError: If the file is missing or malformed, or there is no question at all.
    """
    common = [Question(text.strip()) for text in asked if text.strip()]
    own: dict[str, list[Question]] = {}
    if file is not None:
        path = require_file(file, "--questions")
        if path.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl"):
            for _, row in read_rows(path, ("video", "question"), known=("answer", "options")):
                options = tuple(o.strip() for o in row.get("options", "").split(OPTION_SEPARATOR) if o.strip())
                question = Question(row["question"], options, row.get("answer") or None)
                own.setdefault(clip_name(row["video"]).rpartition("/")[2], []).append(question)
        else:
            common += [Question(line.strip()) for line in read_lines(path) if line.strip()]
    questions = Questions(common, own)
    if not len(questions):
        raise UserError('nothing is asked; add --question "what is the man doing?" or --questions FILE')
    return questions
