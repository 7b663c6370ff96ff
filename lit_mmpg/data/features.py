"""Frame features from files, held in memory as one array.

Three layouts, told apart by what is at the path: HDF5 with one dataset per video, HDF5 with all videos stacked beside
their ``ids`` (as HCRN and NExT-QA publish them), and a folder of ``.npy`` files. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from lit_mmpg import sysfs
from lit_mmpg.data.readers.files import fingerprint_files, require_path
from lit_mmpg.data.records import ClipIndex, FrameSource
from lit_mmpg.errors import UserError

__all__ = ["FeatureStore", "check_coverage", "fingerprint_files", "open_features"]

IDS_DATASET = "ids"
CHUNK_VALUES = 1 << 24

Reader = Callable[[np.ndarray], None]


class FeatureStore(FrameSource):
    """Frame features of all clips in memory.

    Args:
        ids: Ids of the clips, V of them.
        values: Their frames one after the other, ``[sum of T, D]`` float16 or float32.
        offsets: ``[V + 1]`` int64; clip i has the rows ``offsets[i]:offsets[i + 1]``.
        origin: File or folder they come from, for messages.

    Raises:
        UserError: If an id occurs twice, or a value is NaN or infinite.
    """

    def __init__(self, ids: Sequence[str], values: np.ndarray, offsets: np.ndarray, origin: str | Path) -> None:
        self.values = values
        self.offsets = offsets
        self.origin = str(origin)
        self._ids = list(ids)
        self._index = {name: i for i, name in enumerate(self._ids)}
        if len(self._index) != len(self._ids):
            seen: set[str] = set()
            repeated = next(name for name in self._ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise UserError(f"{origin}: video id '{repeated}' occurs more than once")
        self._check_finite()

    @property
    def dim(self) -> int:
        """Dimension D of a frame's feature."""
        return int(self.values.shape[1])

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """``(D,)``."""
        return (self.dim,)

    def ids(self) -> list[str]:
        """Ids of all clips, in the order of the rows."""
        return list(self._ids)

    def num_frames(self, clip: str) -> int:
        """Number of frames T of one clip."""
        i = self._index[clip]
        return int(self.offsets[i + 1] - self.offsets[i])

    def frames(self, clip: str) -> np.ndarray:
        """All frames of one clip, ``[T, D]``: a view, not a copy."""
        i = self._index[clip]
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def _check_finite(self) -> None:
        step = max(1, CHUNK_VALUES // max(1, self.dim))
        bad_rows = [
            start + np.flatnonzero(~np.isfinite(self.values[start : start + step]).all(axis=1))
            for start in range(0, len(self.values), step)
        ]
        rows = np.concatenate(bad_rows) if bad_rows else np.empty(0, np.int64)
        if len(rows):
            clips = np.unique(np.searchsorted(self.offsets, rows, side="right") - 1)
            first = ", ".join(self._ids[i] for i in clips[:5])
            raise UserError(
                f"{self.origin}: features of {len(clips)} videos ({len(rows)} frames) are NaN or infinite, "
                f"first {first}; extract them again"
            )


def open_features(path: str | Path) -> FeatureStore:
    """Frame features of a file or folder, read completely into memory.

    The dtype of the file is kept (float16 or float32; float64 becomes float32).

    Args:
        path: HDF5 file with one dataset ``[T, D]`` per video; HDF5 file with ``ids`` ``[N]`` (integers or text) and
            one dataset ``[N, T, D]`` or ``[N, clips, frames, D]``, whose clips follow each other in time; or folder
            with one ``.npy`` file ``[T, D]`` per video.

    Raises:
        UserError: If the path is missing, a file is truncated or of another kind, there are no features, their rank,
            dimension or type is wrong, a value is not finite, or memory does not suffice.
    """
    path = require_path(path, "features")
    return _open_folder(path) if path.is_dir() else _open_hdf5(path)


def check_coverage(clip_ids_needed: Iterable[str], source: ClipIndex, drop_missing: bool) -> set[str]:
    """The needed clips that have frames.

    Args:
        clip_ids_needed: Ids of the clips in the annotations.
        source: Where their frames should be.
        drop_missing: Leave out clips without frames instead of refusing.

    Raises:
        UserError: If clips lack frames and may not be dropped, or none has frames.
    """
    needed = set(clip_ids_needed)
    kept = needed & set(source.ids())
    missing = sorted(needed - kept)
    origin = getattr(source, "origin", "the frame source")
    if missing and not drop_missing:
        raise UserError(
            f"{origin}: {len(missing)} of {len(needed)} videos in the annotations have no features, "
            f"first {', '.join(missing[:5])}; extract them, or leave them out with --data.drop_missing true"
        )
    if needed and not kept:
        raise UserError(
            f"{origin}: none of the {len(needed)} videos in the annotations has features; the annotations call them "
            f"{', '.join(missing[:3])}, the features {', '.join(source.ids()[:3])}"
        )
    return kept


def _open_folder(path: Path) -> FeatureStore:
    files = sorted(path.glob("*.npy"))
    if not files:
        others = sorted(p.name for p in path.iterdir() if p.suffix in (".h5", ".hdf5"))
        hint = f"; for the HDF5 file there, give {path / others[0]}" if others else ""
        raise UserError(f"{path}: the folder contains no .npy files{hint}")
    arrays = {}
    for file in files:
        try:
            arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{file}: not a complete .npy file of numbers ({error}); extract it again") from error
    return _gather(path, [(n, a.shape, a.dtype, partial(np.copyto, src=a)) for n, a in arrays.items()])


def _open_hdf5(path: Path) -> FeatureStore:
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            datasets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
            if not datasets:
                groups = f" (only groups: {', '.join(list(file)[:3])})" if len(file) else ""
                raise UserError(f"{path}: the file contains no datasets at its top level{groups}")
            if IDS_DATASET in datasets:
                return _open_stacked(path, datasets)
            return _gather(path, [(n, d.shape, d.dtype, d.read_direct) for n, d in datasets.items()])
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: not a complete HDF5 file ({_first_line(error)}); copy or extract it again") from error


def _gather(path: Path, videos: Sequence[tuple[str, tuple[int, ...], np.dtype, Reader]]) -> FeatureStore:
    """Reads videos given as (id, shape, dtype, function that fills an array) into one array."""
    dim = videos[0][1][-1] if videos[0][1] else 0
    for name, shape, dtype, _ in videos:
        if len(shape) != 2 or 0 in shape:
            raise UserError(f"{path}: features of video '{name}' have the shape {shape}; [frames, dimension] is needed")
        if shape[1] != dim:
            raise UserError(
                f"{path}: features of video '{name}' have dimension {shape[1]}, those of '{videos[0][0]}' {dim}; "
                "all must come from the same encoder"
            )
        _check_float(path, name, dtype)
    offsets = np.concatenate([[0], np.cumsum([shape[0] for _, shape, _, _ in videos], dtype=np.int64)])
    kept = np.float16 if all(dtype == np.float16 for _, _, dtype, _ in videos) else np.float32
    values = _allocate(path, (int(offsets[-1]), dim), kept)
    for i, (_, _, _, fill) in enumerate(videos):
        fill(values[offsets[i] : offsets[i + 1]])
    return FeatureStore([name for name, *_ in videos], values, offsets, path)


def _open_stacked(path: Path, datasets: dict[str, Any]) -> FeatureStore:
    ids = _text_ids(path, datasets[IDS_DATASET])
    candidates = {n: d for n, d in datasets.items() if n != IDS_DATASET and d.ndim >= 2}
    if len(candidates) != 1:
        found = ", ".join(f"{n} {d.shape}" for n, d in datasets.items())
        raise UserError(f"{path}: beside '{IDS_DATASET}' exactly one dataset of features is needed, found {found}")
    name, features = next(iter(candidates.items()))
    if features.ndim not in (3, 4) or 0 in features.shape:
        raise UserError(
            f"{path}: dataset '{name}' has the shape {features.shape}; "
            "[videos, frames, dimension] or [videos, clips, frames, dimension] is needed"
        )
    if len(ids) != features.shape[0]:
        raise UserError(f"{path}: {len(ids)} entries in '{IDS_DATASET}' but {features.shape[0]} in '{name}'")
    _check_float(path, name, features.dtype)
    kept = np.float16 if features.dtype == np.float16 else np.float32
    frames_per_video = int(np.prod(features.shape[1:-1]))
    values = _allocate(path, (len(ids) * frames_per_video, features.shape[-1]), kept)
    features.read_direct(values.reshape(features.shape))
    offsets = np.arange(len(ids) + 1, dtype=np.int64) * frames_per_video
    return FeatureStore(ids, values, offsets, path)


def _text_ids(path: Path, dataset: Any) -> list[str]:
    ids = np.asarray(dataset[()])
    if ids.ndim != 1 or ids.dtype.kind not in "iuSO":
        raise UserError(
            f"{path}: dataset '{IDS_DATASET}' is {ids.dtype} {ids.shape}; a list of integers or texts is needed"
        )
    return [name.decode() if isinstance(name, bytes) else str(name) for name in ids.tolist()]


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
        raise UserError("reading HDF5 features needs h5py: pip install 'lit-mmpg[train]'") from error
    return h5py


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
