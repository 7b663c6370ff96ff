"""Video data whose devices are cameras: every device films clips through a simulated camera of its own.

Training cameras film a few training clips each and there are many of them: a hypernetwork only generalises to new
devices when it has seen many. Unseen cameras film every validation or test clip, so that all are judged by the same
questions; what they have seen before are validation clips. One family of corruptions can be kept out of training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_mmpg.data.artefacts import FAMILIES as ARTEFACTS
from lit_mmpg.data.artefacts import TEST, TUNING, Artefact
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.cameras import FAMILIES, Camera, camera_conditions, sample_camera
from lit_mmpg.data.corpus import Corpus, Device, DeviceTable
from lit_mmpg.data.datamodule import Annotation, VideoData
from lit_mmpg.data.features import finite
from lit_mmpg.data.filming import Shot, film, keep_memory
from lit_mmpg.data.images import ImageFrames
from lit_mmpg.data.readers import fingerprint_files, require_path
from lit_mmpg.data.reflections import STRENGTHS, Reflection, middle
from lit_mmpg.data.vision import FrameEncoder
from lit_mmpg.errors import UserError
from lit_mmpg.records import Clip, FilmedFrames, FrameSource
from lit_mmpg.settings import within

_log = logging.getLogger(__name__)

CLEAN = Camera()
MODELLED = ("models", "correction", "corrected_by")
"""Settings of a population without which it is what it was before there were camera models."""
ASKED = ("correction", "corrected_by", "shared_gallery")
"""Settings that are no matter of the training: a test may choose others."""
UNMEASURED = ("shifted_training", "draw", *ASKED)
"""Settings that leave the cameras of the test devices as they are."""
MEMORY_CAMERAS = 10
"""Training cameras of each model, about, from which a memory is learnt."""


@dataclass(frozen=True)
class CameraPopulation:
    """Which cameras there are and what they film.

    Attributes:
        pool: Training cameras that exist; each draw takes some of them.
        train: Training cameras of one draw.
        draw: Which of the pool a training takes (give another seed another draw).
        seen: Training cameras, the first of the pool, that also film all test clips (group ``test_seen``).
        val: Unseen validation cameras.
        test: Unseen test cameras.
        clean: Devices without any shift that film all test clips (group ``test_clean``).
        clips_per_camera: Training clips that each training camera films.
        history: Validation clips that each test device has seen before.
        max_severity: Cameras take severities 1 to this in turn; 0 makes every camera the identity.
        min_families: Fewest families of corruptions of a camera.
        max_families: Most families of a camera.
        held_out: Family that no training or validation camera has; every fourth test camera has it. Empty: none.
        shifted_training: ``false`` lets the training devices film without their cameras: the clean-trained rivals.
        clean_every: Every so many training cameras, one changes nothing, so that clean frames are not forgotten; 0:
            none.
        reflections: Each camera stands behind glass that mirrors a scene of its own, with severities 1 to this in turn;
            0: no glass. The scenes of training cameras are no scenes of others.
        models: Camera models. Cameras of one model have one artefact in common (:mod:`lit_mmpg.data.artefacts`), each
            at a strength and place of its own, which differ more among unseen cameras; every fourth of those is of a
            model that no training camera is of. 0: no artefacts.
        correction: What is done to frames that are asked about before they are encoded. ``memory``: a memory of camera
            models, learnt from what training cameras upload, recognises each camera by its earlier clips; ``exact``:
            an oracle undoes the true artefact. Contexts stay as they were taken.
        corrected_by: Earlier clips C by which the memory recognises a camera.
        shared_gallery: Each clip that is asked about is filmed by one camera of its group, and a text is ranked among
            the clips of all of them. ``false``: every camera films all clips, and a text is ranked among those of its
            own.
        seed: Seed of the population.
    """

    pool: int = 1280
    train: int = 1024
    draw: int = 0
    seen: int = 10
    val: int = 16
    test: int = 40
    clean: int = 8
    clips_per_camera: int = 24
    history: int = 64
    max_severity: int = 5
    min_families: int = 2
    max_families: int = 4
    held_out: str = "compression"
    shifted_training: bool = True
    clean_every: int = 16
    reflections: int = 0
    models: int = 0
    correction: Literal["none", "memory", "exact"] = "none"
    corrected_by: int = 16
    shared_gallery: bool = False
    seed: int = 0

    def check(self) -> None:
        """Check the settings.

        Raises:
            UserError: If one is out of range.
        """
        counts = ("pool", "train", "val", "test", "clips_per_camera", "history", "min_families", "corrected_by")
        within("data.cameras.", 1, **{name: getattr(self, name) for name in counts})
        within("data.cameras.", 0, models=self.models)
        if not 0 <= self.seen <= self.train <= self.pool:
            raise UserError(
                f"data.cameras: seen {self.seen}, train {self.train} and pool {self.pool} must not fall in that order"
            )
        if self.held_out and self.held_out not in FAMILIES:
            raise UserError(f"data.cameras.held_out is '{self.held_out}'; choose one of {', '.join(FAMILIES)} or ''")
        most = len(FAMILIES) - bool(self.held_out)
        if not self.min_families <= self.max_families <= most:
            raise UserError(
                f"data.cameras: min_families {self.min_families} and max_families {self.max_families} must be in order "
                f"and at most {most}"
            )
        if self.correction != "none" and not self.models:
            raise UserError(
                f"data.cameras.correction is {self.correction} without camera models; set data.cameras.models, or none"
            )
        for name in ("max_severity", "reflections"):
            if getattr(self, name) not in range(6):
                raise UserError(f"data.cameras.{name} is {getattr(self, name)}; it must be 0 to 5")

    def camera(self, group: str, index: int) -> Camera:
        """Camera ``index`` of a group; the same whatever the other settings of the population are."""
        if self._is_clean(group, index) or not self.max_severity:
            return CLEAN
        rng = np.random.default_rng([self.seed, zlib.crc32(group.encode()), index])
        known = [family for family in FAMILIES if family != self.held_out]
        count = int(rng.integers(self.min_families, self.max_families + 1))
        chosen = rng.permutation(known)[:count].tolist()
        if self.held_out and group == "test" and index % 4 == 3:
            chosen[0] = self.held_out
        return sample_camera(rng, 1 + index % self.max_severity, chosen)

    def scenes(self, clips: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Training clips that are mirrored before training cameras, and those that are before all others."""
        order = np.random.default_rng([self.seed, zlib.crc32(b"scenes")]).permutation(sorted(clips))
        return order[: len(order) // 2], order[len(order) // 2 :]

    def reflection(self, group: str, index: int, scenes: np.ndarray) -> Reflection | None:
        """What is mirrored in the glass before camera ``index`` of a group (``train``, ``val`` or ``test``).

        ``scenes`` are those of the group, of :meth:`scenes`.
        """
        if self._is_clean(group, index) or not self.reflections:
            return None
        rng = np.random.default_rng([self.seed, zlib.crc32(f"reflection {group}".encode()), index])
        return Reflection(str(rng.choice(scenes)), STRENGTHS[index % self.reflections])

    def artefact(self, group: str, index: int, scenes: np.ndarray) -> Artefact | None:
        """What the model of camera ``index`` of a group (``train``, ``val`` or ``test``) has in front of every scene.

        ``scenes`` are those of the training cameras, of :meth:`scenes`.
        """
        if self._is_clean(group, index) or not self.models:
            return None
        number = index % self.models
        if group != "train" and index % 4 == 3:
            number = self.models + index // 4 + (self.val if group == "test" else 0)
        family = ARTEFACTS[number % len(ARTEFACTS)]
        rng = np.random.default_rng([self.seed, zlib.crc32(f"artefact {group}".encode()), index])
        placement = (TUNING if group == "train" else TEST).draw(rng)
        scene = str(scenes[number % len(scenes)]) if family == "glass" else ""
        return Artefact(f"{family}{number:03d}", family, placement, scene)

    def recipe(self) -> dict[str, Any]:
        """The settings, as a device table and a checkpoint keep them."""
        recipe: dict[str, Any] = {"kind": "cameras", **asdict(self)}
        if not self.reflections:
            del recipe["reflections"]  # a population without glass is the one that it was before there was any
        if not self.models:
            recipe = {name: value for name, value in recipe.items() if name not in MODELLED}
        if not self.shared_gallery:
            del recipe["shared_gallery"]
        return recipe

    def dealt(self, group: str, clips: Sequence[str], index: int, count: int) -> list[str]:
        """The clips that camera ``index`` of the ``count`` in a group is asked about: all, or its share of them."""
        if not self.shared_gallery:
            return list(clips)
        rng = np.random.default_rng([self.seed, zlib.crc32(f"gallery {group}".encode())])
        return [clips[i] for i in sorted(rng.permutation(len(clips))[index::count])]

    def _is_clean(self, group: str, index: int) -> bool:
        return bool(group == "train" and self.clean_every and index % self.clean_every == self.clean_every - 1)


@dataclass(frozen=True)
class _Plan:
    """Devices, what each films, and which of it is asked and known."""

    table: DeviceTable
    shots: dict[int, Shot]


def plan_cameras(clips: Sequence[Clip], population: CameraPopulation, training: bool = True) -> _Plan:
    """Deal clips to cameras.

    Where there are no training clips, glass mirrors validation clips, or where there are none of these test clips; a
    camera that mirrors a clip does not film it. Without validation clips, what a test camera has seen before are other
    test clips.

    Args:
        clips: All clips.
        population: The cameras.
        training: Whether there are training cameras; ``False`` for other data than a checkpoint was trained on.

    Raises:
        UserError: If a setting is out of range, or a split has too few clips.
    """
    population.check()
    names = {split: [clip.id for clip in clips if clip.split == split] for split in ("train", "val", "test")}
    scenes_of_train, scenes_of_others = population.scenes(names["train"])
    if not training:
        names["train"] = []
        names["val"] = names["val"] if len(names["val"]) > 1 else []  # too few to be asked and known
    if len(scenes_of_others) == 0:
        scenes_of_others = np.array(sorted(names["val"] or names["test"]))
    if population.models and len(scenes_of_train) == 0:
        raise UserError("data.cameras.models needs training clips; add some, or set it to 0")
    if population.reflections and (len(scenes_of_others) < 2 or (training and len(scenes_of_train) == 0)):
        raise UserError(
            f"data.cameras.reflections needs {'training' if training else 'at least two'} clips as scenes; add some"
            + (", or set it to 0" if training else "")
        )
    needed = {"train": population.clips_per_camera, "val": 2}
    for split, count in needed.items():
        if names[split] and len(names[split]) < count:
            raise UserError(
                f"data.cameras: split '{split}' has {len(names[split])} clips, {count} are needed; add clips, or lower "
                "data.cameras.clips_per_camera"
            )
    if population.shared_gallery:
        for group, asked_clips, count in (
            ("val", len(names["val"]) - len(names["val"]) // 2, population.val),
            *((name, len(names["test"]), getattr(population, name)) for name in ("seen", "test", "clean")),
        ):
            if 0 < asked_clips < count:
                raise UserError(
                    f"data.cameras.shared_gallery deals {asked_clips} clips to {count} cameras; lower "
                    f"data.cameras.{group}, or set it to false"
                )
    devices: list[Device] = []
    shots: dict[int, Shot] = {}
    timelines: dict[str, dict[int, tuple[str, ...]]] = {}
    histories: dict[str, dict[int, tuple[str, ...]]] = {}

    def rng_of(*key: str | int) -> np.random.Generator:
        return np.random.default_rng([population.seed, *(zlib.crc32(str(part).encode()) for part in key)])

    def reflection_of(group: str, index: int) -> Reflection | None:
        return population.reflection(group, index, scenes_of_train if group == "train" else scenes_of_others)

    def without_scene(group: str, index: int, films: Sequence[str]) -> tuple[str, ...]:
        mirrored = None if group == "clean" else reflection_of(group, index)
        return tuple(clip for clip in films if mirrored is None or clip != mirrored.clip)

    def add(name: str, group: str, films: Sequence[str], index: int) -> int:
        camera, reflection, artefact = CLEAN, None, None
        if group != "clean":
            camera, reflection = population.camera(group, index), reflection_of(group, index)
            artefact = population.artefact(group, index, scenes_of_train)
        shot = Shot(camera, population.seed, tuple(films), reflection, artefact)
        devices.append(Device(name, shot.describe(), -1 if shot.clean else index))
        shots[len(devices) - 1] = shot
        return len(devices) - 1

    if names["train"]:
        timelines["train"] = {}
        order: list[str] = []
        chosen = _draw_training(population)
        dealing = rng_of("deal")
        for i in range(population.pool):
            # Every training clip is filmed equally often: one permutation after the other is dealt out.
            while len(order) < population.clips_per_camera:
                order += dealing.permutation(names["train"]).tolist()
            films, order = order[: population.clips_per_camera], order[population.clips_per_camera :]
            if i not in chosen:
                continue
            films = list(dict.fromkeys(films))
            extra = population.dealt("seen", names["test"], i, population.seen) if i < population.seen else []
            group = "train" if population.shifted_training else "clean"
            device = add(f"train{i:04d}", group, [*films, *extra], i)
            timelines["train"][device] = tuple(films)
            if extra and population.shifted_training:
                timelines.setdefault("test_seen", {})[device] = tuple(extra)
    if names["val"]:
        half = len(names["val"]) // 2
        shuffled = rng_of("val halves").permutation(names["val"]).tolist()
        seen, asked = shuffled[:half], shuffled[half:]
        timelines["val"], histories["val"] = {}, {}
        for i in range(population.val):
            mine = population.dealt("val", asked, i, population.val)
            own, known = (without_scene("val", i, part) for part in (mine, seen))
            device = add(f"val{i:03d}", "val", [*known, *own], i)
            timelines["val"][device] = own
            histories["val"][device] = tuple(rng_of("val", i).permutation(known)[: population.history].tolist())
    if names["test"]:
        for group, prefix, count in (
            ("test_unseen", "test", population.test),
            ("test_clean", "clean", population.clean),
        ):
            for i in range(count):
                mine = population.dealt(prefix, names["test"], i, count)
                own, known = (without_scene(prefix, i, part) for part in (mine, names["val"]))
                history = tuple(rng_of(prefix, i).permutation(known)[: population.history].tolist())
                device = add(f"{prefix}{i:03d}", prefix, [*own, *history], i)
                timelines.setdefault(group, {})[device] = own
                if names["val"]:
                    histories.setdefault(group, {})[device] = history
    return _Plan(DeviceTable(tuple(devices), timelines, population.recipe(), histories), shots)


def _draw_training(population: CameraPopulation) -> set[int]:
    """Indices of the training cameras of this draw; the seen ones are always among them."""
    rest = np.arange(population.seen, population.pool)
    rng = np.random.default_rng([population.seed, 7, population.draw])
    drawn = rng.permutation(rest)[: population.train - population.seen]
    return {*range(population.seen), *drawn.tolist()}


class CameraClipsData(VideoData):
    """Clips of a data set as a population of simulated cameras sees them, through a pretrained frame encoder.

    The first use films and encodes everything once (progress is shown); later uses read the cache.

    Args:
        root: Folder of the data set.
        frames: Frames as images, relative to the root: a folder or zip of ``CLIP/FRAME.jpg``.
        encoder: Folder of a pretrained vision encoder (transformers layout).
        cameras: The population.
        image_size: Height and width at which frames are encoded, pixels.
        exclude: Ids of clips to leave out (for example test clips with near-duplicates in the training split).
        cache_dir: Where encoded frames are kept; ``None`` means ``outputs/cache/cameras``.
        clips: As for :class:`VideoData`, like all further arguments.
    """

    def __init__(
        self,
        root: str,
        frames: str,
        encoder: str,
        cameras: CameraPopulation = CameraPopulation(),
        image_size: int = 160,
        exclude: list[str] | None = None,
        cache_dir: str | None = None,
        clips: str | None = None,
        questions: list[Annotation] | None = None,
        captions: list[Annotation] | None = None,
        drop_missing: bool = False,
        task: str = "retrieval",
        batch: BatchShape = BatchShape(),
        max_answers: int = 1000,
        min_count: int = 2,
        max_vocabulary: int = 20_000,
    ) -> None:
        super().__init__(
            root, frames, clips, questions, captions, drop_missing=drop_missing, task=task, batch=batch,
            max_answers=max_answers, min_count=min_count, max_vocabulary=max_vocabulary,
        )  # fmt: skip
        self.encoder, self.image_size = Path(os.path.expanduser(encoder)), image_size
        self.cameras, self.exclude = cameras, set(exclude or [])
        self.cache_dir = Path(cache_dir or "outputs/cache/cameras")

    gallery: Literal["mixed", "device"] = "device"

    def build_corpus(self) -> Corpus:
        """Read the files, deal the cameras, film and encode what is not in the cache."""
        require_path(self.root, "data.root")
        archive = self.files.at(self.features)
        images = ImageFrames(archive, self.batch.max_frames)
        encoder = FrameEncoder(self.encoder, self.image_size, self.cache_dir)
        records = self.files.read(images, self._needed())
        clips = [clip for clip in records.clips if clip.id not in self.exclude]
        kept = {clip.id for clip in clips}
        population = self._population()
        self.gallery = "mixed" if population.shared_gallery else "device"
        if population.correction != "none" and self.batch.own_statistics:
            raise UserError(
                "data.batch.own_statistics are those of frames as they were taken; set it to 0, or "
                "data.cameras.correction to none"
            )
        fingerprint = self._fingerprint(records.files | {archive}, encoder, population)
        # Other data than a checkpoint was trained on have none of its training cameras, so nothing is filmed by them.
        training = self._trained is None or self._trained["fingerprint"] == fingerprint
        plan = plan_cameras(clips, population, training)
        if population.reflections and not any(clip.split == "train" for clip in clips):
            _log.info("no training clips: what the glass mirrors are clips of this data")
        content = fingerprint_files([archive])
        every = {-1: Shot(CLEAN, 0, tuple(sorted(kept)))}
        shifted = {device: shot for device, shot in plan.shots.items() if not shot.clean}
        paths = film(images, encoder, {**shifted, **every}, self.cache_dir, content)
        corrected = self._corrected(images, plan, population, kept, content)
        again = film(images, encoder, corrected, self.cache_dir, content)
        lengths = {clip: images.num_frames(clip) for clip in kept}
        return Corpus(
            clips=clips,
            frames=(clean := _load(paths.pop(-1), every[-1], lengths)),
            questions=[q for q in records.questions if q.clip in kept],
            captions=[c for c in records.captions if c.clip in kept],
            devices=plan.table,
            fingerprint=fingerprint,
            clean=clean,
            filmed=FilmedFrames(
                {i: partial(_load, path, plan.shots[i], lengths, "r") for i, path in paths.items()}, clean
            ),
            corrected=FilmedFrames(
                {i: partial(_load, path, plan.shots[i], lengths, "r") for i, path in again.items()}, clean
            )
            if again
            else None,
            facts={"frame encoder": f"{self.encoder.name} at {self.image_size} px"},
            conditions=_conditions(plan, clean),
        )

    def _corrected(
        self, images: ImageFrames, plan: _Plan, population: CameraPopulation, clips: set[str], content: str
    ) -> dict[int, Shot]:
        """Device -> its shot with a memory.

        Training cameras are recognised by clips that they film. Those that the memory is learnt from stay as they are:
        they are corrected better than an unseen camera is, and a model trained on that alone would expect it.
        """
        if population.correction == "none":
            return {}
        training = [device for device in plan.table.timelines.get("train", {}) if plan.shots[device].artefact]
        if not training:
            raise UserError(
                f"{self._where()}: a memory of camera models is learnt from training cameras, and this data has none; "
                "set data.cameras.correction to none"
            )
        told = training[: MEMORY_CAMERAS * population.models]
        learnt = [plan.shots[device] for device in told]
        learnt = [replace(shot, clips=shot.clips[: population.clips_per_camera]) for shot in learnt]
        clean = sorted({clip for shot in learnt for clip in shot.clips})
        path = str(keep_memory(images, learnt, clean, self.cache_dir, content))
        exact, count = population.correction == "exact", population.corrected_by
        known = {device: clips for rows in plan.table.histories.values() for device, clips in rows.items()}
        known = {**plan.table.timelines.get("train", {}), **known}
        return {
            device: replace(shot, memory=path, history=() if exact else tuple(known[device][-count:]))
            for device, shot in plan.shots.items()
            if device in known and (exact or device not in told)
        }

    def _population(self) -> CameraPopulation:
        if self._trained is None:
            return self.cameras
        recipe = dict(self._trained["recipe"])
        known = {entry.name for entry in fields(CameraPopulation)}
        if recipe.pop("kind", None) != "cameras" or {*recipe, "reflections", *MODELLED, *ASKED} != known:
            raise UserError(
                f"{self._where()}: the checkpoint was trained on data whose devices are no cameras; name data of its "
                "kind (data.class_path), or train on this data"
            )
        recipe |= {name: getattr(self.cameras, name) for name in ASKED}
        return CameraPopulation(**recipe)

    def _fingerprint(self, files: set[Path], encoder: FrameEncoder, population: CameraPopulation) -> str:
        # The clean-trained rivals are measured on the very same test devices: their training is no other data.
        recipe = {key: value for key, value in population.recipe().items() if key not in UNMEASURED}
        content = [fingerprint_files(files), encoder.digest, sorted(self.exclude), recipe]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _load(path: Path, shot: Shot, lengths: Mapping[str, int], mode: Literal["r"] | None = None) -> FrameSource:
    """Features of the clips of a shot; with ``mode`` they stay on the disk."""
    values = np.load(path, mmap_mode=mode, allow_pickle=False)
    source = FrameSource(values, {clip: lengths[clip] for clip in shot.clips})
    return source if mode else finite(source, path)


def _conditions(plan: _Plan, clean: FrameSource) -> np.ndarray:
    """What an oracle is told of each device: settings of its camera, and behind glass what the glass mirrors."""
    shots = [plan.shots[device] for device in range(len(plan.table.devices))]
    settings = np.stack([camera_conditions(shot.camera) for shot in shots])
    if all(shot.reflection is None for shot in shots):
        return settings
    width = clean.frames(shots[0].clips[0]).shape[1]
    scenes = np.zeros((len(shots), 1 + width), np.float32)
    for row, shot in zip(scenes, shots, strict=True):
        if shot.reflection is not None:
            row[0] = 3 * shot.reflection.share
            row[1:] = row[0] * middle(clean.frames(shot.reflection.clip))
    return np.concatenate([settings, scenes], 1)
