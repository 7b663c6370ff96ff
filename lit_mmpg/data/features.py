"""Frame features from files, held in memory as one array.

Three layouts, told apart by what is at the path: HDF5 with one dataset per video, HDF5 with all videos stacked beside
their ``ids`` (as HCRN and NExT-QA publish them), and a folder of ``.npy`` files. Only clips that are used are read. No
torch.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from zipfile import BadZipFile

import numpy as np

from lit_mmpg import sysfs
from lit_mmpg.data.readers.files import fingerprint_files, note_read, require_path, walk
from lit_mmpg.data.readers.identity import RESERVED
from lit_mmpg.errors import UserError, fault, first_line, install_hint
from lit_mmpg.records import ClipIndex, FrameSource, Place

__all__ = ["FeatureFile", "check_coverage", "fingerprint_files", "finite"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
CHUNK_VALUES = 1 << 24


def finite(source: FrameSource, origin: str | Path) -> FrameSource:
    """Features, none of whose values is NaN or infinite; ``origin`` is the file or folder they come from, for messages.

    Raises:
        UserError: If one is.
    """
    values = source.values
    step = max(1, CHUNK_VALUES // max(1, values.shape[1]))
    bad = [
        start + np.flatnonzero(~np.isfinite(values[start : start + step]).all(axis=1))
        for start in range(0, len(values), step)
    ]
    rows = np.concatenate(bad) if bad else np.empty(0, np.int64)
    if len(rows):
        ids = source.ids()
        ends = np.cumsum([source.num_frames(clip) for clip in ids])
        clips = np.unique(np.searchsorted(ends, rows, side="right"))
        raise UserError(
            f"{origin}: features of {len(clips)} videos ({len(rows)} frames) are NaN or infinite, "
            f"first {', '.join(ids[i] for i in clips[:5])}; extract them again"
        )
    return source


class FeatureFile:
    """Features in a file or folder: which clips there are, without a look at their values.

    Three layouts: HDF5 with one dataset ``[T, D]`` per video (groups are folders); HDF5 with ``ids`` ``[N]`` (integers
    or text) and one dataset ``[N, T, D]`` or ``[N, clips, frames, D]``, whose clips follow each other in time; a folder
    with one ``.npy`` file ``[T, D]`` per video, subfolders included.

    Args:
        path: The file or folder.

    Raises:
        UserError: If the path is missing, cannot be read, is of another kind, or holds no features.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = require_path(path, "features")
        self.origin = str(self.path)
        self._stacked = False
        self.made: dict[str, Any] = {}
        """What ``lit-mmpg extract`` made them with, where it did: encoder (a digest), height and width among it."""
        if self.path.is_dir():
            self._places: dict[str, Any] = _npy_files(self.path)
        else:
            note_read(self.path)
            with _reading(self.path) as file:
                self._places, self._stacked = _hdf5_places(self.path, file)
                with suppress(ValueError, TypeError):
                    self.made = dict(json.loads(file.attrs.get("settings", "{}")))

    def ids(self) -> list[str]:
        """Ids of all clips."""
        return list(self._places)

    def size_bytes(self, wanted: Collection[str]) -> int:
        """Size on the disk of what :meth:`load` reads; of one file, all of it."""
        files = [self._places[name] for name in wanted if name in self._places] if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files if file.exists())

    def load(self, wanted: Collection[str] | None = None) -> FrameSource:
        """Frame features, read completely into memory.

        The dtype of the file is kept (float16 or float32; float64 becomes float32). What else the file holds is not
        looked at.

        Args:
            wanted: Ids of the clips; ``None``: all.

        Raises:
            UserError: If a file is truncated, rank, dimension or type is wrong, a value is not finite, or memory does
                not suffice.
        """
        chosen = self.ids() if wanted is None else [name for name in self._places if name in wanted]
        if self.path.is_dir():
            for name in chosen:
                note_read(self._places[name])
            return self._gather(chosen, lambda name: _open_npy(self._places[name]))
        with _reading(self.path) as file:
            if self._stacked and chosen:
                return self._load_stacked(file, chosen)
            return self._gather(chosen, lambda name: file[self._places[name]])

    def _load_stacked(self, file: Any, names: Sequence[str]) -> FrameSource:
        features = file[self._places[names[0]][0]]
        shape = features.shape[1:]
        length = int(np.prod(shape[:-1]))
        kept = np.float16 if features.dtype == np.float16 else np.float32
        values = _allocate(self.path, (len(names) * length, shape[-1]), kept)
        for i, name in enumerate(names):
            row = values[i * length : (i + 1) * length].reshape(shape)
            features.read_direct(row, np.s_[self._places[name][1]])
        return finite(FrameSource(values, dict.fromkeys(names, length)), self.path)

    def _gather(self, names: Sequence[str], opened: Callable[[str], Any]) -> FrameSource:
        """One video after the other is opened and closed, so that ten thousand of them need one descriptor."""
        shapes, kinds = [], []
        for name in names:
            video = opened(name)
            shapes.append(tuple(video.shape or ()))  # HDF5 has datasets without a shape
            kinds.append(video.dtype)
            _check_video(self.path, name, shapes[-1], kinds[-1], names[0], shapes[0])
        lengths = {name: shape[0] for name, shape in zip(names, shapes, strict=True)}
        kept = np.float16 if kinds and all(kind == np.float16 for kind in kinds) else np.float32
        values = _allocate(self.path, (sum(lengths.values()), shapes[0][1] if shapes else 0), kept)
        source = FrameSource(values, lengths)
        for name in names:
            source.frames(name)[...] = opened(name)[...]
        return finite(source, self.path)


def check_coverage(
    clip_ids_needed: Iterable[str], source: ClipIndex, drop_missing: bool, places: Mapping[str, Place] | None = None
) -> set[str]:
    """The needed clips that have frames; ``drop_missing`` leaves out those without instead of refusing.

    ``places`` says where each clip is first named, for messages.

    Raises:
        UserError: If (outside ``collected``) clips lack frames and may not be dropped, or none has frames.
    """
    needed = set(clip_ids_needed)
    kept = needed & set(source.ids())
    missing = sorted(needed - kept)
    origin = getattr(source, "origin", "the frame source")
    if needed and not kept:
        raise UserError(
            f"{origin}: none of the {len(needed)} videos in the annotations has features; the annotations call them "
            f"{', '.join(missing[:3])}, the features {', '.join(source.ids()[:3])}; extract them, or mend the names"
        )
    if missing and not drop_missing:
        fault(
            f"{origin}: {len(missing)} of {len(needed)} videos in the annotations have no features, "
            f"first {', '.join(missing[:5])}; extract them, or leave them out with --data.drop_missing true"
            f"{_spelling(missing[0], source.ids(), (places or {}).get(missing[0]))}"
        )
    return kept


def _spelling(name: str, known: Sequence[str], place: Place | None) -> str:
    """Where a clip is named that is not there, and what the features call the one that it may be."""
    number = re.findall(r"\d+", name)
    alike = [other for other in known if re.findall(r"\d+", other) == number]
    close = difflib.get_close_matches(name, alike, n=1, cutoff=0.5)
    said = [*([str(place)] if place and place.file else []), *([f"the features have '{close[0]}'"] if close else [])]
    return f" ('{name}': {'; '.join(said)})" if said else ""


def _npy_files(folder: Path) -> dict[str, Path]:
    """Id -> file; files and folders that begin with a dot are other programs' notes."""
    files: dict[str, Path] = {}
    for place, _, names in walk(folder):
        for name in names:
            if name.lower().endswith(".npy") and not name.startswith("."):
                file = place / name
                id = file.relative_to(folder).as_posix()[: -len(".npy")]
                if id in files:
                    fault(f"{folder}: {files[id].name} and {name} would both be video '{id}'; delete one of them")
                files[_utf8(folder, id)] = file
    if not files:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".h5", ".hdf5"))
        hint = f"; for the HDF5 file there, give {folder / others[0]}" if others else ""
        raise UserError(f"{folder}: the folder contains no .npy files{hint}")
    return files


def _open_npy(file: Path) -> np.ndarray:
    """A view of the file, which is closed with the array."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{file}: cannot be read ({error.strerror}); {_remedy(error.errno)}") from error
        raise UserError(f"{file}: not a complete .npy file of numbers ({error}); extract it again") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"{file}: is an .npz archive; save its array alone, with np.save")
    return found


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """An HDF5 file; what the system refuses is told apart from what is damaged."""
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise hdf5_error(path, error) from error


def hdf5_error(path: Path, error: Exception) -> UserError:
    """What to tell about an HDF5 file that cannot be opened or read."""
    number = getattr(error, "errno", None)
    said = re.search(r"errno = (\d+)", str(error))
    if number is None and said:
        number = int(said[1])
    if "lock file" in str(error) or "already open for" in str(error):
        return UserError(
            f"{path}: is open in another program that writes to it; close that, or where the file system cannot lock "
            "files set HDF5_USE_FILE_LOCKING=FALSE"
        )
    if number:
        return UserError(f"{path}: cannot be read ({os.strerror(number)}); {_remedy(number)}")
    with path.open("rb") as file:
        head = file.read(len(SIGNATURE))
    if len(head) == len(SIGNATURE) and head != SIGNATURE and any(head):
        remedy = "name a file of features (.h5), or a folder of .npy files"
    else:
        remedy = "copy or extract it again"
    return UserError(f"{path}: not a complete HDF5 file ({first_line(error)}); {remedy}")


def _remedy(number: int) -> str:
    if number in (errno.EMFILE, errno.ENFILE):
        return "close other programs, or allow more open files (ulimit -n)"
    if number in (errno.EACCES, errno.EPERM):
        return "look at its permissions"
    return "see that it is there and its disk well, and try again"


def _hdf5_places(path: Path, file: Any) -> tuple[dict[str, Any], bool]:
    """Id -> name of its dataset, or (with stacked features) name and row; and whether they are stacked."""
    h5py = _h5py()
    if isinstance(file.get(RESERVED), h5py.Dataset):
        return _stacked_places(path, {n: item for n, item in file.items() if isinstance(item, h5py.Dataset)}), True
    places: dict[str, Any] = {}

    def visit(group: Any, prefix: str, above: tuple[Any, ...]) -> None:
        for name in group:
            try:
                item = group[name]  # follows links
            except (KeyError, OSError):
                continue  # a link to nowhere is no features, and who asks for them is told so
            if isinstance(item, h5py.Dataset):
                places[_utf8(path, prefix + name)] = prefix + name
            elif isinstance(item, h5py.Group) and item not in above:
                visit(item, f"{prefix}{name}/", (*above, item))

    visit(file, "", (file["/"],))
    if not places:
        groups = f" (only groups: {', '.join(list(file)[:3])})" if len(file) else ""
        raise UserError(f"{path}: the file contains no datasets{groups}")
    return places, False


def _stacked_places(path: Path, datasets: dict[str, Any]) -> dict[str, tuple[str, int]]:
    ids = _text_ids(path, datasets[RESERVED])
    candidates = {n: d for n, d in datasets.items() if n != RESERVED and d.ndim >= 2}
    if len(candidates) != 1:
        found = ", ".join(f"{n} {d.shape}" for n, d in datasets.items())
        raise UserError(f"{path}: beside '{RESERVED}' exactly one dataset of features is needed, found {found}")
    name, features = next(iter(candidates.items()))
    if features.ndim not in (3, 4) or 0 in features.shape:
        raise UserError(
            f"{path}: dataset '{name}' has the shape {features.shape}; "
            "[videos, frames, dimension] or [videos, clips, frames, dimension] is needed"
        )
    if len(ids) != features.shape[0]:
        raise UserError(f"{path}: {len(ids)} entries in '{RESERVED}' but {features.shape[0]} in '{name}'")
    _check_float(path, name, features.dtype)
    repeated = [id for id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: video id '{repeated[0]}' occurs more than once")
    return {id: (name, row) for row, id in enumerate(ids)}


def _text_ids(path: Path, dataset: Any) -> list[str]:
    ids = np.asarray(dataset[()])
    if ids.ndim != 1 or ids.dtype.kind not in "iuSO":
        raise UserError(
            f"{path}: dataset '{RESERVED}' is {ids.dtype} {ids.shape}; a list of integers or texts is needed"
        )
    return [_utf8(path, name).strip() for name in ids.tolist()]  # of one length: blanks fill the shorter ones up


def _utf8(path: Path, name: Any) -> str:
    """An id as text.

    Raises:
        UserError: If it is not UTF-8.
    """
    raw = name if isinstance(name, bytes) else str(name).encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: the id {raw!r} is not UTF-8 text (in Latin-1 it says '{raw.decode('latin-1')}'); write the ids "
            "as UTF-8, or rename the file"
        ) from error


def _check_video(
    path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype, first: str, first_shape: tuple[int, ...]
) -> None:
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"{path}: features of video '{name}' have the shape {shape}; [frames, dimension] is needed")
    if shape[1] != first_shape[1]:
        raise UserError(
            f"{path}: features of video '{name}' have dimension {shape[1]}, those of '{first}' {first_shape[1]}; "
            "all must come from the same encoder"
        )
    _check_float(path, name, dtype)


def _check_float(path: Path, name: str, dtype: np.dtype) -> None:
    if dtype.kind != "f":
        raise UserError(f"{path}: features of '{name}' are {dtype}; float16 or float32 is needed")


def _allocate(path: Path, shape: tuple[int, int], dtype: type[np.floating]) -> np.ndarray:
    needed = shape[0] * shape[1] * np.dtype(dtype).itemsize
    available = _available_bytes()
    if available is not None and needed > available:
        _refuse_size(path, needed, available)
    try:
        return np.empty(shape, dtype)
    except MemoryError:
        _refuse_size(path, needed, available or 0)


def _refuse_size(path: Path, needed: int, available: int) -> NoReturn:
    raise UserError(
        f"{path}: the features need {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free; "
        "store them as float16, or with fewer frames per video"
    )


def _available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    available = sysfs.kilobytes(Path("/proc/meminfo"), "MemAvailable")
    if available is not None:
        return available
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"reading HDF5 features needs h5py; {install_hint('train')}") from error
    return h5py
