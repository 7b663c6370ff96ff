"""Open-ended questions: the answer is one of a list that is fitted on the training questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lit_mmpg.records import Caption, Question
from lit_mmpg.tasks.questions import QuestionTask


class OpenEnded(QuestionTask):
    """Questions that are answered freely."""

    name = "open_ended"
    answer_list = True
    smooths = True

    @classmethod
    def fits_table(cls, questions: bool, options: bool) -> bool:
        """Questions without options."""
        return questions and not options

    def answers(self, texts: Sequence[Question | Caption]) -> list[str]:
        """All of them."""
        return [text.answer for text in texts if isinstance(text, Question)]

    def candidates(self, text: Question | Caption) -> list[str]:
        """The question."""
        return [text.text]

    def target(self, text: Question | Caption, index: Callable[[str], int]) -> int:
        """Place in the answer list."""
        assert isinstance(text, Question)
        return index(text.answer)

    def head_width(self, answers: int) -> int:
        """One score for each answer of the list."""
        return answers

    def initialise(self, network: Any, answer: np.ndarray, answers: int) -> None:
        """The bias is the prior over answers, so that the head need not learn first what is frequent."""
        import torch

        count = np.bincount(answer + 1, minlength=answers + 1)[1:]
        prior = np.log((count + 0.5) / (count.sum() + 0.5 * len(count)))
        network.head.bias.data.copy_(torch.from_numpy(prior).to(network.head.bias.dtype))

    def text_dims(self) -> dict[int, str]:
        """One question a clip, of any length."""
        return {0: "B", 2: "L"}
