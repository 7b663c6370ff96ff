"""Closed-form retrieval baseline: ridge regression from mean frame features to TF-IDF captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lit_mmpg.batch import Batch
from lit_mmpg.device.closed_form import Ridge, fit_ridge, fit_tfidf
from lit_mmpg.device.evaluation import Evaluation
from lit_mmpg.device.outputs import Outputs
from lit_mmpg.errors import UserError
from lit_mmpg.tasks import find_task

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData

STRENGTHS = (1e3, 3e3, 1e4, 3e4, 1e5, 3e5)
"""Penalties among which the validation clips choose."""


def require_retrieval(task: str, features: bool = True) -> None:
    """Refuse what the baseline cannot do.

    Raises:
        UserError: If the task does not search, or there are no frame features.
    """
    if not find_task(task).searches or not features:
        raise UserError(
            "the ridge baseline needs data.task 'retrieval' and frame features; leave it out of the comparison"
        )


class RidgeBaseline:
    """Ridge regression as a retrieval method, on data that is set up for ``fit``; deterministic.

    Raises:
        UserError: If the data has another task, or pixels.
    """

    def __init__(self, data: DeviceData) -> None:
        require_retrieval(data.task, len(data.corpus.frames.frame_shape) == 1)
        self.data = data
        self.mean, self.std = data.feature_statistics()
        features, captions = data.caption_pairs()
        self.tfidf = fit_tfidf([c.text for c in data.texts("train")])
        targets = self.tfidf.transform(captions).toarray()
        fits = {s: fit_ridge((features - self.mean) / self.std, targets, s) for s in STRENGTHS}
        scores = {s: self._score(ridge) for s, ridge in fits.items()}
        self.strength = min(scores, key=lambda s: scores[s])
        self.ridge = fits[self.strength]

    def _score(self, ridge: Ridge) -> float:
        """Primary metric on validation; lower is better."""
        evaluation = self.evaluate(["val"], ridge)
        return evaluation.compute("val", "ridge")[evaluation.task.primary.name]

    def evaluate(self, groups: list[str], ridge: Ridge | None = None) -> Evaluation:
        """Answers on groups of devices."""
        split = "val" if groups == ["val"] else "test"
        evaluation = Evaluation([self.data.group(name) for name in groups], ["ridge"])
        for group in groups:
            for batch in self.data.eval_batches(group, with_context=False):
                evaluation.update(group, "ridge", batch, self._respond(batch, ridge or self.ridge, split))
        return evaluation

    def _respond(self, batch: Batch, ridge: Ridge, split: str) -> Outputs:
        weight = batch.frames.mask.unsqueeze(-1).double()
        mean = (batch.frames.values * weight).sum(-2) / weight.sum(-2).clamp(min=1)
        video = ridge.predict((mean.numpy() - self.mean) / self.std)
        texts = self.data.texts(split)
        sentences = [texts[i].text for i in batch.item.flatten().tolist()]
        text = self.tfidf.transform(sentences).toarray().reshape(*batch.item.shape, -1)

        def unit(values: np.ndarray) -> torch.Tensor:
            return torch.nn.functional.normalize(torch.from_numpy(values).float(), dim=-1)

        return Outputs(video=unit(video), text=unit(text))
