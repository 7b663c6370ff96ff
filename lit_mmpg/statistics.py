"""Feature statistics of a device, and the affine map that brings them to those of training.

Standardising by the target's own moments is AdaBN (Li et al., "Revisiting Batch Normalization For Practical Domain
Adaptation", ICLR workshop 2017); that the training moments count as some further samples is from Schneider et al.,
"Improving robustness against common corruptions by covariate shift adaptation" (NeurIPS 2020).

Written for NumPy arrays and tensors alike, so that a device without torch does what its training did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

EPSILON = 1e-5

Array = TypeVar("Array", bound=Any)


@dataclass(frozen=True)
class Moments(Generic[Array]):
    """Mean and variance of each of D features.

    Attributes:
        mean: ``[..., D]``.
        variance: ``[..., D]``, biased.
    """

    mean: Array
    variance: Array


def trained_moments(kept: Mapping[str, Any]) -> Moments[np.ndarray] | None:
    """Moments of the training features as a checkpoint keeps them, float32; ``None`` where nothing is standardised.

    Args:
        kept: ``prior``, ``mean`` and ``deviation``, or nothing.
    """
    if not kept:
        return None
    mean, deviation = (np.asarray(kept[name], np.float32) for name in ("mean", "deviation"))
    return Moments(mean, np.square(deviation))


def alignment(
    mean: Array, variance: Array, count: Array | float, training: Moments[Array], prior: float
) -> tuple[Array, Array]:
    """Scale and shift that bring the blended moments of a device to those of training.

    Args:
        mean: ``[..., D]`` of the device's frames.
        variance: ``[..., D]``.
        count: ``[..., 1]`` frames behind them; a device without any keeps its features, whatever the prior is.
        training: Moments of the training data, ``[D]``.
        prior: Frames for which the training moments count in the blend.

    Returns:
        Scale and shift, ``[..., D]`` each.

    Example:
        >>> training = Moments(np.zeros(1), np.ones(1))
        >>> scale, shift = alignment(np.array([2.0]), np.array([4.0]), np.array([16.0]), training, prior=0)
        >>> (scale * np.array([0.0, 2.0, 4.0]) + shift).round(3).tolist()
        [-1.0, 0.0, 1.0]
    """
    share = count / (count + prior + 1e-12)
    blended_mean = share * mean + (1 - share) * training.mean
    blended_variance = share * variance + (1 - share) * training.variance
    scale = ((training.variance + EPSILON) / (blended_variance + EPSILON)) ** 0.5
    return scale, training.mean - scale * blended_mean
