"""What tasks have in common that score the answers to a question about one clip."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lit_mmpg.records import Caption, Question
from lit_mmpg.tasks.base import Figure, Gallery, Gather, ItemResults, Metric, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lit_mmpg.batch import Batch, Outputs
    from lit_mmpg.tasks.graphs import GraphSpec

ACCURACY = Metric(
    "accuracy", "accuracy, %", "Accuracy: share of questions that are answered right; higher is better.", percent=True
)


class QuestionTask(Task):
    """Base of tasks whose questions have one right answer among several. All answers get a score; cross-entropy loss.

    Attributes:
        smooths: Whether label smoothing applies, that is, whether all questions have the same possible answers.
    """

    items = "questions"
    primary = ACCURACY
    figures: ClassVar = {
        "agreement": Figure("share of the same answers as the static model", 0.1, most=1.0),
        "divergence": Figure("divergence from the answers of the static model", 0.02, least=0.0),
        "confidence": Figure("mean confidence", 0.1, most=1.0),
    }
    smooths: ClassVar[bool] = False

    @abstractmethod
    def text_dims(self) -> dict[int, str]:
        """Names of the varying dimensions of ``text [B, O, L]`` in the graph."""

    # -- data ----------------------------------------------------------------------------------------------------

    def takes(self, text: Question | Caption, split: str) -> bool:
        """Questions of this kind."""
        return isinstance(text, Question) and bool(text.options) == self.takes_options

    def hide_labels(self, batch: Batch, seed: int) -> Batch:
        """Questions lose their answers."""
        return self.query_view(batch)

    def query_view(self, batch: Batch) -> Batch:
        """No answers."""
        import torch

        return replace(batch, answer=torch.full_like(batch.answer, -1), item=torch.zeros_like(batch.item))

    # -- device model --------------------------------------------------------------------------------------------

    def scores(
        self, network: Any, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()
    ) -> Tensor:
        """``[..., A]``: :meth:`head_width` outputs for the question, or one for each option."""
        return network.answer(frames, mask, text, parameters)

    def respond(self, network: Any, batch: Batch, frames: Tensor, parameters: Sequence[Tensor] = ()) -> Outputs:
        """Scores; clips are encoded once and then lined up with their questions."""
        import torch

        from lit_mmpg.batch import Outputs

        rows, mask = torch.arange(len(batch), device=frames.device).unsqueeze(1), batch.frames.mask
        lined_up = frames[rows, batch.text_clip], mask[rows, batch.text_clip]
        logits = self.scores(network, *lined_up, batch.text, parameters)
        return Outputs(logits=self.masked(logits, batch.text))

    def masked(self, scores: Tensor, text: Tensor) -> Tensor:
        """Scores in which options that are padding cannot win."""
        return scores

    def loss(
        self, network: Any, batch: Batch, outputs: Outputs, label_smoothing: float = 0.0, gather: Gather = lambda x: x
    ) -> Tensor:
        """Cross-entropy; questions whose answer is not in the answer list teach nothing."""
        import torch
        from torch.nn import functional as F

        assert outputs.logits is not None
        target = torch.where(batch.text_mask, batch.answer, -1).flatten()
        known = target >= 0
        smoothing = label_smoothing if self.smooths else 0.0
        losses = F.cross_entropy(
            outputs.logits.flatten(0, 1), target, ignore_index=-1, reduction="sum", label_smoothing=smoothing
        )
        return losses / known.sum().clamp(min=1)

    def device_loss(self, network: Any, batch: Batch, outputs: Outputs) -> Tensor:
        """Cross-entropy over the questions of each device whose answer is in the answer list."""
        import torch
        from torch.nn import functional as F

        from lit_mmpg.batch import masked_mean

        assert outputs.logits is not None
        target = torch.where(batch.text_mask, batch.answer, -1)
        losses = F.cross_entropy(outputs.logits.transpose(1, 2), target, ignore_index=-1, reduction="none")
        return masked_mean(losses, target >= 0)

    def choices(self, network: Any, batch: Batch, outputs: Outputs) -> Tensor:
        """The scores."""
        assert outputs.logits is not None
        return outputs.logits

    def head_mask(self, batch: Batch) -> Tensor:
        """Real questions."""
        return batch.text_mask

    # -- evaluation ----------------------------------------------------------------------------------------------

    def new_metric(self, kinds: Sequence[str], gallery: Gallery) -> nn.Module:
        """Accuracy over items, devices, the worst devices and question types."""
        from lit_mmpg.metrics.accuracy import DeviceAccuracy

        return DeviceAccuracy(kinds)

    def update_metric(self, metric: Any, batch: Batch, outputs: Outputs) -> None:
        """Right is what the best score says, and nothing where one is no number."""
        assert outputs.logits is not None
        mask = batch.text_mask
        correct = (outputs.logits.argmax(-1) == batch.answer) & ~outputs.logits.isnan().any(-1)
        device = batch.device.unsqueeze(1).expand_as(mask)
        metric.update(correct[mask], device[mask], batch.kind[mask], batch.item[mask])

    def item_results(self, metric: Any, item_clip: np.ndarray) -> ItemResults:
        """Whether each question was answered right."""
        answered = metric.items()
        device, item, correct = (t.detach().cpu().numpy() for t in (answered.device, answered.item, answered.correct))
        return ItemResults(device, item_clip[item], item, {self.primary.name: correct.astype(np.float64)})

    def prediction(
        self,
        text: Question | Caption,
        batch: Batch,
        outputs: Outputs,
        place: tuple[int, int],
        answers: Sequence[str],
        clips: Sequence[str],
    ) -> dict[str, object]:
        """The answer with its probability."""
        assert isinstance(text, Question) and outputs.logits is not None
        probability = outputs.logits[place].softmax(-1)
        best = int(probability.argmax())
        answer = text.options[best] if text.options else answers[best]
        return {
            "id": text.id,
            "question": text.text,
            "prediction": answer,
            "probability": round(float(probability[best]), 4),
            "answer": text.answer,
            "correct": answer == text.answer if text.options else best == int(batch.answer[place]),
        }

    # -- bundle and device ---------------------------------------------------------------------------------------

    def graphs(
        self, network: Any, clips: dict[str, Tensor], clip_dims: dict[str, dict[int, str]], words: Tensor
    ) -> list[GraphSpec]:
        """One graph: ``frames, frame_mask, text, parameters -> scores``."""
        from lit_mmpg.tasks.graphs import AnswerGraph, GraphSpec

        # Contiguous: ahead-of-time compilation keeps the strides of examples.
        text = words if self.takes_options else words[:, :1].contiguous()
        dims = clip_dims | {"text": self.text_dims()}
        return [GraphSpec("model", AnswerGraph(network), clips | {"text": text}, dims, "scores", True)]

    def graph_inputs(self, clips: dict[str, np.ndarray], text: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Clips and questions together."""
        return {"model": clips | {"text": text}}

    def decode(self, scores: np.ndarray, options: Sequence[str], answers: Sequence[str]) -> list[tuple[str, float]]:
        """Softmax of the scores; not calibrated."""
        likely = np.exp(scores - scores.max())
        likely /= likely.sum()
        names = list(options) or list(answers)
        return [(names[i], float(likely[i])) for i in np.argsort(-likely, kind="stable")]

    def output_figures(self, static: np.ndarray, personal: np.ndarray) -> dict[str, float]:
        """Share of the same best answers, Jensen-Shannon divergence of the answers, and their confidence."""
        before, after = _softmax(static), _softmax(personal)
        middle = (before + after) / 2
        divergence = (_relative_entropy(before, middle) + _relative_entropy(after, middle)) / 2
        return {
            "agreement": float(np.mean(before.argmax(1) == after.argmax(1))),
            "divergence": float(divergence.mean()),
            "confidence": float(after.max(1).mean()),
        }

    def unit(self) -> str:
        """Scores."""
        return "to the scores of one question each"


def _softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def _relative_entropy(shares: np.ndarray, other: np.ndarray) -> np.ndarray:
    """In nats, ``[R]``; shares of zero count nothing."""
    return (shares * np.log(np.maximum(shares, 1e-12) / np.maximum(other, 1e-12))).sum(1)
