"""Names of clips and questions: public files call the same clip ``7010``, ``video7010`` or by a file name."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from lit_mmpg.data.readers.files import walk
from lit_mmpg.errors import UserError, fault
from lit_mmpg.records import OTHER_VIDEOS, VIDEOS, Caption, Clip, Question, clip_id
from lit_mmpg.texts import printable

PREFIXES = ("video", "vid")
SUFFIXES = (*VIDEOS, ".gif", ".npy")
"""Endings of files that are no part of a clip's name, in any case."""

RESERVED = "ids"
"""Name of the list of ids in a file of stacked features."""

Record = TypeVar("Record", Clip, Question, Caption)

_WHOLE = re.compile(r"(\d+)\.0+")


def clip_name(file: str) -> str:
    """Name of a clip without the suffix of its file: ``day/video0.MP4`` is ``day/video0``; ``0.0`` is ``0``.

    Accents are composed (NFC): some systems store them apart from their letters.
    """
    name = unicodedata.normalize("NFC", file).replace("\\", "/").removeprefix("./")
    while (dot := name.rfind(".")) > 0 and name[dot:].lower() in SUFFIXES:
        name = name[:dot]
    whole = _WHOLE.fullmatch(name)
    return whole[1] if whole else name


def clip_files(folder: Path, refuse: Callable[[str], None] = fault) -> dict[str, Path]:
    """Id -> video file, of a folder and its subfolders; the id is the path in the folder without the suffix.

    Args:
        folder: The folder.
        refuse: Is told of each file that cannot have an id.

    Raises:
        UserError: If there is none, or (outside ``collected``) two would have the same id, or one cannot have one.
    """
    files: dict[str, Path] = {}
    called: dict[str, Path] = {}
    seen = False
    for place, folders, names in walk(folder, refuse, links=True):
        within = place.relative_to(folder).as_posix()
        # A folder that is named as a video is told like any other entry that is none.
        for name in sorted([*names, *(n for n in folders if n.lower().endswith(VIDEOS))]):
            file = place / name
            clip = clip_id(file)
            if not clip:
                if name.lower().endswith(OTHER_VIDEOS) and not name.startswith("."):
                    refuse(f"{printable(file)}: videos of this kind are not read; convert it to .mp4, or move it away")
                continue
            seen = True
            id = clip if within == "." else f"{within}/{clip}"
            try:
                id.encode()
            except UnicodeEncodeError:
                refuse(f"{printable(file)}: its name is not UTF-8 text; rename it")
                continue
            if id == RESERVED or clip in (".", ".."):
                refuse(f"{file}: '{clip}' is no possible name of a clip in a file of features; rename it")
            elif (name_of := clip_name(id)) in called:
                fault(f"{file} and {called[name_of].name} would both be clip '{name_of}'; rename one of them")
            else:
                files[id] = called[name_of] = file
    for id, file in files.items():
        if any(parent.as_posix() in files for parent in PurePosixPath(id).parents):
            fault(f"{file}: its folder is called as another clip is, '{PurePosixPath(id).parent}'; rename one of them")
    if not seen:
        raise UserError(f"{printable(folder)} holds no video files ({', '.join(VIDEOS)})")
    return files


def bare_name(name: str) -> str:
    """Name of a clip without suffix and without the prefix ``video`` or ``vid``."""
    return _without_prefix(clip_name(name))


def _without_prefix(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + next((last[len(p) :] for p in PREFIXES if last.startswith(p) and last != p), last)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _folders_agree(name: str, other: str) -> bool:
    """Whether one of two names has no folder, or its folders are the last ones of the other's."""
    one, two = (_plain(text).replace("\\", "/").removeprefix("./").split("/")[:-1] for text in (name, other))
    short, long = sorted((one, two), key=len)
    return not short or long[-len(short) :] == short


_FORMS: tuple[Callable[[str], str], ...] = (
    clip_name,
    bare_name,
    lambda name: bare_name(_plain(name)),
    lambda name: bare_name(_plain(name).replace("\\", "/").rpartition("/")[2]),
)
"""What two spellings of one clip have in common, from the strictest to the most lenient."""


class Names:
    """The ids of clips, found by any of their spellings.

    Args:
        known: Ids of the clips.
        aliases: Second names of clips (:func:`lit_mmpg.data.readers.read_aliases`).
    """

    def __init__(self, known: Collection[str], aliases: Mapping[str, str] | None = None) -> None:
        self.known = known if isinstance(known, Set | Mapping) else set(known)
        self.aliases = aliases or {}
        self._resolved: dict[str, str] = {}
        self._indices: list[dict[str, list[str]]] = []

    def find(self, name: str) -> str:
        """The id that a name means; a name that stays unknown is returned as it is.

        Tried in order: the name as it is; without the suffix of a file; with or without ``video`` or ``vid`` before it;
        in another case; without its folder; and all of that for its alias. A spelling that fits several clips is a
        fault, unless one of them has the prefix ``video``.
        """
        if name not in self._resolved:
            forms = (name, self.aliases.get(name), self.aliases.get(clip_name(name)))
            tried = (self._find(form) for form in forms if form is not None)
            self._resolved[name] = next((found for found in tried if found is not None), name)
        return self._resolved[name]

    def _find(self, name: str) -> str | None:
        if name in self.known:
            return name
        for level, form in enumerate(_FORMS):
            found = self._index(level).get(form(name), [])
            if level == len(_FORMS) - 1:
                found = [id for id in found if _folders_agree(name, id)]
            if len(found) > 1:
                found = [id for id in found if id == f"video{clip_name(name)}"] or found
            if len(found) == 1:
                return found[0]
            if found:
                fault(
                    f"clip '{name}' may be any of {', '.join(repr(id) for id in found[:4])}; call it as one of them, "
                    "or rename the others"
                )
                return found[0]
        return None

    def _index(self, level: int) -> dict[str, list[str]]:
        while len(self._indices) <= level:
            index: dict[str, list[str]] = {}
            for id in self.known:
                index.setdefault(_FORMS[len(self._indices)](id), []).append(id)
            self._indices.append(index)
        return self._indices[level]


def resolve_ids(records: Sequence[Record], names: Names) -> list[Record]:
    """Questions, captions or clips under the ids by which their clips are known; see :meth:`Names.find`."""
    result = []
    for record in records:
        name = record.id if isinstance(record, Clip) else record.clip
        if names.find(name) == name:
            result.append(record)
        elif isinstance(record, Clip):
            result.append(replace(record, id=names.find(name)))
        else:
            result.append(replace(record, clip=names.find(name)))
    return result


def number_repeated_ids(questions: Sequence[Question]) -> list[Question]:
    """The same questions, the second one of an id called ``id#2`` and so on.

    Public files repeat ids (three in the training file of open-ended NExT-QA), and an id must be unique in its split.
    """
    seen: Counter[str] = Counter()
    result = []
    for question in questions:
        seen[question.id] += 1
        count = seen[question.id]
        result.append(question if count == 1 else replace(question, id=f"{question.id}#{count}"))
    return result
