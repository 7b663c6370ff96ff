"""Video files on a device: decode, choose frames, resize. PyAV, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError, nearest

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")


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


def uniform_indices(total: int, count: int) -> np.ndarray:
    """Indices of at most ``count`` of ``total`` frames: the centres of equal spans."""
    taken = min(count, total)
    return ((2 * np.arange(taken) + 1) * total) // (2 * max(1, taken))


def sample_frames(path: str | Path, count: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Frames of a video, spread evenly over its length.

    Args:
        path: The file.
        count: Most frames.
        size: Height and width to which the whole picture is resized (bilinear); ``None`` keeps the size.

    Returns:
        ``[T, 3, H, W]`` uint8 RGB, T at least 1.

    Raises:
        UserError: If the file cannot be decoded, or PyAV is not installed.
    """
    path = require_video(path)
    av = _av()
    try:
        total = _count(av, path)
        wanted = uniform_indices(total, count)
        frames = [_picture(frame, size) for frame in _pick(av, path, wanted)]
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: cannot be decoded ({error}); is it a video, and complete?") from error
    if not frames:
        raise UserError(f"{path}: holds no pictures; is it a video, and complete?")
    return np.stack(frames)


def _count(av: Any, path: Path) -> int:
    """Number of frames that can really be decoded: what the header says may be wrong."""
    with av.open(str(path)) as container:
        stream = _stream(container, path)
        return sum(1 for _ in container.decode(stream))


def _pick(av: Any, path: Path, wanted: np.ndarray) -> Iterator[Any]:
    remaining = [int(index) for index in wanted]
    with av.open(str(path)) as container:
        stream = _stream(container, path)
        for index, frame in enumerate(container.decode(stream)):
            if not remaining:
                return
            if index == remaining[0]:
                remaining.pop(0)
                yield frame


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
