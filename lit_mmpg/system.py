"""Use a trained system from Python: load it, make devices, personalise them.

    system = lit_mmpg.load("best.ckpt")
    device = system.new_device("kitchen")
    device.observe("clip.mp4")
    device.personalise()
    device.answer("clip.mp4", "what is he doing?")

A checkpoint holds both halves. A bundle holds the device half: it needs no torch, and a service for the cloud half.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lit_mmpg.errors import UserError, path_of
from lit_mmpg.link.messages import check_device_id
from lit_mmpg.pretrained import find_trained
from lit_mmpg.runtime.bundle import MANIFEST, Bundle
from lit_mmpg.runtime.camera import open_camera
from lit_mmpg.runtime.client import Cloud, CloudClient
from lit_mmpg.runtime.personal import PersonalDevice
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState


class System:
    """A trained device model and, if the source holds one, the cloud half. Returned by :func:`load`.

    Args:
        bundle: The device half as files.
        session: Creates the session of one device.
        cloud: The cloud half in this process; ``None``: not available.

    Attributes:
        bundle: The device half; ``bundle.manifest`` and ``bundle.spec`` describe the model.
    """

    def __init__(self, bundle: Bundle, session: Callable[[], DeviceSession], cloud: Cloud | None = None) -> None:
        self.bundle, self._session, self._cloud = bundle, session, cloud

    def __repr__(self) -> str:
        return f"<system {self.bundle.path}: {self.bundle.manifest.task}, {self.bundle.spec.size} personal parameters>"

    def new_device(
        self,
        name: str = "device",
        upload_codec: str | None = None,
        anchor_noise: float = 0.0,
        camera_memory: str | Path | CloudClient | None = None,
    ) -> PersonalDevice:
        """Create a device with an empty context, which answers with the static model. Its state is kept in memory only.

        Args:
            name: Device id, sent with every message.
            upload_codec: Codec of uploads, or ``pq`` for the system's own codebooks; ``None``: that of the training.
            anchor_noise: Standard deviation of Gaussian noise that is added to uploads, relative to their RMS value.
            camera_memory: Memory of camera models (docs/memory.md) that corrects camera artefacts: a file, or a client
                of a service that holds one. The service receives pictures of the static content of frames.

        Returns:
            The device.

        Raises:
            UserError: If an argument is not valid.
        """
        try:
            check_device_id(name)
        except ValueError as error:
            raise UserError(f"{error}; name the device otherwise") from error
        state = DeviceState.open(self.bundle, None, name, name)
        state.uploads_with(upload_codec, anchor_noise)
        client = camera_memory if isinstance(camera_memory, CloudClient) else None
        file = str(camera_memory) if camera_memory is not None and client is None else None
        camera = open_camera(file, self.bundle, client is not None, client)
        return PersonalDevice(self._session(), state, self._cloud, camera)


def load(source: str | Path, frame_encoder: str | Path | None = None) -> System:
    """Load a trained system.

    Args:
        source: One of: a checkpoint of either half (``lit-mmpg fit`` or a Lightning trainer); a folder written by
            ``save_pretrained``, or the name of its repository on the hub (``owner/name``); a bundle written by
            ``lit-mmpg export``. A bundle also holds bounds of plausible parameters. Classes of your own that a file
            names are imported only if you trust them (:mod:`lit_mmpg.trust`).
        frame_encoder: Frame encoder with which the training features were extracted: a folder of the transformers
            library, or a name on the hub. ``None``: the one named by the checkpoint's data, if it exists here. Without
            a frame encoder, devices accept features only. Bundles and checkpoints trained on pixels contain their own.

    Returns:
        The system.

    Raises:
        UserError: If the source does not exist or is none of these, or the frame encoder does not fit.

    Example:
        >>> load("gone.ckpt")
        Traceback (most recent call last):
        lit_mmpg.errors.UserError: checkpoint gone.ckpt does not exist (there is no 'gone.ckpt' in .)
    """
    if not isinstance(source, str | Path):
        raise UserError(f"source is {source!r}; give the path of a checkpoint, a saved folder or a bundle")
    path = path_of(source, "source")
    if (path / MANIFEST).is_file():
        if frame_encoder is not None:
            raise UserError(f"{path} is a bundle and brings its frame encoder; leave frame_encoder out")
        bundle = Bundle.open(path)
        return System(bundle, lambda: DeviceSession(bundle))
    path = find_trained(source)  # the cheap check, before torch is imported
    from lit_mmpg.export.in_process import CheckpointDevices, unnoticed
    from lit_mmpg.export.source import open_trained
    from lit_mmpg.serving.in_process import CloudHere

    with unnoticed():
        opened = open_trained(path)
        devices = CheckpointDevices(opened, None if frame_encoder is None else str(frame_encoder))
    return System(devices.bundle, devices.session, None if opened.cloud is None else CloudHere(opened.cloud))
