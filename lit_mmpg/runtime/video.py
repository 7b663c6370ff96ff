"""Video files on a device: decode, choose frames, turn and resize them. PyAV, no torch.

Pictures are those that ``ffmpeg -i FILE -map 0:V:0`` shows: turned by the display matrix, with the colours that the
stream states, without cover pictures, and without frames that an edit list hides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError, install_hint, nearest
from lit_mmpg.records import VIDEOS, clip_id
from lit_mmpg.runtime.bundle import file_digest
from lit_mmpg.runtime.containers import missing_bytes
from lit_mmpg.runtime.shots import THUMBNAIL, find_cuts, histogram, shot_indices
from lit_mmpg.texts import printable

SAMPLING = ("uniform", "shots")
JPEG_QUANTISER = 3
"""Of pictures in pages, 1 (best) to 31."""


@contextmanager
def one_clip(path: str | Path) -> Iterator[None]:
    """Guards all that touches one clip, so that it costs no other one.

    Raises:
        UserError: Whatever fails inside, naming the clip.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if type(error).__module__.startswith("av."):
            reason = f"cannot be decoded ({getattr(error, 'strerror', error)}); is it a video, and complete?"
        elif isinstance(error, OSError):
            reason = f"cannot be read ({error.strerror})"
        raise UserError(f"{printable(path)}: {printable(reason)}") from error


def require_video(path: str | Path) -> Path:
    """The path of a video file.

    Raises:
        UserError: If nothing is there, or it is no file: a folder, a pipe, a socket, a device.
    """
    with one_clip(path):
        path = Path(path if os.path.lexists(path) else os.path.expanduser(path))
        if path.is_file():
            return path
        if path.is_dir():
            what = "is a folder, a video file is needed"
        elif path.exists():
            what = "is a pipe, a socket or a device, a video file is needed"
        elif path.is_symlink():
            what = "is a link to something that does not exist"
        else:
            what = f"does not exist{nearest(path)}"
    raise UserError(f"video {printable(path)} {printable(what)}")


def require_folder(path: str | Path) -> Path:
    """The path of a folder.

    Raises:
        UserError: If there is none, or it is a file.
    """
    path = Path(os.path.expanduser(path))
    if not path.is_dir():
        what = "is a file, a folder is needed" if path.exists() else f"does not exist{nearest(path)}"
        raise UserError(f"folder {printable(path)} {printable(what)}")
    return path


def list_videos(folder: str | Path) -> list[Path]:
    """Entries of a folder that are named as videos, by name; whether they can be read is not looked at.

    Raises:
        UserError: If the folder does not exist, cannot be read or holds none.
    """
    folder = require_folder(folder)
    try:
        found = sorted(path for path in folder.iterdir() if clip_id(path))
    except OSError as error:
        raise UserError(f"folder {printable(folder)} cannot be read ({error.strerror})") from error
    if not found:
        raise UserError(f"{printable(folder)} holds no video files ({', '.join(VIDEOS)})")
    return found


def video_digest(path: Path) -> str:
    """Whether a file is still the same video: a digest of all it holds.

    Raises:
        UserError: If it cannot be read.
    """
    with one_clip(path):
        return file_digest(require_video(path))[:24]


def uniform_indices(total: int, count: int) -> np.ndarray:
    """Indices of at most ``count`` of ``total`` frames: the centres of equal spans."""
    taken = min(count, total)
    return ((2 * np.arange(taken) + 1) * total) // (2 * max(1, taken))


@dataclass(frozen=True)
class Sample:
    """Frames of a video.

    Attributes:
        pixels: ``[T, 3, H, W]`` uint8 RGB, T at least 1.
        indices: ``[T]`` which of the frames that are shown they are.
        times_s: ``[T]`` when they are shown, seconds from the start of the clip.
        total: Frames that are shown.
        shots: Shots that were told apart; 1 with uniform sampling.
    """

    pixels: np.ndarray
    indices: np.ndarray
    times_s: np.ndarray
    total: int
    shots: int


def sample_video(path: str | Path, count: int, size: tuple[int, int] | None = None, rule: str = "uniform") -> Sample:
    """Choose frames of a video.

    Args:
        path: The file.
        count: Most frames.
        size: Height and width to which the whole picture is resized (bilinear); ``None`` keeps those of the first.
        rule: ``uniform``: spread evenly over the frames; ``shots``: every shot has a frame before a long one has
            several, which takes a second pass over the file.

    Raises:
        UserError: If the file cannot be decoded or is cut off, or PyAV is not installed.
    """
    if rule not in SAMPLING:
        raise UserError(f"sampling rule '{rule}' is unknown; choose one of {', '.join(SAMPLING)}")
    with one_clip(path):
        path = require_video(path)
        missing = missing_bytes(path)
        if missing:
            raise UserError(f"{printable(path)}: is cut off, at least {missing} bytes are missing; copy it again")
        if rule == "shots":
            histograms = _histograms(path)
            cuts = find_cuts(histograms) if len(histograms) > 1 else np.zeros(0, np.int64)
            wanted = shot_indices(cuts, len(histograms), count)
            pixels, times = _pick(path, wanted, size)
        else:
            cuts, wanted = np.zeros(0, np.int64), uniform_indices(_packets(path), count)
            pixels, times = _pick(path, wanted, size)
            counted = uniform_indices(len(times), count)
            if not np.array_equal(wanted, counted):  # packets hide frames, or hold several: only decoding tells
                wanted = counted
                pixels, times = _pick(path, wanted, size)
        if not pixels:
            raise UserError(f"{printable(path)}: holds no pictures; is it a video, and complete?")
        return Sample(np.stack(pixels), wanted, times[wanted], len(times), len(cuts) + 1)


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pictures ``[T, 3, H, W]`` uint8 RGB at another height and width, resized as those of a video file are.

    Raises:
        UserError: If they have another size and PyAV is not installed.
    """
    if frames.shape[2:] == size:
        return frames
    av, screen = require_decoder(), _Screen(size)
    rows = np.ascontiguousarray(frames.transpose(0, 2, 3, 1))
    return np.stack([screen.show(av.VideoFrame.from_ndarray(row, format="rgb24")) for row in rows])


def picture_at(path: str | Path, index: int, width: int) -> np.ndarray:
    """One frame in the shape in which it is shown, for people: ``[3, H, W]`` uint8 RGB of a given width.

    Raises:
        UserError: If it cannot be decoded.
    """
    with one_clip(path):
        path = require_video(path)
        with _opened(path) as (container, stream):
            screen = _Screen(None, width, stream.sample_aspect_ratio)
            for position, frame in enumerate(_frames(container, stream)):
                if position == index:
                    return screen.show(frame)
        raise UserError(f"{printable(path)}: holds no frame {index}")


def jpeg_file(picture: np.ndarray) -> bytes:
    """A picture as a JPEG file, by the library that decoded it.

    Args:
        picture: ``[3, H, W]`` uint8 RGB.
    """
    av: Any = require_decoder()
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.transpose(1, 2, 0)), format="rgb24")
    codec: Any = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = frame.width, frame.height, "yuvj420p", Fraction(1)
    codec.qmin = codec.qmax = JPEG_QUANTISER
    parts = (frame.reformat(format="yuvj420p"), None)
    return b"".join(bytes(packet) for part in parts for packet in codec.encode(part))


def _packets(path: Path) -> int:
    """About how many frames are shown: nothing is decoded."""
    with _opened(path) as (container, stream):
        return sum(bool(packet.size) and not packet.is_discard for packet in container.demux(stream))


def _histograms(path: Path) -> np.ndarray:
    """``[T, 3, 8]`` of all frames that are shown."""
    screen = _Screen(THUMBNAIL)
    with _opened(path) as (container, stream):
        found = [histogram(screen.show(frame)) for frame in _frames(container, stream)]
    return np.stack(found) if found else np.zeros((0, 3, 1), np.float32)


def _pick(path: Path, wanted: np.ndarray, size: tuple[int, int] | None) -> tuple[list[np.ndarray], np.ndarray]:
    """The wanted frames, and when each frame of the film is shown, seconds from the start of the clip."""
    screen, picked = _Screen(size), set(wanted.tolist())
    pixels: list[np.ndarray] = []
    stamps: list[tuple[int | None, int | None]] = []
    with _opened(path) as (container, stream):
        for index, frame in enumerate(_frames(container, stream)):
            stamps.append((frame.pts, frame.dts))
            if index in picked:
                pixels.append(screen.show(frame))
        start_s, tick_s = (container.start_time or 0) / 1e6, float(stream.time_base)
        rate, kind = float(stream.average_rate or stream.guessed_rate or 25), container.format.name
        jumps = kind in _JUMPING
        if jumps:  # as ffmpeg: what is not shown does not count
            start_s = (stream.start_time or 0) * tick_s
    if kind == "avi":
        guesses: list[Any] = [pts if dts is None else dts for pts, dts in stamps]
    else:
        guesses = _best_effort(stamps)
    times = np.array(guesses, np.float64) * tick_s - start_s
    steps = np.diff(times, prepend=0.0)
    later = steps[1:]
    # Joined recordings begin anew, or hours later, and some streams leave times out.
    later[~(later > 0) | (jumps & (later > MOST_STEP_S))] = 1 / rate
    return pixels, np.cumsum(np.nan_to_num(steps))


_JUMPING, MOST_STEP_S = ("mpegts", "mpeg"), 10.0
"""Containers whose times may jump, and the longest step, as ffmpeg has them (``dts_delta_threshold``)."""


def _best_effort(stamps: Sequence[tuple[int | None, int | None]]) -> list[Any]:
    """One time for each frame, from its presentation and decoding times, as libavcodec guesses it.

    What some containers state as presentation times goes back at every B-frame.
    """
    guesses: list[Any] = []
    last, faults = [-np.inf, -np.inf], [0, 0]
    for stamp in stamps:
        for kind in (0, 1):
            own, other = stamp[kind], stamp[1 - kind]
            if own is not None:
                faults[kind] += own <= last[kind]
            now = own if own is not None else other
            last[kind] = last[kind] if now is None else now
        pts, dts = stamp
        guesses.append(pts if pts is not None and (dts is None or faults[0] <= faults[1]) else dts)
    return guesses


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container, and the stream of the film."""
    av = require_decoder()
    # A colon in a name starts no protocol, and tags in other encodings are no reason to refuse pictures.
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        cover = av.stream.Disposition.attached_pic
        films = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not films:
            only = ", only a cover picture" if container.streams.video else ""
            raise UserError(f"{printable(path)}: holds no video stream{only}")
        films[0].thread_type = "AUTO"
        yield container, films[0]


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """All frames that are shown, in order.

    A recording may begin between two key frames: what cannot be decoded before the first picture is passed over.
    """
    begun = False
    for packet in container.demux(stream):
        if not packet.size and packet.dts is not None:  # an empty one repeats the frame before it
            continue
        try:
            frames = packet.decode()
        except require_decoder().error.FFmpegError:
            if begun:
                raise
            continue
        begun = begun or bool(frames)
        yield from frames


_MATRICES, _UNSPECIFIED = frozenset({0, 1, 2, 4, 5, 6, 7, 9}), 2
"""Colour matrices (numbers of H.273) that the filters know; pictures of others are shown as if none was stated."""
_ALIKE = {10: 9}
"""BT.2020 with constant luminance is shown with the matrix of the other one."""


class _Screen:
    """Shows frames as ffmpeg does, by its own filters: turned, in the colours that they state, resized.

    Args:
        size: Height and width of the pictures; ``None``: those of the first frame.
        width: Width alone: the height follows from the shape in which the film is shown.
        aspect: Width over height of a pixel, for ``width``.
    """

    def __init__(self, size: tuple[int, int] | None, width: int | None = None, aspect: Any = None) -> None:
        self._size, self._width, self._aspect = size, width, float(aspect or 1)
        self._made_for: Any = None
        self._graph: Any = None

    def show(self, frame: Any) -> np.ndarray:
        """``[3, H, W]`` uint8 RGB."""
        matrix = frame.side_data.get("DISPLAYMATRIX")
        turn = _turning(np.frombuffer(bytes(matrix), np.int32)) if matrix is not None else ()
        if int(frame.colorspace) not in _MATRICES:
            frame.colorspace = _ALIKE.get(int(frame.colorspace), _UNSPECIFIED)
        kind = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range), turn)
        if kind != self._made_for:
            self._graph, self._made_for = self._make(*kind), kind
        self._graph.push(frame)
        return np.ascontiguousarray(self._graph.pull().to_ndarray().transpose(2, 0, 1))

    def _make(self, width: int, height: int, pixels: str, space: int, span: int, turn: tuple[str, ...]) -> Any:
        if self._size is None:
            rows, columns = (float(height), width * (self._aspect if self._width else 1.0))
            if any(name.startswith("transpose") for name in turn):
                rows, columns = columns, rows
            scale = self._width / columns if self._width else 1.0
            self._size = max(1, min(round(rows * scale), 4 * round(columns * scale))), round(columns * scale)
        chain = [f"buffer=video_size={width}x{height}:pix_fmt={pixels}:time_base=1/1:colorspace={space}:range={span}"]
        chain += [*turn, f"scale={self._size[1]}:{self._size[0]}:flags=bilinear", "format=pix_fmts=rgb24", "buffersink"]
        graph = require_decoder().filter.Graph()
        last = None
        for node in (graph.add(*part.split("=", 1)) for part in chain):
            if last is not None:
                last.link_to(node)
            last = node
        graph.configure()
        return graph


def _turning(matrix: np.ndarray) -> tuple[str, ...]:
    """Filters that turn a picture by a display matrix (nine numbers, row by row), as ffmpeg's ``-autorotate`` does."""
    a, b, c, d = (float(matrix[i]) for i in (0, 1, 3, 4))
    if not np.hypot(a, c) or not np.hypot(b, d):
        return ()
    degrees = round(np.degrees(np.arctan2(b / np.hypot(b, d), a / np.hypot(a, c)))) % 360
    if degrees == 90:
        return ("transpose=cclock_flip" if c > 0 else "transpose=clock",)
    if degrees == 270:
        return ("transpose=clock_flip" if c < 0 else "transpose=cclock",)
    if degrees not in (0, 180):
        return (f"rotate={degrees}*PI/180",)
    return (*(("hflip",) if a < 0 else ()), *(("vflip",) if d < 0 else ()))


def require_decoder() -> Any:
    """PyAV.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(f"decoding videos needs PyAV; {install_hint('board-video')}") from error
    import av.error
    import av.filter
    import av.sidedata.sidedata
    import av.stream

    av.logging.set_level(None)
    # Frames carry data that PyAV has no name for (EXIF, the views of spatial video), and it would show none at all.
    kinds: Any = av.sidedata.sidedata.Type
    kinds._missing_ = classmethod(lambda known, value: known.SEI_UNREGISTERED)
    return av
