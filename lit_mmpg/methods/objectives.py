"""Losses and uncertainties of each device by itself: nothing of one device may leak into another's adaptation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_mmpg.batch import Batch
from lit_mmpg.device.contract import DeviceModel
from lit_mmpg.device.outputs import Outputs


def gallery_scores(network: DeviceModel, batch: Batch, outputs: Outputs) -> Tensor:
    """Scores of each text against the clips of its own row, ``[B, N, M]``, padded clips at -1e4 (retrieval)."""
    assert outputs.video is not None and outputs.text is not None
    scale = network.log_temperature.exp().clamp(max=100.0)
    score = scale * torch.einsum("bnh,bmh->bnm", outputs.text, outputs.video)
    return score.masked_fill((batch.clip < 0).unsqueeze(1), -1e4)


def _device_mean(values: Tensor, mask: Tensor) -> Tensor:
    weight = mask.to(values.dtype)
    return (values * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def entropies(network: DeviceModel, batch: Batch, outputs: Outputs) -> Tensor:
    """Entropy of each answer, or of each text's distribution over the clips of its row, in nats: ``[B, N]``."""
    logits = gallery_scores(network, batch, outputs) if outputs.logits is None else outputs.logits
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def entropy(network: DeviceModel, batch: Batch, outputs: Outputs) -> Tensor:
    """Mean entropy of each device's answers, ``[B]``; 0 for a device without texts."""
    return _device_mean(entropies(network, batch, outputs), batch.text_mask)


def device_loss(network: DeviceModel, batch: Batch, outputs: Outputs) -> Tensor:
    """Loss of the task for each device by itself, ``[B]``.

    Questions: cross-entropy over those whose answer is in the answer list. Retrieval: symmetric InfoNCE among the
    device's own clips and texts, in which several copies of a clip are all positives.
    """
    if outputs.logits is not None:
        target = torch.where(batch.text_mask, batch.answer, -1)
        losses = F.cross_entropy(outputs.logits.transpose(1, 2), target, ignore_index=-1, reduction="none")
        return _device_mean(losses, target >= 0)
    score = gallery_scores(network, batch, outputs)
    rows = torch.arange(len(batch), device=batch.clip.device).unsqueeze(1)
    text_clip = torch.where(batch.text_mask, batch.clip[rows, batch.text_clip], -2)
    positive = text_clip.unsqueeze(2) == batch.clip.unsqueeze(1)

    def direction(score: Tensor, positive: Tensor, real_columns: Tensor) -> Tensor:
        score = score.masked_fill(~real_columns.unsqueeze(1), -1e4)
        likelihood = score.masked_fill(~positive, -1e4).logsumexp(2) - score.logsumexp(2)
        return -_device_mean(likelihood, positive.any(2))

    clips = batch.clip >= 0
    return 0.5 * (
        direction(score, positive, clips) + direction(score.transpose(1, 2), positive.transpose(1, 2), batch.text_mask)
    )
