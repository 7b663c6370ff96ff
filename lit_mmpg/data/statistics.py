"""Feature statistics of batches of devices (:mod:`lit_mmpg.statistics`)."""

from __future__ import annotations

from torch import Tensor

from lit_mmpg.batch import Frames
from lit_mmpg.statistics import Moments, alignment


def moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of a device's frames.

    Args:
        values: ``[B, C, T, D]``.
        mask: ``[B, C, T]``.

    Returns:
        ``[B, D]``, ``[B, D]`` (biased) and ``[B, 1]``.
    """
    weight = mask.unsqueeze(-1).to(values.dtype)
    count = weight.sum((1, 2))
    mean = (values * weight).sum((1, 2)) / count.clamp(min=1)
    variance = ((values - mean[:, None, None]).square() * weight).sum((1, 2)) / count.clamp(min=1)
    return mean, variance, count


def standardised(frames: Frames, seen: Frames, training: Moments[Tensor], prior: float) -> Frames:
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
