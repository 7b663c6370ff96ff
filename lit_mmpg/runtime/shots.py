"""Where a video is cut, and frames spread over its shots. NumPy only.

A cut is a jump of the colour histogram against its neighbourhood, so that a moving camera and a flickering lamp make
none; dissolves are not found. (reconstruction: the usual histogram detector, nothing of the method.)
"""

from __future__ import annotations

import numpy as np

THUMBNAIL = (24, 32)
"""Height and width of the pictures on which cuts are looked for."""

LEAST_JUMP = 0.25
"""Share of the pixels whose colour bin must change at a cut."""
TIMES_MEDIAN = 4.0
"""How far a cut must stand out of the jumps around it."""
NEIGHBOURHOOD = 12
"""Frames on either side that are the neighbourhood."""
LEAST_FRAMES = 6
"""Shortest shot; of cuts that follow each other more closely the higher counts."""
BINS = 8


def histogram(picture: np.ndarray) -> np.ndarray:
    """Share of the pixels in each bin of each channel: ``[3, H, W]`` uint8 to ``[3, 8]`` float32."""
    bins = picture.reshape(3, -1) // (256 // BINS)
    return np.stack([np.bincount(channel, minlength=BINS) for channel in bins]).astype(np.float32) / bins.shape[1]


def find_cuts(histograms: np.ndarray) -> np.ndarray:
    """First frames of all shots but the first, in order.

    Args:
        histograms: ``[T, 3, 8]`` of all frames.
    """
    jumps = np.abs(np.diff(histograms, axis=0)).sum(2).mean(1) / 2
    candidates = [
        t
        for t in np.flatnonzero(jumps > LEAST_JUMP)
        if jumps[t] > TIMES_MEDIAN * np.median(jumps[max(0, t - NEIGHBOURHOOD) : t + NEIGHBOURHOOD + 1])
    ]
    cuts: list[int] = []
    for t in sorted(candidates, key=lambda t: -jumps[t]):
        bounds = [0, len(histograms), *cuts]
        if all(abs(int(t) + 1 - bound) >= LEAST_FRAMES for bound in bounds):
            cuts.append(int(t) + 1)
    return np.array(sorted(cuts), np.int64)


def shot_indices(cuts: np.ndarray, total: int, count: int) -> np.ndarray:
    """Indices of at most ``count`` frames: every shot has one before a long one has several.

    Args:
        cuts: First frames of all shots but the first.
        total: Frames of the video.
        count: Most frames. With fewer than there are shots, the longest shots are taken.

    Returns:
        Ascending indices; within a shot the centres of equal spans.
    """
    starts = np.concatenate([[0], cuts]).astype(np.int64)
    lengths = np.diff(np.concatenate([starts, [total]]))
    shares = np.zeros(len(starts), np.int64)
    for _ in range(min(count, total)):
        # The next frame goes where a frame stands for the most; an empty shot comes before all others.
        weight = np.where(shares < lengths, lengths / np.maximum(shares, 1e-9), -1.0)
        shares[int(weight.argmax())] += 1
    return np.concatenate(
        [
            start + ((2 * np.arange(share) + 1) * length) // (2 * max(1, share))
            for start, length, share in zip(starts.tolist(), lengths.tolist(), shares.tolist(), strict=True)
        ]
    ).astype(np.int64)
