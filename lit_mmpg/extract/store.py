"""Where features wait until all are there, and the HDF5 file that they become.

One ``.npy`` file per clip, each written in one step, so that a kill loses no more than the clips at work; the HDF5 file
is made of them at the end and replaces an older one in one step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.data.features import hdf5_error
from lit_mmpg.errors import UserError
from lit_mmpg.runtime.folder import FolderInUseError, StateFolder
from lit_mmpg.writing import write_bytes

LAYOUT_VERSION = 2
"""Raise it when features of older versions must not be mixed with those of this one."""


@dataclass(frozen=True)
class Settings:
    """What features depend on; files made with other settings are never mixed.

    Attributes:
        encoder: Digest of the encoder's files.
        height: Rows of the pictures that are encoded, pixels.
        width: Columns.
        frames: Most frames per clip.
        sampling: ``uniform`` or ``shots``.
        dtype: ``float16`` or ``float32``.
        version: Version of the layout.
    """

    encoder: str
    height: int
    width: int
    frames: int
    sampling: str
    dtype: str
    version: int = LAYOUT_VERSION


class Store:
    """Features on their way into one HDF5 file, which one process at a time adds to: leave it by ``with``.

    Raises:
        UserError: If the file there was made with other settings, or is none of ours, or another process adds to it.
    """

    def __init__(self, output: Path, settings: Settings) -> None:
        self.output, self.settings = output, settings
        self._file = Path(os.path.realpath(output)) if output.is_symlink() else output  # a link stays a link
        self.parts = self._file.with_name(f"{self._file.name}.parts")
        try:
            self._held = StateFolder(self.parts)
        except FolderInUseError:
            raise UserError(f"another process extracts into {output}; wait for its end, or name another file") from None
        try:
            self._kept = self._read_output()
            note = self.parts / "settings.json"
            if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != asdict(settings):
                for part in self.parts.glob("*.npy"):  # an interrupted run with other settings: of no use
                    part.unlink()
            write_bytes(note, json.dumps(asdict(settings)).encode())
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        """Let others add to the file; features that wait for it stay."""
        if not any(self.parts.glob("*.npy")):
            shutil.rmtree(self.parts, ignore_errors=True)
        self._held.close()

    def _read_output(self) -> dict[str, str]:
        import h5py

        if not self.output.exists():
            return {}
        try:
            with h5py.File(self.output, "r") as file:
                made = json.loads(file.attrs.get("settings", "null"))
                sources = {name: str(file[name].attrs.get("source", "")) for name in _names(file)}
        except OSError as error:
            raise UserError(f"{hdf5_error(self.output, error)}; or move it away, or name another one") from error
        if made == asdict(self.settings):
            return sources
        if made is None:
            raise UserError(f"{self.output} was not written by extract; name another file")
        other = [name for name, value in asdict(self.settings).items() if made.get(name) != value]
        raise UserError(
            f"{self.output} was made with another {', '.join(other)}; name another file, or delete it to start anew"
        )

    def part(self, clip: str, digest: str) -> Path:
        """Where the features of a clip wait."""
        return self.parts / f"{hashlib.sha256(clip.encode()).hexdigest()[:24]}-{digest}.npy"

    def has(self, clip: str, digest: str) -> bool:
        """Whether a clip is done, in this run or an earlier one."""
        return self._kept.get(clip) == digest or self.part(clip, digest).is_file()

    def finish(self, done: Mapping[str, str], facts: Mapping[str, Any]) -> int:
        """Write the HDF5 file from all finished clips and what it held before.

        Args:
            done: Clip -> digest of its video, of the finished clips of this folder. Clips of an older file whose
                videos are no longer in the folder stay.
            facts: What else to note in the file.

        Returns:
            Number of clips in the file.
        """
        import h5py

        partial = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        try:
            with h5py.File(partial, "w") as file:
                file.attrs["settings"] = json.dumps(asdict(self.settings))
                for name, value in facts.items():
                    file.attrs[name] = value
                for clip, digest in sorted(done.items()):
                    part = self.part(clip, digest)
                    if part.is_file():
                        file.create_dataset(clip, data=np.load(part, allow_pickle=False)).attrs["source"] = digest
                if self._kept:
                    with h5py.File(self.output, "r") as old:
                        for clip in sorted(set(_names(old)) - set(_names(file))):
                            old.copy(clip, file, name=clip)
                count = len(_names(file))
            partial.replace(self._file)
        finally:
            partial.unlink(missing_ok=True)
        for part in self.parts.glob("*.npy"):
            part.unlink()
        return count


def _names(file: Any) -> list[str]:
    """Names of all datasets; a clip of a subfolder lies in a group."""
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if hasattr(item, "dtype") else None)
    return found
