"""PersonalClips, the embedded default data set: rendered clips of people's own things in their own rooms.

Each clip shows one coloured shape (6 hues x 4 shapes) that moves in one of 4 directions through one of 4 rooms, each
with a pattern of its own. Two thirds of the clips have 8 frames with the thing in full view; in the others, of 16
frames, it enters, leaves or passes, so that a few anchor frames miss it.

What sets a device apart:

- its camera (:mod:`lit_mmpg.data.cameras`), the pattern and tint of its rooms, and its daylight, an AR(1) process along
  the timeline;
- what it films: its own mixtures over shapes and directions, drawn from a Dirichlet distribution;
- what words mean to it: its owner's thing has the colour ``mine`` (three clips in five show it, the other colours
  share the rest evenly), and its usual room is ``usual_room`` (three in five, the other rooms share the rest).

The last point is what a single clip cannot tell, and the only one: given one perfectly perceived clip, "mine" is right
with probability 3/5 whatever the clip shows, while the parameters of a device with another meaning do worse than that.
A device's unlabelled history tells it: its most frequent colour and room.
Six open-ended questions are asked about every clip, and two of them depend on it: the room for adaptation, computed in
:mod:`lit_mmpg.data.observer` and stated at :class:`PersonalClipsConfig`.

The default world stays solvable: the hues are 60 degrees apart, and a camera of the default severity shifts a hue by
less than half of that (a test films the palette with many cameras; the two strongest severities do not promise it);
rooms differ by pattern and not by tint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from lit_mmpg.data.cameras import FAMILIES, Camera, apply, camera_conditions, check_recipe, noise_seed, sample_camera
from lit_mmpg.data.corpus import Corpus, Device, DeviceTable
from lit_mmpg.errors import UserError
from lit_mmpg.records import Caption, Clip, FrameSource, Question
from lit_mmpg.settings import to_plain

_MOST_CLIPS = 1_000_000

GENERATOR_VERSION = 2
"""Raise it with every change of the generator that changes what it makes: caches of other versions are not read."""

COLOURS = {
    "red": (0.90, 0.13, 0.13),
    "yellow": (0.85, 0.85, 0.12),
    "green": (0.13, 0.75, 0.13),
    "cyan": (0.13, 0.80, 0.80),
    "blue": (0.15, 0.15, 0.92),
    "purple": (0.85, 0.13, 0.85),
}
SHAPES = ("ring", "square", "triangle", "cross")
ROOMS = ("kitchen", "hall", "attic", "nursery")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COURSES = ("stays", "enters", "leaves", "passes")
SHORT_FRAMES = 8
LONG_FRAMES = 16

OPEN_TYPES = ("shape", "colour", "direction", "room", "mine", "usual_room")
"""Types of the open-ended questions; every clip has one of each."""
CHOICE_TYPES = ("which_thing", "which_motion", "which_owner")
"""Types of the multiple-choice questions; every clip has one of each. ``which_owner`` depends on the device."""
NUM_OPTIONS = 5

_WORDING = {
    "shape": ("what shape is it", "which shape do you see", "what form does the thing have"),
    "colour": ("what colour is it", "which colour does the thing have"),
    "direction": ("which way does it move", "where is it heading", "in what direction does the thing go"),
    "room": ("which room is this", "where was this filmed", "in what room does it move"),
    "mine": ("whose thing is it", "who owns it", "to whom does the thing belong"),
    "usual_room": ("is it in the usual place", "is this the usual room", "was this filmed where it mostly is"),
    "which_thing": ("which thing is shown", "what do you see"),
    "which_motion": ("what happens", "what does the thing do"),
    "which_owner": ("whose thing is shown", "which thing of whom is it"),
}
_OWNERS = ("a guest's", "my")
_MINE = ("a guest's", "mine")
_USUAL = ("no", "yes")
_VERBS = {"stays": "moves", "enters": "comes in going", "leaves": "goes out going", "passes": "passes by going"}
_CAPTIONS = (
    "{owner} {colour} {shape} {verb} {direction} in the {room} {usual}",
    "in the {room} {usual} {owner} {colour} {shape} {verb} {direction}",
    "{owner} {shape} , the {colour} one , {verb} {direction} {usual} in the {room}",
)
_CAPTIONS_PER_CLIP = 2
_AS_USUAL = ("for once", "as usual")

_GROUPS = ("train", "val", "test_unseen")
_STREAMS = ("latents", "look", "camera", "words")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PersonalClipsConfig:
    """Settings of the embedded data set.

    The room for adaptation with the default settings, as ``lit-mmpg devices`` prints it (20,000 sampled devices; share
    of right answers over the six open-ended questions of a clip, by ideal observers that perceive without error):

        knows the device                        100.0 %
        knows the clip and 16 earlier clips      99.8 %
        knows the clip and 8 earlier clips       98.6 %
        knows the clip and 4 earlier clips       96.2 %
        knows the clip and 1 earlier clip        90.8 %
        knows the clip alone (device-blind)      86.7 %
        room: knows - blind                      13.3 points

    The standard error of the room is 0.1. ``mine_share`` and ``usual_share`` are above 1/2 so that the blind observer
    has a good guess (the owner's thing, the usual room) that parameters made for somebody else would spoil.

    Attributes:
        seed: Seed of everything.
        train_devices: Training devices; they also film the clips of ``test_seen``.
        val_devices: Unseen devices for validation.
        test_devices: Unseen devices for the test.
        train_clips: Training clips of one training device.
        seen_clips: Test clips of one training device, later in its timeline than all its training clips.
        unseen_clips: Clips of one validation or test device.
        image_size: Height and width of a frame, pixels.
        camera_severity: Severity of the simulated cameras, 0 (none) to 5.
        camera_families: Families of the simulated cameras that take part.
        mine_share: Share of a device's clips that show its owner's colour.
        usual_share: Share of a device's clips that are filmed in its usual room.
        mixture_concentration: Concentration of the Dirichlet mixtures over shapes and directions.
        long_share: Share of the clips that have 16 frames, with the thing in view for part of them.

    Raises:
        UserError: If a value is outside its range.
    """

    seed: int = 0
    train_devices: int = 128
    val_devices: int = 24
    test_devices: int = 24
    train_clips: int = 24
    seen_clips: int = 4
    unseen_clips: int = 32
    image_size: int = 32
    camera_severity: int = 3
    camera_families: tuple[str, ...] = FAMILIES
    mine_share: float = 0.6
    usual_share: float = 0.6
    mixture_concentration: float = 1.0
    long_share: float = 1 / 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "camera_families", tuple(self.camera_families))
        counts = ("train_devices", "val_devices", "test_devices", "train_clips", "seen_clips", "unseen_clips")
        checks = [(name, getattr(self, name) >= 1, "1 or more") for name in counts]
        checks += [
            ("seed", self.seed >= 0, "0 or more"),
            ("image_size", 24 <= self.image_size <= 512, "between 24 and 512 pixels"),
            ("mine_share", 0 < self.mine_share < 1, "between 0 and 1"),
            ("usual_share", 0 < self.usual_share < 1, "between 0 and 1"),
            ("mixture_concentration", 0 < self.mixture_concentration < math.inf, "above 0, and not infinite"),
            ("long_share", 0 <= self.long_share <= 1, "between 0 and 1"),
        ]
        for name, good, wanted in checks:
            if not good:
                raise UserError(f"personal clips: {name} is {getattr(self, name)!r}; set it to {wanted}")
        own = self.train_devices * (self.train_clips + self.seen_clips)
        total = own + (self.val_devices + self.test_devices) * self.unseen_clips
        if total > _MOST_CLIPS:
            raise UserError(
                f"personal clips: the settings ask for {total:,} clips, at most {_MOST_CLIPS:,} are rendered; lower "
                "train_devices, train_clips, seen_clips or unseen_clips"
            )
        check_recipe(self.camera_severity, self.camera_families)

    def digest(self) -> str:
        """SHA-256 over the settings and the generator's version, hexadecimal."""
        settings = {"generator_version": GENERATOR_VERSION, **asdict(self)}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Latents:
    """What there is to know about E devices with N clips each; index arrays into the module's lists.

    Attributes:
        mine: ``[E]`` colour of the owner's thing.
        usual_room: ``[E]`` usual room.
        colour: ``[E, N]`` colours; a clip shows the owner's thing where this equals ``mine``.
        room: ``[E, N]`` rooms.
        shape: ``[E, N]`` shapes.
        direction: ``[E, N]`` directions.
        course: ``[E, N]`` courses; 0 (in view throughout) in short clips, others in long ones.
    """

    mine: np.ndarray
    usual_room: np.ndarray
    colour: np.ndarray
    room: np.ndarray
    shape: np.ndarray
    direction: np.ndarray
    course: np.ndarray

    @property
    def num_frames(self) -> np.ndarray:
        """``[E, N]`` frames of each clip."""
        return np.where(self.course > 0, LONG_FRAMES, SHORT_FRAMES)


def draw_latents(config: PersonalClipsConfig, rng: np.random.Generator, devices: int, clips: int) -> Latents:
    """Draw devices and their clips from the generative model (the one that the ideal observer inverts).

    Args:
        config: Settings.
        rng: Random generator.
        devices: Number of devices E.
        clips: Number of clips N of each.
    """
    mine = rng.integers(len(COLOURS), size=devices)
    usual_room = rng.integers(len(ROOMS), size=devices)
    size = (devices, clips)
    long = rng.random(size) < config.long_share
    return Latents(
        mine=mine,
        usual_room=usual_room,
        colour=_favour(rng, mine, len(COLOURS), config.mine_share, clips),
        room=_favour(rng, usual_room, len(ROOMS), config.usual_share, clips),
        shape=_mixture(rng, len(SHAPES), config.mixture_concentration, size),
        direction=_mixture(rng, len(DIRECTIONS), config.mixture_concentration, size),
        course=np.where(long, rng.integers(1, len(COURSES), size=size), 0),
    )


def _favour(rng: np.random.Generator, favourite: np.ndarray, values: int, share: float, clips: int) -> np.ndarray:
    """``[E, N]`` draws: the favourite with probability ``share``, the other values evenly."""
    size = (len(favourite), clips)
    other = (favourite[:, None] + rng.integers(1, values, size=size)) % values
    return np.where(rng.random(size) < share, favourite[:, None], other)


def _mixture(rng: np.random.Generator, values: int, concentration: float, size: tuple[int, int]) -> np.ndarray:
    shares = rng.dirichlet(np.full(values, concentration), size=size[0])
    return np.minimum((rng.random(size)[..., None] > shares.cumsum(1)[:, None]).sum(-1), values - 1)


def generate(config: PersonalClipsConfig, cache_dir: Path | None = None) -> Corpus:
    """Make the data set.

    Devices are independent of each other, so the same seed gives the same test devices whatever the number of training
    devices. Equal settings give equal corpora on one machine; another build of NumPy's linear algebra or of libjpeg may
    move single pixel values.

    The timeline of a device is in order of time. In ``test_seen`` it holds the device's later clips alone: their
    history is the timeline of the same device in ``train``.

    Args:
        config: Settings.
        cache_dir: Folder that keeps the frames for the next time, made when needed; None keeps nothing. A damaged file
            in it is made anew; a folder that cannot be written costs time only (logged).
    """
    counts = zip(_GROUPS, (config.train_devices, config.val_devices, config.test_devices), strict=True)
    places = [(group, i) for group, count in counts for i in range(count)]
    members = [_Member(group, i, number) for number, (group, i) in enumerate(places)]
    latents = [draw_latents(config, m.rng(config, "latents"), 1, m.num_clips(config)) for m in members]
    num_frames = {
        m.clip(c): int(t) for m, truth in zip(members, latents, strict=True) for c, t in enumerate(truth.num_frames[0])
    }
    total = sum(num_frames.values())
    cache = None if cache_dir is None else Path(cache_dir) / f"personal_clips_{config.digest()[:24]}.npz"
    pixels = _read_cache(cache, (total, 3, config.image_size, config.image_size)) if cache else None
    if pixels is None:
        kept = f", kept in {cache_dir} for the next time" if cache else ""
        _log.info("rendering %d clips, %d frames%s", len(num_frames), total, kept)
        pixels = _film(config, members, latents, total)
        if cache:
            _write_cache(cache, pixels)

    clips: list[Clip] = []
    questions: list[Question] = []
    captions: list[Caption] = []
    devices: list[Device] = []
    timelines: dict[str, dict[int, tuple[str, ...]]] = {g: {} for g in ("train", "val", "test_seen", "test_unseen")}
    for member, truth in zip(members, latents, strict=True):
        ids = [member.clip(c) for c in range(member.num_clips(config))]
        if member.group == "train":
            timelines["train"][member.number] = tuple(ids[: config.train_clips])
            timelines["test_seen"][member.number] = tuple(ids[config.train_clips :])
        else:
            timelines[member.group][member.number] = tuple(ids)
        camera = member.camera(config)
        devices.append(Device(member.name, _shift(truth, camera), -1 if camera.is_identity else member.number))
        rng = member.rng(config, "words")
        for c, clip in enumerate(ids):
            late = member.group == "train" and c >= config.train_clips
            scene = _Scene(truth, c)
            clips.append(Clip(clip, "test" if late else member.group.split("_")[0], scene.columns(member.name)))
            questions.extend(_questions(clip, scene, rng))
            captions.extend(_captions(clip, scene, rng))
    return Corpus(
        clips=clips,
        frames=FrameSource(pixels["frames"], num_frames),
        questions=questions,
        captions=captions,
        devices=DeviceTable(
            tuple(devices),
            timelines,
            {"kind": "personal_clips", "generator_version": GENERATOR_VERSION, **to_plain(config)},
        ),
        fingerprint=config.digest(),
        clean=FrameSource(pixels["clean"], num_frames),
        conditions=np.stack([camera_conditions(member.camera(config)) for member in members]),
    )


@dataclass(frozen=True)
class _Member:
    """One device: its group, its index in that group, and its number in the table."""

    group: str
    index: int
    number: int

    @property
    def name(self) -> str:
        return f"d{self.number:03d}"

    def clip(self, number: int) -> str:
        return f"{self.name}_c{number:03d}"

    def num_clips(self, config: PersonalClipsConfig) -> int:
        return config.train_clips + config.seen_clips if self.group == "train" else config.unseen_clips

    def rng(self, config: PersonalClipsConfig, stream: str) -> np.random.Generator:
        return np.random.default_rng([config.seed, _GROUPS.index(self.group), self.index, _STREAMS.index(stream)])

    def camera(self, config: PersonalClipsConfig) -> Camera:
        return sample_camera(self.rng(config, "camera"), config.camera_severity, config.camera_families)


class _Scene:
    """One clip in words."""

    def __init__(self, truth: Latents, clip: int) -> None:
        self.colour = list(COLOURS)[truth.colour[0, clip]]
        self.shape = SHAPES[truth.shape[0, clip]]
        self.direction = list(DIRECTIONS)[truth.direction[0, clip]]
        self.room = ROOMS[truth.room[0, clip]]
        self.course = COURSES[truth.course[0, clip]]
        self.mine = bool(truth.colour[0, clip] == truth.mine[0])
        self.usual = bool(truth.room[0, clip] == truth.usual_room[0])

    def columns(self, device: str) -> dict[str, str]:
        return {
            "device": device,
            "colour": self.colour,
            "shape": self.shape,
            "room": self.room,
            "direction": self.direction,
            "course": self.course,
            "mine": ("no", "yes")[self.mine],
            "usual_room": ("no", "yes")[self.usual],
        }


def _shift(truth: Latents, camera: Camera) -> dict[str, str]:
    """What sets a device apart, for people."""
    shape = np.bincount(truth.shape[0], minlength=len(SHAPES)).argmax()
    direction = np.bincount(truth.direction[0], minlength=len(DIRECTIONS)).argmax()
    settings = "; ".join(f"{family} {setting}" for family, setting in camera.describe().items())
    return {
        "mine": list(COLOURS)[truth.mine[0]],
        "usual_room": ROOMS[truth.usual_room[0]],
        "films": f"mostly {SHAPES[shape]}, mostly {list(DIRECTIONS)[direction]}",
        "camera": settings or "none",
    }


def _questions(clip: str, scene: _Scene, rng: np.random.Generator) -> Iterator[Question]:
    def wording(kind: str) -> str:
        return _WORDING[kind][rng.integers(len(_WORDING[kind]))]

    answers = {
        "shape": scene.shape,
        "colour": scene.colour,
        "direction": scene.direction,
        "room": scene.room,
        "mine": _MINE[scene.mine],
        "usual_room": _USUAL[scene.usual],
    }
    for kind in OPEN_TYPES:
        yield Question(clip, wording(kind), answers[kind], f"{clip}_{kind}", kind)

    # The five options form a set in which the answer may stand at any place with equal chance, so that nothing but the
    # clip tells which one it is; (i, j) are places in shuffled lists of the two attributes.
    cells = ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2))

    def shuffled(values: Iterable[str], value: str, place: int) -> list[str]:
        others = [other for other in values if other != value]
        mixed = [others[i] for i in rng.permutation(len(others))]
        return [*mixed[:place], value, *mixed[place:]]

    def choice(kind: str, options: list[str], right: int) -> Question:
        order = rng.permutation(NUM_OPTIONS)
        shown = tuple(options[i] for i in order)
        correct = order.tolist().index(right)
        return Question(clip, wording(kind), shown[correct], f"{clip}_{kind}", kind, shown, correct)

    at = int(rng.integers(NUM_OPTIONS))
    colours = shuffled(COLOURS, scene.colour, cells[at][0])
    shapes = shuffled(SHAPES, scene.shape, cells[at][1])
    yield choice("which_thing", [f"a {colours[i]} {shapes[j]}" for i, j in cells], at)

    at = int(rng.integers(NUM_OPTIONS))
    shapes = shuffled(SHAPES, scene.shape, cells[at][0])
    directions = shuffled(DIRECTIONS, scene.direction, cells[at][1])
    yield choice("which_motion", [f"the {shapes[i]} goes {directions[j]}" for i, j in cells], at)

    # Two things, each with either owner, and a third one: most options differ from another by the owner alone.
    pair = int(rng.integers(NUM_OPTIONS)) // 2
    colours = shuffled(COLOURS, scene.colour, (0, 0, 1)[pair])
    shapes = shuffled(SHAPES, scene.shape, (0, 1, 0)[pair])
    things = [f"{colours[i]} {shapes[j]}" for i, j in ((0, 0), (0, 1), (1, 0))]
    options = [f"{owner} {thing}" for thing in things[:2] for owner in _OWNERS]
    options.append(f"{_OWNERS[scene.mine if pair == 2 else rng.integers(2)]} {things[2]}")
    yield choice("which_owner", options, 4 if pair == 2 else 2 * pair + scene.mine)


def _captions(clip: str, scene: _Scene, rng: np.random.Generator) -> Iterator[Caption]:
    for i in rng.permutation(len(_CAPTIONS))[:_CAPTIONS_PER_CLIP]:
        text = _CAPTIONS[i].format(
            owner=_OWNERS[scene.mine],
            colour=scene.colour,
            shape=scene.shape,
            verb=_VERBS[scene.course],
            direction=scene.direction,
            room=scene.room,
            usual=_AS_USUAL[scene.usual],
        )
        yield Caption(clip, text)


def _film(
    config: PersonalClipsConfig, members: list[_Member], latents: list[Latents], total: int
) -> dict[str, np.ndarray]:
    """``clean`` and ``frames``, each ``[total, 3, H, W]`` uint8."""
    clean = np.empty((total, 3, config.image_size, config.image_size), np.uint8)
    filmed = np.empty_like(clean)
    start = 0
    for member, truth in zip(members, latents, strict=True):
        camera = member.camera(config)
        pixels = _render(truth, config.image_size, member.rng(config, "look"))
        clean[start : start + len(pixels)] = pixels
        for c, count in enumerate(truth.num_frames[0]):
            seed = noise_seed(config.seed, f"{member.group}/{member.index}/{c}")
            filmed[start : start + count] = apply(camera, clean[start : start + count], seed)
            start += int(count)
    return {"clean": clean, "frames": filmed}


def _render(truth: Latents, size: int, rng: np.random.Generator) -> np.ndarray:
    """All frames of one device, ``[sum of T, 3, size, size]`` uint8, without its camera. Lengths: frame size = 1."""
    counts = truth.num_frames[0]
    clips = len(counts)
    rooms = _rooms(size, rng)
    radius = rng.uniform(0.22, 0.26, clips)
    across = rng.uniform(0.36, 0.64, clips)
    near, far = rng.uniform(0.17, 0.21, (2, clips))
    outside = rng.uniform(0.55, 0.85, (2, clips))
    # Rows: stays, enters, leaves, passes. The motion runs along an axis that is 0 in mid-frame.
    begin = np.choose(truth.course[0], (-near, -0.5 - outside[0], -near, -0.5 - outside[0] / 2))
    end = np.choose(truth.course[0], (far, far, 0.5 + outside[1], 0.5 + outside[1] / 2))
    tone = np.array(list(COLOURS.values()))[truth.colour[0]] * rng.uniform(0.92, 1.06, (clips, 1))
    light = np.empty(clips + 1)
    light[0] = rng.standard_normal()
    for c in range(clips):
        light[c + 1] = 0.9 * light[c] + np.sqrt(1 - 0.9**2) * rng.standard_normal()

    clip = np.repeat(np.arange(clips), counts)
    time = np.concatenate([np.linspace(0, 1, t) for t in counts])
    along = begin[clip] + (end - begin)[clip] * time
    step = np.array(list(DIRECTIONS.values()))[truth.direction[0]][clip]
    sideways = (across - 0.5)[clip]
    centre_x = 0.5 + step[:, 0] * along + np.where(step[:, 0] == 0, sideways, 0)
    centre_y = 0.5 + step[:, 1] * along + np.where(step[:, 1] == 0, sideways, 0)
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    dx = grid[None, None, :] - centre_x[:, None, None].astype(np.float32)
    dy = grid[None, :, None] - centre_y[:, None, None].astype(np.float32)
    cover = np.empty((len(clip), size, size), np.float32)
    for s, shape in enumerate(SHAPES):
        at = truth.shape[0][clip] == s
        outline = _outline(shape, dx[at], dy[at], radius[clip][at, None, None].astype(np.float32))
        cover[at] = np.clip(0.5 - outline * size, 0, 1)
    values = rooms[truth.room[0]][clip]
    values += cover[:, None] * (tone[clip][:, :, None, None].astype(np.float32) - values)
    # Daylight goes on from where the clip before left it.
    daylight = np.clip(np.exp(0.12 * (light[clip] + (light[clip + 1] - light[clip]) * time)), 0.72, 1.2)
    values *= daylight[:, None, None, None].astype(np.float32)
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _rooms(size: int, rng: np.random.Generator) -> np.ndarray:
    """One device's rooms without things, ``[4, 3, size, size]`` float32: nearly grey, told apart by their pattern."""
    grid = (np.arange(size) + 0.5) / size
    waves = rng.uniform(3.6, 4.4, 4)
    phase = rng.uniform(0, 1, (4, 2))

    def wave(room: int, axis: int) -> np.ndarray:
        return np.clip(2.5 * np.sin(2 * np.pi * (grid * waves[room] + phase[room, axis])), -1, 1)

    flat = np.zeros((size, size))
    dots = np.minimum(wave(3, 0)[:, None], wave(3, 1)[None, :])
    pattern = np.stack(
        [
            wave(0, 0)[:, None] * wave(0, 1)[None, :],  # kitchen: tiles
            flat + wave(1, 0)[None, :],  # hall: upright panels
            flat + wave(2, 0)[:, None],  # attic: planks
            0.6 * dots,  # nursery: dots
        ]
    )
    level = rng.uniform(0.42, 0.5, (4, 1)) + rng.uniform(-0.03, 0.03, (4, 3))
    contrast = rng.uniform(0.10, 0.13, (4, 1, 1))
    return (level[:, :, None, None] + (contrast * pattern)[:, None]).astype(np.float32)


def _outline(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance to the edge of a shape, negative inside (an upper bound of it outside)."""
    if shape == "ring":
        return np.abs(np.hypot(dx, dy) - 0.78 * radius) - 0.26 * radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.88 * radius
    if shape == "triangle":
        slope = np.float32(np.sqrt(3) / 2)
        return np.maximum(dy, np.abs(dx) * slope - dy / 2) - 0.68 * radius
    long, short = np.maximum(np.abs(dx), np.abs(dy)), np.minimum(np.abs(dx), np.abs(dy))
    return np.maximum(long - 1.15 * radius, short - 0.32 * radius)


def _read_cache(path: Path, shape: tuple[int, ...]) -> dict[str, np.ndarray] | None:
    """The cached frames; None when there are none or they are damaged, which the checksums of the archive tell."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels = {name: archive[name] for name in ("clean", "frames")}
        if any(values.shape != shape or values.dtype != np.uint8 for values in pixels.values()):
            raise ValueError("not what was written")
    except (ValueError, EOFError, OSError, KeyError, MemoryError, RuntimeError, BadZipFile) as error:
        _log.warning("%s is damaged (%s); making it anew", path, error)
        return None
    return pixels


def _write_cache(path: Path, pixels: dict[str, np.ndarray]) -> None:
    """Write the frames as they are (no copy in memory), in one rename."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.stem}.", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, clean=pixels["clean"], frames=pixels["frames"])
        os.replace(temporary, path)
    except OSError as error:
        _log.warning("%s cannot be written (%s); the clips will be rendered again next time", path, error)
        if temporary is not None:
            temporary.unlink(missing_ok=True)
