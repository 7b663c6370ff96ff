"""Pixel maps of a fixed camera: what its history of frames shows in every place, and how that is undone.

What stands between all scenes and all frames stays where it is: a frame x is seen as ``y = (1 - o) x + b`` with an
opacity o and an added light b that do not change. :class:`PixelMaps` says what C frames of one camera show in each
place; its size does not depend on C. :func:`undo` turns o and b into the gain and bias images of an input layer, and
needs of the world no more than how clean frames look on average (:class:`Scene`). Frames are in grey levels, 0 to 255.
No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

NOISE = 4.0
"""Standard deviation of what is taken for noise where an artefact is undone, grey levels: coding, rounding, clocks."""


_BRIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)
_OPPOSED = np.stack(
    [_BRIGHTNESS, np.eye(3, dtype=np.float32)[0] - _BRIGHTNESS, np.eye(3, dtype=np.float32)[2] - _BRIGHTNESS]
)
_UNOPPOSED = np.linalg.inv(_OPPOSED).astype(np.float32)


def opposed(pictures: np.ndarray) -> np.ndarray:
    """Brightness, red less it and blue less it, of pictures ``[..., 3, H, W]`` or their gradients.

    Scenes differ far more in brightness than in the two others; what a camera adds does not.
    """
    values: np.ndarray = np.moveaxis(np.tensordot(pictures, _OPPOSED, ([-3], [1])), -1, -3)
    return values


def unopposed(pictures: np.ndarray) -> np.ndarray:
    """Inverse of :func:`opposed`."""
    values: np.ndarray = np.moveaxis(np.tensordot(pictures, _UNOPPOSED, ([-3], [1])), -1, -3)
    return values


FILLED = 0.02
"""What may be missing in every place before anything is filled in, a share."""
WINDOWS = (1 / 3, 1 / 6, 1 / 12, 1 / 24, 1 / 48)
"""Standard deviations of the windows of :func:`surroundings`, shares of the width."""
GREY = 118.0
"""Grey level of ordinary frames."""
ENOUGH = 0.005
"""Share of known places from which a window counts half."""


@dataclass(frozen=True)
class Scene:
    """How clean frames look on average, over many clips of many cameras.

    Attributes:
        mean: ``[3, H, W]`` float32.
        deviation: ``[3, H, W]`` float32 standard deviation.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, frames: np.ndarray) -> Scene:
        """Scene of frames ``[N, 3, H, W]``, each of another clip."""
        values = frames.astype(np.float32)
        return cls(values.mean(0), values.std(0))


@dataclass(frozen=True)
class PixelMaps:
    """What C frames of one camera show in each place.

    Attributes:
        count: Number C of frames.
        mean: ``[3, H, W]`` float32.
        deviation: ``[3, H, W]`` standard deviation.
        low: ``[3, H, W]`` minimum.
        high: ``[3, H, W]`` maximum.
        gradient: ``[2, 3, H, W]`` median over the frames of :func:`gradients`. What moves has gradients of either sign
            and seldom any in one place, what stays has the same in all frames (Weiss, "Deriving intrinsic images from
            image sequences", ICCV 2001).
    """

    count: int
    mean: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray
    gradient: np.ndarray

    @classmethod
    def of(cls, frames: np.ndarray) -> PixelMaps:
        """Maps of frames ``[C, 3, H, W]``, C at least 1."""
        values = frames.astype(np.float32)
        return cls(len(values), values.mean(0), values.std(0), values.min(0), values.max(0), _median(frames))


def _median(frames: np.ndarray) -> np.ndarray:
    """Median of the gradients of frames ``[C, 3, H, W]``, ``[2, 3, H, W]`` float32."""
    # Whole numbers of 16 bits are sorted far faster than floating point.
    whole = frames.astype(np.int16) if frames.dtype == np.uint8 else frames.astype(np.float32)
    ordered = np.sort(gradients(whole), axis=1).astype(np.float32)
    middle = ordered.shape[1] // 2
    median: np.ndarray = (ordered[:, middle] + ordered[:, -1 - middle]) / 2
    return median


def gradients(pictures: np.ndarray) -> np.ndarray:
    """Differences to the next place downwards and to the right, ``[2, ..., H, W]``; 0 at the last one.

    Args:
        pictures: ``[..., H, W]`` floating point.
    """
    field = np.zeros((2, *pictures.shape), pictures.dtype)
    field[0, ..., :-1, :] = np.diff(pictures, axis=-2)
    field[1, ..., :, :-1] = np.diff(pictures, axis=-1)
    return field


def integrate(field: np.ndarray) -> np.ndarray:
    """The pictures ``[..., H, W]`` of mean 0 whose :func:`gradients` are nearest to a field, in least squares.

    Args:
        field: ``[2, ..., H, W]``.
    """
    down, right = field[0].copy(), field[1].copy()
    down[..., -1, :] = 0
    right[..., :, -1] = 0
    divergence = down + right
    divergence[..., 1:, :] -= down[..., :-1, :]
    divergence[..., :, 1:] -= right[..., :, :-1]
    # The Laplacian without flow through the edges is diagonal in cosines.
    rows, columns = (cosines(n) for n in field.shape[-2:])
    along = [2 - 2 * np.cos(np.pi * np.arange(n) / n) for n in field.shape[-2:]]
    eigen = along[0][:, None] + along[1]
    eigen[0, 0] = 1
    spectrum = rows @ divergence @ columns.T / -eigen
    spectrum[..., 0, 0] = 0
    picture: np.ndarray = (rows.T @ spectrum @ columns).astype(field.dtype)
    return picture


@lru_cache(maxsize=16)
def cosines(size: int) -> np.ndarray:
    """``[size, size]`` float64 orthonormal cosines, one in a row."""
    table = np.cos(np.pi * np.outer(np.arange(size), np.arange(size) + 0.5) / size) * np.sqrt(2 / size)
    table[0] /= np.sqrt(2)
    table.flags.writeable = False
    return table


def placing(canvas: int, size: int, shift: float, scale: float) -> np.ndarray:
    """``[size, canvas]`` float32 matrix of linear interpolation along one axis; what lies beyond repeats the edge.

    Args:
        canvas: Length of the picture.
        size: Length of the frame, which lies in its middle.
        shift: Shift towards higher indices, pixels.
        scale: Enlargement about the middle.
    """
    low, share = _between(canvas, size, shift, scale)
    matrix = np.zeros((size, canvas), np.float32)
    matrix[np.arange(size), low] += 1 - share
    matrix[np.arange(size), np.minimum(low + 1, canvas - 1)] += share
    return matrix


def _between(canvas: int, size: int, shift: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The lower of the two places between which each place lies, and how far it is on its way to the other."""
    at = (np.arange(size) - (size - 1) / 2 - shift) / scale + (canvas - 1) / 2
    at = np.clip(at, 0, canvas - 1)
    low = np.minimum(at.astype(int), max(canvas - 2, 0))
    return low, (at - low).astype(np.float32)


def moved(pictures: np.ndarray, down: float, right: float, scale: float = 1.0, every: int = 1) -> np.ndarray:
    """Pictures ``[..., H, W]`` shifted and enlarged about their middle; what comes in repeats the edge.

    Args:
        pictures: The pictures.
        down: Shift, pixels.
        right: Shift to the right.
        scale: Enlargement.
        every: Only every so many rows and columns are computed.
    """
    height, width = pictures.shape[-2:]
    low, share = (values[::every] for values in _between(height, height, down, scale))
    rows = pictures.take(low, -2)
    rows += share[:, None] * (pictures.take(np.minimum(low + 1, height - 1), -2) - rows)
    columns: np.ndarray = rows @ placing(width, width, right, scale)[::every].T  # faster than picking single columns
    return columns


def resized(pictures: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pictures ``[..., H, W]`` at another size: averaged where they shrink, interpolated where they grow."""
    rows, columns = (_resizing(old, new) for old, new in zip(pictures.shape[-2:], size, strict=True))
    other: np.ndarray = rows @ pictures @ columns.T
    return other


@lru_cache(maxsize=64)
def _resizing(old: int, new: int) -> np.ndarray:
    if new >= old:
        matrix = placing(old, new, 0.0, new / old)
    else:
        edges = np.arange(new + 1) * old / new
        places = np.arange(old)
        overlap = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
        matrix = (np.clip(overlap, 0, None) * new / old).astype(np.float32)
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=64)
def _averaging(size: int, sigma: float) -> np.ndarray:
    """``[size, size]`` matrix of Gaussian weights along one axis; each row sums to 1, at the edges too."""
    distance = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    weights.flags.writeable = False
    return weights


def smooth(pictures: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian averages of pictures ``[..., H, W]``.

    Args:
        pictures: The pictures.
        sigma: Standard deviation, pixels; 0 leaves them as they are.
    """
    if not sigma:
        return pictures
    rows, columns = (_averaging(n, sigma) for n in pictures.shape[-2:])
    smoothed: np.ndarray = rows @ pictures @ columns.T
    return smoothed


def guided(pictures: np.ndarray, guide: np.ndarray, sigma: float, noise: float) -> np.ndarray:
    """Smooth pictures where their guide is smooth, and keep edges where it has some.

    He et al., "Guided image filtering" (ECCV 2010), with Gaussian windows: in each window a picture is taken for a
    linear function of the guide.

    Args:
        pictures: ``[C, H, W]``.
        guide: ``[C, H, W]``, or ``[H, W]`` for all.
        sigma: Standard deviation of the windows, pixels.
        noise: Variation of the guide that is no edge, in its units.
    """
    mean, level = smooth(pictures, sigma), smooth(guide, sigma)
    slope = smooth(pictures * guide, sigma) - mean * level
    slope = slope / (smooth(guide * guide, sigma) - level * level + noise**2)
    filtered: np.ndarray = smooth(slope, sigma) * guide + smooth(mean - slope * level, sigma)
    return filtered


@dataclass(frozen=True)
class Correction:
    """Takes what a camera adds out of its frames: y becomes ``gain y + bias``, and what is missing there is filled in.

    Attributes:
        gain: ``[3, H, W]`` float32.
        bias: ``[3, H, W]`` float32, grey levels.
        trust: ``[3, H, W]`` float32, how much of what is to be shown comes from the place itself, 0 to 1. The rest is
            what surrounds it (:func:`surroundings`).
    """

    gain: np.ndarray
    bias: np.ndarray
    trust: np.ndarray

    @classmethod
    def affine(cls, gain: np.ndarray, bias: np.ndarray) -> Correction:
        """One that fills nothing in."""
        return cls(gain, bias, np.ones_like(gain))

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Corrected frames ``[N, 3, H, W]`` uint8, of any size."""
        gain, bias, trust = (resized(image, frames.shape[-2:]) for image in (self.gain, self.bias, self.trust))
        shown = gain * frames + bias
        if self.trust.min() < 1 - FILLED:
            small = resized(shown, self.trust.shape[-2:])
            shown += (1 - trust) * resized(surroundings(small, self.trust), frames.shape[-2:])
        corrected: np.ndarray = np.rint(np.clip(shown, 0, 255)).astype(np.uint8)
        return corrected

    def cautious(self) -> Correction:
        """The same, with a place trusted no more than its neighbours: edges may lie a pixel beside their map.

        All colours of a place are trusted alike.
        """
        low = np.broadcast_to(self.trust.min(0), self.trust.shape)
        for axis in (-2, -1):
            wide = np.pad(low, [(0, 0), *((1, 1) if a == axis else (0, 0) for a in (-2, -1))], "edge")
            low = np.minimum.reduce([wide.take(range(i, i + low.shape[axis]), axis) for i in range(3)])
        share = low / np.maximum(self.trust, 1e-6)
        return Correction(share * self.gain, share * self.bias, low)

    def parameters(self, grid: tuple[int, int], mean: float = 127.5, std: float = 127.5) -> dict[str, np.ndarray]:
        """Gain and bias of an input layer (:class:`lit_mmpg.forms.input_layer.InputLayer`), which fills in ``mean``.

        Args:
            grid: Height and width of its images.
            mean: What the encoder subtracts from grey levels.
            std: What it divides them by.

        Returns:
            ``gain [3, h, w]`` and ``bias [3, h, w]``, both 0 where nothing is changed.
        """
        bias = ((self.gain - self.trust) * mean + self.bias) / std
        return {"gain": resized(self.gain - 1, grid), "bias": resized(bias, grid)}

    @classmethod
    def of(
        cls, parameters: Mapping[str, np.ndarray], height: int, width: int, mean: float = 127.5, std: float = 127.5
    ) -> Correction:
        """What an input layer with these parameters does to frames of a size; inverse of :meth:`parameters`."""
        gain, bias = (resized(parameters[name], (height, width)) for name in ("gain", "bias"))
        return cls.affine(1 + gain, std * bias - gain * mean)


def surroundings(pictures: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """What surrounds each place: averages of what is known, over as small a window as holds some of it.

    Normalised convolution (Knutsson and Westin, CVPR 1993) with Gaussian windows of growing size.

    Args:
        pictures: ``[N, 3, H, W]`` what is known, times ``trust``.
        trust: ``[3, H, W]`` 0 to 1.
    """
    known = np.clip(pictures, 0, 255 * trust)
    whole = [values.sum((-1, -2), keepdims=True) for values in (known, trust)]
    found = (whole[0] + GREY) / (whole[1] + 1)  # where nothing is known, grey
    for part in WINDOWS:
        sigma = part * trust.shape[-1]
        weight, values = smooth(trust, sigma), smooth(known, sigma)
        enough = weight / (weight + ENOUGH)
        found = found + enough * (values / np.maximum(weight, 1e-6) - found)
    filled: np.ndarray = np.broadcast_to(found, pictures.shape)
    return filled


def undo(opacity: np.ndarray, light: np.ndarray, scene: Scene, noise: float = NOISE) -> Correction:
    """The linear correction with the smallest mean squared error, place by place (Wiener).

    What does not pass is filled in from what surrounds it. Where several opacities and lights are equally likely, the
    error is the mean over them: what they do not agree on is undone less.

    Args:
        opacity: ``[3, H, W]``, 0 to 1, or ``[N, 3, H, W]``.
        light: Added light, grey levels, likewise.
        scene: How clean frames look.
        noise: Standard deviation of the noise of a seen frame, grey levels.
    """
    passes = (1 - np.clip(opacity, 0, 1)).reshape(-1, *scene.mean.shape)
    level = passes * scene.mean + light.reshape(passes.shape)
    power = np.square(scene.deviation)
    gain = passes.mean(0) * power / (np.square(passes).mean(0) * power + level.var(0) + noise**2)
    bias = gain * (passes.mean(0) * scene.mean - level.mean(0))
    return Correction(gain, bias, np.clip(gain * passes.mean(0), 0, 1))
