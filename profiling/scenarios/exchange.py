"""The device's side of an adaptation, in the steps that are timed one by one, with real messages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.link import Download, Upload
from lit_mmpg.profiling.config import CloudConfig
from lit_mmpg.profiling.inputs import adapted_parameters
from lit_mmpg.profiling.pipeline import Pipeline
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.client import CloudClient, CloudError, Traffic
from lit_mmpg.runtime.state import DeviceState


class DeviceSide:
    """A device with a full context of clips, taken from the bundle's reference in turn.

    Args:
        pipeline: Activated engines, ``project`` among them.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._state = DeviceState(pipeline.bundle)
        inputs = pipeline.bundle.reference().roles["model"].inputs
        self._frames, self._masks = inputs["frames"], inputs["frame_mask"]
        self._clip = 0
        self._features = pipeline.inputs["model"]["frames"]
        for _ in range(self._state.clips.maxlen or 1):
            self.see_clip()

    @property
    def context_clips(self) -> int:
        """Clips in the context."""
        return len(self._state.clips)

    def see_clip(self) -> None:
        """Take one clip into the context: features (encoded where the encoder is in the path), projected, anchors."""
        row = self._clip % len(self._frames)
        self._clip += 1
        self._features = self.pipeline.encode_context() if self.pipeline.cell.encoder else self._frames[row : row + 1]
        frames = self._features[0][self._masks[row]]
        self._state.see(self.pipeline.engines["project"].infer({"features": frames})["projected"], frames)

    def answer(self) -> np.ndarray:
        """Answer about the clip that was taken last: it is encoded already, unless parameters act in the encoder."""
        encoder = self.pipeline.engines.get("encode")
        return self.pipeline.answer(None if encoder is not None and encoder.personal else self._features)

    def upload(self) -> Upload:
        """The message up, from the whole context."""
        return self._state.upload("profile")

    def apply(self, data: bytes, upload: Upload) -> None:
        """From the bytes of a download to parameters that the next answer uses."""
        download = Download.parse(data)
        download.check_answers(upload)
        self.pipeline.load(download.parameters(self.pipeline.bundle.spec))


@dataclass(frozen=True)
class Reply:
    """What came back from a cloud.

    Attributes:
        data: Bytes of the download.
        seconds: Time from the upload to the checked download; None where no cloud computed it.
        traffic: Bytes that crossed a network; None where there was none.
    """

    data: bytes
    seconds: float | None = None
    traffic: Traffic | None = None


Cloud = Callable[[Upload], Reply]


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

    def ask(upload: Upload) -> Reply:
        data = upload.to_bytes()
        begin = time.perf_counter()
        answer = half.generate([Upload.from_bytes(data)])[0].to_bytes()
        return Reply(answer, time.perf_counter() - begin)

    return ask


def _service(url: str, api_key_env: str | None) -> Cloud:
    key = None
    if api_key_env is not None:
        if api_key_env not in os.environ:
            raise UserError(f"cloud.api_key_env names {api_key_env}, which is not set; export it first")
        key = os.environ[api_key_env]
    client = CloudClient(url, key, timeout_s=30.0)

    def ask(upload: Upload) -> Reply:
        begin = time.perf_counter()
        try:
            download, traffic = client.adapt(upload)
        except CloudError as error:
            raise UserError(f"cloud.url {url} does not answer: {error}") from error
        return Reply(download.to_bytes(), time.perf_counter() - begin, traffic)

    return ask


def _from_reference(bundle: Bundle) -> Cloud:
    """The parameters of one of the reference's devices in a real message: right bytes, no computation."""
    return lambda upload: Reply(_answer(bundle, upload, 0))


def download_of(bundle: Bundle, number: int) -> bytes:
    """A download as a cloud would send it to one of the reference's devices, to a request of one clip.

    Args:
        bundle: The bundle.
        number: Which device.
    """
    manifest = bundle.manifest
    upload = Upload.encode(
        anchors=np.ones((1, 1, manifest.frames.width), np.float32),
        anchor_mask=np.ones((1, 1), bool),
        positions=np.zeros((1, 1), np.float32),
        num_frames=np.ones(1, np.int64),
        device_id="profile",
        codec="fp32",
        checkpoint_digest=manifest.checkpoint_digest,
        spec_digest=bundle.spec.digest(),
    )
    return _answer(bundle, upload, number)


def _answer(bundle: Bundle, upload: Upload, number: int) -> bytes:
    parameters, link = adapted_parameters(bundle, number), bundle.manifest.link
    assert parameters is not None and link is not None
    return Download.answer(upload, bundle.spec, parameters, codec=link.download_codec).to_bytes()


def sizes(upload: Upload, reply: Reply) -> dict[str, dict[str, int]]:
    """Bytes of the real messages; with HTTP's own where they crossed a network.

    Args:
        upload: The message up.
        reply: What came back.
    """
    download = Download.parse(reply.data)
    size = {
        "upload": {"payload_bytes": upload.payload_bytes, "message_bytes": upload.message_bytes},
        "download": {"payload_bytes": download.payload_bytes, "message_bytes": len(reply.data)},
    }
    if reply.traffic is not None:
        size["upload"]["wire_bytes"] = reply.traffic.upload_wire_bytes
        size["download"]["wire_bytes"] = reply.traffic.download_wire_bytes
    return size
