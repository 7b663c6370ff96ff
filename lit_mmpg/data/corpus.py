"""A corpus: clips, their frames, questions and captions, and the table that deals the clips to devices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError, fault
from lit_mmpg.records import SPLITS, Caption, Clip, FilmedFrames, FrameSource, Question
from lit_mmpg.tasks import find_task

Texts = Sequence[Question | Caption]
"""The text items of a split: questions, or captions."""

GROUPS = ("train", "val", "test_seen", "test_unseen", "test_clean")
"""``train``: training devices and clips. ``val``: unseen devices, validation clips. ``test_seen``: training devices,
test clips. ``test_unseen``: devices never seen in training, test clips. ``test_clean``: unseen devices without any
shift, test clips."""

STAGE_GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "fit": {"train": ("train",), "val": ("val",)},
    "validate": {"val": ("val",)},
    "test": {"test": ("test_unseen", "test_seen", "test_clean")},
    "predict": {"test": ("test_unseen", "test_seen")},
}
"""Stage -> split -> groups of devices of which one must have something to ask."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device.

    Attributes:
        id: Name, unique in the table.
        shift: What sets the device apart, for people to read (mixture, camera, habits).
        camera: Index of its simulated camera, or -1 where its frames are used as they are.
    """

    id: str
    shift: dict[str, str] = field(default_factory=dict)
    camera: int = -1


@dataclass(frozen=True, slots=True)
class DeviceTable:
    """Which device holds which clips.

    Attributes:
        devices: All devices.
        timelines: For each group, device index -> ids of its clips, oldest first. The recent clips that serve as
            context are taken from the same timeline, in that order.
        recipe: The settings that dealt the clips; enough to deal another data set in the same way.
        histories: For a group whose context does not come from its timeline: device index -> ids of the clips that the
            device has seen before, oldest first.
        learnt: What the dealing learnt of its clips, as plain data that a checkpoint keeps: other data are dealt by it.
    """

    devices: tuple[Device, ...]
    timelines: dict[str, dict[int, tuple[str, ...]]]
    recipe: dict[str, Any] = field(default_factory=dict)
    histories: dict[str, dict[int, tuple[str, ...]]] = field(default_factory=dict)
    learnt: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        ids = [device.id for device in self.devices]
        if len(set(ids)) != len(ids):
            raise ValueError("device ids repeat")
        unknown = {*self.timelines, *self.histories} - set(GROUPS)
        if unknown:
            raise ValueError(f"unknown device groups {sorted(unknown)}")

    def to_json(self) -> dict[str, Any]:
        """Plain data, saved with every run."""
        return {
            "recipe": self.recipe,
            "devices": [asdict(device) for device in self.devices],
            "timelines": _rows_to_json(self.timelines),
            **({"histories": _rows_to_json(self.histories)} if self.histories else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DeviceTable:
        """Inverse of :meth:`to_json`."""
        return cls(
            devices=tuple(Device(d["id"], dict(d["shift"]), int(d["camera"])) for d in data["devices"]),
            timelines=_rows_from_json(data["timelines"]),
            recipe=dict(data["recipe"]),
            histories=_rows_from_json(data.get("histories", {})),
        )

    def digest(self) -> str:
        """SHA-256 of the table, hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _rows_to_json(table: dict[str, dict[int, tuple[str, ...]]]) -> dict[str, dict[str, list[str]]]:
    return {group: {str(i): list(clips) for i, clips in rows.items()} for group, rows in table.items()}


def _rows_from_json(data: dict[str, Any]) -> dict[str, dict[int, tuple[str, ...]]]:
    return {group: {int(i): tuple(clips) for i, clips in rows.items()} for group, rows in data.items()}


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything that a data module hands out.

    Attributes:
        clips: All clips.
        frames: Source of their frames, as the devices see them.
        questions: All questions, of all splits.
        captions: All captions, of all splits.
        devices: The device table.
        filmed: What each device sees, where devices share clips; ``frames`` then are the clips before any camera.
        corrected: The same for clips that are asked about, where they are corrected before the encoder.
        clean: Source of the same frames before the simulated cameras, where such twins exist.
        facts: Further printable facts about the corpus (``lit-mmpg devices`` shows them).
        fingerprint: SHA-256 over the content of the source files (or the generator's settings).
        conditions: True settings of each device's camera, ``[devices, K]`` float32, where they are known.
        made: What their features were extracted with, where that is known.
    """

    clips: Sequence[Clip]
    frames: FrameSource
    questions: Sequence[Question]
    captions: Sequence[Caption]
    devices: DeviceTable
    fingerprint: str
    clean: FrameSource | None = None
    filmed: FilmedFrames | None = None
    corrected: FilmedFrames | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    conditions: np.ndarray | None = None
    made: dict[str, Any] = field(default_factory=dict)


def check_encoder(trained: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Check that features are those of the encoder that a checkpoint knows, where both are known.

    Args:
        trained: Description of the data that a checkpoint keeps.
        made: What the features at hand were extracted with.

    Raises:
        UserError: If they are not.
    """
    known = trained.get("extracted")
    if known and made and any(known.get(name) != made.get(name) for name in ("encoder", "height", "width")):
        raise UserError(
            "the checkpoint was trained on features of another encoder, or of pictures of another size; extract the "
            "features with the same encoder and --size (data.features)"
        )


def choose_texts(
    task: str, clips: Sequence[Clip], questions: Sequence[Question], captions: Sequence[Caption]
) -> dict[str, Texts]:
    """The text items of a task, by split.

    Raises:
        UserError: If there is no such task.
    """
    asked = find_task(task, "data.task")
    chosen: dict[str, list[Question | Caption]] = {split: [] for split in SPLITS}
    split_of = {clip.id: clip.split for clip in clips}
    texts: list[Question | Caption] = [*questions, *captions]
    for text in texts:
        split = split_of[text.clip]
        if asked.takes(text, split):
            chosen[split].append(text)
    return dict(chosen)


def check_groups(
    stage: str | None, task: str, texts: Mapping[str, Texts], table: DeviceTable | None, where: str
) -> None:
    """Check that a stage has something to ask: in the splits, and on the devices to which they were dealt.

    A stage that asks nothing passes; without a table of devices, splits alone are checked. ``where`` is what messages
    call the data.

    Raises:
        UserError: If (outside ``collected``) a split or a group has nothing to ask.
    """
    what = find_task(task).full_items
    for split, groups in STAGE_GROUPS.get(stage or "", {}).items():
        asked = {text.clip for text in texts[split]}
        if not asked:
            fault(
                f"{where}: split '{split}' has no clip with {what}; add some to the clip list and to the annotation "
                "files"
            )
        elif table is not None:
            timelines = [clips for group in groups for clips in table.timelines.get(group, {}).values()]
            if asked.isdisjoint(clip for clips in timelines for clip in clips):
                fault(f"{where}: no device of group '{groups[0]}' has a clip with {what}; change data.dealing")
