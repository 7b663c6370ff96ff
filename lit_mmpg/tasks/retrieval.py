"""Retrieval: clips and sentences are embedded apart and compared by their cosine, in both directions."""

from __future__ import annotations

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

TOP = 5
"""Clips listed for a caption."""


class Retrieval(Task):
    """Sentences that find their clips, and clips that find their sentences."""

    name = "retrieval"
    items = full_items = "captions"
    primary = Metric(
        "t2v/mean_log_rank",
        "mean log-rank",
        "Mean log-rank: mean natural logarithm of the place at which the right clip stands when all test clips are "
        "ranked for a sentence; 0 is perfect, lower is better.",
        lower_is_better=True,
    )
    searches = True
    max_words = 24
    lacks: ClassVar = {
        "shared_classes": "every clip is a class of its own, which no other text belongs to",
        "frequent_answer": "no answer is frequent; the caption prior is the run 'text_only'",
    }
    frozen = ("text_encoder.", "log_temperature")
    figures: ClassVar = {"cosine": Figure("cosine with the embeddings of the static model", 0.02, most=1.0)}
    paired_roles: ClassVar = {"model": "text", "text": "model"}

    # -- data ----------------------------------------------------------------------------------------------------

    def takes(self, text: Question | Caption, split: str) -> bool:
        """Captions; extra sentences teach, but are never asked."""
        return isinstance(text, Caption) and (split == "train" or not text.extra)

    @classmethod
    def fits_table(cls, questions: bool, options: bool) -> bool:
        """No question at all."""
        return not questions

    def device_model(self, texts: int, small: int) -> str | dict[str, Any]:
        """A closed-form start, where there are texts enough for it."""
        if texts >= small:
            return "configs/model/device_msrvtt_retrieval.yaml"
        network = {"width": 128, "temporal": False, "dropout": 0.1, "frame_dropout": 0.2, "word_dropout": 0.1}
        return {"class_path": "DeviceModule", "init_args": {"network": network}}

    def candidates(self, text: Question | Caption) -> list[str]:
        """The sentence."""
        return [text.text]

    def hide_labels(self, batch: Batch, seed: int) -> Batch:
        """Texts come in random order and lose their clips: past searches, not labels."""
        import torch

        order = torch.rand(batch.text_mask.shape, generator=torch.Generator().manual_seed(seed))
        order = order.masked_fill(~batch.text_mask.cpu(), 2.0).argsort(-1).to(batch.text.device)
        text = batch.text.gather(1, order[..., None, None].expand_as(batch.text))
        return replace(batch, text=text, text_clip=torch.zeros_like(batch.text_clip), item=torch.zeros_like(batch.item))

    def query_view(self, batch: Batch) -> Batch:
        """Not which clip a text is about."""
        import torch

        item, text_clip = torch.zeros_like(batch.item), torch.zeros_like(batch.text_clip)
        return replace(batch, answer=torch.full_like(batch.answer, -1), item=item, text_clip=text_clip)

    # -- device model --------------------------------------------------------------------------------------------

    def scores(
        self, network: Any, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()
    ) -> Tensor:
        """``[...]`` cosine of a clip and its sentence."""
        return (network.embed_video(frames, mask, parameters) * network.embed_text(text.squeeze(-2))).sum(-1)

    def respond(self, network: Any, batch: Batch, frames: Tensor, parameters: Sequence[Tensor] = ()) -> Outputs:
        """Embeddings of clips and texts."""
        from lit_mmpg.batch import Outputs

        video = network.embed_video(frames, batch.frames.mask, parameters)
        return Outputs(video=video, text=network.embed_text(batch.text.squeeze(-2)))

    def loss(
        self, network: Any, batch: Batch, outputs: Outputs, label_smoothing: float = 0.0, gather: Gather = lambda x: x
    ) -> Tensor:
        """Symmetric InfoNCE over all clips and texts of the batch, over all processes."""
        import torch

        assert outputs.video is not None and outputs.text is not None
        rows = torch.arange(len(batch), device=batch.clip.device).unsqueeze(1)
        video = gather(outputs.video.flatten(0, 1))
        video_clip = gather(batch.clip.flatten())
        text = gather(outputs.text.flatten(0, 1))
        text_clip = gather(torch.where(batch.text_mask, batch.clip[rows, batch.text_clip], -2).flatten())
        score = network.log_temperature.exp().clamp(max=100.0) * text @ video.T
        # The same clip may stand in the batch twice (padding repeats): all its columns are positives, none a negative.
        positive = text_clip[:, None] == video_clip[None, :]
        real_text, real_video = text_clip >= 0, video_clip >= 0

        def direction(score: Tensor, positive: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
            score = score.masked_fill(~columns, -1e4)
            kept = rows & positive.any(1)
            likelihood = score.masked_fill(~positive, -1e4).logsumexp(1) - score.logsumexp(1)
            return -(likelihood * kept).sum() / kept.sum().clamp(min=1)

        return 0.5 * (
            direction(score, positive, real_text, real_video) + direction(score.T, positive.T, real_video, real_text)
        )

    def device_loss(self, network: Any, batch: Batch, outputs: Outputs) -> Tensor:
        """Symmetric InfoNCE among the device's own clips and texts; several copies of a clip are all positives."""
        import torch

        from lit_mmpg.batch import masked_mean

        score = self.choices(network, batch, outputs)
        rows = torch.arange(len(batch), device=batch.clip.device).unsqueeze(1)
        text_clip = torch.where(batch.text_mask, batch.clip[rows, batch.text_clip], -2)
        positive = text_clip.unsqueeze(2) == batch.clip.unsqueeze(1)

        def direction(score: Tensor, positive: Tensor, real_columns: Tensor) -> Tensor:
            score = score.masked_fill(~real_columns.unsqueeze(1), -1e4)
            likelihood = score.masked_fill(~positive, -1e4).logsumexp(2) - score.logsumexp(2)
            return -masked_mean(likelihood, positive.any(2))

        clips = batch.clip >= 0
        return 0.5 * (
            direction(score, positive, clips)
            + direction(score.transpose(1, 2), positive.transpose(1, 2), batch.text_mask)
        )

    def choices(self, network: Any, batch: Batch, outputs: Outputs) -> Tensor:
        """Scores of each text against the clips of its own row, ``[B, N, M]``, padded clips at -1e4."""
        import torch

        assert outputs.video is not None and outputs.text is not None
        scale = network.log_temperature.exp().clamp(max=100.0)
        score = scale * torch.einsum("bnh,bmh->bnm", outputs.text, outputs.video)
        return score.masked_fill((batch.clip < 0).unsqueeze(1), -1e4)

    def head_mask(self, batch: Batch) -> Tensor:
        """Real clips."""
        return batch.clip >= 0

    # -- evaluation ----------------------------------------------------------------------------------------------

    def new_metric(self, kinds: Sequence[str], gallery: Gallery) -> nn.Module:
        """Ranks and recall, in both directions."""
        from lit_mmpg.metrics.retrieval import RetrievalMetrics

        return RetrievalMetrics(gallery)

    def update_metric(self, metric: Any, batch: Batch, outputs: Outputs) -> None:
        """Embeddings of real clips and real texts."""
        import torch

        assert outputs.video is not None and outputs.text is not None
        mask, clip_mask = batch.text_mask, batch.clip >= 0
        device, rows = batch.device.unsqueeze(1), torch.arange(len(batch), device=mask.device).unsqueeze(1)
        metric.update(
            outputs.text[mask],
            outputs.video[clip_mask],
            batch.clip[rows, batch.text_clip][mask],
            batch.clip[clip_mask],
            device.expand_as(mask)[mask],
            device.expand_as(clip_mask)[clip_mask],
            batch.item[mask],
        )

    def item_results(self, metric: Any, item_clip: np.ndarray) -> ItemResults:
        """Log-rank and recall of each sentence."""
        from lit_mmpg.metrics.retrieval import RECALL_AT, recall_probability

        def array(tensor: Tensor) -> np.ndarray:
            return tensor.detach().cpu().numpy()

        ranked = metric.per_query()["t2v"]
        values = {self.primary.name: array(ranked.rank.log())}
        values |= {f"t2v/R@{k}": array(recall_probability(ranked.bounds, k)) for k in RECALL_AT}
        return ItemResults(array(ranked.device), array(ranked.clip), array(ranked.query), values)

    def prediction(
        self,
        text: Question | Caption,
        batch: Batch,
        outputs: Outputs,
        place: tuple[int, int],
        answers: Sequence[str],
        clips: Sequence[str],
    ) -> dict[str, object]:
        """The best of the clips that the same device was asked about in this batch, and the rank of the right one."""
        assert outputs.video is not None and outputs.text is not None
        b = place[0]
        score = (outputs.video[b] @ outputs.text[place]).masked_fill(batch.clip[b] < 0, -2.0)
        order = score.argsort(descending=True, stable=True).tolist()
        ranked = [clips[i] for i in order if clips[i]]
        return {"caption": text.text, "ranked": " ".join(ranked[:TOP]), "rank": ranked.index(text.clip) + 1}

    # -- bundle and device ---------------------------------------------------------------------------------------

    def graphs(
        self, network: Any, clips: dict[str, Tensor], clip_dims: dict[str, dict[int, str]], words: Tensor
    ) -> list[GraphSpec]:
        """One graph for clips and one for sentences."""
        from lit_mmpg.tasks.graphs import GraphSpec, TextGraph, VideoGraph

        text = {"text": words[:, 0].contiguous()}
        return [
            GraphSpec("model", VideoGraph(network), clips, clip_dims, "embedding", True),
            GraphSpec("text", TextGraph(network), text, {"text": {0: "B", 1: "L"}}, "embedding"),
        ]

    def graph_inputs(self, clips: dict[str, np.ndarray], text: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Clips and sentences apart."""
        return {"model": clips, "text": {"text": text[:, 0]}}

    def decode(self, scores: np.ndarray, options: Sequence[str], answers: Sequence[str]) -> list[tuple[str, float]]:
        """Sentences (the options) with their similarity to a clip."""
        return [(options[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]

    def output_figures(self, static: np.ndarray, personal: np.ndarray) -> dict[str, float]:
        """Cosine of the clip embeddings."""
        lengths = np.linalg.norm(static, axis=1) * np.linalg.norm(personal, axis=1)
        return {"cosine": float(np.mean((static * personal).sum(1) / np.maximum(lengths, 1e-12)))}

    def unit(self) -> str:
        """Similarity."""
        return "to the embedding, one query, and their similarity"
