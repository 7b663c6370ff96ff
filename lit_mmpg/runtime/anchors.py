"""Anchor selection on a device, in NumPy: the twin of :mod:`lit_mmpg.device.anchors`, tested equal to it."""

from __future__ import annotations

import numpy as np

from lit_mmpg.errors import UserError


def select_anchors(projected: np.ndarray, count: int, rule: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the anchor frames of one clip, padded to K.

    Args:
        projected: ``[T, H]`` what may be uploaded of each frame.
        count: Number K of anchors; 0: all frames.
        rule: ``first``, ``uniform`` or ``k_center``.

    Returns:
        ``[K, H]`` anchors in temporal order, ``[K]`` their times (0 to 1), ``[K]`` bool, False where the clip has fewer
        than K frames; padding is zero.

    Raises:
        UserError: If the rule cannot be followed on a device.
    """
    total = len(projected)
    slots = total if count <= 0 else count
    taken = min(slots, total)
    if rule == "first" or taken == total:
        index = np.arange(taken)
    elif rule == "uniform":
        index = ((2 * np.arange(taken) + 1) * total) // (2 * taken)
    elif rule == "k_center":
        index = np.sort(_k_center(projected, taken))
    else:
        raise UserError(f"anchor rule '{rule}' of the bundle is for training only; train with uniform or k_center")
    anchors = np.zeros((slots, projected.shape[1]), np.float32)
    times, mask = np.zeros(slots, np.float32), np.zeros(slots, bool)
    anchors[:taken] = projected[index]
    times[:taken] = np.minimum(index / max(1, total - 1), 1)
    mask[:taken] = True
    return anchors, times, mask


def _k_center(features: np.ndarray, count: int) -> np.ndarray:
    """Farthest-point selection, started at the frame nearest to the clip's mean."""
    chosen = [int(np.square(features - features.mean(0)).sum(1).argmin())]
    near = np.full(len(features), np.inf)
    for _ in range(count - 1):
        near = np.minimum(near, np.square(features - features[chosen[-1]]).sum(1))
        fresh = near.copy()
        fresh[chosen] = -1
        chosen.append(int(fresh.argmax()))
    return np.array(chosen)
