"""The device's side of an adaptation, in the steps that are timed one by one, with real messages."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.link import Download, Upload
from lit_mmpg.runtime.bundle import Bundle
from profiling.config import CloudConfig
from profiling.inputs import adapted_parameters
from profiling.pipeline import Pipeline


class DeviceSide:
    """A device with a full ring of context clips, taken from the bundle's reference in turn.

    Args:
        pipeline: Activated engines, ``project`` among them.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.bundle = pipeline, pipeline.bundle
        rule = self.bundle.manifest.anchors
        assert rule is not None  # the plan leaves static bundles out
        self._count = rule.count
        clips = 1 if rule.context == "clip" else rule.context_clips
        self._ring: deque[tuple[np.ndarray, np.ndarray, int]] = deque(maxlen=clips)
        inputs = self.bundle.reference().roles["model"].inputs
        self._frames, self._masks = inputs["frames"], inputs["frame_mask"]
        self._clip = self._sequence = 0
        self._features = pipeline.inputs["model"]["frames"]
        for _ in range(clips):
            self.see_clip()

    @property
    def context_clips(self) -> int:
        """Clips in the context."""
        return len(self._ring)

    def see_clip(self) -> None:
        """Take one clip into the ring: its features (encoded where the encoder is in the path), projected, anchors."""
        row = self._clip % len(self._frames)
        self._clip += 1
        self._features = self.pipeline.encode() if self.pipeline.cell.encoder else self._frames[row : row + 1]
        frames = self._features[0][self._masks[row]]
        projected = self.pipeline.engines["project"].infer({"features": frames})["projected"]
        chosen = uniform_anchors(len(projected), self._count)
        positions = chosen / max(1, len(projected) - 1)
        self._ring.append((projected[chosen], positions.astype(np.float32), len(projected)))

    def answer(self) -> np.ndarray:
        """Answer about the clip that was taken last: it is encoded already."""
        return self.pipeline.answer(self._features)

    def upload(self) -> Upload:
        """The message up, from the whole ring."""
        most = max(len(anchors) for anchors, _, _ in self._ring)
        width = self._ring[0][0].shape[-1]
        features = np.zeros((len(self._ring), most, width), np.float32)
        mask = np.zeros((len(self._ring), most), bool)
        positions = np.zeros((len(self._ring), most), np.float32)
        for c, (anchors, times, _) in enumerate(self._ring):
            features[c, : len(anchors)], positions[c, : len(anchors)], mask[c, : len(anchors)] = anchors, times, True
        self._sequence += 1
        return Upload.encode(
            anchors=features,
            anchor_mask=mask,
            positions=positions,
            num_frames=np.array([frames for _, _, frames in self._ring]),
            device_id="profile",
            sequence=self._sequence,
            codec=self.bundle.upload_codec(),
            checkpoint_digest=self.bundle.manifest.checkpoint_digest,
            spec_digest=self.bundle.spec.digest(),
        )

    def apply(self, data: bytes, upload: Upload) -> None:
        """From the bytes of a download to parameters that the next answer uses."""
        download = Download.from_bytes(data)
        download.check_answers(upload)
        self.pipeline.load(download.parameters(self.bundle.spec))


def uniform_anchors(frames: int, count: int) -> np.ndarray:
    """Indices of the anchors: centres of ``count`` equal spans; all frames for 0.

    Neither bytes nor, to speak of, time depend on the rule, and this one is the default.
    """
    taken = frames if count <= 0 else min(count, frames)
    return ((2 * np.arange(taken) + 1) * frames) // (2 * taken)


Cloud = Callable[[bytes], tuple[bytes, float]]
"""Upload bytes -> download bytes and the seconds that the cloud took."""


def open_cloud(settings: CloudConfig, bundle: Bundle) -> tuple[Cloud, str | None]:
    """Where downloads come from.

    Args:
        settings: The configuration.
        bundle: The bundle.

    Returns:
        The cloud, and why its time is not measured; None where it is.

    Raises:
        UserError: If the checkpoint or the service cannot be used.
    """
    if settings.ckpt is not None:
        return _in_process(settings.ckpt), None
    if settings.url is not None:
        return _service(settings.url, settings.api_key_env), None
    return _from_reference(bundle), "no cloud was named (cloud.ckpt or cloud.url): its time is absent, not zero"


def _in_process(ckpt: str) -> Cloud:
    from lit_mmpg.serving.cloud_half import CloudHalf

    half = CloudHalf.load(ckpt)

    def ask(data: bytes) -> tuple[bytes, float]:
        begin = time.perf_counter()
        answer = half.generate([Upload.from_bytes(data)])[0].to_bytes()
        return answer, time.perf_counter() - begin

    return ask


def _service(url: str, api_key_env: str | None) -> Cloud:
    import httpx

    headers = {"Content-Type": "application/octet-stream"}
    if api_key_env is not None:
        if api_key_env not in os.environ:
            raise UserError(f"cloud.api_key_env names {api_key_env}, which is not set; export it first")
        headers["Authorization"] = f"Bearer {os.environ[api_key_env]}"
    client = httpx.Client(base_url=url, timeout=30.0, headers=headers)

    def ask(data: bytes) -> tuple[bytes, float]:
        begin = time.perf_counter()
        try:
            response = client.post("/v1/adapt", content=data)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise UserError(f"cloud.url {url} does not answer: {error}") from error
        return response.content, time.perf_counter() - begin

    return ask


def _from_reference(bundle: Bundle) -> Cloud:
    """The parameters of one of the reference's devices in a real message: right bytes, no computation."""
    parameters = adapted_parameters(bundle)
    link = bundle.manifest.link
    assert parameters is not None and link is not None

    def ask(data: bytes) -> tuple[bytes, float]:
        upload = Upload.from_bytes(data)
        return Download.answer(upload, bundle.spec, parameters, codec=link.download_codec).to_bytes(), float("nan")

    return ask
