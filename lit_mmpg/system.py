"""A finished system in a program's hands: load it, make devices, personalise them.

    system = lit_mmpg.load("best.ckpt")
    device = system.new_device("kitchen")
    device.observe("clip.mp4")
    device.personalise()
    device.answer("clip.mp4", "what is he doing?")

A bundle needs no torch, and a cloud elsewhere; a checkpoint holds both halves.
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
    """A device model and, where it comes with one, the cloud half that personalises it. Make one with :func:`load`.

    Args:
        bundle: What a device must know.
        session: Makes a device's own session.
        cloud: The cloud half in this process; ``None``: there is none.

    Attributes:
        bundle: What a device must know; ``bundle.manifest`` and ``bundle.spec`` describe the model.
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
        """A device that has seen nothing yet and answers with the static model. All it holds is in memory.

        Args:
            name: Its id, as the messages of the link carry it.
            upload_codec: Codec of its uploads, or ``pq`` for the system's own codebooks; ``None``: as trained.
            anchor_noise: Gaussian noise on what it uploads, as a share of its size.
            camera_memory: Memory of camera models (docs/memory.md) by which its camera is recognised: a file, or the
                service that holds it, which is sent pictures of what stays in the frames.

        Raises:
            UserError: If the name, the codec, the noise or the memory is none.
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
    """Load a finished system.

    Args:
        source: A checkpoint of either half that ``lit-mmpg fit`` or a Lightning trainer wrote; a folder that
            ``save_pretrained`` wrote (an MLflow model holds one), or the name of its repository on the hub
            (``owner/name``); or a bundle that ``lit-mmpg export`` wrote, which also brings bounds of plausible
            parameters. A class of your own that a file names is imported only if it is trusted
            (:mod:`lit_mmpg.trust`).
        frame_encoder: The frame encoder that made the features on which a checkpoint was trained: a folder of the
            transformers library, or a name on the hub; ``None``: the one that the checkpoint's data names, if it is
            here. Without one devices take features alone. A bundle, and a checkpoint that was trained on pixels, bring
            their own.

    Raises:
        UserError: If it is not there, is none of these, or the frame encoder does not fit.

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
