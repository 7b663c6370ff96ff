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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.camera_memory import SCHEMA, CameraMemory, Evidence, learn
from lit_mmpg.data.artefacts import Artefact, Instance
from lit_mmpg.data.cameras import Camera, apply, noise_seed
from lit_mmpg.data.images import ImageFrames
from lit_mmpg.data.reflections import Reflection, middle, reflect
from lit_mmpg.data.vision import FrameEncoder, open_graph, run_graph
from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import working
from lit_mmpg.launcher import end_with
from lit_mmpg.maps import PixelMaps, Scene, undo
from lit_mmpg.records import FrameSource
from lit_mmpg.writing import write_bytes

_log = logging.getLogger(__name__)

FILMING_VERSION = 1
"""Raise it when files of an older version must not be reused."""
LEAST_ALIKE, CLEAN_SHARE = 0.4, 0.02
"""Mean correlation of cameras that are taken for one model, and share of clean ones that are taken for a known one."""


@dataclass(frozen=True)
class Shot:
    """What one camera films.

    Attributes:
        camera: The camera.
        seed: Seed of its noise.
        clips: Ids of the clips.
        reflection: What is mirrored in the glass before it; none: there is no glass.
        artefact: What its camera model has in front of every scene; none: nothing.
        memory: File of a memory of camera models (:func:`keep_memory`), by which frames are corrected; blank: they stay
            as they were taken.
        history: Clips by which the memory recognises the camera; none: it is told the true artefact.
    """

    camera: Camera
    seed: int
    clips: tuple[str, ...]
    reflection: Reflection | None = None
    artefact: Artefact | None = None
    memory: str = ""
    history: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """True where the clips pass unchanged."""
        return self.camera.is_identity and self.reflection is None and self.artefact is None and not self.memory

    def describe(self) -> dict[str, str]:
        """What happens to the clips, for people."""
        glass = {} if self.reflection is None else {"reflection": self.reflection.describe()}
        glass |= {} if self.artefact is None else {"camera model": self.artefact.model}
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
    missing = [(shots[i], path) for i, path in paths.items() if not _is_whole(path)]
    # Several devices may be one and the same camera.
    missing = list({path: (shot, path) for shot, path in missing}.values())
    if missing:
        # All clips, not only those that are missing now: one file of pixels then serves every later extraction.
        pixels = _unpack(
            images, sorted({clip for shot in shots.values() for clip in _sources(shot)}), cache_dir, fingerprint
        )
        _work(missing, pixels, str(encoder.prepare()), workers or len(os.sched_getaffinity(0)))
    return paths


def _is_whole(path: Path) -> bool:
    """Whether an array is on the disk; what was cut short is made again."""
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return True


def _digest(shot: Shot, images: ImageFrames, encoder: FrameEncoder, fingerprint: str) -> str:
    lengths = [images.num_frames(clip) for clip in shot.clips]
    content = [FILMING_VERSION, fingerprint, encoder.digest, asdict(shot.camera), shot.seed, shot.clips, lengths]
    if shot.reflection is not None:
        content += [asdict(shot.reflection), images.num_frames(shot.reflection.clip)]
    if shot.artefact is not None:
        content += [asdict(shot.artefact)]
    if shot.memory:
        content += [Path(shot.memory).name, shot.history]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _sources(shot: Shot) -> tuple[str, ...]:
    """Clips whose pixels are needed."""
    mirrored = () if shot.reflection is None else (shot.reflection.clip,)
    scene = () if shot.artefact is None or not shot.artefact.scene else (shot.artefact.scene,)
    return (*shot.clips, *mirrored, *scene, *shot.history)


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
    if not _is_whole(path):
        _log.info("decoding the frames of %d clips once", len(clips))
        partial, size = path.with_suffix(f".{os.getpid()}"), None
        try:
            # Not through a memory map, with which a full disk ends the process by a signal.
            with working("decoding frames", len(clips), "clips") as work, partial.open("wb") as file:
                for clip in clips:
                    frames = images.pixels(clip)
                    if size is None:
                        size = frames.shape[1:]
                        header = {"descr": "|u1", "fortran_order": False, "shape": (ends[-1], *size)}
                        np.lib.format.write_array_header_1_0(file, header)
                    if frames.shape[1:] != size:
                        raise UserError(f"{images.path}: the frames of '{clip}' have another size; resize all to one")
                    file.write(frames.tobytes())
                    work.advance()
            partial.replace(path)
        except OSError as error:
            error.filename = error.filename or str(path)
            raise
        finally:
            partial.unlink(missing_ok=True)
    return _Pixels(str(path), lengths)


def _work(jobs: Sequence[tuple[Shot, Path]], pixels: _Pixels, graph: str, workers: int) -> None:
    with (
        working("filming and encoding", len(jobs), "cameras") as work,
        ProcessPoolExecutor(workers, get_context("spawn"), _begin, (pixels, graph, os.getpid())) as pool,
    ):
        try:
            for future in as_completed([pool.submit(_film_one, shot, str(path)) for shot, path in jobs]):
                future.result()
                work.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else all other cameras would be filmed first
            raise


_STATE: dict[str, Any] = {}
"""Of one worker process: its decoded frames and its encoder."""


def _begin(pixels: _Pixels, graph: str, parent: int) -> None:
    from threadpoolctl import threadpool_limits

    end_with(parent)  # workers of a killed run would wait for work for ever
    threadpool_limits(1)  # idle BLAS threads that spin cost more than they bring: there is one process for each core
    frames = FrameSource(np.load(pixels.path, mmap_mode="r"), pixels.lengths)
    _STATE.update(frames=frames, session=open_graph(graph))


def _instance(shot: Shot, pixels: Callable[[str], np.ndarray]) -> Instance | None:
    """What the camera model has in front of the scene, drawn."""
    if shot.artefact is None:
        return None
    scene = middle(pixels(shot.artefact.scene)) if shot.artefact.scene else None
    height, width = pixels(shot.clips[0]).shape[-2:]
    return shot.artefact.instance(height, width, shot.seed, scene)


@lru_cache(maxsize=1)
def _memory(path: str) -> CameraMemory:
    """A memory, read once in each process: all cameras are recognised by the same one."""
    return CameraMemory.load(path)


def _taken(shot: Shot, pixels: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """What the camera makes of a clip."""
    instance = _instance(shot, pixels)

    def seen(clip: str) -> np.ndarray:
        frames = pixels(clip)
        if shot.reflection is not None:
            frames = reflect(shot.reflection, frames, middle(pixels(shot.reflection.clip)))
        if instance is not None:
            return instance.film(frames, clip, shot.seed, shot.camera)
        return apply(shot.camera, frames, noise_seed(shot.seed, clip))

    return seen


def _corrected(shot: Shot, pixels: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """What the camera makes of a clip, corrected by what the memory answers."""
    seen, memory, correction = _taken(shot, pixels), _memory(shot.memory), None
    if shot.history:
        gradient = PixelMaps.of(np.stack([middle(seen(clip)) for clip in shot.history])).gradient
        _, correction = memory.correct(gradient, memory.gate(len(shot.history)))
    elif (instance := _instance(shot, pixels)) is not None:
        opacity, light = instance.maps()
        correction = undo(opacity, 255 * light, memory.scene, 1.0)
    return seen if correction is None else lambda clip: correction(seen(clip))


def keep_memory(
    images: ImageFrames, shots: Sequence[Shot], clean: Sequence[str], cache_dir: Path, fingerprint: str
) -> Path:
    """A memory of camera models that is learnt from what some cameras film, kept on the disk.

    Of whose models the cameras are is not used. The clips ``clean`` show how clean frames look; ``fingerprint`` is
    the digest of the content of ``images``.
    """
    content = [SCHEMA, fingerprint, sorted(clean)]
    content += [[shot.clips, shot.seed, asdict(shot.camera), shot.artefact and asdict(shot.artefact)] for shot in shots]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_dir / f"memory-{digest}.safetensors"
    with suppress(UserError):  # none, or a damaged one
        CameraMemory.load(path)
        return path
    cache_dir.mkdir(parents=True, exist_ok=True)
    kept = _unpack(images, sorted({*clean, *(c for shot in shots for c in _sources(shot))}), cache_dir, fingerprint)
    frames = FrameSource(np.load(kept.path, mmap_mode="r"), kept.lengths)
    ordinary = np.stack([middle(frames.frames(clip)) for clip in sorted(clean)])
    memory = CameraMemory.empty(Scene.of(ordinary))
    evidence = []
    with working("looking at cameras", len(shots), "cameras") as work:
        for shot in shots:
            seen = _taken(shot, lambda clip: np.asarray(frames.frames(clip)))
            maps = PixelMaps.of(np.stack([middle(seen(clip)) for clip in shot.clips]))
            evidence.append(Evidence.uploaded(maps, memory.scene))
            work.advance()
    with working("comparing cameras"):
        memory, groups = learn(memory, evidence, LEAST_ALIKE)
        memory.with_gates(ordinary, CLEAN_SHARE).save(path)
    _log.info("a memory of %d camera models, learnt from %d cameras", len(groups), len(shots))
    return path


def _film_one(shot: Shot, path: str) -> None:
    def pixels(clip: str) -> np.ndarray:
        return np.asarray(_STATE["frames"].frames(clip))

    shown = (_corrected if shot.memory else _taken)(shot, pixels)
    filmed = np.concatenate([shown(clip) for clip in shot.clips])
    features = run_graph(_STATE["session"], filmed).astype(np.float16)
    data = io.BytesIO()
    np.save(data, features)
    write_bytes(Path(path), data.getvalue())
