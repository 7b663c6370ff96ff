"""From a video file to frame features, and the features of videos that were looked at before."""

from __future__ import annotations

import io
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.video import one_clip, require_decoder, sample_video, video_digest
from lit_mmpg.writing import write_bytes


@dataclass(frozen=True)
class Look:
    """What a device knows of a clip.

    Attributes:
        video: The file.
        features: ``[T, D]`` frame features.
        indices: ``[T]`` which frames of the video they are.
        times_s: ``[T]`` when they are shown, seconds from the start.
        decode_ms: Time to decode and resize, milliseconds; 0 where the features were known.
        encode_ms: Time of the frame encoder, milliseconds; likewise.
        known: Whether the features were there already.
        pixels: ``[T, 3, H, W]`` the frames themselves, where features do not suffice.
    """

    video: Path
    features: np.ndarray
    indices: np.ndarray
    times_s: np.ndarray
    decode_ms: float = 0.0
    encode_ms: float = 0.0
    known: bool = False
    pixels: np.ndarray | None = None


class Eye:
    """Looks at videos with the frame encoder of a session.

    Args:
        session: The session; its bundle has an ``encode`` graph.
        frames: Most frames per clip; ``None``: as the model was trained.
        memory: Folder that keeps the features of videos seen before; ``None`` keeps none, and so does who needs the
            pixels again.
        pixels: Whether the frames are needed beside their features, as they always are where the encoder is personal.

    Raises:
        UserError: If PyAV is not installed: no clip is at fault then.
    """

    def __init__(
        self, session: DeviceSession, frames: int | None = None, memory: Path | None = None, pixels: bool = False
    ) -> None:
        require_decoder()
        self._pixels = pixels or session.encodes_personally
        self.session, self.memory = session, None if self._pixels else memory
        self.frames = frames or session.manifest.frames.max_frames
        self._size = session.picture_size
        self._encoder = "" if self.memory is None else session.bundle.info("encode").sha256[:16]

    def look(self, video: Path) -> Look:
        """Decode and encode a video, or remember it.

        Raises:
            UserError: If it cannot be read, decoded or encoded.
        """
        entry = None
        if self.memory is not None:
            entry = self.memory / f"{video_digest(video)}-{self._encoder}-{self.frames}.npz"
            known = _read(entry, video)
            if known is not None:
                return known
        with one_clip(video):
            start = time.perf_counter()
            sample = sample_video(video, self.frames, self._size)
            decoded = time.perf_counter()
            features = self.session.encode(sample.pixels)
            encoded = time.perf_counter()
        if entry is not None:
            _write(entry, features=features, indices=sample.indices, times_s=sample.times_s)
        pixels = sample.pixels if self._pixels else None
        times_ms = 1e3 * (decoded - start), 1e3 * (encoded - decoded)
        return Look(video, features, sample.indices, sample.times_s, *times_ms, pixels=pixels)


def _read(entry: Path, video: Path) -> Look | None:
    """The kept features; ``None`` where there are none or they are damaged (the archive checks itself)."""
    try:
        with np.load(entry, allow_pickle=False) as found:
            return Look(video, found["features"], found["indices"], found["times_s"], known=True)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(entry: Path, **arrays: np.ndarray) -> None:
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **arrays)
    with suppress(OSError):  # a full disk costs the memory, not the answer
        write_bytes(entry, data.getvalue())
