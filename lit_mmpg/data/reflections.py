"""Window glass in front of a camera: one fixed scene is mirrored in every frame of every clip.

The shift that a single clip cannot reveal: in one frame nothing tells what was filmed from what is only mirrored, over
the clips of a device only the mirrored scene stays. The strengths are our own choice (reconstruction); no torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lit_mmpg.errors import UserError

STRENGTHS = (0.15, 0.25, 0.35, 0.45, 0.55)
"""Share of the light that the mirrored scene brings at severities 1 to 5."""


@dataclass(frozen=True, slots=True)
class Reflection:
    """What is mirrored in the glass before one camera.

    Attributes:
        clip: Clip whose middle frame is the mirrored scene.
        share: Share of the light that comes from it, above 0 and below 1.

    Raises:
        UserError: If the share is out of range.
    """

    clip: str
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"reflection: share is {self.share!r}; set it above 0 and below 1")

    def describe(self) -> str:
        """The strength, for people."""
        return f"{100 * self.share:.0f} % of the light"


def middle(frames: np.ndarray) -> np.ndarray:
    """The frame of a clip ``[T, ...]`` that stands for the scene."""
    frame: np.ndarray = frames[len(frames) // 2]
    return frame


def reflect(reflection: Reflection, frames: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """Add the mirrored scene to a clip.

    Args:
        reflection: Its strength.
        frames: ``[T, 3, H, W]`` uint8.
        scene: ``[3, H, W]`` uint8, as it would be seen directly; the glass swaps left and right.

    Returns:
        ``[T, 3, H, W]`` uint8, a new array.

    Raises:
        UserError: If the scene is not of the size of the frames.
    """
    if scene.shape != frames.shape[1:]:
        raise UserError(
            f"reflection: the mirrored scene '{reflection.clip}' is {list(scene.shape)}, the frames are "
            f"{list(frames.shape[1:])}; resize the frames of all clips to one size"
        )
    share = np.float32(reflection.share)
    mixed = (1 - share) * frames.astype(np.float32) + share * scene[:, :, ::-1].astype(np.float32)
    return np.rint(mixed).astype(np.uint8)
