"""Simulated cameras: what a device's lens, sensor and encoder do to the pixels of its clips.

Six families, in the order in which light meets them: ``blur`` (lens), ``resolution`` (sensor grid), ``noise`` (sensor),
``colour`` (white balance, saturation, hue), ``gamma`` (tone curve), ``compression`` (JPEG). Lengths are fractions of
the frame height and levels are fractions of full scale, so that one camera means the same from 24 to 512 pixels.

The families and their strengths are our own choice (reconstruction); no torch here.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from lit_mmpg.errors import UserError

FAMILIES = ("blur", "resolution", "noise", "colour", "gamma", "compression")

SEVERITIES: dict[str, tuple[float, float, float, float, float]] = {
    "blur": (0.008, 0.012, 0.018, 0.028, 0.042),
    "resolution": (0.90, 0.75, 0.60, 0.45, 0.33),
    "noise": (0.01, 0.02, 0.03, 0.05, 0.08),
    "colour": (0.04, 0.08, 0.12, 0.20, 0.30),
    "gamma": (0.08, 0.16, 0.24, 0.40, 0.60),
    "compression": (90, 75, 60, 40, 22),
}
"""The strongest setting of each family at severities 1 to 5.

``blur``: sigma as a fraction of the frame height (below a fifth of a pixel nothing shows). ``resolution``: share of the
rows and columns kept. ``noise``: standard deviation, as a fraction of full scale.
``colour``: largest log gain of a channel; saturation varies as much, and hue by 60 degrees times this.
``gamma``: largest log exponent. ``compression``: JPEG quality.
"""

_HUE_DEG_PER_COLOUR = 60.0
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, slots=True)
class Camera:
    """One simulated camera; the defaults change nothing.

    Attributes:
        gains: Gain of the red, green and blue channel (white balance).
        saturation: Factor on the distance from grey.
        hue_deg: Rotation about the grey axis, degrees.
        gamma: Exponent of the tone curve; below 1 brightens.
        blur: Standard deviation of the Gaussian blur, as a fraction of the frame height.
        resolution: Share of the rows and columns that the sensor resolves, above 0, at most 1.
        noise: Standard deviation of the sensor noise, as a fraction of full scale.
        jpeg_quality: JPEG quality 1 to 95; 0 stores frames as they are.

    Raises:
        UserError: If a value is outside its range.
    """

    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    saturation: float = 1.0
    hue_deg: float = 0.0
    gamma: float = 1.0
    blur: float = 0.0
    resolution: float = 1.0
    noise: float = 0.0
    jpeg_quality: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("gains", len(self.gains) == 3 and all(0 < g < math.inf for g in self.gains), "three gains above 0"),
            ("saturation", 0 <= self.saturation < math.inf, "0 or more"),
            ("hue_deg", math.isfinite(self.hue_deg), "a finite angle"),
            ("gamma", 0 < self.gamma < math.inf, "above 0"),
            ("blur", 0 <= self.blur <= 0.5, "between 0 and 0.5 of the frame height"),
            ("resolution", 0 < self.resolution <= 1, "above 0 and at most 1"),
            ("noise", 0 <= self.noise <= 1, "between 0 and 1 of full scale"),
            ("jpeg_quality", self.jpeg_quality in range(96), "a whole number from 0 (off) to 95"),
        )
        for name, good, wanted in checks:
            if not good:
                raise UserError(f"camera: {name} is {getattr(self, name)!r}; set it to {wanted}")

    @property
    def is_identity(self) -> bool:
        """True when frames pass unchanged."""
        return self == Camera()

    def describe(self) -> dict[str, str]:
        """What the camera does, for people: family -> setting; empty for the identity."""
        text: dict[str, str] = {}
        if self.blur:
            text["blur"] = f"{100 * self.blur:.1f} % of height"
        if self.resolution != 1:
            text["resolution"] = f"{100 * self.resolution:.0f} %"
        if self.noise:
            text["noise"] = f"{100 * self.noise:.1f} %"
        if self.gains != (1.0, 1.0, 1.0) or self.saturation != 1 or self.hue_deg:
            gains = "/".join(f"{gain:.2f}" for gain in self.gains)
            text["colour"] = f"gains {gains}, saturation {self.saturation:.2f}, hue {self.hue_deg:+.0f} deg"
        if self.gamma != 1:
            text["gamma"] = f"{self.gamma:.2f}"
        if self.jpeg_quality:
            text["compression"] = f"JPEG {self.jpeg_quality}"
        return text


def camera_conditions(camera: Camera) -> np.ndarray:
    """Settings of a camera as an oracle is told them: ``[10]`` float32 of order 1, all zero for the identity.

    Log gains (3), log saturation, hue, log gamma, blur, missing resolution, noise, missing JPEG quality.
    """
    quality = (95 - camera.jpeg_quality) / 95 if camera.jpeg_quality else 0.0
    return np.array(
        [
            *(5 * math.log(gain) for gain in camera.gains),
            5 * math.log(max(camera.saturation, 1e-3)),
            camera.hue_deg / 10,
            3 * math.log(camera.gamma),
            40 * camera.blur,
            2 * (1 - camera.resolution),
            20 * camera.noise,
            1.5 * quality,
        ],
        np.float32,
    )


def sample_camera(rng: np.random.Generator, severity: int, families: Collection[str] = FAMILIES) -> Camera:
    """Draw one camera.

    Each family that takes part is set to between half of and all of its strength in :data:`SEVERITIES`, with a random
    sign where it has one. The same generator state gives cameras that differ in strength alone, whatever the severity.

    Args:
        rng: Random generator; always advanced by the same amount.
        severity: 0 (identity) to 5.
        families: Which of :data:`FAMILIES` take part.

    Raises:
        UserError: If the severity or a family is unknown.
    """
    check_recipe(severity, families)
    share = dict(zip(FAMILIES, rng.uniform(0.5, 1.0, len(FAMILIES)), strict=True))
    gamma_sign = 1.0 if rng.random() < 0.5 else -1.0
    log_gains, log_saturation, hue = np.split(rng.uniform(-1.0, 1.0, 5), (3, 4))
    peak = float(max(np.abs(log_gains).max(), abs(log_saturation[0]), abs(hue[0])))
    if severity == 0:
        return Camera()

    def strength(family: str) -> float:
        return SEVERITIES[family][severity - 1] if family in families else 0.0

    colour = strength("colour") * share["colour"] / peak
    resolution = strength("resolution") or 1.0
    quality = strength("compression")
    return Camera(
        gains=tuple(float(g) for g in np.exp(colour * log_gains)),  # type: ignore[arg-type]
        saturation=math.exp(colour * log_saturation[0]),
        hue_deg=float(_HUE_DEG_PER_COLOUR * colour * hue[0]),
        gamma=math.exp(strength("gamma") * share["gamma"] * gamma_sign),
        blur=strength("blur") * share["blur"],
        resolution=1.0 - (1.0 - resolution) * share["resolution"],
        noise=strength("noise") * share["noise"],
        jpeg_quality=round(95 - (95 - quality) * share["compression"]) if quality else 0,
    )


def check_recipe(severity: int, families: Collection[str]) -> None:
    """Check a severity and a choice of families.

    Raises:
        UserError: If one of them is unknown.
    """
    if severity not in range(6):
        raise UserError(f"camera: severity is {severity!r}; set it to a whole number from 0 (identity) to 5")
    if isinstance(families, str) or (unknown := sorted(set(families) - set(FAMILIES))):
        wrong = families if isinstance(families, str) else ", ".join(unknown)
        raise UserError(f"camera: families has {wrong!r}; choose a list from {', '.join(FAMILIES)}")


def noise_seed(seed: int, clip: str) -> int:
    """Seed of the noise of one clip: the same on every machine and in every order of work."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{clip}".encode()).digest()[:8], "little")


def apply(camera: Camera, frames: np.ndarray, seed: int) -> np.ndarray:
    """Film a clip with a camera.

    Args:
        camera: The camera; the identity returns the frames bit by bit.
        frames: ``[T, 3, H, W]`` uint8 pixels, RGB.
        seed: Seed of the noise of this clip (see :func:`noise_seed`). Frame t of a clip gets the same noise however
            many frames follow.

    Returns:
        ``[T, 3, H, W]`` uint8, a new array unless the camera is the identity.

    Raises:
        UserError: If the frames are no uint8 RGB frames.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != np.uint8:
        raise UserError(
            f"camera: frames are {frames.dtype} of shape {list(frames.shape)}; cameras film uint8 pixels [T, 3, H, W]"
        )
    if camera.is_identity or not len(frames):
        return frames
    height, width = frames.shape[2:]
    values = frames.astype(np.float32) / np.float32(255)
    if camera.blur or camera.resolution != 1:
        sigma = camera.blur * height
        rows, columns = (_lens(size, sigma, camera.resolution) for size in (height, width))
        values = rows @ values @ columns.T
    if camera.noise:
        noise = np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)
        values += np.float32(camera.noise) * noise
    matrix = _colour_matrix(camera)
    if matrix is not None:
        values = (matrix @ values.reshape(len(values), 3, -1)).reshape(values.shape)
    np.clip(values, 0, 1, out=values)
    if camera.gamma != 1:
        values **= np.float32(camera.gamma)
    pixels = np.rint(values * np.float32(255)).astype(np.uint8)
    return _jpeg(pixels, camera.jpeg_quality) if camera.jpeg_quality else pixels


def _colour_matrix(camera: Camera) -> np.ndarray | None:
    """``[3, 3]`` matrix of hue, saturation and white balance, in that order; greys move by the gains alone."""
    if camera.gains == (1.0, 1.0, 1.0) and camera.saturation == 1 and camera.hue_deg == 0:
        return None
    angle = math.radians(camera.hue_deg)
    axis = np.full(3, 1 / math.sqrt(3))
    cross = np.cross(np.eye(3), axis)
    hue = math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * np.outer(axis, axis)
    saturation = camera.saturation * np.eye(3) + (1 - camera.saturation) * np.tile(_LUMA, (3, 1))
    return (np.diag(camera.gains) @ saturation @ hue).astype(np.float32)


@lru_cache(maxsize=64)
def _lens(size: int, sigma: float, resolution: float) -> np.ndarray:
    """``[size, size]`` matrix that blurs, averages down to the sensor grid and interpolates up, along one axis."""
    at = np.arange(size) + 0.5
    matrix = np.eye(size)
    if sigma:
        reach = math.ceil(4 * sigma)
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        matrix = np.zeros((size, size))
        for offset, tap in zip(range(-reach, reach + 1), taps / taps.sum(), strict=True):
            matrix[np.arange(size), np.clip(np.arange(size) + offset, 0, size - 1)] += tap
    kept = max(1, round(size * resolution))
    if kept < size:
        edges = np.arange(kept + 1) * size / kept
        overlap = np.minimum(edges[1:, None], at + 0.5) - np.maximum(edges[:-1, None], at - 0.5)
        down = np.clip(overlap, 0, None) * kept / size
        source = np.clip(at * kept / size - 0.5, 0, kept - 1)
        low = np.minimum(source.astype(int), max(kept - 2, 0))
        up = np.zeros((size, kept))
        up[np.arange(size), low] += 1 - (source - low)
        up[np.arange(size), np.minimum(low + 1, kept - 1)] += source - low
        matrix = up @ down @ matrix
    lens = matrix.astype(np.float32)
    lens.flags.writeable = False
    return lens


def _jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    stored = np.empty_like(pixels)
    for t, frame in enumerate(pixels):
        with io.BytesIO() as file:
            Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).save(file, "JPEG", quality=quality)
            stored[t] = np.asarray(Image.open(file, formats=["JPEG"])).transpose(2, 0, 1)
    return stored
