"""A fleet of cameras: devices that share the artefacts of their camera models, and what each of them films.

Training devices are those that a memory is learnt from; asked devices are unseen and are judged by clips that are dealt
to them once. An asked device is clean, or of a model that training devices have, or of one that none has. Everything
follows from the seed and the names of the clips. No torch here.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lit_mmpg.data.artefacts import (
    FAMILIES,
    SHARED,
    TEST,
    TUNING,
    CameraModel,
    Instance,
    Placement,
    Spread,
    draw_model,
    drifted,
)
from lit_mmpg.data.cameras import Camera, check_recipe, sample_camera
from lit_mmpg.errors import UserError
from lit_mmpg.settings import from_plain

Kind = Literal["known", "unseen", "clean"]


@dataclass(frozen=True)
class FleetConfig:
    """Which devices there are and what they film.

    Attributes:
        models: Camera models K that training devices have.
        unseen_models: Models that no training device has.
        families: Families of artefacts, which the models take in turn (:data:`lit_mmpg.data.artefacts.FAMILIES`).
        devices_per_model: Training devices of each model.
        clean_devices: Training devices without an artefact.
        clips_per_device: Clips that a training device has filmed.
        asked: Devices that are asked.
        clean_share: Share of clean devices among those.
        unseen_share: Share of devices of unseen models among those that are not clean.
        zipf: Exponent of Zipf's law over the models of the asked devices; 0: all are as frequent.
        history: Frames that each asked device has taken before, the latest last.
        places: Clips from which these frames come, one after the other; 0: each from a clip of its own.
        disjoint: Control: no clip is filmed by training devices of two models.
        drift: How far models have changed when asked devices film, 0 to 1 (:func:`~lit_mmpg.data.artefacts.drifted`).
        training: How instances of training devices differ.
        unseen: How instances of asked devices differ.
        camera_severity: Severity of a simulated camera of each device's own, 0 (none) to 5.
        seed: Seed of everything.

    Raises:
        UserError: If a value is out of range.
    """

    models: int = 24
    unseen_models: int = 8
    families: tuple[str, ...] = FAMILIES
    devices_per_model: int = 10
    clean_devices: int = 0
    clips_per_device: int = 32
    asked: int = 48
    clean_share: float = 0.2
    unseen_share: float = 0.25
    zipf: float = 1.0
    history: int = 64
    places: int = 0
    disjoint: bool = False
    drift: float = 0.0
    training: Spread = TUNING
    unseen: Spread = TEST
    camera_severity: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(self.families))
        for name in ("models", "devices_per_model", "clips_per_device", "asked", "history"):
            if getattr(self, name) < 1:
                raise UserError(f"fleet.{name} is {getattr(self, name)}; set it to 1 or more")
        for name in ("unseen_models", "clean_devices", "places", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"fleet.{name} is {getattr(self, name)}; set it to 0 or more")
        for name in ("clean_share", "unseen_share", "drift"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"fleet.{name} is {getattr(self, name)}; set it between 0 and 1")
        unknown = [family for family in self.families if family not in FAMILIES]
        if unknown or not self.families or len(set(self.families)) != len(self.families):
            raise UserError(f"fleet.families is {list(self.families)}; choose different ones of {', '.join(FAMILIES)}")
        if self.unseen_share and not self.unseen_models:
            raise UserError("fleet.unseen_share is above 0 without unseen models; set fleet.unseen_models, or 0")
        if not 0 <= self.zipf <= 10:
            raise UserError(f"fleet.zipf is {self.zipf}; set it between 0 and 10")
        if self.places > self.history:
            raise UserError(f"fleet.places is {self.places}, more than its history of {self.history} frames")
        check_recipe(self.camera_severity, ())
        self.training.check("fleet.training")
        self.unseen.check("fleet.unseen")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> FleetConfig:
        """The configuration that plain data describe, as a file of settings holds them.

        Raises:
            UserError: If a name is unknown, a value has another type, or is out of range.
        """
        spreads = {
            name: {**asdict(default), **settings[name]}
            for name, default in (("training", TUNING), ("unseen", TEST))
            if isinstance(settings.get(name), Mapping)
        }
        return from_plain(cls, {**settings, **spreads}, "fleet.")


@dataclass(frozen=True)
class FleetDevice:
    """One device of a fleet.

    Attributes:
        name: Its name.
        kind: ``known``: of a model that training devices have; ``unseen``: of another; ``clean``: without an artefact.
        model: Index of its model in :attr:`Fleet.names`; -1 for a clean one.
        placement: How it has what its model has.
        camera: The rest of its camera.
        history: (clip, frame) of what it has taken before; the frame counts modulo the frames of the clip.
        asked: Clips that it is asked about; none for a training device.
    """

    name: str
    kind: Kind
    model: int
    placement: Placement
    camera: Camera
    history: tuple[tuple[str, int], ...]
    asked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fleet:
    """All devices, and what they film.

    Attributes:
        config: The settings.
        names: Names of the models: the K that training devices have, then the unseen ones.
        families: Family of each model.
        scenes: Clip that each model of glass mirrors; blank for others.
        training: Devices that a memory is learnt from.
        asked: Devices that are judged.
    """

    config: FleetConfig
    names: tuple[str, ...]
    families: tuple[str, ...]
    scenes: tuple[str, ...]
    training: tuple[FleetDevice, ...]
    asked: tuple[FleetDevice, ...]

    def group(self, device: FleetDevice) -> str:
        """Under what a device is reported: its family, ``clean``, or ``unseen models``."""
        return self.families[device.model] if device.kind == "known" else device.kind.replace("unseen", "unseen models")

    def cluster(self, device: FleetDevice) -> str:
        """Cluster of a device in intervals: devices of one model share theirs, a clean device has its own."""
        return device.name if device.model < 0 else self.names[device.model]

    def describe(self) -> dict[str, Any]:
        """How many devices there are of each kind, for a report."""
        known = [device for device in self.asked if device.kind == "known"]
        return {
            "models": dict(Counter(self.families[: self.config.models])),
            "training devices": len(self.training),
            "asked devices": dict(Counter(map(self.group, self.asked))),
            "asked clips": sum(len(device.asked) for device in self.asked),
            "models among known asked devices": len({device.model for device in known}),
            "of a family that models share": sum(self.families[device.model] in SHARED for device in known),
        }

    def draw(self, height: int, width: int, scene_of: Mapping[str, np.ndarray]) -> Cameras:
        """Draw what the models have in front of the scene, in frames of ``height`` x ``width`` pixels.

        ``scene_of`` holds ``[3, H, W]`` uint8 for all clips of :attr:`scenes`.
        """

        def drawn(key: str, mirrored: Mapping[str, np.ndarray]) -> list[CameraModel]:
            return [
                draw_model(name, family, height, width, _rng(self.config.seed, key, name), mirrored.get(scene))
                for name, family, scene in zip(self.names, self.families, self.scenes, strict=True)
            ]

        models = later = drawn("look", scene_of)
        if self.config.drift:
            upside_down = {clip: pixels[:, ::-1] for clip, pixels in scene_of.items()}  # no clip more is taken
            later = [
                drifted(model, other, self.config.drift, _rng(self.config.seed, "drift", model.name))
                for model, other in zip(models, drawn("later look", upside_down), strict=True)
            ]
        return Cameras(self, tuple(models), tuple(later), height, width)


@dataclass(frozen=True)
class Cameras:
    """A fleet whose models are drawn, so that its devices can film.

    Attributes:
        fleet: The fleet.
        models: Its models, as training devices show them.
        later: The same as asked devices show them; they differ where the fleet drifts.
        height: Height of a frame, pixels.
        width: Width of a frame, pixels.
    """

    fleet: Fleet
    models: tuple[CameraModel, ...]
    later: tuple[CameraModel, ...]
    height: int
    width: int

    @cached_property
    def _clean(self) -> CameraModel:
        none = np.zeros((3, self.height, self.width), np.float32)
        return CameraModel("clean", "shading", none, none)

    def instance(self, device: FleetDevice, later: bool = False) -> Instance:
        """The artefact of a device, after the drift if ``later``; one that changes nothing for a clean device."""
        models = self.later if later or device.asked else self.models
        model = self._clean if device.model < 0 else models[device.model]
        return Instance(model, device.placement, self.height, self.width)

    def film(self, device: FleetDevice, clip: str, frames: np.ndarray) -> np.ndarray:
        """A clip ``[T, 3, H, W]`` uint8 as a device films it."""
        return self.instance(device).film(frames, clip, self.fleet.config.seed, device.camera)


def plan_fleet(config: FleetConfig, train: Sequence[str], history: Sequence[str], asked: Sequence[str]) -> Fleet:
    """Deal clips to the devices of a fleet.

    Args:
        config: The settings.
        train: Clips that training devices film, and that glass mirrors (no clip does both).
        history: Clips that asked devices have filmed before.
        asked: Clips that they are asked about; each is dealt to one device.

    Raises:
        UserError: If there are too few clips, or the three lists share some.
    """
    pools = {"train": sorted(train), "history": sorted(history), "asked": sorted(asked)}
    for one, other in (("train", "history"), ("train", "asked"), ("history", "asked")):
        if shared := set(pools[one]) & set(pools[other]):
            raise UserError(f"fleet: clips for {one} and {other} share '{min(shared)}'; give each clip to one of them")
    for pool, clips in pools.items():
        if len(set(clips)) != len(clips):
            raise UserError(f"fleet: a clip for {pool} stands in its list twice")
    every = config.models + config.unseen_models
    # In turn, so that every family has models on both sides.
    families = [config.families[i % len(config.families)] for i in range(config.models)]
    families += [config.families[i % len(config.families)] for i in range(config.unseen_models)]
    names = [f"{family}{i:03d}" for i, family in enumerate(families)]
    panes = [i for i, family in enumerate(families) if family == "glass"]
    order = _rng(config.seed, "scenes").permutation(pools["train"]).tolist()
    films, mirrored = order[len(panes) :], dict(zip(panes, order, strict=False))
    parts = [films] * config.models
    if config.disjoint:
        parts = [films[i :: config.models] for i in range(config.models)]
    needed = {
        "train": (min(map(len, parts), default=0), config.clips_per_device, "fleet.clips_per_device or fleet.models"),
        "history": (len(pools["history"]), config.places or config.history, "fleet.history"),
        "asked": (len(pools["asked"]), config.asked, "fleet.asked"),
    }
    for pool, (there, wanted, setting) in needed.items():
        if there < wanted:
            raise UserError(f"fleet: {there} clips for {pool}, {wanted} are needed; add clips, or lower {setting}")

    def device(name: str, kind: Kind, model: int, spread: Spread, history: list[tuple[str, int]]) -> FleetDevice:
        placement = Placement() if model < 0 else spread.draw(_rng(config.seed, "placement", name))
        camera = sample_camera(_rng(config.seed, "camera", name), config.camera_severity)
        return FleetDevice(name, kind, model, placement, camera, tuple(history))

    training: list[FleetDevice] = []
    for model in np.repeat(range(config.models), config.devices_per_model).tolist() + [-1] * config.clean_devices:
        name = f"train{len(training):04d}"
        mine = _rng(config.seed, "films", name).permutation(films if model < 0 else parts[model])
        kind: Kind = "known" if model >= 0 else "clean"
        taken = [(clip, 0) for clip in mine[: config.clips_per_device].tolist()]
        training.append(device(name, kind, model, config.training, taken))
    dealt = _rng(config.seed, "deal").permutation(pools["asked"]).tolist()
    judged = []
    for i, model in enumerate(_asked_models(config, every)):
        name = f"asked{i:04d}"
        known: Kind = "clean" if model < 0 else "known" if model < config.models else "unseen"
        past = _history(config, pools["history"], _rng(config.seed, "history", name))
        found = device(name, known, model, config.unseen, past)
        judged.append(replace(found, asked=tuple(dealt[i :: config.asked])))
    scenes = tuple(mirrored.get(i, "") for i in range(every))
    return Fleet(config, tuple(names), tuple(families), scenes, tuple(training), tuple(judged))


def _asked_models(config: FleetConfig, every: int) -> list[int]:
    """Model of each asked device: clean ones first, then unseen and known ones in the shares that are set."""
    rng = _rng(config.seed, "models")
    clean = round(config.clean_share * config.asked)
    unseen = round(config.unseen_share * (config.asked - clean))
    known = config.asked - clean - unseen
    weights = np.arange(1, config.models + 1, dtype=float) ** -config.zipf
    ranked = rng.permutation(config.models)  # which models are frequent has nothing to do with their families
    drawn = ranked[rng.choice(config.models, known, p=weights / weights.sum())].tolist()
    strange = [config.models + i % (every - config.models) for i in range(unseen)]
    return [-1] * clean + strange + drawn


def _history(config: FleetConfig, clips: Sequence[str], rng: np.random.Generator) -> list[tuple[str, int]]:
    """What an asked device has taken before: frames of different clips, or several frames of few."""
    mine = rng.permutation(clips)[: config.places or config.history].tolist()
    stays = -(-config.history // len(mine))
    return [(clip, frame) for clip in mine for frame in range(stays)][-config.history :]


def _rng(seed: int, *key: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(part.encode()) for part in key)])
