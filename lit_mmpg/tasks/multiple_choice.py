"""Multiple choice: each question brings its options, and the model scores each together with the question."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from lit_mmpg.records import Caption, Question
from lit_mmpg.tasks.questions import QuestionTask

if TYPE_CHECKING:
    from torch import Tensor

    from lit_mmpg.batch import Batch


class MultipleChoice(QuestionTask):
    """Questions with options to choose from."""

    name = "multiple_choice"
    takes_options = True
    max_words = 40
    example_options = 4
    lacks: ClassVar = {"shared_classes": "the options of one question are not the classes of another"}

    @classmethod
    def fits_table(cls, questions: bool, options: bool) -> bool:
        """Questions with options."""
        return questions and options

    def candidates(self, text: Question | Caption) -> list[str]:
        """The question with each option."""
        assert isinstance(text, Question)
        return [f"{text.text} {option}" for option in text.options]

    def target(self, text: Question | Caption, index: Callable[[str], int]) -> int:
        """Place among the options."""
        assert isinstance(text, Question)
        return text.correct

    def masked(self, scores: Tensor, text: Tensor) -> Tensor:
        """Options without a word are padding."""
        from lit_mmpg.tasks.graphs import ABSENT

        return scores.masked_fill((text == 0).all(-1), ABSENT)

    def head_mask(self, batch: Batch) -> Tensor:
        """Real options of real questions."""
        return batch.text_mask.unsqueeze(-1) & (batch.text != 0).any(-1)

    def text_dims(self) -> dict[int, str]:
        """Any number of options, of any length."""
        return {0: "B", 1: "O", 2: "L"}
