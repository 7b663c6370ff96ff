"""Retrieval between texts and clips: ranks that cannot be flattered by ties or NaN, and the usual summaries.

Everything starts from :func:`rank_bounds`: how many wrong items score strictly better than the best correct one, how
many wrong ones score the same, and how many correct ones share that score. The items that score the same are thought
of as shuffled at random: ranks are the expectation over the shuffles and recall is the probability over them. So a
model that gives everything the same score has the rank and the recall of pure chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lit_mmpg.metrics.states import GatheredMetric, first_of_each, require_same_length

RECALL_AT = (1, 5, 10)
SCORES_AT_ONCE = 2**22
"""Scores held in memory at once: galleries of any size are ranked in slices of queries."""


class RankBounds(NamedTuple):
    """Where the best correct item of each query stands; int64 ``[Q]`` each.

    Attributes:
        better: Number of wrong items that score strictly better.
        ties: Number of wrong items with the same score.
        positives: Number of correct items with that score, at least 1.
    """

    better: Tensor
    ties: Tensor
    positives: Tensor


def rank_bounds(similarity: Tensor, target: Tensor) -> RankBounds:
    """Position of the best-ranked correct item of each query.

    Args:
        similarity: ``[Q, G]`` floating-point scores, higher is better.
        target: ``[Q]`` integers, index of the one correct item; or ``[Q, G]`` bool, True where an item is correct
            (a clip has several captions, and its best-ranked one counts).

    Raises:
        ValueError: If a score is NaN or infinite, a query has no correct item, or the shapes do not fit.
    """
    queries, size = similarity.shape
    if not bool(torch.isfinite(similarity).all()):
        raise ValueError("similarity holds NaN or infinity, so that ranks are undefined")
    if target.dtype == torch.bool:
        if target.shape != similarity.shape:
            raise ValueError(f"target has shape {tuple(target.shape)}, similarity {tuple(similarity.shape)}")
        correct = target
    else:
        if target.shape != (queries,):
            raise ValueError(f"target has shape {tuple(target.shape)}, expected {(queries,)}")
        correct = target[:, None] == torch.arange(size, device=target.device)
    if not bool(correct.any(dim=1).all()):
        raise ValueError("a query has no correct item in its gallery")
    best = similarity.masked_fill(~correct, -math.inf).amax(dim=1, keepdim=True)
    tied = similarity == best
    return RankBounds(
        better=(similarity > best).sum(dim=1),
        ties=(tied & ~correct).sum(dim=1),
        positives=(tied & correct).sum(dim=1),
    )


def mean_ranks(bounds: RankBounds) -> Tensor:
    """Expected rank of the first correct item when ties are shuffled, ``[Q]`` float64, starting at 1.

    With one correct item this is the mean rank ``1 + better + ties / 2``; with p correct items among the tied ones,
    the first of them comes, in expectation, after ``ties / (p + 1)`` wrong ones.
    """
    return 1 + bounds.better.double() + bounds.ties.double() / (bounds.positives.double() + 1)


def ranks(similarity: Tensor, target: Tensor) -> Tensor:
    """Rank of the correct item of each query, starting at 1; ties take the mean rank.

    Constant scores give ``(G + 1) / 2``.

    Args:
        similarity: ``[Q, G]`` floating-point scores, higher is better.
        target: ``[Q]`` integers or ``[Q, G]`` bool, as for :func:`rank_bounds`.

    Returns:
        ``[Q]`` float64.

    Raises:
        ValueError: As :func:`rank_bounds`.

    Example:
        >>> ranks(torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.2]]), torch.tensor([2, 0]))
        tensor([2., 2.], dtype=torch.float64)
    """
    return mean_ranks(rank_bounds(similarity, target))


def recall_probability(bounds: RankBounds, k: int) -> Tensor:
    """Probability that a correct item is among the first k when ties are shuffled, ``[Q]`` float64.

    After the strictly better items ``m = k - better`` places are left for ``ties`` wrong and p correct items in random
    order. The chance that wrong ones take all m places is C(ties, m) / C(ties + p, m). With one correct item the
    probability is ``m / (ties + 1)``, within 0 and 1.
    """
    places = k - bounds.better
    missed = torch.ones(bounds.better.shape, dtype=torch.float64, device=places.device)
    for place in range(k):
        wrong_left = (bounds.ties - place).clamp(min=0).double()
        left = (bounds.ties + bounds.positives - place).clamp(min=1).double()
        missed = torch.where(place < places, missed * wrong_left / left, missed)
    return 1 - missed


def retrieval_metrics(bounds: RankBounds) -> dict[str, float]:
    """Summary of the ranks of all queries.

    Args:
        bounds: Result of :func:`rank_bounds`. Ranks alone would not do: recall under ties needs both counts.

    Returns:
        ``R@1``, ``R@5``, ``R@10`` (fractions), ``MedR``, ``MnR`` (median and mean of the ranks) and
        ``mean_log_rank`` (natural logarithm).

    Raises:
        ValueError: If there are no queries.
    """
    if bounds.better.numel() == 0:
        raise ValueError("retrieval without queries is undefined")
    rank = mean_ranks(bounds)
    result = {f"R@{k}": float(recall_probability(bounds, k).mean()) for k in RECALL_AT}
    result["MedR"] = float(rank.quantile(0.5))
    result["MnR"] = float(rank.mean())
    result["mean_log_rank"] = float(rank.log().mean())
    return result


@dataclass(frozen=True, slots=True)
class QueryRanks:
    """Every query of one direction and gallery; all tensors ``[Q]``, int64 unless stated.

    Attributes:
        query: Id of the text (text to video) or of the clip (video to text).
        clip: Id of the clip that the query is about.
        device: Device of the query.
        bounds: Position of the correct item.
        gallery_size: Number of candidates.
    """

    query: Tensor
    clip: Tensor
    device: Tensor
    bounds: RankBounds
    gallery_size: Tensor

    @property
    def rank(self) -> Tensor:
        """Rank of the correct item, float64."""
        return mean_ranks(self.bounds)


@dataclass(frozen=True, slots=True)
class _Side:
    """Texts or clips: embeddings ``[n, E]`` and their own id, clip id and device, ``[n]`` each."""

    embedding: Tensor
    id: Tensor
    clip: Tensor
    device: Tensor

    def __getitem__(self, index: Tensor) -> _Side:
        return _Side(self.embedding[index], self.id[index], self.clip[index], self.device[index])


def _rank_queries(query: _Side, gallery: _Side) -> QueryRanks:
    """Rank one gallery for every query; what belongs to the same clip is correct."""
    parts = []
    step = max(1, SCORES_AT_ONCE // max(1, len(gallery.id)))
    columns = gallery.embedding.double().T
    for start in range(0, len(query.id), step):
        rows = slice(start, start + step)
        # Matrix products round differently from column to column, which would break exact ties at random.
        # Float64 products rounded to float32 agree wherever the embeddings agree.
        similarity = (query.embedding[rows].double() @ columns).float()
        parts.append(rank_bounds(similarity, query.clip[rows, None] == gallery.clip))
    bounds = RankBounds(*(torch.cat(column) for column in zip(*parts, strict=True)))
    return QueryRanks(query.id, query.clip, query.device, bounds, torch.full_like(query.id, len(gallery.id)))


def _rank_locally(query: _Side, gallery: _Side) -> QueryRanks:
    """Rank, for the queries of each device, the gallery of that device alone."""
    parts = [
        _rank_queries(query[query.device == device], gallery[gallery.device == device])
        for device in query.device.unique()
    ]
    return QueryRanks(
        query=torch.cat([part.query for part in parts]),
        clip=torch.cat([part.clip for part in parts]),
        device=torch.cat([part.device for part in parts]),
        bounds=RankBounds(*(torch.cat(column) for column in zip(*(part.bounds for part in parts), strict=True))),
        gallery_size=torch.cat([part.gallery_size for part in parts]),
    )


class RetrievalMetrics(GatheredMetric):
    """Text-to-video and video-to-text retrieval in the mixed and in the device-local galleries.

    Scores are dot products: pass embeddings of unit length for cosine similarity. A clip is embedded with the
    parameters of its own device, and so is a text where the text tower is adapted too; one that is not adapted is
    simply embedded once. The *mixed* gallery holds all clips (or texts) of the split together; the *device-local* one
    those of the query's device, so its size differs from device to device and is reported beside the recall.
    Video to text takes the best-ranked caption of a clip; a clip without captions is a candidate but no query.

    Repeated items, with which distributed samplers fill the last batches, count once: of the same (device, text) and of
    the same (device, clip) the first is kept. Embeddings are held flat, because a process without items knows no width.

    Args:
        gallery: ``mixed``: both kinds are ranked. ``device``: where all devices film the same clips a mixed gallery
            would hold every clip many times over; the device-local ones are then the only ones, called ``t2v`` and
            ``v2t``.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    def __init__(self, gallery: Literal["mixed", "device"] = "mixed", **kwargs: Any) -> None:
        integers = ("text_id", "text_clip_id", "device_text", "clip_id", "device_clip")
        embeddings = ("text_embedding", "video_embedding")
        super().__init__({**dict.fromkeys(embeddings, torch.float32), **dict.fromkeys(integers, torch.long)}, **kwargs)
        self.gallery = gallery

    def update(
        self,
        text_embedding: Tensor,
        video_embedding: Tensor,
        text_clip_id: Tensor,
        clip_id: Tensor,
        device_text: Tensor,
        device_clip: Tensor,
        text_id: Tensor,
    ) -> None:
        """Add the texts and clips of one batch (real ones only, padding removed); n and m may differ.

        Args:
            text_embedding: ``[n, E]`` floating point.
            video_embedding: ``[m, E]`` floating point.
            text_clip_id: ``[n]`` clip that each text is about.
            clip_id: ``[m]`` index of the clip in the data set.
            device_text: ``[n]`` device of the clip that the text is about.
            device_clip: ``[m]`` device of the clip.
            text_id: ``[n]`` index of the text in the item list of the split.

        Raises:
            ValueError: If the lengths or the widths differ.
        """
        require_same_length(
            text_embedding=text_embedding, text_clip_id=text_clip_id, device_text=device_text, text_id=text_id
        )
        require_same_length(video_embedding=video_embedding, clip_id=clip_id, device_clip=device_clip)
        if text_embedding.ndim != 2 or text_embedding.shape[1:] != video_embedding.shape[1:]:
            raise ValueError(
                f"embeddings must be [n, E] and [m, E], got {tuple(text_embedding.shape)}"
                f" and {tuple(video_embedding.shape)}"
            )
        self.append(
            text_embedding=text_embedding,
            video_embedding=video_embedding,
            text_clip_id=text_clip_id,
            clip_id=clip_id,
            device_text=device_text,
            device_clip=device_clip,
            text_id=text_id,
        )

    def compute(self) -> dict[str, Tensor]:
        """Metrics of both directions and galleries, as float32 scalars.

        Returns:
            For the mixed gallery ``t2v/R@1``, ``t2v/R@5``, ``t2v/R@10``, ``t2v/MedR``, ``t2v/MnR``,
            ``t2v/mean_log_rank``, ``t2v/gallery_size`` (mean number of candidates) and the same under ``v2t/``; for
            the device-local galleries, over all queries, the same under ``local_t2v/`` and ``local_v2t/``.

        Raises:
            ValueError: If a score is not finite, there are no texts or clips, or the clip of a text is not in its
                gallery.
        """
        result = {}
        for name, queries in self._rank_all().items():
            values = retrieval_metrics(queries.bounds)
            values["gallery_size"] = float(queries.gallery_size.double().mean())
            for key, value in values.items():
                result[f"{name}/{key}"] = torch.tensor(value, device=self.device)
        return result

    def per_query(self) -> dict[str, QueryRanks]:
        """Every query of ``t2v``, ``v2t``, ``local_t2v`` and ``local_v2t``, over all processes.

        For predictions and for intervals over devices and clips. All processes have to call this.
        """
        with self.gathered():
            return self._rank_all()

    def _rank_all(self) -> dict[str, QueryRanks]:
        if len(self.state("text_id")) == 0 or len(self.state("clip_id")) == 0:
            raise ValueError("retrieval without texts or without clips is undefined")
        texts = self._side("text_embedding", "text_id", "text_clip_id", "device_text")
        clips = self._side("video_embedding", "clip_id", "clip_id", "device_clip")
        asked = torch.stack([texts.device, texts.clip], dim=1).unique(dim=0)
        # Pairs as numbers: comparing each clip with each pair asked about would need memory for all of them.
        span = int(max(texts.clip.max(), clips.clip.max())) + 1
        described = clips[torch.isin(clips.device * span + clips.clip, asked[:, 0] * span + asked[:, 1])]
        if self.gallery == "device":
            return {"t2v": _rank_locally(texts, clips), "v2t": _rank_locally(described, texts)}
        return {
            "t2v": _rank_queries(texts, clips),
            "v2t": _rank_queries(described, texts),
            "local_t2v": _rank_locally(texts, clips),
            "local_v2t": _rank_locally(described, texts),
        }

    def _side(self, embedding: str, id_: str, clip: str, device: str) -> _Side:
        ids, devices = self.state(id_), self.state(device)
        side = _Side(self.state(embedding).view(len(ids), -1), ids, self.state(clip), devices)
        return side[first_of_each(devices, ids)]
