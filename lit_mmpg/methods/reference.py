"""What needs no adaptation: the checkpoint as it is, and the floor that looks at nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lit_mmpg.device.outputs import Outputs
from lit_mmpg.methods.base import AdaptationMethod, Episode, Options, State, Subject

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData


class Unadapted(AdaptationMethod):
    """The checkpoint as it is: what every other method must improve on."""

    name = "unadapted"
    paper = "reference"
    setting = "floor"
    knows = "nothing"

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers of the checkpoint."""
        return self.subject.answer(query)


class Majority(AdaptationMethod):
    """The most frequent answer of the training questions of each type, whatever is shown or asked.

    Multiple choice: the place at which the right option stands most often (chance, where the data shuffles options).
    """

    name = "majority"
    paper = "floor"
    setting = "floor"
    knows = "nothing"
    needs = ("frequent_answer",)

    def __init__(self, subject: Subject, data: DeviceData, seed: int = 0) -> None:
        super().__init__(subject, data, seed)
        items = data.items("train")
        size = len(data.answers) if subject.task.answer_list else items.tokens.shape[1]
        counts = np.zeros((len(data.kinds), size), np.float32)
        known = items.answer >= 0
        np.add.at(counts, (items.kind[known], items.answer[known]), 1.0)
        # Types that training does not have fall back on all types together.
        counts += 1e-3 * counts.sum(0, keepdims=True) / max(1.0, float(counts.sum()))
        self.prior = torch.from_numpy(counts)

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """The prior of the question's type as scores."""
        scores = self.prior.to(query.batch.kind.device)[query.batch.kind]
        if self.subject.task.takes_options:
            scores = scores[..., : query.batch.text.shape[2]]
            scores = scores.masked_fill((query.batch.text == 0).all(-1), -1.0)
        return Outputs(logits=scores)
