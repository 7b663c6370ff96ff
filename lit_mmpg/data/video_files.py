"""The files of a video data set, read and held against each other: all faults in one report. No torch."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_mmpg.data import readers
from lit_mmpg.data.corpus import DeviceTable, check_groups, choose_texts
from lit_mmpg.data.devices import Dealing, deal
from lit_mmpg.data.features import FeatureFile, check_coverage
from lit_mmpg.errors import UserError, collected, fault
from lit_mmpg.records import SPLITS, Caption, Clip, ClipIndex, Place, Question

_log = logging.getLogger(__name__)

CHECKED_BYTES = 1 << 28
"""Features of at most this size are read before a training starts, to find values that are not finite."""


@dataclass(frozen=True)
class Annotation:
    """One annotation file (or folder of files) of a video data set.

    Attributes:
        layout: Name of its public layout (``lit_mmpg.data.readers``).
        path: File or folder, relative to the root.
    """

    layout: str
    path: str


@dataclass(frozen=True)
class Records:
    """What the files say, under the ids by which the frames are known.

    Attributes:
        clips: Clips that have frames.
        questions: Questions about them.
        captions: Captions of them.
        files: The annotation files that were read.
    """

    clips: list[Clip]
    questions: list[Question]
    captions: list[Caption]
    files: set[Path] = field(default_factory=set)


@dataclass(frozen=True)
class VideoFiles:
    """Where the files of a video data set are.

    Attributes:
        root: Folder of the data set.
        clips: Clip list, relative to the root; ``None``: the questions decide the splits.
        questions: Questions.
        captions: Captions.
        drop_missing: Leave out what lacks frames or is not listed, instead of stopping.
    """

    root: Path
    clips: str | None = None
    questions: Sequence[Annotation] = ()
    captions: Sequence[Annotation] = ()
    drop_missing: bool = False

    def at(self, path: str) -> Path:
        """A path of the configuration: relative to the root, unless it begins with ``/`` or ``~``."""
        return self.root / os.path.expanduser(path)

    def read(self, source: ClipIndex | None, needed: Collection[str] = SPLITS) -> Records:
        """Read all files.

        Args:
            source: Which clips have frames; ``None``: that cannot be told, and the files alone are checked.
            needed: Splits that must be whole. Where that is not all of them, a checkpoint knows what the others teach:
                their clips without frames are left out, and so are annotation files that are not there, and annotations
                of clips that the clip list does not have.

        Raises:
            UserError: One report of everything that is wrong.
        """
        records: tuple[list[Clip], list[Question], list[Caption]] = [], [], []
        with readers.recording() as files, collected() as faults:
            before, faults.broken = faults.broken, False
            lenient = not set(SPLITS) <= set(needed)
            # Without a clip list, the questions are what says which clips there are.
            questions, aliases = self._read_questions(self._there(self.questions, lenient and bool(self.clips)))
            captions: list[Caption] = []
            for annotation in self._there(self.captions, lenient):
                with collected():
                    captions += readers.read_captions(annotation.layout, self.at(annotation.path))
            listed: list[Clip] | None = None
            if self.clips:
                with collected():
                    listed = readers.read_clips(self.at(self.clips))
            if not faults.broken:
                records = self._together(source, questions, captions, listed, aliases, needed)
            faults.broken |= before
        return Records(*records, files)

    def _there(self, annotations: Sequence[Annotation], lenient: bool) -> list[Annotation]:
        """The annotations that are to be read: those that are there, unless all of them must be."""
        if not lenient:
            return list(annotations)
        found = [annotation for annotation in annotations if self.at(annotation.path).exists()]
        for annotation in annotations:
            if annotation not in found:
                _log.warning("%s does not exist: measured without it", self.at(annotation.path))
        return found

    def _read_questions(self, annotations: Sequence[Annotation]) -> tuple[dict[str, list[Question]], dict[str, str]]:
        questions: dict[str, list[Question]] = {}
        aliases: dict[str, str] = {}
        for annotation in annotations:
            with collected():
                path = self.at(annotation.path)
                for split, found in readers.read_questions(annotation.layout, path).items():
                    questions.setdefault(split, []).extend(found)
                aliases |= readers.read_aliases(annotation.layout, path)
        return questions, aliases

    def _together(
        self,
        source: ClipIndex | None,
        questions: Mapping[str, Sequence[Question]],
        captions: Sequence[Caption],
        listed: list[Clip] | None,
        aliases: Mapping[str, str],
        needed: Collection[str],
    ) -> tuple[list[Clip], list[Question], list[Caption]]:
        framed = set(source.ids()) if source else set()
        names = readers.Names(framed or {clip.id for clip in listed or ()}, aliases)
        by_split = {split: readers.resolve_ids(asked, names) for split, asked in questions.items()}
        clips = readers.resolve_ids(listed, names) if listed is not None else readers.clips_of_questions(by_split)
        if listed is not None:
            clips = _once(clips, listed, readers.clip_name if framed else readers.bare_name)
        # A clip without frames is known by the clip list alone, and by the spelling that is used there.
        listed_ids = {clip.id for clip in clips}
        names = readers.Names(listed_ids | framed, aliases)
        asked = readers.resolve_ids([q for split in by_split.values() for q in split], names)
        told = readers.resolve_ids(captions, names)
        places: dict[str, Place] = {}
        for clip in clips:
            places.setdefault(clip.id, clip.place)
        texts: list[Question | Caption] = [*asked, *told]
        for record in texts:
            places.setdefault(record.clip, record.place)
        split_of = {clip.id: clip.split for clip in clips}
        lenient = not set(SPLITS) <= set(needed)
        wanted = {clip for clip in places if split_of.get(clip) in needed} if lenient else set(places)
        kept = check_coverage(wanted, source, self.drop_missing, places) if source else set(places)
        if lenient:
            kept |= framed & listed_ids
            _tell_left_out(split_of, kept)
        else:
            self._check_listed(kept - listed_ids, places)
        kept &= listed_ids
        return (
            [clip for clip in clips if clip.id in kept],
            [q for q in asked if q.clip in kept],
            [c for c in told if c.clip in kept],
        )

    def _check_listed(self, unlisted: set[str], places: Mapping[str, Place]) -> None:
        if not unlisted or self.drop_missing:
            return
        first = ", ".join(sorted(unlisted)[:5])
        place = places[min(unlisted)]
        first += f" ({place})" if place.file else ""
        if self.clips is None:
            fault(
                f"{self.root}: no question says to which split {len(unlisted)} videos with captions belong, first "
                f"{first}; name a clip list (data.clips), or leave them out with --data.drop_missing true"
            )
        else:
            fault(
                f"{self.at(self.clips)}: {len(unlisted)} videos in the annotations are not in the clip list, first "
                f"{first}; add them, or leave them out with --data.drop_missing true"
            )


def _tell_left_out(split_of: Mapping[str, str], kept: Collection[str]) -> None:
    lost = Counter(split for clip, split in split_of.items() if clip not in kept)
    if lost:
        said = ", ".join(f"{count} of split '{split}'" for split, count in lost.items())
        _log.info("clips without frames are left out: %s", said)


def _once(clips: Sequence[Clip], listed: Sequence[Clip], form: Callable[[str], str]) -> list[Clip]:
    """The clips, each once; one that is listed by two spellings is a fault that names both rows."""
    kept: dict[str, Clip] = {}
    first: dict[str, tuple[Clip, str]] = {}
    for clip, spelt in zip(clips, listed, strict=True):
        kept.setdefault(clip.id, clip)
        known, spelling = first.setdefault(form(clip.id), (clip, spelt.id))
        if known is not clip:
            fault(
                f"{clip.place}: '{spelt.id}' ({clip.split}) is the clip that line {known.place.line} lists as "
                f"'{spelling}' ({known.split}); delete one of the lines"
            )
    return list(kept.values())


def check_video_data(settings: Mapping[str, Any], stage: str = "fit") -> None:
    """Look for faults in the files of a ``VideoData`` configuration, before anything heavy is imported.

    ``settings`` are its ``init_args``, with paths resolved.

    Raises:
        UserError: One report of everything that is wrong.
    """
    root = readers.require_path(str(settings["root"]), "data.root")
    files = VideoFiles(
        root,
        settings.get("clips"),
        [Annotation(**entry) for entry in settings.get("questions") or ()],
        [Annotation(**entry) for entry in settings.get("captions") or ()],
        bool(settings.get("drop_missing", False)),
    )
    task: str = settings.get("task", "open_ended")
    with collected() as faults:
        source = None
        with collected():
            source = FeatureFile(files.at(str(settings["features"])))
        with collected():
            records = files.read(source)
        if faults or source is None:
            return
        with collected():
            used = {clip.id for clip in records.clips}
            if source.size_bytes(used) <= CHECKED_BYTES:
                source.load(used)
        dealing = Dealing(**(settings.get("dealing") or {}))
        table: DeviceTable | None = None
        if dealing.kind != "clusters" and dealing.column != "clusters":
            with collected(), _silent("lit_mmpg.data.devices"):  # what it warns of is said when the data is loaded
                table = deal(records.clips, dealing, _no_features)
        texts = choose_texts(task, records.clips, records.questions, records.captions)
        with collected():
            check_groups(stage, task, texts, table, f"data.root {root}")


@contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _no_features() -> Any:
    raise UserError("data.dealing: clusters need features")  # never called: such data is dealt when it is loaded
