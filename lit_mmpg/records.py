"""What a data set is made of, whatever its layout on disk: clips, questions and captions.

No torch here: readers, dealing and the ideal observer work on these plain records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

SPLITS = ("train", "val", "test")
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp")
"""Suffixes of video files, of whose kinds it is known whether a file is whole."""
OTHER_VIDEOS = (
    *(".wmv", ".asf", ".flv", ".f4v", ".ogv", ".ogm", ".vob", ".rm", ".rmvb"),
    *(".gif", ".3g2", ".qt", ".divx", ".dv", ".m2v", ".mxf"),
)
"""Suffixes of videos that are not read."""


def clip_id(path: Path) -> str:
    """The name of a file without the suffix of a video; empty where it has none.

    ``._clip.mp4``, which macOS leaves beside ``clip.mp4`` on other file systems, is not a clip, and neither are
    ``.trashed-TIME-clip.mp4`` and ``.pending-TIME-clip.mp4``, which a phone has deleted or is still writing.
    """
    name = "" if path.name.startswith(("._", ".trashed-", ".pending-")) else path.name
    return next((name[: -len(suffix)] for suffix in VIDEOS if name.lower().endswith(suffix)), "")


def subsample(count: int, most: int) -> np.ndarray:
    """Indices of at most ``most`` of ``count`` frames, spread evenly from the first to the last."""
    if count <= most:
        return np.arange(count)
    return np.round(np.linspace(0, count - 1, most)).astype(np.int64)


class Place(NamedTuple):
    """File and line of a record, for error messages."""

    file: Path | None = None
    line: int = 0
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}" if self.file else ""


@dataclass(frozen=True, slots=True)
class Clip:
    """One video clip.

    Attributes:
        id: Name of the clip; unique in its data set and the key into the frame source.
        split: ``train``, ``val`` or ``test``.
        columns: Further columns of the clip list (for example ``category``), as text; blank when unknown.
        place: Where it is listed.
    """

    id: str
    split: str
    columns: dict[str, str] = field(default_factory=dict)
    place: Place = field(default=Place(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one clip.

    Attributes:
        clip: Id of the clip.
        text: The question.
        answer: The correct answer, as text; for multiple choice equal to ``options[correct]``.
        id: Id of the question, unique within its split.
        type: Question type, by which metrics are broken down; blank if unknown.
        options: Candidate answers of a multiple-choice question; empty for an open-ended one.
        correct: Index of the correct option; -1 for an open-ended question.
        place: File and line, for error messages.
    """

    clip: str
    text: str
    answer: str
    id: str
    type: str = ""
    options: tuple[str, ...] = ()
    correct: int = -1
    place: Place = field(default=Place(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence that describes one clip.

    Attributes:
        clip: Id of the clip.
        text: The sentence.
        extra: True for a sentence that may be trained on but is never a retrieval query
            (for example the description of a single shot).
        place: File and line, for error messages.
    """

    clip: str
    text: str
    extra: bool = False
    place: Place = field(default=Place(), compare=False, repr=False)


class ClipIndex(Protocol):
    """Something that knows which clips have frames."""

    def ids(self) -> list[str]:
        """Ids of all clips that have frames."""


class FrameSource:
    """Frames of clips in one array, one clip after the other: features, or pixels.

    Args:
        values: ``[sum of T, D]`` float16 or float32 features, or ``[sum of T, 3, H, W]`` uint8 pixels.
        lengths: Clip id -> number of its frames T, in the order of ``values``.

    Raises:
        ValueError: If they are not as many.
    """

    def __init__(self, values: np.ndarray, lengths: Mapping[str, int]) -> None:
        listed = sum(lengths.values())
        if listed != len(values):
            raise ValueError(f"{len(values)} frames given, {listed} listed")
        self.values = values
        ends = np.cumsum(list(lengths.values()), dtype=np.int64).tolist()
        self._rows = {clip: (end - count, end) for (clip, count), end in zip(lengths.items(), ends, strict=True)}

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame: ``(D,)`` for features, ``(3, H, W)`` for pixels."""
        return self.values.shape[1:]

    def ids(self) -> list[str]:
        """Ids of all clips that have frames."""
        return list(self._rows)

    def num_frames(self, clip: str) -> int:
        """Number of frames T of one clip."""
        start, end = self._rows[clip]
        return int(end - start)

    def frames(self, clip: str) -> np.ndarray:
        """All frames of one clip, ``[T, *frame_shape]``: a view, not a copy."""
        start, end = self._rows[clip]
        return self.values[start:end]

    def encoded(self, encode: Callable[[np.ndarray], np.ndarray], at_once: int = 512) -> FrameSource:
        """The same clips with each frame encoded once.

        Args:
            encode: ``[n, *frame_shape]`` frames to ``[n, D]`` features.
            at_once: Frames encoded in one call.
        """
        parts = [encode(self.values[i : i + at_once]) for i in range(0, len(self.values), at_once)]
        return FrameSource(np.concatenate(parts), {clip: self.num_frames(clip) for clip in self._rows})


class FilmedFrames:
    """What each device sees of a clip, where devices share clips but film them with cameras of their own.

    Args:
        films: Device -> opens what its camera has filmed, when it is asked for first; the others see clips as they are.
        clean: The clips before any camera.
    """

    def __init__(self, films: Mapping[int, Callable[[], FrameSource]], clean: FrameSource) -> None:
        self._films, self._clean = films, clean
        self._open: dict[int, FrameSource] = {}

    def filmed(self, device: int, clip: str) -> np.ndarray:
        """All frames of one clip as one device sees them, ``[T, *frame_shape]``."""
        if device not in self._films:
            return self._clean.frames(clip)
        if device not in self._open:
            self._open[device] = self._films[device]()
        return self._open[device].frames(clip)
