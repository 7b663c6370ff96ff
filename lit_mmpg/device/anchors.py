"""Anchor selection: the few frames of a clip whose features are uploaded. Every rule is blind to the question."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_mmpg.batch import frame_positions

AnchorRule = Literal["first", "uniform", "k_center", "random"]


def _ranked(score: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices of the ``count`` smallest scores among real frames, and whether each is real."""
    ranked = score.masked_fill(~mask, float("inf")).argsort(dim=-1, stable=True)[..., :count]
    return ranked, mask.gather(-1, ranked)


def _k_center(features: Tensor, mask: Tensor, count: int) -> Tensor:
    """Farthest-point selection, started at the frame nearest to the clip's mean (deterministic)."""
    weight = mask.unsqueeze(-1).to(features.dtype)
    mean = (features * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp(min=1)
    distance = (features - mean).square().sum(-1).masked_fill(~mask, float("inf"))
    chosen = [distance.argmin(-1, keepdim=True)]
    nearest = torch.full_like(distance, float("inf"))
    for _ in range(count - 1):
        last = features.gather(-2, chosen[-1].unsqueeze(-1).expand(*chosen[-1].shape, features.shape[-1]))
        nearest = torch.minimum(nearest, (features - last).square().sum(-1))
        # A frame that is padding, or already chosen (distance 0), must lose against every fresh real frame.
        candidate = nearest.scatter(-1, torch.cat(chosen, -1), -1.0).masked_fill(~mask, -2.0)
        chosen.append(candidate.argmax(-1, keepdim=True))
    return torch.cat(chosen, -1)


def select_anchors(
    features: Tensor, mask: Tensor, count: int, rule: AnchorRule = "uniform", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose anchor frames.

    Args:
        features: ``[..., T, H]`` projected frame features.
        mask: ``[..., T]`` bool; real frames come first.
        count: Number K of anchors; 0 or more than T means all frames.
        rule: ``first`` K frames; ``uniform`` in time; ``k_center`` (farthest point); ``random``.
        generator: Source of randomness for ``random``.

    Returns:
        Anchor features ``[..., K, H]``, their times in the clip ``[..., K]`` (0 to 1), and a mask ``[..., K]``, which
        is False where the clip has fewer than K frames. Anchors come in temporal order; padded ones are zero.
    """
    frames = mask.shape[-1]
    count = frames if count <= 0 else min(count, frames)
    steps = torch.arange(frames, device=mask.device, dtype=torch.float32).expand(mask.shape)
    if count == frames or rule == "first":
        index, valid = _ranked(steps, mask, count)
    elif rule == "uniform":
        length = mask.sum(-1, keepdim=True)
        taken = length.clamp(max=count)
        # The centres of `taken` equal spans of the clip; slots beyond a short clip repeat its end and are masked.
        slots = torch.arange(count, device=mask.device)
        index = ((2 * slots + 1) * length) // (2 * taken.clamp(min=1))
        index = index.clamp(max=frames - 1).minimum((length - 1).clamp(min=0))
        valid = slots < taken
    elif rule == "random":
        index, valid = _ranked(torch.rand(mask.shape, generator=generator).to(mask.device), mask, count)
    else:
        index = _k_center(features, mask, count)
        valid = torch.arange(count, device=mask.device) < mask.sum(-1, keepdim=True)
    order = index.masked_fill(~valid, frames).argsort(dim=-1, stable=True)
    index, valid = index.gather(-1, order), valid.gather(-1, order)
    anchors = features.gather(-2, index.unsqueeze(-1).expand(*index.shape, features.shape[-1]))
    times = frame_positions(mask).gather(-1, index)
    keep = valid.to(features.dtype)
    return anchors * keep.unsqueeze(-1), times * keep, valid
