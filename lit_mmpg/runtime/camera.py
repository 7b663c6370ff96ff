"""What a device does for its own camera, by a memory of camera models that it holds, or its cloud. No torch.

The memory (:mod:`lit_mmpg.camera_memory`, our addition to the paper's method) says what cameras of a model have in
front of every scene. A device has its model recognised by its latest frames and asks its encoder about frames without
that. The context of an adaptation is made of frames as they were taken. Where no model is likely enough, frames stay as
they are. A cloud is asked only by who was told to (``--camera-query``): a query shows what stays in the frames.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lit_mmpg.camera_memory import CameraMemory, squashed
from lit_mmpg.errors import UserError
from lit_mmpg.link.camera import SIZE, CameraQuery
from lit_mmpg.link.messages import check_device_id
from lit_mmpg.maps import Correction, PixelMaps, gradients
from lit_mmpg.report import format_bytes
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.client import DEFAULT_TIMEOUT_S, CloudClient, CloudError, check_timeout, count
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.video import resize

FRAMES = 16
"""Latest frames by which a camera is recognised, one of each clip; and after how many further ones that is done again,
once so many are there."""
SAME_SCENE = 0.7
"""Correlation of gradients from which two frames show one scene. Different scenes behind one artefact have less (up to
0.6, behind glass), those of a room in which little moves nearly 1."""


def scenes(frames: np.ndarray) -> np.ndarray:
    """What tells scenes apart: gradients of frames ``[n, 3, H, W]``, as vectors of unit length ``[n, ...]``.

    Two frames show one scene where the product of theirs is :data:`SAME_SCENE` or more.
    """
    flat = squashed(np.moveaxis(gradients(frames.astype(np.float32)), 1, 0)).reshape(len(frames), -1)
    unit: np.ndarray = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-9)
    return unit


@dataclass(frozen=True)
class Found:
    """What a camera is recognised as.

    Attributes:
        model: Index of the model in the memory.
        said: The same for people.
        correction: What undoes it.
    """

    model: int
    said: str
    correction: Correction


class Recogniser(Protocol):
    """Who recognises cameras.

    Attributes:
        size: Height and width of the frames that it is shown.
        counts: Numbers of frames, growing, with which it is asked before :data:`FRAMES` are there.
        private: Whether nothing leaves the device, so that it may also be asked about a clip that was not observed.
        models: What it knows, for people.
    """

    size: tuple[int, int]
    counts: tuple[int, ...]
    private: bool
    models: str

    @property
    def traffic(self) -> str:
        """Messages and bytes that it took so far, for people; blank where there were none."""

    def recognise(self, frames: np.ndarray, device_id: str) -> Found | None:
        """What the camera that took these frames ``[C, 3, H, W]`` uint8 is recognised as; ``None``: nothing known.

        Raises:
            CloudError: If nobody can say.
        """


class HeldMemory:
    """A memory that the device holds.

    Args:
        memory: The camera models that are known.

    Raises:
        UserError: If the memory has no gates.
    """

    counts: tuple[int, ...] = (1, 2, 4, 8)
    private, traffic = True, ""

    def __init__(self, memory: CameraMemory) -> None:
        memory.gate(1)
        height, width = memory.scene.mean.shape[-2:]
        self._memory, self.size, self.models = memory, (height, width), f"{len(memory)} models of the memory"

    def recognise(self, frames: np.ndarray, device_id: str) -> Found | None:
        """As :meth:`Recogniser.recognise`; nobody is asked."""
        memory = self._memory
        found, correction = memory.correct(PixelMaps.of(frames).gradient, memory.gate(len(frames)))
        if found is None or correction is None:
            return None
        said = f"model {found.model + 1} of the {len(memory)} of the memory, strength {found.strength:.2f}"
        return Found(found.model, said, correction)


class CloudMemory:
    """The memory of a cloud, which is sent what stays in the frames.

    Args:
        client: The cloud.

    Attributes:
        answers: Answers of the cloud so far.
        upload_bytes: Bytes of the messages that it answered.
        download_bytes: Bytes of its answers.
    """

    size, private, models = SIZE, False, "models of the cloud's memory"
    counts: tuple[int, ...] = (1, 4)

    def __init__(self, client: CloudClient) -> None:
        self._client = client
        self.answers = self.upload_bytes = self.download_bytes = 0

    @property
    def traffic(self) -> str:
        """Messages and bytes so far, for people."""
        times = "once" if self.answers == 1 else f"{self.answers} times"
        sizes = f"{format_bytes(self.upload_bytes)} up, {format_bytes(self.download_bytes)} down"
        return f"asked {times}: {sizes}" if self.answers else ""

    def recognise(self, frames: np.ndarray, device_id: str) -> Found | None:
        """As :meth:`Recogniser.recognise`."""
        query = CameraQuery.encode(PixelMaps.of(frames).gradient, len(frames), device_id)
        answer, traffic = self._client.recognise(query)
        self.answers += 1
        self.upload_bytes += traffic.upload_message_bytes
        self.download_bytes += traffic.download_message_bytes
        correction = answer.correction()
        if correction is None:
            return None
        return Found(answer.model, f"model {answer.model + 1} of the cloud's memory", correction)


class Camera:
    """A device's own camera.

    It is recognised anew when as many frames were observed as :attr:`Recogniser.counts` says, and after every
    :data:`FRAMES` further ones. Where the cloud gives no answer, what was known stays, and it is asked at the next clip
    again, then after 2, 4, 8, ... further ones; after a refusal that lasts, never.

    Args:
        memory: Who recognises it: the camera models that are known, or a cloud.
        frames: Most frames that are kept, one of each scene.

    Attributes:
        device_id: Name of its device, for the cloud.
        found: What it was recognised as when it was last asked; ``None``: as nothing that is known.
        observed: Number of clips whose frames were taken so far.
        problem: Why the cloud gave no answer when it was last asked; ``None``: it did, or was not asked.

    Raises:
        UserError: If the memory has no gates.
    """

    def __init__(self, memory: CameraMemory | Recogniser, frames: int = FRAMES) -> None:
        self._by: Recogniser = HeldMemory(memory) if isinstance(memory, CameraMemory) else memory
        self.device_id = "device"
        self._frames: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=frames)  # with their scenes
        self._refused = False
        self.clear()

    def clear(self) -> None:
        """Forget all frames, and what was known by them."""
        self._frames.clear()
        self.observed = self._seen = self._failures = 0
        self.found: Found | None = None
        self.problem: str | None = None
        self._due = math.inf if self._refused else 1
        """Number of observed clips with which it is recognised next."""

    def _frame(self, pixels: np.ndarray) -> np.ndarray:
        middle = len(pixels) // 2
        return resize(pixels[middle : middle + 1], self._by.size)[0]

    def observe(self, pixels: np.ndarray) -> None:
        """Take the middle frame of a clip, ``[T, 3, H, W]`` uint8.

        Of frames that show one scene the latest is kept: what stays in a room that hardly changes is no camera's.
        """
        frame = self._frame(pixels)
        scene = scenes(frame[None])[0]
        others = [(old, seen) for old, seen in self._frames if seen @ scene < SAME_SCENE]
        self._frames.clear()
        self._frames.extend([*others, (frame, scene)])
        self.observed += 1

    def corrected(self, pixels: np.ndarray) -> np.ndarray | None:
        """Frames without what the camera puts in front of them; ``None`` where nothing is known of it.

        Args:
            pixels: ``[T, 3, H, W]`` uint8 frames of a clip. Where none was observed before, it is recognised by these,
                unless a cloud would have to be asked.
        """
        if self._frames and self.observed >= self._due:
            self._recognise(np.stack([frame for frame, _ in self._frames]))
        elif not self._frames and self._by.private:
            self._recognise(self._frame(pixels)[None])
        if self.found is None:
            return None
        return self.found.correction(pixels)

    def _recognise(self, frames: np.ndarray) -> None:
        try:
            self.found = self._by.recognise(frames, self.device_id)
        except CloudError as error:
            self.problem, self._refused = str(error), error.lasting
            self._due = math.inf if error.lasting else self.observed + min(2**self._failures, FRAMES)
            self._failures += 1
            return
        self.problem, self._failures, self._seen = None, 0, len(frames)
        if self._frames:
            later = (self.observed // FRAMES + 1) * FRAMES
            self._due = next((count for count in self._by.counts if count > self.observed), later)

    @property
    def text(self) -> str:
        """What is known of it, for people."""
        by = f"by {self._seen} frame{'s' if self._seen > 1 else ''}"
        if self.found is not None:
            said = f"recognised {by}, as {self.found.said}; answers are about frames without what it shows"
        elif self._seen:
            said = f"not one of the {self._by.models}, {by}; frames stay as they are"
        else:
            said = "not recognised yet; frames stay as they are"
        said += f" ({self._by.traffic})" * bool(self._by.traffic)
        return said if self.problem is None else f"{said} (asked in vain: {self.problem})"


def asked(session: DeviceSession, camera: Camera | None, features: np.ndarray, pixels: np.ndarray | None) -> np.ndarray:
    """What a question is asked about: frames without what the camera adds, frames as they are, or their features.

    Args:
        session: The device's model.
        camera: Its camera; ``None``: nobody recognises it.
        features: ``[T, D]`` features of the static encoder.
        pixels: ``[T, 3, H, W]`` the frames, where they are there.
    """
    corrected = None if camera is None or pixels is None else camera.corrected(pixels)
    if corrected is not None:
        return corrected
    return features if pixels is None or not session.encodes_personally else pixels


def add_device_options(parser: argparse.ArgumentParser, device_id: str, cloud: str) -> None:
    """The options of all commands that look at videos with a bundle, and may ask a cloud.

    Args:
        parser: The parser of the command.
        device_id: Name of a device whose state has none.
        cloud: What ``--cloud`` does there.
    """
    parser.add_argument("--bundle", required=True, help="folder that 'lit-mmpg export --frame-encoder' wrote")
    parser.add_argument("--frames", type=count, metavar="N", help="frames sampled per clip (default: as trained)")
    parser.add_argument(
        "--engine",
        default="onnxruntime",
        help="inference engine; 'lit-mmpg profile engines' lists them (default: %(default)s)",
    )
    parser.add_argument("--precision", default="fp32", help="precision of the device model (default: %(default)s)")
    parser.add_argument("--cloud", metavar="URL", help=cloud)
    parser.add_argument(
        "--device-id",
        type=_device_id,
        help=f"id of this device (default: that of the kept state, else '{device_id}')",
    )
    parser.add_argument(
        "--timeout",
        type=_timeout,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="time limit of a request to the cloud, from connecting to the last byte, seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--camera-memory",
        metavar="FILE",
        help="memory of camera models, made by 'lit-mmpg memory': recognise this device's camera and remove its "
        "artefacts (housing, overlay, shading) from the frames of a question; nothing is sent",
    )
    parser.add_argument(
        "--camera-query",
        action="store_true",
        help="as --camera-memory, with the memory of the cloud: sends a 3 KB picture of the static content of this "
        "device's frames, after 1, 4 and 16 clips and then after every 16. Privacy: the picture made of one frame is "
        "nearly that frame, and static content such as a room stays visible",
    )


def open_camera(
    file: str | None, bundle: Bundle, query: bool = False, client: CloudClient | None = None
) -> Camera | None:
    """The camera that the options name; ``None``: none.

    Args:
        file: Value of ``--camera-memory``.
        bundle: The device's bundle.
        query: Value of ``--camera-query``.
        client: The cloud, where there is one.

    Raises:
        UserError: If the file is no memory, there is no cloud to ask, or the bundle has no use for a camera.
    """
    if file is None and not query:
        return None
    if file is not None and query:
        raise UserError(
            "--camera-query asks the memory of the cloud, --camera-memory one on this device; leave one out"
        )
    option = "--camera-query" if query else "--camera-memory"
    if bundle.manifest.own_statistics is not None:
        raise UserError(f"{bundle.path} standardises by the statistics of frames as they are taken; leave {option} out")
    if bundle.manifest.preprocessing is None:
        raise UserError(f"{bundle.path} holds no frame encoder; export it with --frame-encoder for {option}")
    if file is not None:
        return Camera(CameraMemory.ready(file))
    if client is None:
        raise UserError("--camera-query needs --cloud URL, the service that holds the camera memory")
    return Camera(CloudMemory(client))


def _timeout(text: str) -> float:
    try:
        return check_timeout(float(text))
    except ValueError as error:
        raise UserError(f"--timeout '{text}' is not a number of seconds") from error
    except UserError as error:
        raise UserError(f"--timeout {text}: {error}") from error


def _device_id(text: str) -> str:
    try:
        check_device_id(text)
    except ValueError as error:
        raise UserError(f"--device-id: {error}") from error
    return text
