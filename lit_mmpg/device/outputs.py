"""From a batch to scores and to the loss of the task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_mmpg.batch import Batch
from lit_mmpg.device.contract import DeviceModel
from lit_mmpg.errors import UserError

Gather = Callable[[Tensor], Tensor]
"""Concatenates a tensor over processes along its first dimension, with gradients; the identity in one process."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the device model says about a batch.

    Attributes:
        logits: ``[B, N, A]`` or ``[B, N, O]``; empty for retrieval.
        video: ``[B, M, H]`` unit-length clip embeddings; ``None`` for questions.
        text: ``[B, N, H]`` unit-length text embeddings; ``None`` for questions.
    """

    logits: Tensor | None = None
    video: Tensor | None = None
    text: Tensor | None = None


def answer_batch(
    model: DeviceModel,
    batch: Batch,
    features: Tensor,
    parameters: Sequence[Tensor] = (),
    projected: Tensor | None = None,
) -> Outputs:
    """Run the device model on a batch.

    Args:
        model: The device model.
        batch: The batch.
        features: ``[B, M, T, D]`` encoded query frames.
        parameters: Personal parameters with leading dimension B, or nothing.
        projected: ``[B, M, T, H]``, if :meth:`DeviceModel.project` has been called already.

    Returns:
        Scores (questions) or embeddings (retrieval).
    """
    mask = batch.frames.mask
    if projected is None:
        projected = model.project(features, parameters)
    frames = model.contextualise(projected, mask)
    if model.shapes.task == "retrieval":
        return Outputs(video=model.embed_video(frames, mask, parameters), text=model.embed_text(batch.text.squeeze(-2)))
    # Clips are encoded once and then lined up with their questions.
    rows = torch.arange(len(batch), device=frames.device).unsqueeze(1)
    logits = model.answer(frames[rows, batch.text_clip], mask[rows, batch.text_clip], batch.text, parameters)
    if model.shapes.task == "multiple_choice":
        absent = (batch.text == 0).all(-1)
        logits = logits.masked_fill(absent, -1e4)
    return Outputs(logits=logits)


def _contrastive(model: DeviceModel, batch: Batch, outputs: Outputs, gather: Gather) -> Tensor:
    assert outputs.video is not None and outputs.text is not None
    rows = torch.arange(len(batch), device=batch.clip.device).unsqueeze(1)
    video = gather(outputs.video.flatten(0, 1))
    video_clip = gather(batch.clip.flatten())
    text = gather(outputs.text.flatten(0, 1))
    text_clip = gather(torch.where(batch.text_mask, batch.clip[rows, batch.text_clip], -2).flatten())
    score = model.log_temperature.exp().clamp(max=100.0) * text @ video.T
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


def task_loss(
    model: DeviceModel, batch: Batch, outputs: Outputs, label_smoothing: float = 0.0, gather: Gather = lambda x: x
) -> Tensor:
    """Loss of the task on a batch.

    Questions: cross-entropy; those whose answer is not in the answer list teach nothing. Retrieval: symmetric
    InfoNCE over all clips and texts of the batch, over all processes.

    Args:
        model: The device model.
        batch: The batch.
        outputs: Result of :func:`answer_batch`.
        label_smoothing: Share of the probability that is spread over all answers.
        gather: Gathers tensors over processes.

    Returns:
        Scalar; 0 (with a gradient) for a batch without a usable item.
    """
    if outputs.logits is None:
        return _contrastive(model, batch, outputs, gather)
    target = torch.where(batch.text_mask, batch.answer, -1).flatten()
    known = target >= 0
    smoothing = label_smoothing if model.shapes.task == "open_ended" else 0.0
    losses = F.cross_entropy(
        outputs.logits.flatten(0, 1), target, ignore_index=-1, reduction="sum", label_smoothing=smoothing
    )
    return losses / known.sum().clamp(min=1)


def alignment_loss(model: DeviceModel, batch: Batch, projected: Tensor) -> Tensor:
    """Squared distance of projected shifted frames from those of their clean twins, the mean over real frames.

    The twins are projected without correction and without personal parameters, and teach without being taught.

    Args:
        model: The device model.
        batch: The batch, with clean twins.
        projected: ``[B, M, T, H]`` projected query frames.

    Returns:
        Scalar.

    Raises:
        UserError: If the data has no clean twins.
    """
    if batch.clean is None:
        raise UserError("alignment needs clean twins of the frames, and this data has none; set its weight to 0")
    training = model.training
    model.eval()  # the target is not noisy
    with torch.no_grad():
        clean = model.project(model.encode(batch.clean.values), corrected=False)
    model.train(training)
    weight = batch.frames.mask.unsqueeze(-1).to(clean.dtype).expand_as(clean)
    return ((projected - clean).square() * weight).sum() / weight.sum().clamp(min=1)
