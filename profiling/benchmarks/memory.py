"""What a memory of camera models wins, in shares of the gap to the exact correction: a pilot on validation clips.

    python -m lit_mmpg.profiling.benchmarks.memory --settings profiling/benchmarks/memory_pilot.yaml --output FILE.json

For each seed a fleet of cameras is drawn (:mod:`.memory_fleet`). A memory is learnt from its training devices in
three ways; each asked device shows C earlier frames and gets gain and bias images for the input of its frozen encoder.
The static model in front of which all rows stand is trained on the same artefacts of the same camera models: a residual
network that brings features back to those of paired clean frames, and a ridge to TF-IDF captions. The metric is the
mean log-rank of the clip that a caption describes, as its device sees it, among clean ones of all other asked clips.
Beside it stand the share of right answers to open-ended questions, and the squared distance of the encoder's features
to those of the clean frame, which varies far less.

Further rows: the memory as a device holds it that downloaded it in so many KiB (``held``), from partly wrong uploads
(``poisoned``), through the link's messages (``coded``), by one frame of each scene where histories are of few places
(``scenes``); features standardised by the device's own moments (``own_statistics``); ``restoration`` are static
networks on frames, trained on the same artefacts of the same models, which may learn their maps by heart. ``moved`` are
input layers that a device moves by its own frames: fine-tuning on their captions, least entropy (Tent), moments of
features, and a search by forward passes (FOA); they are computed where they are named. ``--only`` computes the rows
whose names begin so.

What fleet-free rows may choose is chosen by the features of another fleet (seed 0), for each C, on clips of the
histories. The test split is read where the settings name it, and not otherwise. Every row of a seed is a file, so that
a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from lit_mmpg import camera_memory as memory
from lit_mmpg import maps
from lit_mmpg.camera_memory import CameraMemory, Evidence
from lit_mmpg.data import artefacts
from lit_mmpg.data.images import ImageFrames
from lit_mmpg.data.readers import Names, read_captions, read_questions, resolve_ids
from lit_mmpg.data.readers.clip_list import read_clips
from lit_mmpg.data.readers.files import fingerprint_files
from lit_mmpg.data.vision import FrameEncoder
from lit_mmpg.device.closed_form import fit_tfidf
from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import tell, working
from lit_mmpg.link.camera import (
    CONTRAST,
    CameraAnswer,
    CameraQuery,
    decode_pictures,
    encode_pictures,
)
from lit_mmpg.maps import PixelMaps, Scene, gradients, opposed, undo, unopposed
from lit_mmpg.metrics.statistics import clustered_mean
from lit_mmpg.profiling.benchmarks import memory_fleet, memory_rivals
from lit_mmpg.profiling.benchmarks.memory_fleet import Cameras, FleetConfig, FleetDevice, plan_fleet
from lit_mmpg.profiling.benchmarks.memory_models import (
    Answering,
    Head,
    Movable,
    Restorer,
    log_ranks,
    train_answering,
    train_head,
    train_restorer,
)
from lit_mmpg.records import Question
from lit_mmpg.results import result, write_result
from lit_mmpg.runtime.camera import SAME_SCENE
from lit_mmpg.runtime.camera import scenes as scenes_of
from lit_mmpg.tracking.address import git_commit
from lit_mmpg.vision import load_vision_model
from lit_mmpg.writing import write_bytes, write_text

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

CELLS_VERSION = 6
"""Raise it when files of rows of an older version must not be reused."""
COUNTS = (1, 4, 16, 64)
"""Numbers C of earlier frames."""
LEAST = 0.4
"""Mean correlation with which training devices are taken for one model."""
GATE_SHARE, PSEUDO_DEVICES = 0.02, 100
"""Share of clean devices that pass a gate, and clean devices, made of training clips, from which it is set."""
ATTACKED = 100
"""Most models of a memory that are attacked."""
HELD_KIB, LEAST_HELD, MOST_HELD = (64, 256, 1024, 4096), 500, 12_000
"""What a device may hold the memory in, coded like the link's pictures; bytes below which nothing of a model is left,
and above which it is complete."""
POISONED = (0.1, 0.3)
"""Shares of training devices that upload what is wrong."""
RESTORERS = {"restoration_1mib": 26, "restoration_4mib": 52}
"""Channels of the restoration networks, by what their weights take."""
OPTIONS: dict[str, dict[str, tuple[float, ...]]] = {
    "minimum": {"share": (0.1, 0.25, 0.5)},
    "median_gradients": {"share": (0.25, 0.5, 0.75, 1.0)},
    "attenuation_scatter": {"prior": (4, 16, 64, 256)},
    "extremes": {"prior": (4, 16, 64, 256)},
    "own_statistics": {"prior": (4, 16, 64, 256)},
    "moved_finetune": {"rate": (0.003, 0.01, 0.03, 0.1)},
    "moved_entropy": {"rate": (0.003, 0.01, 0.03, 0.1)},
    "moved_moments": {"rate": (0.003, 0.01, 0.03, 0.1)},
    "moved_foa": {"step": (0.03, 0.1, 0.3)},
}
"""What fleet-free rows may choose."""
MOVED, MOVED_COUNT, MOVED_TUNED = "moved", 16, 10
"""Rows whose devices move the input layer themselves: how their names begin, their only C, and one in how many devices
they are tuned on. They take ten minutes each, so they are computed only where they are named."""
LITTLE = 0.1
"""Where the exact correction brings features nearer by no more than this share, no share of that is shown."""
LEARNT = ("told", "paired", "uploads")
ADDED = "uploads_added"
"""The memory from uploads to which the models were added as they are after a drift."""
POISONINGS = {f"poisoned_{100 * share:.0f}": share for share in POISONED}


@dataclass(frozen=True)
class Settings:
    """Where the frames are, and what is done with them.

    Attributes:
        root: Folder of the data set.
        clips: Clip list, relative to it.
        captions: Captions (layout ``captions_csv``).
        frames: Frames as images, a folder or zip.
        questions: Open-ended questions (layout ``qa_csv``).
        encoder: Folder of the frame encoder.
        image_size: Height and width at which it sees frames, pixels.
        asked: Split whose clips are asked.
        asked_of_training: Training clips that are asked as well, and used for nothing else.
        history_of_training: Training clips that are the asked devices' histories; 0: the validation clips are.
        fleet: Settings of the fleet.
    """

    root: str
    clips: str
    captions: str
    frames: str
    questions: str
    encoder: str
    image_size: int = 128
    asked: str = "val"
    asked_of_training: int = 0
    history_of_training: int = 0
    fleet: Mapping[str, Any] = ()  # type: ignore[assignment]

    @classmethod
    def read(cls, path: str | Path) -> Settings:
        """Read a file of settings.

        Raises:
            UserError: If it is missing or no YAML, or a setting is unknown, missing or wrong.
        """
        try:
            given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(
                f"{path} is no readable YAML ({error}); name a file such as profiling/benchmarks/memory_pilot.yaml"
            ) from error
        known = {entry.name: entry for entry in fields(cls)}
        if not isinstance(given, dict) or set(given) - set(known):
            unknown = sorted(set(given) - set(known)) if isinstance(given, dict) else [type(given).__name__]
            raise UserError(f"{path}: {', '.join(unknown)} is no setting; there are {', '.join(known)}")
        for name in ("root", "clips", "captions", "frames", "questions", "encoder"):
            if not isinstance(given.get(name), str):
                raise UserError(f"{path}: {name} is {given.get(name)!r}; name a file or folder")
            given[name] = os.path.expandvars(given[name])
        for name in ("image_size", "asked_of_training", "history_of_training"):
            value = given.get(name, known[name].default)
            if not isinstance(value, int) or value < 0:
                raise UserError(f"{path}: {name} is {value!r}; set it to a whole number, 0 or more")
        settings = cls(**{**given, "fleet": given.get("fleet") or {}})
        if settings.asked not in ("val", "test"):
            raise UserError(f"{path}: asked is {settings.asked!r}; set it to val or test")
        if settings.asked == "val" and not settings.history_of_training:
            raise UserError(f"{path}: the validation clips are asked; set history_of_training above 0")
        settings.config(0)
        return settings

    def with_fleet(self, changes: Sequence[str]) -> Settings:
        """The same with other settings of the fleet, each as ``name=value``.

        Raises:
            UserError: If one is no setting, or wrong.
        """
        pairs = [change.partition("=") for change in changes]
        wrong = [change for change, (_, equals, _) in zip(changes, pairs, strict=True) if not equals]
        if wrong:
            raise UserError(f"--fleet {wrong[0]} is no NAME=VALUE, such as models=100")
        settings = replace(self, fleet={**self.fleet, **{name: yaml.safe_load(value) for name, _, value in pairs}})
        settings.config(0)
        return settings

    def config(self, seed: int) -> FleetConfig:
        """The fleet of a seed.

        Raises:
            UserError: If a setting is wrong.
        """
        return FleetConfig.of({**self.fleet, "seed": seed})


class Data:
    """Frames and captions, one frame of each clip.

    Args:
        settings: Where they are.
        folder: Where features are kept.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        root = Path(settings.root)
        self.images = ImageFrames(root / settings.frames, 2)
        there = set(self.images.ids())
        captions: dict[str, str] = {}
        for caption in read_captions("captions_csv", root / settings.captions):
            captions.setdefault(caption.clip, caption.text)
        split_of = {clip.id: clip.split for clip in read_clips(root / settings.clips)}
        usable = sorted(clip for clip in split_of if clip in there and clip in captions)
        by_split = {s: [clip for clip in usable if split_of[clip] == s] for s in ("train", "val", "test")}
        order = np.random.default_rng(0).permutation(by_split["train"]).tolist()
        also, past = settings.asked_of_training, settings.history_of_training
        if also + past >= len(order):
            raise UserError(f"{root}: {len(order)} training clips, {also + past} are set aside; lower the settings")
        self.asked = by_split[settings.asked] + order[:also]
        self.history = order[also : also + past] or by_split["val"]
        self.train = order[also + past :]
        self.captions = captions
        self.questions: dict[str, list[Question]] = {}
        for asked in read_questions("qa_csv", root / settings.questions).values():
            for question in resolve_ids(asked, Names(usable)):
                self.questions.setdefault(question.clip, []).append(question)
        self.encoder = FrameEncoder(settings.encoder, settings.image_size, folder)
        sources = [root / name for name in (settings.frames, settings.captions, settings.clips)]
        sources += sorted((root / settings.questions).glob("*.csv"))
        modules = [Path(str(module.__file__)) for module in (maps, memory, artefacts, memory_fleet, memory_rivals)]
        # Apart: names count from the folder that all files have in common, and a checkout may lie anywhere.
        self.digest = f"{fingerprint_files(sources)} {fingerprint_files(modules)}"
        self._clean_at = folder / f"clean-{hashlib.sha256(f'{self.digest} {self.train}'.encode()).hexdigest()[:16]}.npy"
        tell("decoding frames")
        self.frame = {clip: self.images.pixels(clip)[0] for clip in (*self.train, *self.history, *self.asked)}
        self.height, self.width = next(iter(self.frame.values())).shape[1:]

    @cached_property
    def scene(self) -> Scene:
        """How clean frames look, from the training clips."""
        return Scene.of(self.stack(self.train))

    @cached_property
    def clean(self) -> np.ndarray:
        """Features of the training clips, ``[n, D]``, kept in a file."""
        if not self._clean_at.is_file():
            _save(self._clean_at, self.encode(self.stack(self.train)))
        features: np.ndarray = np.load(self._clean_at)
        return features

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the features of the training clips, ``[D]`` each."""
        return self.clean.mean(0), self.clean.std(0) + 1e-3

    def stack(self, clips: Sequence[str]) -> np.ndarray:
        """``[n, 3, H, W]`` uint8."""
        return np.stack([self.frame[clip] for clip in clips])

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Features ``[n, D]``; tells how far it is."""
        parts = []
        for start in range(0, len(pixels), 64):
            tell("encoding frames", start, len(pixels), "frames")
            parts.append(self.encoder(pixels[start : start + 64]))
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class Told:
    """What a row says of one device beside its correction.

    Attributes:
        correction: What it does; none: frames stay.
        after: What it does to features ``[n, D]``; none: they stay.
        model: Model that it was recognised as, in the fleet's numbering; -1: none.
        upload_bytes: Payload of the coded query; 0 where none was coded.
        download_bytes: Payload of the coded answer.
    """

    correction: Callable[[np.ndarray], np.ndarray] | None = None
    model: int = -1
    upload_bytes: int = 0
    download_bytes: int = 0
    after: Callable[[np.ndarray], np.ndarray] | None = None


Row = Callable[[FleetDevice], Told]


class Population:
    """The fleet of one seed, filmed.

    Args:
        data: Frames.
        config: Settings of the fleet.
        history: Clips of the asked devices' histories; none: those of the data.
        asked: Clips that they are asked about, likewise.
    """

    def __init__(
        self, data: Data, config: FleetConfig, history: Sequence[str] | None = None, asked: Sequence[str] | None = None
    ) -> None:
        self.data, self.seed = data, config.seed
        self.fleet = plan_fleet(config, data.train, history or data.history, asked or data.asked)
        scenes = {clip: data.frame[clip] for clip in self.fleet.scenes if clip}
        self.cameras: Cameras = self.fleet.draw(data.height, data.width, scenes)
        self.clips = [clip for device in self.fleet.asked for clip in device.asked]
        self.device = np.array([i for i, d in enumerate(self.fleet.asked) for _ in d.asked])
        self._maps: dict[tuple[str, int, bool], PixelMaps] = {}
        self._features: dict[str, np.ndarray] = {}

    def taken(self, device: FleetDevice, count: int, later: bool = False) -> np.ndarray:
        """The latest frames of a device's history, ``[C, 3, H, W]``; of a training device, ``later``: after a drift."""
        instance, shots = self.cameras.instance(device, later), []
        for clip, at in device.history[-count:]:
            frames = self.data.frame[clip][None] if at == 0 else self.data.images.pixels(clip)
            shots.append(instance.film(frames, clip, self.seed, device.camera)[at % len(frames)])
        return np.stack(shots)

    def maps(self, device: FleetDevice, count: int, scenes: bool = False) -> PixelMaps:
        """Pixel maps of an asked device: of its latest frames, or of the latest of each scene among them."""
        key = device.name, count, scenes
        if key not in self._maps:
            frames = self.taken(device, count)
            if scenes:
                seen = scenes_of(frames)
                last = [not (seen[i + 1 :] @ seen[i] >= SAME_SCENE).any() for i in range(count)]
                frames = frames[last]
            self._maps[key] = PixelMaps.of(frames)
        return self._maps[key]

    def features(self, device: FleetDevice) -> np.ndarray:
        """Features of a device's history, the latest last, ``[C, D]`` of the largest C."""
        if device.name not in self._features:
            self._features[device.name] = self.data.encoder(self.taken(device, COUNTS[-1]))
        return self._features[device.name]

    def filmed(self, most: int | None = None) -> list[np.ndarray]:
        """What each asked device films of its clips, ``[n, 3, H, W]`` each."""
        return [
            np.concatenate([self.cameras.film(d, clip, self.data.frame[clip][None]) for clip in d.asked[:most]])
            for d in self.fleet.asked
        ]

    def training_pairs(self) -> np.ndarray:
        """Every training clip through the artefact of a training device, ``[n, 3, H, W]``."""
        rng = np.random.default_rng([self.seed, 11])
        chosen = rng.integers(len(self.fleet.training), size=len(self.data.train))
        pairs = zip(chosen, self.data.train, strict=True)
        shots = [self.cameras.film(self.fleet.training[i], clip, self.data.frame[clip][None]) for i, clip in pairs]
        return np.concatenate(shots)

    @cached_property
    def usual(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """C -> mean minimum and maximum of C clean frames."""
        rng, found = np.random.default_rng(5), {}
        for count in COUNTS:
            drawn = [
                self.data.stack(rng.choice(self.data.train, count, replace=False).tolist())
                for _ in range(PSEUDO_DEVICES)
            ]
            low, high = (np.stack([getattr(x, name)(0) for x in drawn]).mean(0) for name in ("min", "max"))
            found[count] = (low.astype(np.float32), high.astype(np.float32))
        return found

    def alone(self, name: str, count: int, options: Mapping[str, float], static: Callable[[], Static]) -> Row:
        """A row that holds nothing from other devices; ``static`` makes the model in front of which it stands."""
        if name == "own_statistics":
            return partial(self._standardised, count, options["prior"])
        if name.startswith(MOVED):
            return partial(self._moved, name, count, next(iter(options.values())), static)
        more = {"usual": self.usual[count]} if name == "extremes" else {}

        def row(device: FleetDevice) -> Told:
            return Told(getattr(memory_rivals, name)(self.maps(device, count), self.data.scene, **more, **options))

        return row

    def _moved(self, name: str, count: int, size: float, static: Callable[[], Static], device: FleetDevice) -> Told:
        """An input layer that the device moves by its latest frames."""
        movable, frames = static().movable, self.taken(device, count)
        if name == "moved_foa":
            return Told(movable.search(frames, size))
        shown = [self.data.captions[clip] for clip, _ in device.history[-count:]]
        own = torch.from_numpy(static().tfidf.transform(shown).toarray()).float()
        losses: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "moved_finetune": partial(movable.surprise, captions=own),
            "moved_entropy": movable.entropy,
            "moved_moments": movable.distance,
        }
        return Told(movable.descend(frames, losses[name], size))

    def _standardised(self, count: int, prior: float, device: FleetDevice) -> Told:
        """Features by the device's own moments, among which the training clips' count as ``prior`` frames."""
        own, (mean, deviation) = self.features(device)[-count:], self.data.moments
        share = count / (count + prior)
        middle = mean + share * (own.mean(0) - mean)
        spread = np.sqrt((1 - share) * deviation**2 + share * np.square(own - middle).mean(0))
        return Told(after=lambda features: (features - middle) * (deviation / spread) + mean)


@dataclass(frozen=True)
class Learnt:
    """A memory, what its models are, and its gates.

    Attributes:
        memory: The memory.
        models: Model of the fleet that most devices of each group are of.
        facts: How well it was learnt.
        gates: (C, coded) -> score that a recognition needs.
        groups: Training devices of each model.
    """

    memory: CameraMemory
    models: tuple[int, ...]
    facts: dict[str, Any]
    gates: dict[tuple[int, bool], float]
    groups: tuple[np.ndarray, ...] = ()

    def row(
        self,
        population: Population,
        count: int,
        gated: bool = True,
        coded: bool = False,
        own: bool = False,
        scenes: bool = False,
    ) -> Row:
        """What the memory answers."""
        residual = memory.own_residual() if own else None

        def row(device: FleetDevice) -> Told:
            seen = population.maps(device, count, scenes)
            gate = self.gates[max(c for c in COUNTS if c <= seen.count), coded] if gated else -np.inf
            query = _sent(seen, device.name) if coded else None
            gradient = seen.gradient if query is None else query.gradient()
            found, correction = self.memory.correct(gradient, gate, seen, residual)
            model = -1 if found is None else self.models[found.model]
            if query is None:
                return Told(correction, model)
            sent = CameraAnswer.encode(query, correction, -1 if found is None else found.model, self.memory.version)
            answer = CameraAnswer.from_bytes(sent.to_bytes())
            return Told(answer.correction(), model, query.payload_bytes, answer.payload_bytes)

        return row


def _sent(seen: PixelMaps, name: str) -> CameraQuery:
    """A query as it arrives."""
    return CameraQuery.from_bytes(CameraQuery.encode(seen.gradient, seen.count, name).to_bytes())


def held(learnt: CameraMemory, most_bytes: int) -> CameraMemory:
    """The memory as a device has it that downloaded each model in so many bytes."""
    shape, steps = (6, *learnt.scene.mean.shape[-2:]), (1.0, 2.0, 2.0, 2.0, 4.0, 4.0)
    models = []
    for change, opacity in zip(learnt.change, learnt.opacity, strict=True):
        pictures = np.concatenate([opposed(change), CONTRAST * opposed(opacity)])
        models.append(decode_pictures(encode_pictures(pictures, steps, most_bytes), shape, steps))
    there = np.stack(models)
    empty = CameraMemory.empty(learnt.scene)
    return empty.with_models(unopposed(there[:, :3]), unopposed(there[:, 3:]) / CONTRAST, learnt.devices.tolist())


def poisoned(evidence: Sequence[Evidence], share: float, seed: int) -> list[Evidence]:
    """The same with wrong uploads of some devices, which still look enough like their models to be counted in.

    Their gradients are their own and, as strong, those of another device; changes have another sign and three times
    the size; what passes is what does not.
    """
    rng = np.random.default_rng([seed, 23])
    wrong = rng.choice(len(evidence), round(share * len(evidence)), replace=False)
    found = list(evidence)
    for i in wrong.tolist():
        own, other = evidence[i], evidence[int(rng.integers(len(evidence)))]
        strength = np.linalg.norm(own.gradient) / max(float(np.linalg.norm(other.gradient)), 1e-9)
        found[i] = Evidence(own.gradient + strength * other.gradient, -3 * own.change, 1 - own.passes)
    return found


def learn_all(population: Population, wanted: Callable[[str], bool]) -> dict[str, Learnt]:
    """The memories of a fleet: learnt in three ways, held by devices, and from partly wrong uploads.

    Args:
        population: The fleet.
        wanted: Whether there are rows whose names begin so.
    """
    data, training = population.data, population.fleet.training
    empty = CameraMemory.empty(data.scene)
    known, spread = population.fleet.config.models, population.fleet.config.training
    usual = (spread.weakest + spread.strongest) / 2  # a memory holds models as the median of their devices shows them
    values = [
        artefacts.Instance(model, artefacts.Placement(usual), data.height, data.width).maps()
        for model in population.cameras.models[:known]
    ]
    opacity = np.stack([o for o, _ in values])
    change = np.stack([255 * b - o * data.scene.mean for o, b in values])
    found = {"told": (empty.with_models(change, opacity, [1] * known), tuple(range(known)), {"models": known})}
    true = np.array([device.model for device in training])

    def filmed(later: bool = False) -> Iterator[tuple[FleetDevice, np.ndarray]]:
        """Each training device with its frames; those of all devices together take too much memory."""
        for at, device in enumerate(training):
            tell("maps of the training devices", at, len(training), "devices")
            yield device, population.taken(device, len(device.history), later)

    def uploaded(seen: np.ndarray) -> Evidence:
        return Evidence.uploaded(PixelMaps.of(seen), data.scene)

    def models_of(groups: Sequence[np.ndarray]) -> tuple[int, ...]:
        """The model that most devices of each group are of."""
        return tuple(int(np.bincount(true[group] + 1).argmax()) - 1 for group in groups)

    uploads: list[Evidence] = []
    paired: list[Evidence] = []
    if any(map(wanted, ("paired", "uploads", *POISONINGS))):
        for device, seen in filmed():
            uploads.append(uploaded(seen))
            if wanted("paired"):
                paired.append(Evidence.paired(seen, data.stack([clip for clip, _ in device.history])))
    ways: dict[str, Callable[[], list[Evidence]]] = {"paired": lambda: paired, "uploads": lambda: uploads}
    members: dict[str, tuple[np.ndarray, ...]] = {}
    for name, share in POISONINGS.items():
        ways[name] = partial(poisoned, uploads, share, population.seed)
    for name, evidence in ways.items():
        if not wanted(name):
            continue
        tell(f"learning a memory: {name}")
        learnt, groups = memory.learn(empty, evidence(), LEAST)
        members[name] = tuple(groups)
        most = models_of(groups)
        pure = sum(int((true[group] == model).sum()) for group, model in zip(groups, most, strict=True))
        facts = {"models": len(set(most)), "groups": len(groups), "devices": sum(map(len, groups))}
        found[name] = (learnt, most, {**facts, "of the group's model": pure})
    if population.fleet.config.drift and wanted(ADDED):
        former, models, _ = found["uploads"]
        learnt, groups = memory.learn(former, [uploaded(seen) for _, seen in filmed(later=True)], LEAST)
        models += models_of(groups)
        found[ADDED] = (learnt, models, {"models": len(set(models)), "groups": len(models)})
    first = base(wanted)
    learnt, models, _ = found[first]
    for name, most_bytes in _held(known, first).items():
        if wanted(name):
            tell(f"coding a memory: {name}")
            found[name] = (held(learnt, most_bytes), models, {"bytes a model": most_bytes})
    if not wanted("told"):
        del found["told"]
    rng = np.random.default_rng(7)
    queries: dict[tuple[int, bool], list[np.ndarray]] = {}
    for count in COUNTS:
        drawn = [
            PixelMaps.of(data.stack(rng.choice(data.train, count, replace=False).tolist()))
            for _ in range(PSEUDO_DEVICES)
        ]
        queries[count, False] = [x.gradient for x in drawn]
        queries[count, True] = [_sent(x, "clean").gradient() for x in drawn]
    complete = {}
    for name, (learnt, models, facts) in found.items():
        tell(f"setting the gates: {name}")
        needed = [key for key in queries if not key[1] or name == first]
        gates = {key: memory.gate_for(learnt, queries[key], GATE_SHARE) for key in needed}
        complete[name] = Learnt(learnt, models, facts, gates, members.get(name, ()))
    return complete


def base(wanted: Callable[[str], bool]) -> str:
    """The memory whose controls are rows, and that devices hold: from uploads, or true maps where none is wanted."""
    return "uploads" if wanted("uploads") else "told"


def _held(models: int, name: str) -> dict[str, int]:
    """Bytes of a model in each memory that a device may hold."""
    each = {f"{name}_held_{kib}kib": 1024 * kib // models for kib in HELD_KIB}
    return {row: most_bytes for row, most_bytes in each.items() if LEAST_HELD <= most_bytes <= MOST_HELD}


def costs(population: Population, learnt: Learnt, devices: int = 16) -> dict[str, float]:
    """Processor time of an adaptation by one frame, milliseconds: medians over some devices.

    Returns:
        ``query``: making the query and its message; ``answer``: reading the cloud's; ``cloud``: recognising and
        answering; ``alone``: recognising and correcting by a memory on the device, the query included.
    """
    spent: dict[str, list[float]] = {name: [] for name in ("query", "answer", "cloud", "alone")}
    for device in population.fleet.asked[-devices:]:  # the last ones are of known models
        frames, at = population.taken(device, 1), [time.process_time()]
        query = CameraQuery.encode(PixelMaps.of(frames).gradient, 1, device.name)
        at.append(time.process_time())
        arrived = CameraQuery.from_bytes(query.to_bytes())
        found, correction = learnt.memory.correct(arrived.gradient(), -np.inf)
        sent = CameraAnswer.encode(query, correction, -1 if found is None else found.model, learnt.memory.version)
        at.append(time.process_time())
        CameraAnswer.from_bytes(sent.to_bytes()).correction()
        at.append(time.process_time())
        learnt.memory.correct(PixelMaps.of(frames).gradient, -np.inf)
        at.append(time.process_time())
        for name, seconds in zip(("query", "cloud", "answer", "alone"), np.diff(at), strict=True):
            spent[name].append(1e3 * float(seconds))
    return {name: float(np.median(values)) for name, values in spent.items()}


def attacks(population: Population, learnt: Learnt) -> dict[str, float]:
    """How often who holds 100 clips finds the one that a query, or a model of the memory, was made of; by chance 0.01.

    Gradients of the clips' clean frames are correlated with those of the coded query of each asked device, whose latest
    clip is among them, or of a model, among whose training devices one has filmed it.
    """
    data, rng = population.data, np.random.default_rng([population.seed, 31])

    def found(shown: np.ndarray, member: str, others: Sequence[str]) -> bool:
        drawn = rng.choice(sorted(set(others) - {member}), 99, replace=False).tolist()
        frames = memory.squashed(np.moveaxis(gradients(data.stack([member, *drawn]).astype(np.float32)), 1, 0))
        flat, wanted = frames.reshape(100, -1), memory.squashed(shown).ravel()
        return int((flat @ wanted / (np.linalg.norm(flat, axis=1) + 1e-9)).argmax()) == 0

    rates = {}
    for count in COUNTS:
        hits = [
            found(_sent(population.maps(d, count), d.name).gradient(), d.history[-1][0], data.train)
            for d in population.fleet.asked
        ]
        rates[f"query of {count}"] = float(np.mean(hits))
    hits = []
    models = range(len(learnt.groups))
    for k in models if len(models) <= ATTACKED else rng.choice(models, ATTACKED, replace=False):
        change, group = learnt.memory.change[k], learnt.groups[k]
        filmed = {clip for i in group for clip, _ in population.fleet.training[i].history}
        others = sorted(set(data.train) - filmed)
        hits += [found(gradients(change), clip, others) for clip in rng.choice(sorted(filmed), 5).tolist()]
    return {**rates, "memory": float(np.mean(hits))}


def tune(data: Data, settings: Settings, folder: Path, only: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Options of the fleet-free rows that are wanted, for each C, by the features of another fleet.

    Its clips are those of histories, half of them asked, so that no clip that is judged is looked at.
    """
    path = folder / "options.json"
    chosen: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}
    counts = {name: (MOVED_COUNT,) if name.startswith(MOVED) else COUNTS for name in OPTIONS} | {"extremes": COUNTS[1:]}
    wanted = [key for name in OPTIONS for count in counts[name] if _wanted(key := f"{name} {count}", only)]
    if missing := [key for key in wanted if key not in chosen]:
        population = Population(data, settings.config(0), data.history[1::2], data.history[::2])
        static = cache(partial(static_models, data, population, folder))
        filmed = population.filmed(2)

        @cache
        def looked_at(step: int) -> tuple[tuple[FleetDevice, ...], list[np.ndarray], np.ndarray, np.ndarray]:
            devices, seen = population.fleet.asked[::step], filmed[::step]
            clean = data.stack([clip for device in devices for clip in device.asked[:2]])
            return devices, seen, data.encode(np.concatenate(seen)), data.encode(clean)

        for at, key in enumerate(missing):
            tell("options of rows", at, len(missing), "rows")
            (name, count), errors = key.split(), []
            ((option, values),) = OPTIONS[name].items()
            devices, seen, plain, clean = looked_at(MOVED_TUNED if name.startswith(MOVED) else 1)
            scale = clean.std(0) + 1e-3
            for value in values:
                row = population.alone(name, int(count), {option: value}, static)
                features = _seen_through([row(d) for d in devices], seen, plain, data)
                apart = (features - clean) / scale
                errors.append(float(np.square(apart).mean()))
            chosen[key] = {option: values[int(np.argmin(errors))]}
            write_text(path, json.dumps(chosen))
    return {key: chosen[key] for key in wanted}


def _seen_through(told: Sequence[Told], seen: Sequence[np.ndarray], plain: np.ndarray, data: Data) -> np.ndarray:
    """Features ``[n, D]`` of what each device films, as a row corrects it; ``plain``: those of frames as they are."""
    owner = np.repeat(np.arange(len(seen)), list(map(len, seen)))
    changed = np.array([one.correction is not None for one in told])
    features = plain.copy()
    if changed.any():
        corrected = [one.correction(x) for one, x in zip(told, seen, strict=True) if one.correction is not None]
        features[changed[owner]] = data.encode(np.concatenate(corrected))
    for i, one in enumerate(told):
        if one.after is not None:
            features[owner == i] = one.after(features[owner == i])
    return features


def rows_without(
    population: Population, options: Mapping[str, Mapping[str, float]], static: Callable[[], Static]
) -> dict[str, Row]:
    """Name and C of each row that needs no memory -> what it does for a device."""
    scene = population.data.scene

    def exact(device: FleetDevice) -> Told:
        if device.kind == "clean":
            return Told(None)
        opacity, light = population.cameras.instance(device).maps()
        return Told(undo(opacity, 255 * light, scene, 1.0))

    rows: dict[str, Row] = {"none 0": lambda device: Told(None), "exact 0": exact}
    for name, width in RESTORERS.items():
        rows[f"{name} 0"] = restoration(population, width)
    for key, chosen in options.items():
        name, count = key.split()
        rows[key] = population.alone(name, int(count), chosen, static)
    return rows


def rows_with(population: Population, learnt: Mapping[str, Learnt], first: str) -> dict[str, Row]:
    """The same of each row that has a memory; ``first`` is that of the controls."""
    scene, rows = population.data.scene, {}
    for count in COUNTS:
        for name, one in learnt.items():
            rows[f"{name} {count}"] = one.row(population, count)
    if first not in learnt:
        return rows
    chosen = learnt[first]
    mean = memory_rivals.mean_model(chosen.memory)
    found = memory.Recognition(0, 0.0, 1.0, 0, 0)
    rows[f"{first}_mean_map 0"] = lambda device: Told(undo(*mean.answer([found]), scene).cautious())
    for count in COUNTS:
        rows[f"{first}_ungated {count}"] = chosen.row(population, count, gated=False)
        rows[f"{first}_coded {count}"] = chosen.row(population, count, coded=True)
        rows[f"{first}_scenes {count}"] = chosen.row(population, count, scenes=True)
    last = COUNTS[-1]
    rows[f"{first}_residual {last}"] = chosen.row(population, last, own=True)

    # Keys stay, values are another model's: recognised as before, answered wrongly.
    wrong = memory_rivals.shuffled(chosen.memory, np.random.default_rng(population.seed))

    def shuffled(device: FleetDevice) -> Told:
        gradient = population.maps(device, last).gradient
        place = chosen.memory.recognise(gradient)
        if place is None or place.score < chosen.gates[last, False]:
            return Told(None)
        return Told(
            undo(*wrong.answer(chosen.memory.posterior(gradient, place)), scene).cautious(),
            chosen.models[place.model],
        )

    rows[f"{first}_shuffled {last}"] = shuffled
    return rows


def restoration(population: Population, width: int) -> Row:
    """The static network of this width on frames, trained when it is asked first."""
    trained: list[Restorer] = []

    def row(device: FleetDevice) -> Told:
        if not trained:
            data = population.data
            trained.append(train_restorer(population.training_pairs(), data.stack(data.train), width, population.seed))
        return Told(trained[0].restore)

    return row


def cells_of(data: Data, settings: Settings, folder: Path) -> Path:
    """Folder of the rows that these settings have."""
    content = f"{CELLS_VERSION} {data.digest} {data.encoder.digest} {settings}"
    found = folder / hashlib.sha256(content.encode()).hexdigest()[:16]
    found.mkdir(parents=True, exist_ok=True)
    return found


def run_seed(
    data: Data, settings: Settings, seed: int, folder: Path, only: Sequence[str], finished: bool = False
) -> dict[str, Any]:
    """All rows of one seed, from the files that are there and, unless only those are wanted, from work for the others.

    Returns:
        ``rows``: name and C -> ``values [4, n]`` (log-rank of the model trained on artefacts, of the one that never
        saw any, distance of features, share of right answers), and for each device ``model``, ``upload_bytes`` and
        ``download_bytes``; ``device [n]``, ``clip [n]``, ``group``, ``cluster``, ``kind`` and ``true`` of each device,
        ``facts``.
    """
    tell(f"seed {seed}: the fleet")
    population, begun = Population(data, settings.config(seed)), time.monotonic()
    options, facts_at = tune(data, settings, folder, only), folder / f"seed{seed}-facts.json"
    facts = json.loads(facts_at.read_text()) if facts_at.is_file() else {"learnt": {}}
    cells = {
        name: folder / f"seed{seed}-{name.replace(' ', '-')}.npz"
        for name in _names(options, settings.config(seed), only)
    }
    devices = population.fleet.asked
    missing = [name for name, path in cells.items() if not path.is_file()]
    if finished:
        cells, missing = {name: path for name, path in cells.items() if path.is_file()}, []
    if missing:
        static = static_models(data, population, folder)
        facts["held_out"] = static.held_out
        rows = rows_without(population, options, lambda: static)
        if not rows.keys() >= set(missing):

            def wanted(start: str) -> bool:
                return any(name.startswith(start) for name in cells)

            learnt, first = learn_all(population, wanted), base(wanted)
            facts["learnt"] |= {name: {**one.facts, "gates": _gates(one)} for name, one in learnt.items()}
            rows |= rows_with(population, learnt, first)
            tell(f"seed {seed}: attacks and costs")
            if first in learnt:
                facts["costs"] = costs(population, learnt[first])
            if "uploads" in learnt:
                facts["attacks"] = attacks(population, learnt["uploads"])
        write_text(facts_at, json.dumps(facts))
        seen = population.filmed()
        plain, clean = data.encode(np.concatenate(seen)), data.encode(data.stack(population.clips))
        scale = clean.std(0) + 1e-3
        for at, name in enumerate(missing):
            tell(f"seed {seed}: row {name}", at, len(missing), "rows")
            told = [rows[name](device) for device in devices]
            features = _seen_through(told, seen, plain, data)
            values = [log_ranks(head, features, clean, static.texts) for head in static.heads]
            values.append(np.square((features - clean) / scale).mean(1))
            values.append(static.answering.right(features, population.clips, data.questions))
            numbers = {key: [getattr(one, key) for one in told] for key in ("model", "upload_bytes", "download_bytes")}
            _save(cells[name], values=np.stack(values), **{key: np.array(value) for key, value in numbers.items()})
    return {
        "rows": {name: dict(np.load(path)) for name, path in cells.items()},
        "device": population.device,
        "clip": np.array(population.clips),
        "group": np.array([population.fleet.group(d) for d in devices]),
        "cluster": np.array([f"{seed}/{population.fleet.cluster(d)}" for d in devices]),
        "kind": np.array([d.kind for d in devices]),
        "true": np.array([d.model for d in devices]),
        "facts": facts,
        "describe": population.fleet.describe(),
        "seconds": time.monotonic() - begun,
    }


@dataclass(frozen=True)
class Static:
    """The static models of a seed.

    Attributes:
        heads: That trained on the fleet's artefacts, and that on clean frames.
        answering: Questions behind the first of them.
        held_out: Log-ranks of both on held-out training clips.
        texts: TF-IDF of the captions of the asked clips, ``[n, terms]``.
        tfidf: TF-IDF of captions.
        movable: What moves an input layer in front of it.
    """

    heads: tuple[Head, Head]
    answering: Answering
    held_out: dict[str, float]
    texts: np.ndarray
    tfidf: TfidfVectorizer
    movable: Movable


def static_models(data: Data, population: Population, folder: Path) -> Static:
    """Train them; features of training clips are kept."""
    tfidf, seed = fit_tfidf([data.captions[clip] for clip in data.train]), population.seed
    seen_at = folder / f"seed{seed}-training.npy"
    if not seen_at.is_file():
        _save(seen_at, data.encode(population.training_pairs()))
    clean, seen, held_out = data.clean, np.load(seen_at), len(data.train) // 8
    targets = tfidf.transform([data.captions[clip] for clip in data.train]).toarray()
    static, score = train_head(seen, clean, targets, held_out, seed)
    plain, other = train_head(clean, clean, targets, held_out, seed)
    texts = tfidf.transform([data.captions[clip] for clip in population.clips]).toarray()
    answering = train_answering(static, seen, clean, data.train, data.questions, seed)
    encoder = load_vision_model(str(data.encoder.folder), data.encoder.size).spec(any_size=True).module.eval()
    shown, features = (torch.from_numpy(x).float() for x in (targets, clean))
    movable = Movable(encoder, data.encoder, static, shown, features, held_out, seed)
    return Static((static, plain), answering, {"static": score, "clean": other}, texts, tfidf, movable)


def _gates(learnt: Learnt) -> dict[str, float]:
    return {f"{count}{' coded' if coded else ''}": gate for (count, coded), gate in learnt.gates.items()}


def _names(options: Mapping[str, Any], config: FleetConfig, only: Sequence[str]) -> list[str]:
    """Names of the rows that are wanted, with their C."""
    first = base(lambda name: not only or any(name.startswith(one) or one.startswith(name) for one in only))
    memories = [*LEARNT, *_held(config.models, first), *POISONINGS, f"{first}_ungated", f"{first}_coded"]
    memories += [f"{first}_scenes"] if config.places else []
    memories += [ADDED] if config.drift and first == "uploads" else []
    names = [f"{first}_mean_map 0", *options, *(f"{name} {count}" for count in COUNTS for name in memories)]
    names += [f"{first}_residual {COUNTS[-1]}", f"{first}_shuffled {COUNTS[-1]}", *(f"{name} 0" for name in RESTORERS)]
    return ["none 0", "exact 0", *(name for name in names if _wanted(name, only))]


def _wanted(name: str, only: Sequence[str]) -> bool:
    return name.startswith(tuple(only)) if only else not name.startswith(MOVED)


def _save(path: Path, array: np.ndarray | None = None, **arrays: np.ndarray) -> None:
    import io

    with io.BytesIO() as file:
        if array is not None:
            np.save(file, array)
        else:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        write_bytes(path, file.getvalue())


@dataclass(frozen=True)
class Share:
    """A share of the gap that is closed, with its interval.

    Attributes:
        value: The share.
        low: Lower end of the 95 % interval.
        high: Upper end.
        clusters: Camera models, or clips where there are fewer.
    """

    value: float
    low: float
    high: float
    clusters: int | None

    def __str__(self) -> str:
        return f"{100 * self.value:.0f} [{100 * self.low:.0f}, {100 * self.high:.0f}]"


def share_closed(won: np.ndarray, gap: np.ndarray, cluster: np.ndarray, clip: np.ndarray) -> Share:
    """Mean of what is won over the mean gap; the interval is that of the ratio, linearised.

    Args:
        won: ``[n]`` log-rank without less that with the row.
        gap: ``[n]`` log-rank without less that behind the exact correction.
        cluster: ``[n]`` camera models.
        clip: ``[n]`` clips.
    """
    ratio = float(won.mean() / gap.mean())
    spread = clustered_mean((won - ratio * gap) / gap.mean(), cluster, clip).interval()
    return Share(ratio, ratio + spread.low, ratio + spread.high, spread.clusters)


def summarise(runs: Sequence[Mapping[str, Any]], head: int = 0) -> list[dict[str, Any]]:
    """One entry for each row: share of the gap on known devices, by family, losses on clean and unseen ones, rates."""
    names = dict.fromkeys(name for run in runs for name in run["rows"])
    return [_entry([run for run in runs if name in run["rows"]], name, head) for name in names]


def _entry(runs: Sequence[Mapping[str, Any]], name: str, head: int) -> dict[str, Any]:
    """One row on the seeds that have it."""

    def joined(name: str, of: int = head) -> np.ndarray:
        return np.concatenate([run["rows"][name]["values"][of] for run in runs])

    def of(key: str) -> np.ndarray:
        return np.concatenate([run[key][run["device"]] for run in runs])

    clip, cluster = np.concatenate([run["clip"] for run in runs]), of("cluster")
    kind, group = of("kind"), of("group")
    none, exact = joined("none 0"), joined("exact 0")
    far, near = joined("none 0", 2), joined("exact 0", 2)
    known = kind == "known"
    device = np.concatenate([run["device"] + 10_000 * i for i, run in enumerate(runs)])
    values = joined(name)
    entry: dict[str, Any] = {"row": name.split()[0], "frames": int(name.split()[1])}
    entry["mean_log_rank"] = float(values[known].mean())
    entry["share"] = _share(none, values, exact, known, cluster, clip)
    shared = known & np.isin(group, artefacts.SHARED)
    entry["headline"] = _share(none, values, exact, shared, cluster, clip)
    entry["features"] = _share(far, joined(name, 2), near, known, cluster, clip)
    entry["families"] = {}
    for family in sorted(set(group[known])):
        inside = group == family
        entry["families"][family] = {
            "features": float((far - joined(name, 2))[inside].mean() / (far - near)[inside].mean()),
            "features_gap": float(1 - near[inside].mean() / far[inside].mean()),
            "won": float((none - values)[inside].mean()),
            "gap": float((none - exact)[inside].mean()),
        }
    for part in ("clean", "unseen"):
        if (inside := kind == part).any():
            loss = clustered_mean((values - none)[inside], cluster[inside], clip[inside])
            entry[part] = {"loss": loss.value, "bound": loss.interval(0.9).high}
    if head == 0:
        entry["questions"] = _questions(joined(name, 3), joined("none 0", 3), joined("exact 0", 3), kind, cluster, clip)
    won = [(none - values)[device == one].mean() for one in np.unique(device[known])]
    entry["worst_decile_won"] = float(np.sort(won)[: max(1, len(won) // 10)].mean())
    cells = [run["rows"][name] for run in runs]
    model = np.concatenate([cell["model"] for cell in cells])
    true = np.concatenate([run["true"] for run in runs])
    kinds = np.concatenate([run["kind"] for run in runs])
    found = {"right": (model == true)[kinds == "known"], "wrong": ((model != true) & (model >= 0))[kinds == "known"]}
    found |= {part: (model >= 0)[kinds == part] for part in ("clean", "unseen")}
    entry["recognised"] = {key: float(told.mean()) if len(told) else None for key, told in found.items()}
    sent = [np.concatenate([cell[key] for cell in cells]) for key in ("upload_bytes", "download_bytes")]
    entry["bytes"] = [int(part.max()) for part in sent]
    return entry


def _questions(
    values: np.ndarray, none: np.ndarray, exact: np.ndarray, kind: np.ndarray, cluster: np.ndarray, clip: np.ndarray
) -> dict[str, Any]:
    """What is won on questions, in points, by clips that are asked any."""
    there, found = ~np.isnan(values), {}
    for part, shown in (("won", values - none), ("gap", exact - none)):
        inside = there & (kind == "known")
        mean = clustered_mean(100 * shown[inside], cluster[inside], clip[inside])
        found[part] = {"points": mean.value, "low": mean.interval().low, "high": mean.interval().high}
    for part in ("clean", "unseen"):
        if (inside := there & (kind == part)).any():
            loss = clustered_mean(100 * (none - values)[inside], cluster[inside], clip[inside])
            found[part] = {"loss_points": loss.value, "bound": loss.interval(0.9).high}
    return found


def _share(
    none: np.ndarray, values: np.ndarray, exact: np.ndarray, known: np.ndarray, cluster: np.ndarray, clip: np.ndarray
) -> dict[str, Any]:
    won, gap = (none - values)[known], (none - exact)[known]
    return vars(share_closed(won, gap, cluster[known], clip[known]))


def shown(entry: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    families = [
        f"{100 * part['features']:.0f}, {part['won']:+.3f}"
        if part["features_gap"] > LITTLE
        else f"-, {part['won']:+.3f}"
        for part in entry["families"].values()
    ]
    rates = entry["recognised"]
    shares = (rates[key] for key in ("right", "wrong", "clean", "unseen"))
    recognised = " / ".join("-" if share is None else f"{100 * share:.0f}" for share in shares)
    asks = entry["row"].startswith((*LEARNT, "poisoned")) and entry["frames"]
    sent = " / ".join(map(str, entry["bytes"])) if entry["bytes"][0] else ""
    losses = [
        f"{entry[part]['loss']:+.3f} (<= {entry[part]['bound']:+.3f})" if part in entry else ""
        for part in ("clean", "unseen")
    ]
    points = entry["questions"]["won"]
    losses.append(f"{points['points']:+.1f} [{points['low']:+.1f}, {points['high']:+.1f}]")
    first = [entry["row"], str(entry["frames"] or ""), f"{entry['mean_log_rank']:.3f}", str(Share(**entry["share"]))]
    first += [str(Share(**entry[name])) for name in ("headline", "features")]
    return [*first, *families, *losses, recognised if asks else "", sent]


def _listed(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Facts by name, for people."""
    return "; ".join(
        f"{name}: {', '.join(f'{key} {value}' for key, value in part.items() if not isinstance(value, dict))}"
        for name, part in facts.items()
    )


def _means(facts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in facts])) for name in facts[0]}


@working("memory of camera models", bar=False)
def main(args: Sequence[str] | None = None) -> None:
    """Run all seeds and write one JSON file."""
    parser = argparse.ArgumentParser(prog="python -m lit_mmpg.profiling.benchmarks.memory", description=__doc__)
    parser.add_argument("--settings", default="profiling/benchmarks/memory_pilot.yaml", metavar="FILE.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds above 0")
    parser.add_argument("--fleet", nargs="+", default=[], metavar="NAME=VALUE", help="other settings of the fleet")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows whose names begin so")
    parser.add_argument("--finished", action="store_true", help="rows that are finished, nothing is computed")
    parser.add_argument("--folder", type=Path, default=Path("outputs/memory"), help="where cells are kept")
    parser.add_argument("--output", type=Path, default=Path("outputs/memory.json"), metavar="FILE.json")
    options = parser.parse_args(args)
    settings = Settings.read(options.settings).with_fleet(options.fleet)
    if min(options.seeds) < 1:
        raise UserError("--seeds: seed 0 is the fleet on which fleet-free rows are tuned; name others")
    commit, begun = git_commit(), time.monotonic()
    data = Data(settings, options.folder)
    folder = cells_of(data, settings, options.folder)
    runs = [run_seed(data, settings, seed, folder, options.only, options.finished) for seed in options.seeds]
    entries = summarise(runs)
    gap = next(entry for entry in entries if entry["row"] == "exact")
    plain = next(entry for entry in entries if entry["row"] == "none")
    families = list(gap["families"])
    reads = int(settings.asked == "test") * len(options.seeds)
    chosen = tune(data, settings, folder, options.only)
    size = plain["mean_log_rank"] - gap["mean_log_rank"]
    seeds = " ".join(map(str, options.seeds))
    notes = [
        "Mean log-rank of known devices (lower is better), all rows before the static model that is trained on the "
        f"same artefacts; share of the gap of {size:.3f} to the exact correction in per cent, its 95 % interval "
        "over camera models and clips; the same on the families that models of cameras really share (shading, housing, "
        "overlay; shared glass and dirt are a stress test); the same share of the squared distance to features of "
        "clean frames; by family that share (-: the exact correction itself brings features no nearer) and the "
        "log-rank that is won; loss on "
        "clean devices and on devices of unseen models with its one-sided 95 % bound; right answers to open-ended "
        f"questions that are won, in points, of {gap['questions']['gap']['points']:+.1f} "
        f"[{gap['questions']['gap']['low']:+.1f}, {gap['questions']['gap']['high']:+.1f}] that the exact correction "
        "wins; recognitions in per cent of "
        "devices (right, wrong, clean, unseen models); payload bytes "
        "up and down where they are coded by the link.",
        f"{len(options.seeds)} fleets (seeds {seeds}) of {settings.config(0).models} known camera models, "
        f"{runs[0]['describe']['asked clips']} clips each on {settings.config(0).asked} devices; "
        f"{'the test split' if reads else 'validation, no test clip was read'}."
        + (f" Options of fleet-free rows, chosen on clips of histories (seed 0): {_listed(chosen)}." if chosen else ""),
        *(
            f"Seed {seed}, learnt: {_listed(run['facts']['learnt'])}."
            for seed, run in zip(options.seeds, runs, strict=True)
        ),
    ]
    if all("attacks" in run["facts"] for run in runs):
        rates = _means([run["facts"]["attacks"] for run in runs])
        notes.append(
            "Of 100 clips, the one whose frame is in a coded query, or was filmed by a training device of a model, is "
            "found by correlated gradients in (per cent of tries; by chance 1): "
            + "; ".join(f"{name}: {100 * share:.0f}" for name, share in rates.items())
            + "."
        )
    if all("costs" in run["facts"] for run in runs):
        spent = _means([run["facts"]["costs"] for run in runs])
        notes.append(
            "Processor time of an adaptation by one frame, one thread, milliseconds: through the link "
            f"{spent['query'] + spent['answer']:.0f} on the device and {spent['cloud']:.0f} in the cloud; "
            f"{spent['alone']:.0f} on a device that holds the memory."
        )
    columns = ["row", "C", "log-rank", "share of the gap", "on families that models share"]
    columns += ["of the features' distance", *families, "loss: clean", "loss: unseen models", "questions, points"]
    columns += ["recognised: right / wrong / clean / unseen", "bytes"]
    command = f"python -m lit_mmpg.profiling.benchmarks.memory --settings {options.settings} --seeds {seeds}"
    command += f" --fleet {' '.join(options.fleet)}" if options.fleet else ""
    command += f" --only {shlex.join(options.only)}" if options.only else ""
    command += " --finished" if options.finished else ""
    title = "A memory of camera models, " + ("on test clips" if reads else "pilot on validation clips")
    title += f": rows {', '.join(options.only)}" if options.only else ""
    found = result(
        title, command, columns,
        list(map(shown, entries)), commit, notes, seeds=options.seeds, test_reads=reads, values=entries,
        clean_head=summarise(runs, 1), held_out=[run["facts"]["held_out"] for run in runs],
        learnt=[run["facts"]["learnt"] for run in runs], attacks=[run["facts"].get("attacks") for run in runs],
        costs=[run["facts"].get("costs") for run in runs],
        fleets=[run["describe"] for run in runs],
    )  # fmt: skip
    write_result(options.output, found)
    print(f"Written: {options.output} ({time.monotonic() - begun:.0f} s)")


if __name__ == "__main__":
    main()
