"""One device as a Python object: observe clips, personalise, answer, reset. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import numpy as np

from lit_mmpg import lora
from lit_mmpg.errors import UserError
from lit_mmpg.runtime.adaptation import Adaptation, adapt, judge, restore, take_in
from lit_mmpg.runtime.camera import Camera, asked
from lit_mmpg.runtime.client import DEFAULT_TIMEOUT_S, KEY_VARIABLE, Cloud, CloudClient
from lit_mmpg.runtime.looking import Eye, Look
from lit_mmpg.runtime.session import STATIC, Answer, DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.video import resize, uniform_indices

Clip = Union[str, "os.PathLike[str]", np.ndarray, Look, Any]
"""The path of a video, frames ``[T, 3, H, W]`` uint8 RGB, or features ``[T, D]`` of frames; arrays may be anything that
NumPy converts."""


@dataclass(frozen=True)
class Match:
    """One result of a search.

    Attributes:
        number: Index of the clip among those given or observed, from 0.
        clip: Path of the clip as it was given; ``None`` for an array.
        score: Cosine similarity of clip and query, -1 to 1.
        frame: Index in the clip of the sampled frame that fits the query best.
        parameters: Digest of the personal parameters in use, or ``static``.
    """

    number: int
    clip: str | os.PathLike[str] | None
    score: float
    frame: int
    parameters: str


@dataclass(frozen=True)
class _Seen:
    """What is kept of a clip: its path, features ``[T, D]``, which of its frames ``[T]``, and pixels if needed.

    ``encoded`` holds features of the frames that are asked about, under the parameters and the camera that gave them.
    """

    clip: str | os.PathLike[str] | None
    features: np.ndarray
    indices: np.ndarray
    pixels: np.ndarray | None = None
    encoded: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)


class PersonalDevice(AbstractContextManager["PersonalDevice"]):
    """One device: its context (the observed clips), its personal parameters, and the model that answers with them.

    Uploads, standardised features and checks of parameters are those of ``lit-mmpg device``, ``answer`` and ``search``.
    Close it, or use it as a context manager.

    Args:
        session: The model; closed with the device.
        state: Context and personal parameters.
        cloud: Cloud half that :meth:`personalise` uses by default; ``None``: :meth:`personalise` needs an address.
        camera: Recognises the device's camera with a memory of camera models; ``None``: no memory.

    Attributes:
        session: The model.
        state: Context and personal parameters.
        camera: The camera; ``None`` without a memory.
        name: Device id, sent with every message.
        source: Where the first parameters came from: a kept state, or the static model.
    """

    def __init__(
        self, session: DeviceSession, state: DeviceState, cloud: Cloud | None = None, camera: Camera | None = None
    ) -> None:
        self.session, self.state, self.name, self._cloud = session, state, str(state.device_id), cloud
        self.camera = camera
        if camera is not None:
            camera.device_id = self.name
        self._eye: Eye | None = None
        self._observed: list[_Seen] = []
        self.source = restore(session, state)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self.session.close()

    def __repr__(self) -> str:
        return f"<device '{self.name}': {len(self.state.clips)} clips in its context, parameters {self.parameters}>"

    @property
    def parameters(self) -> str:
        """Digest of the personal parameters in use, or ``static``."""
        return self.session.digest or STATIC

    def _look(self, clip: Clip) -> _Seen:
        frames = self.session.manifest.frames
        if isinstance(clip, Look):
            return _Seen(clip.video, clip.features, np.arange(len(clip.features)), clip.pixels)
        if isinstance(clip, (str, os.PathLike)):
            if self._eye is None:
                self._eye = Eye(self.session, pixels=self.camera is not None)
            look = self._eye.look(Path(clip))
            return _Seen(clip, look.features, look.indices, look.pixels)
        try:
            array = np.asarray(clip)
        except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU or with gradients
            raise UserError(f"a clip is a path, frames or features, not {type(clip).__name__} ({error})") from error
        if array.ndim == 4 and array.dtype == np.uint8 and array.shape[1] == 3 and array.size:
            indices = uniform_indices(len(array), frames.max_frames)
            pixels = resize(array[indices], self.session.picture_size)
            features = self.session.encode(pixels)
            needed = self.session.encodes_personally or self.camera is not None
            return _Seen(None, features, indices, pixels if needed else None)
        if array.ndim != 2 or array.dtype.kind not in "fiu" or array.shape[1] != frames.features or not len(array):
            raise UserError(
                f"a clip has shape {list(array.shape)} and type {array.dtype}; give the path of a video, frames "
                f"[T, 3, H, W] of type uint8, or features [T, {frames.features}]"
            )
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError("the features of a clip hold NaN or infinity; extract them again")
        return _Seen(None, array, np.arange(len(array)))

    def features(self, clip: Clip) -> np.ndarray:
        """Compute the features of the sampled frames of a clip with the static encoder.

        The result can be used as a clip and needs no decoding. A device whose encoder has personal parameters needs
        videos or frames to answer.

        Returns:
            Features ``[T, D]``, float32.

        Raises:
            UserError: If a video cannot be read, or an array is neither frames nor features that fit the model.
        """
        return self._look(clip).features

    def observe(self, clip: Clip) -> None:
        """Add a clip to the context. The context holds the latest clips, as many as in the training.

        With a retrieval model, the features of all observed clips are kept for :meth:`search`.

        Raises:
            UserError: If a video cannot be read, or an array is neither frames nor features that fit the model; the
                context is then unchanged.
        """
        seen = self._look(clip)
        if self.camera is not None and seen.pixels is not None:
            self.camera.observe(seen.pixels)
        if self.session.bundle.remembers:
            take_in(self.session, self.state, seen.features, seen.pixels)
        if self.session.searches:
            self._observed.append(seen)

    def personalise(self, cloud: str | Cloud | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> Adaptation:
        """Upload the anchors of the context, and load the personal parameters that the cloud half generates.

        Args:
            cloud: Address of a service (the environment variable ``LIT_MMPG_API_KEY`` holds its key); ``None``: the
                cloud half of the system's checkpoint, in this process.
            timeout_s: Time limit of a request to a service, seconds.

        Returns:
            Bytes up and down, times, and the digest of the parameters.

        Raises:
            UserError: If the context is empty, no cloud half is available, or the parameters are refused; the device
                then keeps its former parameters.
        """
        bundle = self.session.bundle
        if not len(bundle.spec):
            raise UserError(f"{bundle.path} holds a static model, which no cloud can adapt")
        if not self.state.clips:
            raise UserError(f"device '{self.name}' has observed no clip; call observe(clip) before personalise()")
        cloud = self._cloud if cloud is None else cloud
        if cloud is None:
            raise UserError(f"{bundle.path} holds the device half alone; call personalise(cloud='http://...')")
        if not isinstance(cloud, str) and not callable(getattr(cloud, "adapt", None)):
            raise UserError(f"cloud is {cloud!r}; give the address of a service, as http://HOST:PORT")
        if not isinstance(cloud, str):
            outcome = self.adapt(cloud)
        else:
            with CloudClient(cloud, os.environ.get(KEY_VARIABLE), timeout_s) as client:
                outcome = self.adapt(client)
        if outcome.error is not None:
            raise UserError(outcome.error)
        return outcome

    def adapt(self, cloud: Cloud) -> Adaptation:
        """As :meth:`personalise`, but a failure is returned in ``error`` of the result instead of raised."""
        return adapt(self.session, self.state, cloud, self.name)

    def answer(self, clip: Clip, question: str, options: Sequence[str] = ()) -> Answer:
        """Answer a question about a clip, which need not have been observed.

        Args:
            clip: The clip.
            question: The question.
            options: Candidate answers, two or more; for multiple-choice models only.

        Returns:
            The answer with its confidence.

        Raises:
            UserError: If the question is empty, the clip is not valid, or the model has another task.
        """
        if not isinstance(question, str) or not question.strip():
            raise UserError("the question is empty; ask one in words")
        if isinstance(options, str) or not isinstance(options, Iterable):
            raise UserError(f"options is {options!r}; give a list of texts, as ['red', 'blue']")
        seen = self._look(clip)
        self.session.alignment = self.state.alignment(seen.features)
        clip = asked(self.session, self.camera, seen.features, seen.pixels)
        return self.session.answer(clip, question, list(options))

    def search(self, query: str, clips: Sequence[Clip] | None = None) -> list[Match]:
        """Rank clips by a sentence; for retrieval models.

        Args:
            query: The sentence.
            clips: Clips to rank; ``None``: all observed clips.

        Returns:
            A match for each clip, best first.

        Raises:
            UserError: If the query is empty, there is no clip, or the model has another task.
        """
        if not isinstance(query, str) or not query.strip():
            raise UserError("the query is empty; search for something in words")
        if isinstance(clips, (str, os.PathLike, np.ndarray)):
            raise UserError(f"clips is one {type(clips).__name__}; give a list of clips")
        text = self.session.embed_text(query)
        seen = self._observed if clips is None else [self._look(clip) for clip in clips]
        if not seen:
            raise UserError("there is no clip to search in; observe some, or give search(query, clips)")
        own = self.session.manifest.own_statistics
        alone = own is not None and own.context == "clip"
        found = []
        for number, each in enumerate(seen):
            self.session.alignment = self.state.alignment(each.features if alone else None)
            features = self._asked(each)
            score, *frames = (
                float(self.session.embed_features(frames) @ text)
                for frames in (features, *(frame[None] for frame in features))
            )
            best = int(each.indices[np.argmax(frames)])
            found.append(Match(number, each.clip, score, best, self.parameters))
        return sorted(found, key=lambda match: -match.score)

    def _asked(self, seen: _Seen) -> np.ndarray:
        """As :meth:`DeviceSession.asked`; a clip is encoded once with the same parameters and the same camera."""
        if seen.pixels is None:
            return self.session.asked(seen.features)
        by = self.parameters, 0 if self.camera is None else self.camera.observed
        if by not in seen.encoded:
            seen.encoded.clear()
            clip = asked(self.session, self.camera, seen.features, seen.pixels)
            seen.encoded[by] = self.session.asked(clip)
        return seen.encoded[by]

    def save_adapter(self, folder: str | os.PathLike[str]) -> None:
        """Write the personal parameters as a LoRA adapter (:mod:`lit_mmpg.lora`).

        Args:
            folder: Output folder; created if it does not exist.

        Raises:
            UserError: If the device has none, they are not of the form ``low_rank``, or the folder cannot be written.
        """
        if self.state.parameters is None:
            raise UserError(
                f"device '{self.name}' has no personal parameters; call personalise() before save_adapter()"
            )
        lora.save(folder, self.session.bundle.spec, self.state.parameters)

    def load_adapter(self, folder: str | os.PathLike[str]) -> None:
        """Load personal parameters from a LoRA adapter.

        They must be within the bundle's bounds, like those of a cloud half; without a bundle, outputs must be finite.

        Args:
            folder: Folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

        Raises:
            UserError: If it is not a LoRA adapter of exactly the model's dynamic layers, or its parameters are not
                plausible; the device then keeps its former parameters.
        """
        parameters = lora.load(folder, self.session.bundle.spec)
        problem, _ = judge(self.session, self.state, parameters)
        if problem is not None:
            self.session.swap(self.state.parameters)
            raise UserError(f"the parameters of {folder} are refused: {problem}")
        self.state.adopt(parameters)

    def reset(self) -> None:
        """Return to the static model and an empty context."""
        former = self.state
        self.state, self._observed = DeviceState.open(former.bundle, None, self.name, self.name), []
        if self.camera is not None:
            self.camera.clear()
        self.state.uploads_with(former.codec, former.noise)
        self.source = restore(self.session, self.state)
