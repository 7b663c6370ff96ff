"""Names of clips and questions: public files call the same clip ``7010``, ``video7010`` or by a file name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from lit_mmpg.data.records import Caption, Clip, Question

PREFIXES = ("video", "vid")

Record = TypeVar("Record", Clip, Question, Caption)


def resolve_id(name: str, known_ids: Collection[str], aliases: Mapping[str, str] | None = None) -> str:
    """The id under which a clip is known.

    Tried in order: the name as it is, with the prefix ``video``, with the prefix ``vid``, without such a prefix, and
    the same for its alias. The first that is known wins; a name that stays unknown is returned as it is, so that the
    check of coverage reports it by the name that its file uses.

    Args:
        name: The clip's name in an annotation file.
        known_ids: Ids of the clips that have frames; a set or a dictionary, because it is searched for each name.
        aliases: Second names of clips (:func:`lit_mmpg.data.readers.read_aliases`).
    """
    for candidate in (name, (aliases or {}).get(name)):
        if candidate is None:
            continue
        stripped = [candidate.removeprefix(p) for p in PREFIXES if candidate.startswith(p)]
        for form in (candidate, *(p + candidate for p in PREFIXES), *stripped):
            if form in known_ids:
                return form
    return name


def resolve_ids(
    records: Sequence[Record], known_ids: Iterable[str], aliases: Mapping[str, str] | None = None
) -> list[Record]:
    """Questions, captions or clips under the ids by which their clips are known; see :func:`resolve_id`."""
    known = set(known_ids)
    resolved: dict[str, str] = {}
    result = []
    for record in records:
        name = record.id if isinstance(record, Clip) else record.clip
        if name not in resolved:
            resolved[name] = resolve_id(name, known, aliases)
        if resolved[name] == name:
            result.append(record)
        elif isinstance(record, Clip):
            result.append(replace(record, id=resolved[name]))
        else:
            result.append(replace(record, clip=resolved[name]))
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
