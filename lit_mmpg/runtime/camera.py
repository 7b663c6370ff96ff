"""What a device that holds a memory of camera models does for its own camera. No torch.

The memory (:mod:`lit_mmpg.camera_memory`, our addition to the paper's method) says what cameras of a model have in
front of every scene. A device recognises its model by its latest frames and asks its encoder about frames without that.
The context of an adaptation is made of frames as they were taken. Where no model is likely enough, frames stay as they
are.
"""

from __future__ import annotations

import argparse
from collections import deque

import numpy as np

from lit_mmpg.camera_memory import CameraMemory, Recognition
from lit_mmpg.errors import UserError
from lit_mmpg.maps import Correction, PixelMaps, resized
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.video import resize

FRAMES = 16
"""Latest frames by which a camera is recognised, one of each clip."""


class Camera:
    """A device's own camera.

    Args:
        memory: The camera models that are known.
        frames: Most frames that are kept, one of each clip.

    Attributes:
        found: What it was recognised as when it was last asked; ``None``: as nothing that is known.
        observed: Number of clips whose frames were taken so far.

    Raises:
        UserError: If the memory has no gates.
    """

    def __init__(self, memory: CameraMemory, frames: int = FRAMES) -> None:
        memory.gate(1)
        self.memory, self.observed = memory, 0
        self.found: Recognition | None = None
        self._frames: deque[np.ndarray] = deque(maxlen=frames)
        self._correction: Correction | None = None
        self._stale = False

    def clear(self) -> None:
        """Forget all frames."""
        self._frames.clear()
        self.observed, self.found = 0, None

    def _frame(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self.memory.scene.mean.shape[-2:]
        middle = len(pixels) // 2
        return resize(pixels[middle : middle + 1], (height, width))[0]

    def observe(self, pixels: np.ndarray) -> None:
        """Take the middle frame of a clip, ``[T, 3, H, W]`` uint8."""
        self._frames.append(self._frame(pixels))
        self.observed += 1
        self._stale = True

    def corrected(self, pixels: np.ndarray) -> np.ndarray | None:
        """Frames without what the camera puts in front of them; ``None`` where nothing is known of it.

        Args:
            pixels: ``[T, 3, H, W]`` uint8 frames of a clip. Where none was observed before, it is recognised by these.
        """
        if self._stale or not self._frames:
            frames = np.stack(self._frames) if self._frames else self._frame(pixels)[None]
            self._correction, self._stale = self._recognise(frames), False
        if self._correction is None:
            return None
        gain, bias = (resized(image, pixels.shape[-2:]) for image in (self._correction.gain, self._correction.bias))
        return Correction(gain, bias)(pixels)

    def _recognise(self, frames: np.ndarray) -> Correction | None:
        self.found, correction = self.memory.correct(PixelMaps.of(frames).gradient, self.memory.gate(len(frames)))
        return correction

    @property
    def text(self) -> str:
        """What is known of it, for people."""
        by = f"by {len(self._frames) or 1} frame{'s' if len(self._frames) > 1 else ''}"
        if self.found is None:
            return f"not one of the {len(self.memory)} models of the memory, {by}; frames stay as they are"
        return (
            f"model {self.found.model + 1} of the {len(self.memory)} of the memory, {by}, strength "
            f"{self.found.strength:.2f}; answers are about frames without what it shows"
        )


def asked(session: DeviceSession, camera: Camera | None, features: np.ndarray, pixels: np.ndarray | None) -> np.ndarray:
    """What a question is asked about: frames without what the camera adds, frames as they are, or their features.

    Args:
        session: The device's model.
        camera: Its camera; ``None``: no memory is held.
        features: ``[T, D]`` features of the static encoder.
        pixels: ``[T, 3, H, W]`` the frames, where they are there.
    """
    corrected = None if camera is None or pixels is None else camera.corrected(pixels)
    if corrected is not None:
        return corrected
    return features if pixels is None or not session.encodes_personally else pixels


def add_camera_option(parser: argparse.ArgumentParser) -> None:
    """The option of all commands that look at videos."""
    parser.add_argument(
        "--camera-memory",
        metavar="FILE",
        help="memory of camera models that 'lit-mmpg memory' learnt: recognise this device's camera, and answer about "
        "frames without what it puts in front of them",
    )


def open_camera(file: str | None, bundle: Bundle) -> Camera | None:
    """The camera that the option names; ``None``: none.

    Raises:
        UserError: If the file is no memory, or the bundle has no use for it.
    """
    if file is None:
        return None
    if bundle.manifest.own_statistics is not None:
        raise UserError(
            f"{bundle.path} standardises by the statistics of frames as they are taken; leave --camera-memory out"
        )
    if bundle.manifest.preprocessing is None:
        raise UserError(f"{bundle.path} holds no frame encoder; export it with --frame-encoder for --camera-memory")
    return Camera(CameraMemory.load(file))
