"""What a device remembers: the anchors of its latest clips, its last good parameters, and where it is.

One file, replaced in one step, with a digest over its content: a torn or edited file is left aside under another name,
never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from lit_mmpg.errors import UserError
from lit_mmpg.link import Upload
from lit_mmpg.records import subsample
from lit_mmpg.runtime.anchors import select_anchors
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.folder import FolderInUseError, StateFolder
from lit_mmpg.runtime.guard import CLIPS
from lit_mmpg.runtime.policies import RECENT, Situation, drift
from lit_mmpg.statistics import alignment
from lit_mmpg.writing import tensors_as_bytes

STATE_VERSION = 2
FILE, ASIDE = "state.safetensors", "state.aside.safetensors"


@dataclass(frozen=True)
class ContextClip:
    """What the device keeps of one clip.

    Attributes:
        anchors: ``[K, H]``; none for a static model.
        times: ``[K]``.
        mask: ``[K]``.
        num_frames: Frames of the clip.
        moments: ``[2, D]`` mean and variance of its features, where the bundle standardises by them.
        counted: Frames behind the moments.
    """

    anchors: np.ndarray
    times: np.ndarray
    mask: np.ndarray
    num_frames: int
    moments: np.ndarray | None = None
    counted: int = 0


@dataclass
class DeviceState:
    """State of one device for one bundle.

    Attributes:
        bundle: The bundle; state of another checkpoint is of no use.
        clips: The latest clips, oldest first, at most as many as a context takes.
        parameters: Last good personal parameters; ``None`` before the first.
        note: Why an older state was left aside, if it was.
        codec: Codec of the uploads, as :meth:`Bundle.upload_codec` takes it; not kept on the disk.
        noise: Size of the Gaussian noise on the anchors of new clips, as a share of their root mean square; not kept on
            the disk. It is drawn once per clip, so that repeated uploads of a clip do not average it away.
        reference: ``[H]`` mean anchor of the context for which the parameters were made; ``None`` before.
        since: Clips that came into the context since then.
        confidences: Confidence of the recent answers since then.
        record: What was noted of the latest clip (see :mod:`lit_mmpg.runtime.journal`).
        pending: The same of the clips before it that could not be written to the journal yet.
        device_id: Whose state it is; ``None`` in one that an older version wrote.
        latest: ``[T, D]`` frame features of the latest clips (their pixels where the encoder is personal), oldest
            first, by which parameters are judged; not kept on
            the disk (:mod:`lit_mmpg.runtime.guard` says why).
    """

    bundle: Bundle
    clips: deque[ContextClip] = field(default_factory=deque)
    parameters: dict[str, np.ndarray] | None = None
    note: str | None = None
    codec: str | None = None
    noise: float = 0.0
    reference: np.ndarray | None = None
    since: int = 0
    confidences: deque[float] = field(default_factory=deque)
    record: dict[str, Any] | None = None
    pending: list[dict[str, Any]] = field(default_factory=list)
    device_id: str | None = None
    latest: deque[np.ndarray] = field(default_factory=deque)
    former: ContextClip | None = None
    """The clip that left the context last; not kept on the disk."""
    aside: bool = False
    """Whether the file in the folder is not this state, and is kept under another name when this one is written."""

    def __post_init__(self) -> None:
        self.confidences = deque(self.confidences, maxlen=RECENT)
        rule = self.bundle.manifest.anchors or self.bundle.manifest.own_statistics
        self.clips = deque(self.clips, maxlen=rule.context_clips if rule else 1)
        self.latest = deque(self.latest, maxlen=min(CLIPS, rule.context_clips if rule else 1))

    def see(
        self, projected: np.ndarray | None, features: np.ndarray | None = None, pixels: np.ndarray | None = None
    ) -> None:
        """Take a clip into the context.

        Args:
            projected: ``[T, H]`` what may be uploaded of its frames; ``None`` for a static model.
            features: ``[T, D]`` its frame features.
            pixels: ``[T, 3, H, W]`` its frames, where parameters act on them.
        """
        rule, own = self.bundle.manifest.anchors, self.bundle.manifest.own_statistics
        if rule is None and own is None:
            return
        clip = ContextClip(np.zeros((0, 0), np.float32), np.zeros(0, np.float32), np.zeros(0, bool), 0)
        if rule is not None and projected is not None:
            anchors, times, mask = select_anchors(projected, rule.count, rule.rule)
            if self.noise:
                size = self.noise * float(np.sqrt(np.square(anchors[mask]).mean()))
                added = np.random.default_rng().normal(0.0, size, anchors.shape).astype(np.float32)
                anchors = anchors + added * mask[:, None]
            clip = ContextClip(anchors, times, mask, len(projected))
        if features is not None:
            used = features[subsample(len(features), self.bundle.manifest.frames.max_frames)]
            self.latest.append(used if pixels is None else pixels)
            if own is not None:
                moments, counted = self._moments(used)
                clip = replace(clip, moments=moments, counted=counted)
        if len(self.clips) == self.clips.maxlen:
            self.former = self.clips[0]
        self.clips.append(clip)
        self.since += 1

    def _moments(self, features: np.ndarray) -> tuple[np.ndarray, int]:
        """``[2, D]`` mean and variance of the frames ``[T, D]`` that the model takes, and their number."""
        used = features[subsample(len(features), self.bundle.manifest.frames.max_frames)]
        return np.stack([used.mean(0), used.var(0)]).astype(np.float32), len(used)

    def uploads_with(self, codec: str | None, noise: float) -> None:
        """Choose :attr:`codec` and :attr:`noise`.

        Raises:
            UserError: If the bundle cannot use the codec, or the noise is none.
        """
        if not isinstance(noise, Real) or not 0 <= noise < float("inf"):
            raise UserError(f"the noise on the anchors is {noise!r}; it must be 0 or more")
        if codec is not None:
            self.bundle.upload_codec(codec)
        self.codec, self.noise = codec, noise

    def statistics_text(self) -> str | None:
        """By how many clips features are standardised, for people; ``None`` where the bundle does not ask for it."""
        if self.bundle.manifest.own_statistics is None:
            return None
        count = sum(clip.moments is not None for clip in self.clips)
        return (
            f"standardised by {count} clip{'s' if count != 1 else ''}" if count else "as they are, no clip came before"
        )

    def alignment(self, asked: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray] | None:
        """Scale and shift ``[D]`` by which features are standardised; ``None`` where the bundle does not ask for it.

        Args:
            asked: ``[T, D]`` features of the clip that is asked about. As in training, the latest clips but this one
                count; or it alone, where each clip is its own context. ``None``: the whole context counts.
        """
        own, training = self.bundle.manifest.own_statistics, self.bundle.training
        if own is None or training is None:
            return None
        clips = [clip for clip in (self.former, *self.clips) if clip is not None]
        known = [(clip.moments, clip.counted) for clip in clips if clip.moments is not None]
        if asked is not None:
            moments, counted = self._moments(asked)
            if own.context == "clip":
                known = [(moments, counted)]
            else:
                known = [each for each in known if each[1] != counted or not np.array_equal(each[0], moments)]
        known = known[-own.context_clips :]
        count = sum(counted for _, counted in known)
        if not count:
            return np.ones_like(training.mean), np.zeros_like(training.mean)
        share = np.array([counted / count for _, counted in known])[:, None]
        means, variances = (np.stack([moments[i] for moments, _ in known]) for i in (0, 1))
        mean = (share * means).sum(0)
        variance = (share * (variances + np.square(means - mean))).sum(0)
        scale, shift = alignment(mean, variance, float(count), training, own.prior)
        return scale.astype(np.float32), shift.astype(np.float32)

    def answered(self, confidence: float) -> None:
        """Remember how sure an answer was, 0 to 1."""
        self.confidences.append(confidence)

    def adopt(self, parameters: dict[str, np.ndarray]) -> None:
        """Take over parameters that were made for the present context, if there is any."""
        self.parameters, self.reference = parameters, self._means().mean(0) if self.clips else None
        self.since = 0
        self.confidences.clear()

    def situation(self) -> Situation:
        """What a policy may know."""
        moved = drift(self._means(), self.reference) if self.reference is not None and self.clips else 0.0
        unsure = 1 - float(np.mean(self.confidences)) if self.confidences else 0.0
        return Situation(self.parameters is not None, len(self.clips), self.since, moved, len(self.confidences), unsure)

    def _means(self) -> np.ndarray:
        """``[C, H]`` mean anchor of each clip."""
        return np.stack([clip.anchors[clip.mask].mean(0) for clip in self.clips])

    def upload(self, device_id: str) -> Upload:
        """The request that sends the whole context."""
        manifest = self.bundle.manifest
        assert self.clips
        width = max(len(clip.mask) for clip in self.clips)  # all frames as anchors: clips differ in length

        def stack(arrays: list[np.ndarray]) -> np.ndarray:
            padded = [np.pad(a, [(0, width - len(a)), *[(0, 0)] * (a.ndim - 1)]) for a in arrays]
            return np.stack(padded)

        return Upload.encode(
            anchors=stack([clip.anchors for clip in self.clips]),
            anchor_mask=stack([clip.mask for clip in self.clips]),
            positions=stack([clip.times for clip in self.clips]),
            num_frames=np.array([clip.num_frames for clip in self.clips]),
            device_id=device_id,
            codec=self.bundle.upload_codec(self.codec),
            checkpoint_digest=manifest.checkpoint_digest,
            spec_digest=manifest.spec.digest(),
        )

    # -- on the disk ---------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the state in one step; an interrupted write leaves the former state.

        Raises:
            OSError: If the disk is full or not writable; the former state is still there.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, np.ndarray] = {}
        for i, clip in enumerate(self.clips):
            tensors |= {f"clip{i:04d}.anchors": clip.anchors, f"clip{i:04d}.times": clip.times}
            tensors |= {f"clip{i:04d}.mask": clip.mask, f"clip{i:04d}.frames": np.array([clip.num_frames])}
            if clip.moments is not None:
                tensors |= {f"clip{i:04d}.moments": clip.moments, f"clip{i:04d}.counted": np.array([clip.counted])}
        tensors |= {f"parameters.{name}": array for name, array in (self.parameters or {}).items()}
        if self.reference is not None:
            tensors["reference"] = self.reference
        facts: dict[str, Any] = {
            "version": STATE_VERSION,
            "device": self.device_id,
            "checkpoint": self.bundle.manifest.checkpoint_digest,
            "spec": self.bundle.spec.digest(),
            "since": self.since,
            "confidences": list(self.confidences),
            "record": self.record,
            "pending": self.pending,
        }
        facts["sha256"] = _digest(tensors, facts)
        data = tensors_as_bytes(tensors or {"empty": np.zeros(1, np.uint8)}, metadata={"state": json.dumps(facts)})
        partial, target = folder / "state.partial", folder / FILE
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if self.aside and target.exists():
                target.replace(folder / ASIDE)
            self.aside = False
            partial.replace(target)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def keep(self, folder: StateFolder | None) -> str | None:
        """Write the state where that is possible.

        Returns:
            Why it could not be written, for people; ``None`` where it was, or there is no folder.
        """
        if folder is None:
            return None
        try:
            self.save(folder.path)
        except OSError as error:
            return f"{folder.path}: the state cannot be written ({error.strerror}); it goes on without"
        return None

    @classmethod
    def load(cls, bundle: Bundle, folder: str | Path | None) -> DeviceState:
        """The state of a former run, or a fresh one where there is none that fits and is whole. Nothing is written."""
        if folder is None:
            return cls(bundle)
        path = Path(folder) / FILE
        try:
            if not path.exists():
                return cls(bundle)
            if not path.is_file():
                raise ValueError("it is not a file")
            with safe_open(path, "numpy") as file:
                facts = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys() if name != "empty"}  # noqa: SIM118
            version = facts.get("version")
            if version == STATE_VERSION and facts.pop("sha256") != _digest(tensors, facts):
                raise ValueError("its digest differs")
            manifest = bundle.manifest
            # What is true of the device whatever the checkpoint is: its name, and what it still has to note.
            state = cls(
                bundle,
                record=facts.get("record"),
                pending=list(facts.get("pending") or ()),
                device_id=facts.get("device"),
            )
            fits = facts["checkpoint"] == manifest.checkpoint_digest and facts["spec"] == bundle.spec.digest()
            if version != STATE_VERSION or not fits:
                other = "another checkpoint" if version == STATE_VERSION else "another version of this program"
                state.note, state.aside = (
                    f"{path} belongs to {other}; left aside, as {ASIDE} once there is a new one",
                    True,
                )
                return state
            parameters = {n.removeprefix("parameters."): a for n, a in tensors.items() if n.startswith("parameters.")}
            if parameters:
                bundle.spec.validate(parameters)
            return replace(
                state,
                clips=_clips(tensors),
                parameters=parameters or None,
                reference=tensors.get("reference"),
                since=int(facts["since"]),
                confidences=deque(map(float, facts["confidences"])),
            )
        except Exception as error:  # whatever is wrong with the file, the device goes on
            return cls(
                bundle,
                note=f"{path} is damaged ({error}); left aside, as {ASIDE} once there is a new one, until which the "
                "static model answers",
                aside=True,
            )

    @classmethod
    def open(cls, bundle: Bundle, folder: StateFolder | None, device_id: str | None, default: str) -> DeviceState:
        """The state with which a process works: it is of one device.

        Args:
            bundle: The bundle.
            folder: The folder, held; ``None``: nothing is remembered.
            device_id: Name of the device; ``None``: that of the state, else ``default``.
            default: Name of a device that has none yet.

        Raises:
            UserError: If the state is another device's.
        """
        state = cls.load(bundle, None if folder is None else folder.path)
        state.check_device(device_id, folder.path if folder else None)
        state.device_id = device_id or state.device_id or default
        return state

    def check_device(self, device_id: str | None, folder: Path | None) -> None:
        """Whether this is the state of a device.

        Raises:
            UserError: If it is another device's.
        """
        if None not in (device_id, self.device_id) and device_id != self.device_id:
            raise UserError(
                f"{folder} holds the state of device '{self.device_id}', not of '{device_id}'; use "
                f"--device-id {self.device_id}, or a folder of its own for '{device_id}'"
            )


class Visit(AbstractContextManager["Visit"]):
    """The state for the length of one command. Use it as a context manager.

    Where another process holds the folder, what is in it is used and nothing is changed: the parameters are those of
    the moment, no cloud may be asked, since its answer could not be kept, and the state stays as it is.

    Args:
        bundle: The bundle.
        path: The folder; ``None``: nothing is remembered.
        device_id: Name of the device; ``None``: that of the state, else ``default``.
        default: Name of a device that has none yet.

    Attributes:
        state: The state.
        alone: Whether the cloud may be asked.
        notes: What a person should know.

    Raises:
        UserError: If the state is another device's, or the folder cannot be one.
    """

    def __init__(self, bundle: Bundle, path: str | None, device_id: str | None, default: str) -> None:
        self._folder: StateFolder | None = None
        self.alone = True
        try:
            self._folder = StateFolder(Path(path)) if path else None
            self.state = DeviceState.open(bundle, self._folder, device_id, default)
            found = (self._folder.note if self._folder else None, self.state.note)
        except FolderInUseError:
            self.alone, self.state = False, DeviceState.load(bundle, path)
            self.state.check_device(device_id, Path(str(path)))
            busy = "its parameters are used, the cloud is asked for no others, and the state stays as it is"
            found = (f"{path} is in use by another process: {busy}", self.state.note)
        except UserError:
            self.__exit__()
            raise
        self.notes = [note for note in found if note]

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.close()

    def keep(self) -> None:
        """Write the state where that is possible; where it is not, a note says so."""
        note = self.state.keep(self._folder)
        self.notes += [note] if note else []


def _clips(tensors: Mapping[str, np.ndarray]) -> deque[ContextClip]:
    names = sorted({name.split(".")[0] for name in tensors if name.startswith("clip")})
    return deque(
        ContextClip(
            tensors[f"{name}.anchors"],
            tensors[f"{name}.times"],
            tensors[f"{name}.mask"],
            int(tensors[f"{name}.frames"][0]),
            tensors.get(f"{name}.moments"),
            int(tensors.get(f"{name}.counted", [0])[0]),
        )
        for name in names
    )


def _digest(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    total = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
