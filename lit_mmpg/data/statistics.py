"""Feature statistics of a device, and the affine map that brings them to those of training.

Standardising by the target's own moments is AdaBN (Li et al., "Revisiting Batch Normalization For Practical Domain
Adaptation", ICLR workshop 2017); that the training moments count as some further samples is from Schneider et al.,
"Improving robustness against common corruptions by covariate shift adaptation" (NeurIPS 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_mmpg.batch import Frames

EPSILON = 1e-5


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each of D features.

    Attributes:
        mean: ``[..., D]``.
        variance: ``[..., D]``, biased.
    """

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, mean: np.ndarray, deviation: np.ndarray) -> Moments:
        """From mean and standard deviation."""
        return cls(torch.from_numpy(mean).float(), torch.from_numpy(deviation).float().square())


def moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of a device's frames.

    Args:
        values: ``[B, C, T, D]``.
        mask: ``[B, C, T]``.

    Returns:
        ``[B, D]``, ``[B, D]`` (biased) and ``[B]``.
    """
    weight = mask.unsqueeze(-1).to(values.dtype)
    count = weight.sum((1, 2))
    mean = (values * weight).sum((1, 2)) / count.clamp(min=1)
    variance = ((values - mean[:, None, None]).square() * weight).sum((1, 2)) / count.clamp(min=1)
    return mean, variance, count.squeeze(-1)


def alignment(mean: Tensor, variance: Tensor, count: Tensor, training: Moments, prior: float) -> tuple[Tensor, Tensor]:
    """Scale and shift that bring the blended moments of a device to those of training.

    Args:
        mean: ``[B, D]`` of the device's frames.
        variance: ``[B, D]``.
        count: ``[B]`` frames behind them; a device without frames keeps its features, whatever the prior is.
        training: Moments of the training data, ``[D]``.
        prior: Frames for which the training moments count in the blend.

    Returns:
        Scale and shift, ``[B, D]`` each.
    """
    share = torch.where(count > 0, count / (count + prior).clamp(min=1e-9), 0.0).unsqueeze(-1)
    blended_mean = share * mean + (1 - share) * training.mean
    blended_variance = share * variance + (1 - share) * training.variance
    scale = ((training.variance + EPSILON) / (blended_variance + EPSILON)).sqrt()
    return scale, training.mean - scale * blended_mean


def standardised(frames: Frames, seen: Frames, training: Moments, prior: float) -> Frames:
    """Frames by the statistics of what the same device has seen before.

    Args:
        frames: ``[B, M, T, D]``.
        seen: ``[B, C, T', D]``.
        training: Moments of the training data, ``[D]``.
        prior: Frames for which they count.
    """
    scale, shift = alignment(*moments(seen.values, seen.mask), training, prior)
    values = frames.values * scale[:, None, None] + shift[:, None, None]
    return Frames(values * frames.mask.unsqueeze(-1), frames.mask)
