"""Clips filmed by simulated cameras and encoded: every (camera, clip) pair once, kept on disk.

Each camera has one file, named by a digest of all that decides its content, so an interrupted extraction goes on where
it stopped and a changed setting never meets old features.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.data.cameras import Camera, apply, noise_seed
from lit_mmpg.data.images import ImageFrames
from lit_mmpg.data.reflections import Reflection, middle, reflect
from lit_mmpg.data.vision import FrameEncoder, open_graph, run_graph
from lit_mmpg.heartbeat import working
from lit_mmpg.records import FrameSource
from lit_mmpg.writing import write_bytes

_log = logging.getLogger(__name__)

FILMING_VERSION = 1
"""Raise it when files of an older version must not be reused."""


@dataclass(frozen=True)
class Shot:
    """What one camera films.

    Attributes:
        camera: The camera.
        seed: Seed of its noise.
        clips: Ids of the clips.
        reflection: What is mirrored in the glass before it; none: there is no glass.
    """

    camera: Camera
    seed: int
    clips: tuple[str, ...]
    reflection: Reflection | None = None

    @property
    def clean(self) -> bool:
        """True where the clips pass unchanged."""
        return self.camera.is_identity and self.reflection is None

    def describe(self) -> dict[str, str]:
        """What happens to the clips, for people."""
        glass = {} if self.reflection is None else {"reflection": self.reflection.describe()}
        return {**glass, **self.camera.describe()} or {"camera": "clean"}


def film(
    images: ImageFrames,
    encoder: FrameEncoder,
    shots: Mapping[int, Shot],
    cache_dir: Path,
    fingerprint: str,
    workers: int = 0,
) -> dict[int, Path]:
    """Film and encode what is not on the disk yet.

    Args:
        images: The frames before any camera.
        encoder: The frame encoder.
        shots: Device index -> what its camera films.
        cache_dir: Where files are kept.
        fingerprint: Digest of the content of ``images``.
        workers: Processes; 0 takes one for each core.

    Returns:
        Device index -> file with ``[sum of T, D]`` float16 features of its clips, one after the other.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    paths = {i: cache_dir / f"{_digest(shot, images, encoder, fingerprint)}.npy" for i, shot in shots.items()}
    missing = [(shots[i], path) for i, path in paths.items() if not path.is_file()]
    # Several devices may be one and the same camera.
    missing = list({path: (shot, path) for shot, path in missing}.values())
    if missing:
        # All clips, not only those that are missing now: one file of pixels then serves every later extraction.
        pixels = _unpack(
            images, sorted({clip for shot in shots.values() for clip in _sources(shot)}), cache_dir, fingerprint
        )
        _work(missing, pixels, str(encoder.prepare()), workers or len(os.sched_getaffinity(0)))
    return paths


def _digest(shot: Shot, images: ImageFrames, encoder: FrameEncoder, fingerprint: str) -> str:
    lengths = [images.num_frames(clip) for clip in shot.clips]
    content = [FILMING_VERSION, fingerprint, encoder.digest, asdict(shot.camera), shot.seed, shot.clips, lengths]
    if shot.reflection is not None:
        content += [asdict(shot.reflection), images.num_frames(shot.reflection.clip)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _sources(shot: Shot) -> tuple[str, ...]:
    """Clips whose pixels are needed."""
    return shot.clips if shot.reflection is None else (*shot.clips, shot.reflection.clip)


@dataclass(frozen=True)
class _Pixels:
    """Decoded frames on the disk: one array, and the number of frames of each clip."""

    path: str
    lengths: dict[str, int]


def _unpack(images: ImageFrames, clips: Sequence[str], cache_dir: Path, fingerprint: str) -> _Pixels:
    """Decode the images once: cameras by the thousand film the same frames."""
    lengths = {clip: images.num_frames(clip) for clip in clips}
    ends = np.cumsum(list(lengths.values())).tolist()
    rows = {clip: (end - lengths[clip], end) for clip, end in zip(clips, ends, strict=True)}
    content = json.dumps([FILMING_VERSION, fingerprint, rows], sort_keys=True).encode()
    path = cache_dir / f"pixels-{hashlib.sha256(content).hexdigest()[:24]}.npy"
    if not path.is_file():
        _log.info("decoding the frames of %d clips once", len(clips))
        partial = path.with_suffix(f".{os.getpid()}")
        array: Any = None
        with working("decoding frames", len(clips), "clips") as work:
            for clip in clips:
                frames = images.pixels(clip)
                if array is None:
                    shape = (ends[-1], *frames.shape[1:])
                    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
                start, end = rows[clip]
                array[start:end] = frames
                work.advance()
        array.flush()
        partial.replace(path)
    return _Pixels(str(path), lengths)


def _work(jobs: Sequence[tuple[Shot, Path]], pixels: _Pixels, graph: str, workers: int) -> None:
    with (
        working("filming and encoding", len(jobs), "cameras") as work,
        ProcessPoolExecutor(workers, get_context("spawn"), _begin, (pixels, graph)) as pool,
    ):
        for future in as_completed([pool.submit(_film_one, shot, str(path)) for shot, path in jobs]):
            future.result()
            work.advance()


_STATE: dict[str, Any] = {}
"""Of one worker process: its decoded frames and its encoder."""


def _begin(pixels: _Pixels, graph: str) -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)  # idle BLAS threads that spin cost more than they bring: there is one process for each core
    frames = FrameSource(np.load(pixels.path, mmap_mode="r"), pixels.lengths)
    _STATE.update(frames=frames, session=open_graph(graph))


def _film_one(shot: Shot, path: str) -> None:
    def pixels(clip: str) -> np.ndarray:
        return np.asarray(_STATE["frames"].frames(clip))

    def seen(clip: str) -> np.ndarray:
        frames = pixels(clip)
        if shot.reflection is not None:
            frames = reflect(shot.reflection, frames, middle(pixels(shot.reflection.clip)))
        return apply(shot.camera, frames, noise_seed(shot.seed, clip))

    filmed = np.concatenate([seen(clip) for clip in shot.clips])
    features = run_graph(_STATE["session"], filmed).astype(np.float16)
    data = io.BytesIO()
    np.save(data, features)
    write_bytes(Path(path), data.getvalue())
