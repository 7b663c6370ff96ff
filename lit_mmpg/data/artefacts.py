"""Static artefacts that cameras of one model share: what stands between every scene and every frame, in one place.

A :class:`CameraModel` is a picture of what is in front of the scene: how much of the light it takes away (``veil``) and
what it shows instead (``light``). A device is an :class:`Instance` of a model: the same picture, stronger or weaker,
shifted and scaled. A frame x in 0 to 1 becomes ``(1 - o) x + b`` with the opacity o and the added light b of the
instance (:meth:`Instance.maps`), so that an oracle can undo it exactly wherever o is below 1.

Families: ``shading`` (a lens that darkens towards its corners, its hood in view), ``housing`` (a dashboard, the edge of
a case; opaque), ``overlay`` (logos, texts and bars drawn by firmware or an app; opaque ones among them, and clocks that
change), ``glass`` (a pane that mirrors one scene) and ``dirt``. Shading, housing and overlay are what models of cameras
really share; shared glass and shared dirt are a synthetic stress test. All shapes and strengths are our own choice
(reconstruction); no torch here.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lit_mmpg.data.cameras import Camera, apply, noise_seed
from lit_mmpg.errors import UserError
from lit_mmpg.maps import placing

FAMILIES = ("shading", "housing", "overlay", "glass", "dirt")
SHARED = ("shading", "housing", "overlay")
"""Families that models of cameras share in the world; the others are a synthetic stress test."""

MARGIN = 1 / 9
"""What is drawn of a model beyond each edge of the frame, as a fraction of its height: instances are shifted."""
MOST_OPACITY = 0.98
"""Opacity that a translucent artefact does not exceed, however strong the instance."""

# Digits and the colon of a clock, 3 x 5 dots each: no font file, so that they are the same everywhere.
_GLYPHS = [int(g, 2) for g in (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001001001001", "111101111101111", "111101111001111", "000010000010000",
)]  # fmt: skip


@dataclass(frozen=True)
class Clock:
    """A clock that an overlay shows: opaque digits that change from frame to frame.

    Attributes:
        row: First row of the digits on the canvas.
        column: First column.
        dot: Edge of a dot, pixels.
        colour: Red, green and blue, 0 to 1.
    """

    row: int
    column: int
    dot: int
    colour: tuple[float, float, float]

    def draw(self, second: int, shape: tuple[int, int]) -> np.ndarray:
        """Where the digits of a time of day are, ``[h, w]`` float32 of 0 and 1."""
        at = second % 86_400
        picture = np.zeros(shape, np.float32)
        for place, glyph in enumerate(_digits(at)):
            dots = np.array(list(f"{_GLYPHS[glyph]:015b}"), np.float32).reshape(5, 3)
            dots = dots.repeat(self.dot, 0).repeat(self.dot, 1)
            left = self.column + place * 4 * self.dot
            part = picture[self.row : self.row + len(dots), left : left + dots.shape[1]]
            part[:] = dots[: part.shape[0], : part.shape[1]]
        return picture


def _digits(second: int) -> list[int]:
    fields = (second // 3600, second // 60 % 60, second % 60)
    shown: list[int] = []
    for i, value in enumerate(fields):
        shown += ([10] if i else []) + [value // 10, value % 10]
    return shown


@dataclass(frozen=True)
class CameraModel:
    """What all cameras of a model have in front of the scene, drawn with a margin around the frame.

    Attributes:
        name: Name of the model.
        family: One of :data:`FAMILIES`.
        veil: ``[3, h, w]`` float32 opacity at strength 1, 0 to 1.
        light: ``[3, h, w]`` float32 colour of what is in front, 0 to 1.
        opaque: An opaque thing is as opaque on every device: the strength of an instance does not act.
        clock: A clock that is drawn over it; ``None``: none.
    """

    name: str
    family: str
    veil: np.ndarray
    light: np.ndarray
    opaque: bool = False
    clock: Clock | None = None


@dataclass(frozen=True)
class Placement:
    """How one device has what its model has.

    Attributes:
        strength: Factor on the opacity.
        down: Shift downwards, pixels; need not be whole.
        right: Shift to the right, pixels.
        scale: Enlargement about the centre of the frame.

    Raises:
        UserError: If a value is out of range.
    """

    strength: float = 1.0
    down: float = 0.0
    right: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 2:
            raise UserError(f"artefact: strength is {self.strength!r}; set it between 0 and 2")
        if not 0.5 <= self.scale <= 2:
            raise UserError(f"artefact: scale is {self.scale!r}; set it between 0.5 and 2")
        if not (math.isfinite(self.down) and math.isfinite(self.right)):
            raise UserError(f"artefact: the shift is {self.down!r}, {self.right!r} pixels; set it to finite numbers")


@dataclass(frozen=True)
class Spread:
    """How far the instances of one model differ.

    Attributes:
        weakest: Lowest strength.
        strongest: Highest strength.
        shift_px: Largest shift in each direction, pixels.
        subpixel: Whether shifts need not be whole.
        scale: Largest relative change of size.
    """

    weakest: float = 0.6
    strongest: float = 1.0
    shift_px: float = 2.0
    subpixel: bool = False
    scale: float = 0.0

    def check(self, where: str) -> None:
        """Check the settings.

        Raises:
            UserError: If one is out of range.
        """
        if not 0 < self.weakest <= self.strongest <= 2:
            raise UserError(
                f"{where}: weakest {self.weakest} and strongest {self.strongest} must be in order, above 0, at most 2"
            )
        if not 0 <= self.shift_px <= 64:
            raise UserError(f"{where}.shift_px is {self.shift_px}; set it between 0 and 64 pixels")
        if not 0 <= self.scale <= 0.25:
            raise UserError(f"{where}.scale is {self.scale}; set it between 0 and 0.25")

    def draw(self, rng: np.random.Generator) -> Placement:
        """Draw an instance; the generator is always advanced by the same amount."""
        strength, down, right, scale = rng.uniform([0, -1, -1, -1], 1)
        shifts = np.array([down, right]) * self.shift_px
        if not self.subpixel:
            shifts = np.rint(shifts)
        strength = self.weakest + strength * (self.strongest - self.weakest)
        return Placement(float(strength), float(shifts[0]), float(shifts[1]), float(1 + self.scale * scale))


TUNING = Spread()
TEST = Spread(0.4, 1.1, 4.0, True, 0.02)


@dataclass(frozen=True)
class Artefact:
    """What one camera has in front of the scene, described: the model is drawn where it is needed.

    Attributes:
        model: Name of the model, from which it is drawn.
        family: Its family.
        placement: How the camera has it.
        scene: Clip that a model of glass mirrors; blank for others.
    """

    model: str
    family: str
    placement: Placement
    scene: str = ""

    def instance(self, height: int, width: int, seed: int, scene: np.ndarray | None = None) -> Instance:
        """The artefact, drawn for frames of ``height`` x ``width`` pixels, with the seed of all models.

        Glass mirrors ``scene``, ``[3, H, W]`` uint8.
        """
        rng = np.random.default_rng([seed, zlib.crc32(self.model.encode())])
        return Instance(draw_model(self.model, self.family, height, width, rng, scene), self.placement, height, width)


@dataclass(frozen=True)
class Instance:
    """The artefact of one device.

    Attributes:
        model: The model of its camera.
        placement: How the device has it.
        height: Height of its frames, pixels.
        width: Width of its frames, pixels.
    """

    model: CameraModel
    placement: Placement
    height: int
    width: int

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Opacity o and added light b, ``[3, H, W]`` float32 each: a frame x becomes ``(1 - o) x + b``.

        The changing digits of a clock are not in them.
        """
        return self._maps

    @cached_property
    def _maps(self) -> tuple[np.ndarray, np.ndarray]:
        veil, added = self._placed(self.model.veil), self._placed(self.model.veil * self.model.light)
        if self.model.opaque:
            return veil, added
        # What is so strong that nothing would pass keeps its colour.
        factor = np.minimum(self.placement.strength, MOST_OPACITY / np.maximum(veil, 1e-6)).astype(np.float32)
        return veil * factor, added * factor

    def film(self, frames: np.ndarray, clip: str, seed: int = 0, camera: Camera = Camera()) -> np.ndarray:
        """Film a clip: what is in front of the lens, then the camera; an overlay is drawn behind the camera.

        Args:
            frames: ``[T, 3, H, W]`` uint8.
            clip: Id of the clip, which decides what a clock shows and the camera's noise.
            seed: Seed of both.
            camera: The rest of the camera.

        Returns:
            ``[T, 3, H, W]`` uint8, a new array.

        Raises:
            UserError: If the frames are not of the size of the instance.
        """
        if frames.ndim != 4 or frames.shape[1:] != (3, self.height, self.width) or frames.dtype != np.uint8:
            raise UserError(
                f"artefact: frames are {frames.dtype} of shape {list(frames.shape)}; uint8 pixels "
                f"[T, 3, {self.height}, {self.width}] are needed"
            )
        noise = noise_seed(seed, clip)
        if self.model.family == "overlay":
            return self._clocked(self._covered(apply(camera, frames, noise)), noise)
        return apply(camera, self._covered(frames), noise)

    def _covered(self, frames: np.ndarray) -> np.ndarray:
        opacity, added = self.maps()
        values = (1 - opacity) * frames.astype(np.float32) + np.float32(255) * added
        covered: np.ndarray = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
        return covered

    def _clocked(self, frames: np.ndarray, start: int) -> np.ndarray:
        clock = self.model.clock
        if clock is None:
            return frames
        colour = 255 * np.array(clock.colour, np.float32)[:, None, None]
        shown = []
        for t, frame in enumerate(frames):
            # Clips are filmed at any time of day, their frames some seconds apart.
            digits = self._placed(clock.draw(start % 86_400 + 3 * t, self.model.veil.shape[1:])[None])
            shown.append(np.rint((1 - digits) * frame + digits * colour).astype(np.uint8))
        return np.stack(shown) if shown else frames

    def _placed(self, picture: np.ndarray) -> np.ndarray:
        """A picture of the canvas ``[c, h, w]`` as it lies in the frame ``[c, H, W]``."""
        rows = placing(picture.shape[1], self.height, self.placement.down, self.placement.scale)
        columns = placing(picture.shape[2], self.width, self.placement.right, self.placement.scale)
        placed: np.ndarray = rows @ picture @ columns.T
        return placed


def draw_model(
    name: str, family: str, height: int, width: int, rng: np.random.Generator, scene: np.ndarray | None = None
) -> CameraModel:
    """Draw a model of cameras.

    Args:
        name: Its name.
        family: One of :data:`FAMILIES`.
        height: Height of a frame, pixels.
        width: Width of a frame, pixels.
        rng: Random generator.
        scene: ``[3, H, W]`` uint8, what glass mirrors; needed for glass alone.

    Raises:
        UserError: If the family is unknown, or glass has nothing to mirror.
    """
    if family not in FAMILIES:
        raise UserError(f"artefact: family is {family!r}; choose one of {', '.join(FAMILIES)}")
    margin = math.ceil(MARGIN * height)
    shape = (height + 2 * margin, width + 2 * margin)
    if family == "glass":
        if scene is None or scene.shape != (3, height, width):
            raise UserError(f"artefact: glass needs a scene of {height} x {width} pixels to mirror")
        rows, columns = (placing(n, n + 2 * margin, 0, (n + 2 * margin) / n) for n in (height, width))
        light = rows @ (scene[:, :, ::-1].astype(np.float32) / 255) @ columns.T
        share = float(rng.uniform(0.25, 0.55))
        return CameraModel(name, family, np.full((3, *shape), share, np.float32), light.astype(np.float32))
    canvas = _Canvas(shape, margin, rng)
    veil, light, opaque, clock = _DRAWN[family](canvas)
    return CameraModel(name, family, veil.astype(np.float32), light.astype(np.float32), opaque, clock)


def drifted(model: CameraModel, later: CameraModel, share: float, rng: np.random.Generator) -> CameraModel:
    """A model that has changed in part since: dirt that grew, another firmware.

    Args:
        model: The model as it was.
        later: Another one of the same canvas, which it would be in the end.
        share: How far it is on the way there, 0 to 1. Opaque things are exchanged in this share of the columns, from
            one side; others fade into each other.
        rng: Decides the side.
    """
    mix: np.ndarray | float = share
    if model.opaque or later.opaque:
        columns = (np.arange(model.veil.shape[-1]) + 0.5) / model.veil.shape[-1]
        mix = ((columns if rng.random() < 0.5 else 1 - columns) < share).astype(np.float32)
    veil, added = (
        ((1 - mix) * before + mix * after).astype(np.float32)
        for before, after in ((model.veil, later.veil), (model.veil * model.light, later.veil * later.light))
    )
    light = np.divide(added, veil, out=np.zeros_like(added), where=veil > 0)
    return replace(model, veil=veil, light=light, opaque=model.opaque or later.opaque)


class _Canvas:
    """A canvas with coordinates in frame heights: (0, 0) is the upper left corner of the frame."""

    def __init__(self, shape: tuple[int, int], margin: int, rng: np.random.Generator) -> None:
        self.shape, self.margin, self.rng = shape, margin, rng
        self.height, self.width = shape[0] - 2 * margin, shape[1] - 2 * margin
        self.aspect = self.width / self.height
        rows, columns = np.indices(shape)
        self.y, self.x = (rows - margin) / self.height, (columns - margin) / self.height

    def colour(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """A colour, ``[3, 1, 1]``."""
        return self.rng.uniform(low, high, 3)[:, None, None]

    def inside(self, distance: np.ndarray, soft: float = 0.0) -> np.ndarray:
        """How far a place is inside, 0 to 1: where a signed distance, in frame heights, is below 0.

        Args:
            distance: ``[h, w]``.
            soft: Width of the edge beyond that of a pixel, frame heights.
        """
        edge = 0.5 / self.height + soft
        return np.clip(0.5 - distance / (2 * edge), 0, 1)


_Drawn = tuple[np.ndarray, np.ndarray, bool, Clock | None]


def _shading(canvas: _Canvas) -> _Drawn:
    rng = canvas.rng
    y, x = canvas.y - rng.uniform(0.35, 0.65), canvas.x - canvas.aspect * rng.uniform(0.35, 0.65)
    radius = np.hypot(y, x * rng.uniform(0.8, 1.2))
    falls = np.clip(radius / rng.uniform(0.75, 1.0), 0, 1.3) ** rng.uniform(1.5, 4)
    veil = rng.uniform(0.4, 0.75) * falls * canvas.rng.uniform(0.85, 1.15, 3)[:, None, None]
    if rng.random() < 0.5:  # the hood of the lens, or a filter that is too narrow, in the corners
        hood = canvas.inside(rng.uniform(0.62, 0.75) - radius, soft=rng.uniform(0.02, 0.08))
        veil = 1 - (1 - veil) * (1 - rng.uniform(0.7, 0.95) * hood)
    veil = np.clip(veil, 0, 0.95)
    return veil, np.zeros_like(veil), False, None


def _housing(canvas: _Canvas) -> _Drawn:
    rng = canvas.rng
    side = int(rng.integers(4))  # bottom, top, left, right
    across, depth = (canvas.x, 1 - canvas.y) if side == 0 else (canvas.x, canvas.y)
    if side > 1:
        across, depth = canvas.y, canvas.x if side == 2 else canvas.aspect - canvas.x
    edge = rng.uniform(0.1, 0.3) + sum(
        rng.uniform(0.01, 0.08) / n * np.sin(n * rng.uniform(1.5, 3) * across + rng.uniform(0, 6.3)) for n in (1, 2, 3)
    )
    veil = canvas.inside(depth - edge, soft=rng.uniform(0, 0.01))
    light = canvas.colour(0.03, 0.3) * (1 + rng.uniform(-2, 2) * (depth - edge)) * np.ones((3, *canvas.shape))
    for _ in range(int(rng.integers(3, 8))):  # vents, seams and reflexes on it
        y, x = rng.uniform(-0.1, 1.1), rng.uniform(-0.1, 1.1) * canvas.aspect
        distance = np.maximum(abs(canvas.y - y) - rng.uniform(0.01, 0.15), abs(canvas.x - x) - rng.uniform(0.01, 0.3))
        light = light + canvas.inside(distance) * (canvas.colour(0.0, 0.7) - light) * rng.uniform(0.3, 1)
    return np.broadcast_to(veil, (3, *canvas.shape)), np.clip(light, 0, 1), True, None


def _overlay(canvas: _Canvas) -> _Drawn:
    rng = canvas.rng
    opaque = rng.random() < 0.5
    alpha = 1.0 if opaque else rng.uniform(0.4, 0.8)
    veil, light = np.zeros((3, *canvas.shape)), np.zeros((3, *canvas.shape))

    def paint(mask: np.ndarray, colour: np.ndarray) -> None:
        nonlocal veil, light
        light = light + (mask > 0) * (colour - light) * np.maximum(mask, veil == 0)
        veil = np.maximum(veil, alpha * mask)

    for _ in range(int(rng.integers(2, 5))):
        y = rng.uniform(0.03, 0.15) if rng.random() < 0.5 else rng.uniform(0.78, 0.92)
        x = rng.uniform(0.03, 0.75) * canvas.aspect
        kind = int(rng.integers(3))
        if kind == 0:  # a bar across part of the frame
            half = rng.uniform(0.2, 0.6)
            paint(canvas.inside(np.maximum(abs(canvas.y - y) - 0.06, abs(canvas.x - x) - half)), canvas.colour())
        elif kind == 1:  # a round logo with something in it
            size = rng.uniform(0.05, 0.1)
            for radius in (size, size * rng.uniform(0.3, 0.7)):
                paint(canvas.inside(np.hypot(canvas.y - y, canvas.x - x) - radius), canvas.colour())
        else:  # a line of letters: dots of a pattern of their own
            dots = rng.random((5, 4 * int(rng.integers(4, 10)))) < 0.55
            dots[:, 3::4] = False
            paint(_dotted(canvas, dots, y, x), canvas.colour(0.7, 1) if rng.random() < 0.7 else canvas.colour(0, 0.3))
    clock = None
    if rng.random() < 0.5:
        dot = max(1, round(canvas.height / 72))
        row = canvas.margin + round((0.04 if rng.random() < 0.5 else 0.86) * canvas.height)
        column = canvas.margin + int(rng.uniform(0.05, 0.6) * canvas.width)
        box = np.zeros(canvas.shape)
        box[row - dot : row + 6 * dot, column - dot : column + 32 * dot] = 1
        paint(box, canvas.colour(0, 0.2))
        bright = canvas.colour(0.8, 1).ravel().tolist()
        clock = Clock(row, column, dot, (bright[0], bright[1], bright[2]))
    return veil, np.clip(light, 0, 1), opaque, clock


def _dotted(canvas: _Canvas, dots: np.ndarray, y: float, x: float) -> np.ndarray:
    """A pattern of dots of about a hundredth of the frame's height each, ``[h, w]`` of 0 and 1."""
    dot = max(1, round(canvas.height / 72))
    mask = np.zeros(canvas.shape)
    row, column = canvas.margin + round(y * canvas.height), canvas.margin + round(x * canvas.height)
    part = mask[row : row + 5 * dot, column : column + dots.shape[1] * dot]
    part[:] = dots.repeat(dot, 0).repeat(dot, 1)[: part.shape[0], : part.shape[1]]
    return mask


def _dirt(canvas: _Canvas) -> _Drawn:
    rng = canvas.rng
    passes = np.ones(canvas.shape)
    for _ in range(int(rng.integers(4, 11))):
        y, x, radius = rng.uniform(0, 1), rng.uniform(0, canvas.aspect), rng.uniform(0.04, 0.18)
        distance = np.hypot(canvas.y - y, (canvas.x - x) * rng.uniform(0.6, 1.6)) - radius
        passes = passes * (1 - rng.uniform(0.3, 0.85) * canvas.inside(distance, soft=rng.uniform(0.3, 1) * radius))
    veil = np.broadcast_to(1 - passes, (3, *canvas.shape))
    return veil, canvas.colour(0.15, 0.5) * np.ones((3, *canvas.shape)), False, None


_DRAWN: dict[str, Callable[[_Canvas], _Drawn]] = {
    "shading": _shading, "housing": _housing, "overlay": _overlay, "dirt": _dirt,
}  # fmt: skip
