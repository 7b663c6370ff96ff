"""Video files on a device: decode, choose frames, resize. PyAV, no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError, nearest
from lit_mmpg.runtime.shots import BINS, THUMBNAIL, find_cuts, histogram, shot_indices

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")
SAMPLING = ("uniform", "shots")
EDGE_BYTES = 1 << 16


def require_video(path: str | Path) -> Path:
    """The path of a video file.

    Raises:
        UserError: If nothing is there, or it is a folder.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder, a video file is needed" if path.is_dir() else f"does not exist{nearest(path)}"
        raise UserError(f"video {path} {what}")
    return path


def list_videos(folder: str | Path) -> list[Path]:
    """Video files of a folder, by name.

    Raises:
        UserError: If the folder does not exist or holds none.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"folder {folder} does not exist{nearest(folder)}")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{folder} holds no video files ({', '.join(SUFFIXES)})")
    return found


def video_digest(path: Path) -> str:
    """Whether a file is still the same video: its size, and a digest of its first and last 64 KiB."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(EDGE_BYTES))
        file.seek(max(0, size - EDGE_BYTES))
        digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()[:24]


def uniform_indices(total: int, count: int) -> np.ndarray:
    """Indices of at most ``count`` of ``total`` frames: the centres of equal spans."""
    taken = min(count, total)
    return ((2 * np.arange(taken) + 1) * total) // (2 * max(1, taken))


@dataclass(frozen=True)
class Sample:
    """Frames of a video.

    Attributes:
        pixels: ``[T, 3, H, W]`` uint8 RGB, T at least 1.
        indices: ``[T]`` which frames of the video they are.
        times_s: ``[T]`` when they are shown, seconds from the start.
        total: Frames of the video.
        shots: Shots that were told apart; 1 with uniform sampling.
    """

    pixels: np.ndarray
    indices: np.ndarray
    times_s: np.ndarray
    total: int
    shots: int


def sample_frames(path: str | Path, count: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Frames of a video, spread evenly over its length: :attr:`Sample.pixels` of :func:`sample_video`."""
    return sample_video(path, count, size).pixels


def sample_video(path: str | Path, count: int, size: tuple[int, int] | None = None, rule: str = "uniform") -> Sample:
    """Choose frames of a video.

    Args:
        path: The file.
        count: Most frames.
        size: Height and width to which the whole picture is resized (bilinear); ``None`` keeps the size.
        rule: ``uniform``: spread evenly over the length; ``shots``: every shot has a frame before a long one has
            several, which takes a second pass over the file.

    Raises:
        UserError: If the file cannot be decoded or is cut off, or PyAV is not installed.
    """
    path = require_video(path)
    if rule not in SAMPLING:
        raise UserError(f"sampling rule '{rule}' is unknown; choose one of {', '.join(SAMPLING)}")
    av = _av()
    try:
        if rule == "shots":
            histograms = _histograms(av, path)
            total, cuts = len(histograms), find_cuts(histograms) if len(histograms) > 1 else np.zeros(0, np.int64)
            wanted = shot_indices(cuts, total, count)
        else:
            total, cuts = _packets(av, path), np.zeros(0, np.int64)
            wanted = uniform_indices(total, count)
        found, seen = _pick(av, path, wanted, size)
        if len(found) < len(wanted):  # some packets hold no picture: only decoding tells how many there are
            total, wanted = seen, uniform_indices(seen, count)
            found, _ = _pick(av, path, wanted, size)
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: cannot be decoded ({error.strerror}); is it a video, and complete?") from error
    if not found:
        raise UserError(f"{path}: holds no pictures; is it a video, and complete?")
    pixels, times = zip(*found, strict=True)
    return Sample(np.stack(pixels), wanted, np.array(times), total, len(cuts) + 1)


def picture_at(path: str | Path, index: int, width: int) -> np.ndarray:
    """One frame in its own shape, for people: ``[3, H, W]`` uint8 RGB of a given width.

    Raises:
        UserError: If it cannot be decoded.
    """
    path = require_video(path)
    av = _av()
    try:
        with av.open(str(path)) as container:
            codec = _stream(container, path).codec_context
            height = max(1, round(width * codec.height / max(1, codec.width)))
        found, _ = _pick(av, path, np.array([index]), (height, width))
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: cannot be decoded ({error.strerror}); is it a video, and complete?") from error
    if not found:
        raise UserError(f"{path}: holds no frame {index}")
    return found[0][0]


def _packets(av: Any, path: Path) -> int:
    """Number of pictures in the file, by its packets: nothing is decoded.

    Raises:
        UserError: If the file ends before its header says so.
    """
    with av.open(str(path)) as container:
        stream = _stream(container, path)
        promised, last = stream.frames, None
        count = 0
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                count, last = count + 1, packet
    if last is not None and (last.is_corrupt or (promised and count < 0.98 * promised)):
        raise UserError(f"{path}: is cut off ({count} of {promised or 'more'} frames); copy it again")
    return count


def _histograms(av: Any, path: Path) -> np.ndarray:
    _packets(av, path)
    with av.open(str(path)) as container:
        frames = container.decode(_stream(container, path))
        found = [histogram(_picture(frame, THUMBNAIL)) for frame in frames]
    return np.stack(found) if found else np.zeros((0, 3, BINS), np.float32)


def _pick(
    av: Any, path: Path, wanted: np.ndarray, size: tuple[int, int] | None
) -> tuple[list[tuple[np.ndarray, float]], int]:
    """The wanted frames with their times, and how many frames were decoded until the last of them or the end."""
    remaining, index = [int(i) for i in wanted][::-1], -1
    found: list[tuple[np.ndarray, float]] = []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(_stream(container, path))):
            if not remaining:
                return found, index
            if index == remaining[-1]:
                remaining.pop()
                found.append((_picture(frame, size), float(frame.time or 0.0)))
    return found, index + 1


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise UserError(f"{path}: holds no video stream")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _picture(frame: Any, size: tuple[int, int] | None) -> np.ndarray:
    height, width = size or (frame.height, frame.width)
    resized = frame.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR")
    return np.ascontiguousarray(resized.to_ndarray().transpose(2, 0, 1))


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError("decoding videos needs PyAV: pip install 'lit-mmpg[video]'") from error
    import av.error

    av.logging.set_level(None)
    return av
