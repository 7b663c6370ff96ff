"""Frames kept as image files, one folder per clip, in a folder or in a zip archive. No torch."""

from __future__ import annotations

import io
import re
import stat
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Protocol

import numpy as np

from lit_mmpg.data.readers.files import foreign, require_path
from lit_mmpg.errors import UserError
from lit_mmpg.records import subsample

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def _in_order(name: str) -> tuple[list[str | int], str]:
    """Sort key by which frame 2 stands before frame 10, however many digits their names write."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name


class _Files(Protocol):
    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in self.root.glob("*/*")]

    def read(self, name: str) -> bytes:
        if not stat.S_ISREG((self.root / name).stat().st_mode):
            raise OSError("it is no file")
        return (self.root / name).read_bytes()


class _Archive:
    def __init__(self, path: Path) -> None:
        try:
            self.file = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path}: not a complete zip archive ({error}); copy it again") from error

    def names(self) -> list[str]:
        return self.file.namelist()

    def read(self, name: str) -> bytes:
        return self.file.read(name)


class ImageFrames:
    """Frames of clips as image files ``CLIP/NAME.jpg``; the order of their names (2 before 10) is their order in time.

    Hidden files and folders are no frames, and neither is what other systems put beside them.

    Args:
        path: Folder or zip archive.
        max_frames: Clips with more frames are subsampled evenly to this many.

    Raises:
        UserError: If the path is missing, is no folder and no archive, or holds no images.
    """

    def __init__(self, path: str | Path, max_frames: int) -> None:
        self.path = require_path(Path(path), "frames")
        self._files: _Files = _Folder(self.path) if self.path.is_dir() else _Archive(self.path)
        names: dict[str, list[str]] = defaultdict(list)
        for name in self._files.names():
            parts = name.split("/")
            if len(parts) == 2 and name.lower().endswith(SUFFIXES) and not any(map(foreign, parts)):
                names[parts[0]].append(name)
        if not names:
            raise UserError(
                f"{self.path}: no images named CLIP/FRAME{SUFFIXES[0]}; name a folder or zip of that layout"
            )
        self._names: dict[str, list[str]] = {}
        for clip, found in names.items():
            ordered = sorted(found, key=_in_order)
            self._names[clip] = [ordered[i] for i in subsample(len(ordered), max_frames)]

    def ids(self) -> list[str]:
        """Ids of all clips."""
        return list(self._names)

    def num_frames(self, clip: str) -> int:
        """Number of frames of one clip, after subsampling."""
        return len(self._names[clip])

    def pixels(self, clip: str) -> np.ndarray:
        """All frames of one clip, ``[T, 3, H, W]`` uint8 RGB.

        Raises:
            UserError: If an image cannot be read, or the frames differ in size.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        frames = []
        for name in self._names[clip]:
            try:
                with Image.open(io.BytesIO(self._files.read(name))) as image:
                    upright = ImageOps.exif_transpose(image)  # a phone stores how it was held beside the pixels
                    if upright.mode.startswith("I"):  # grey of 16 bits, which would be cut off at 255
                        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                    frames.append(np.asarray(upright.convert("RGB")).transpose(2, 0, 1))
            except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError) as error:
                said = "no image of a known kind" if isinstance(error, UnidentifiedImageError) else error
                raise UserError(f"{self.path}: image {name} cannot be read ({said}); copy it again") from error
        if len({frame.shape for frame in frames}) != 1:
            raise UserError(f"{self.path}: the frames of '{clip}' differ in size; resize them to one")
        return np.stack(frames)
