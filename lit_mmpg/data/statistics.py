"""Feature statistics of batches of devices (:mod:`lit_mmpg.statistics`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_mmpg.batch import Frames
from lit_mmpg.statistics import Moments, alignment, trained_moments


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


class OwnStatistics:
    """Standardises frames by the statistics of what the same device has seen before, where that is asked for.

    Args:
        kept: ``prior`` (frames for which the training moments count), ``mean`` and ``deviation`` of training, as data
            and checkpoints keep them; nothing: frames stay as they are.
    """

    def __init__(self, kept: Mapping[str, Any]) -> None:
        known = trained_moments(kept)
        self._prior = float(kept.get("prior", 0))
        self._training: Moments[Tensor] | None = None
        if known is not None:
            self._training = Moments(torch.from_numpy(known.mean), torch.from_numpy(known.variance))

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return self._training is not None

    def __call__(self, frames: Frames, seen: Frames) -> Frames:
        """Standardised frames.

        Args:
            frames: ``[B, M, T, D]``.
            seen: ``[B, C, T', D]``.
        """
        if self._training is None:
            return frames
        scale, shift = alignment(*moments(seen.values, seen.mask), self._training, self._prior)
        values = frames.values * scale[:, None, None] + shift[:, None, None]
        return Frames(values * frames.mask.unsqueeze(-1), frames.mask)
