"""Frames kept as image files, one folder per clip, in a folder or in a zip archive. No torch."""

from __future__ import annotations

import io
import re
import stat
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from lit_mmpg.data.readers.files import foreign, require_path
from lit_mmpg.errors import UserError
from lit_mmpg.records import subsample

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def _in_order(name: str) -> tuple[list[str | int], str]:
    """Sort key by which frame 2 stands before frame 10, however many digits their names write."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name


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
        self._archive: zipfile.ZipFile | None = None
        if self.path.is_dir():
            files = [file.relative_to(self.path).as_posix() for file in self.path.glob("*/*")]
        else:
            try:
                self._archive = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile as error:
                raise UserError(f"{self.path}: not a complete zip archive ({error}); copy it again") from error
            files = self._archive.namelist()
        names: dict[str, list[str]] = defaultdict(list)
        for name in files:
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

    def _read(self, name: str) -> bytes:
        if self._archive is not None:
            return self._archive.read(name)
        if not stat.S_ISREG((self.path / name).stat().st_mode):
            raise OSError("it is no file")
        return (self.path / name).read_bytes()

    def pixels(self, clip: str) -> np.ndarray:
        """All frames of one clip, ``[T, 3, H, W]`` uint8 RGB.

        Raises:
            UserError: If an image cannot be read, or the frames differ in size.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        frames = []
        for name in self._names[clip]:
            try:
                with Image.open(io.BytesIO(self._read(name))) as image:
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
