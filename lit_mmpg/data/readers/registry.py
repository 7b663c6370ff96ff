"""All layouts by name: those of this package and those of other installed packages.

[project.entry-points."lit_mmpg.readers"]
my_layout = "my_package.my_layout:READER"       # a Reader
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lit_mmpg.data.readers.captions_csv import read_captions_csv
from lit_mmpg.data.readers.msrvtt_captions import read_msrvtt_captions
from lit_mmpg.data.readers.msvd_captions import read_msvd_captions
from lit_mmpg.data.readers.nextqa import OPTIONS as NEXTQA_LAYOUTS
from lit_mmpg.data.readers.nextqa import read_nextqa
from lit_mmpg.data.readers.qa_csv import read_qa_csv
from lit_mmpg.data.readers.qa_json import read_msvd_aliases, read_qa_json
from lit_mmpg.data.readers.tgif_qa import TASKS as TGIF_TASKS
from lit_mmpg.data.readers.tgif_qa import read_tgif_aliases, read_tgif_qa
from lit_mmpg.errors import UserError
from lit_mmpg.plugins import Registry
from lit_mmpg.records import Caption, Question


@dataclass(frozen=True)
class Reader:
    """Functions that read one layout; ``None`` for what the layout does not hold.

    Attributes:
        questions: Reads a folder: split -> questions.
        captions: Reads a file of captions.
        aliases: Reads second names of clips: name -> name of the clip.
    """

    questions: Callable[[Path], dict[str, list[Question]]] | None = None
    captions: Callable[[Path], list[Caption]] | None = None
    aliases: Callable[[Path], dict[str, str]] | None = None


def _take(name: str, made: Any) -> Reader:
    if not isinstance(made, Reader):
        raise TypeError(f"it is no {Reader.__module__}.{Reader.__qualname__}")
    if made.questions is None and made.captions is None:
        raise TypeError("it reads neither questions nor captions")
    return made


READERS = Registry(
    "lit_mmpg.readers",
    "layout",
    {
        "qa_csv": Reader(read_qa_csv),
        "msrvtt_qa": Reader(partial(read_qa_json, layout="msrvtt_qa")),
        "msvd_qa": Reader(partial(read_qa_json, layout="msvd_qa"), aliases=read_msvd_aliases),
        **{layout: Reader(partial(read_nextqa, layout=layout)) for layout in NEXTQA_LAYOUTS},
        **{
            f"tgif_qa_{task}": Reader(partial(read_tgif_qa, task=task), aliases=partial(read_tgif_aliases, task=task))
            for task in TGIF_TASKS
        },
        "captions_csv": Reader(captions=read_captions_csv),
        "msrvtt_captions": Reader(captions=read_msrvtt_captions),
        "msvd_captions": Reader(captions=read_msvd_captions),
    },
    _take,
)


def read(layout: str, content: str, path: str | Path) -> Any:
    """What a layout says.

    Args:
        layout: Name of the layout.
        content: ``questions``, ``captions`` or ``aliases``; of the last a layout may have none.
        path: Its folder or file.

    Raises:
        UserError: If the layout is unknown, does not hold that, or cannot be read.
    """
    reader, path = READERS.find(layout), Path(path).expanduser()
    function: Callable[[Path], Any] | None = getattr(reader, content)
    if function is None:
        if content == "aliases":
            return {}
        other = "captions" if content == "questions" else "questions"
        raise UserError(f"layout '{layout}' holds no {content}; name it under {other}, or choose another layout")
    package = READERS.package(layout)
    if package is None:
        return function(path)
    try:
        return _checked(content, function(path))
    except (UserError, OSError):  # a mistake in the files
        raise
    except Exception as error:
        raise UserError(
            f"the layout '{layout}' of the package '{package}' fails on {path} ({type(error).__name__}: {error}); "
            "mend the package"
        ) from error


def _checked(content: str, said: Any) -> Any:
    """What a reader of another package returned, if it is of the kind that it promises, and its texts are texts."""
    if content == "aliases":
        return {str(name): str(clip) for name, clip in said.items()}
    if content == "captions":
        rows = said = list(said)
    else:
        said = {str(split): list(asked) for split, asked in said.items()}
        rows = [row for asked in said.values() for row in asked]
    kind = Caption if content == "captions" else Question
    needed = ["clip", "text"] if content == "captions" else ["clip", "text", "answer"]
    for row in rows:
        if not isinstance(row, kind):
            raise TypeError(f"a {type(row).__name__} is among the {content}")
        for name in needed:
            if not isinstance(value := getattr(row, name), str) or not value.strip():
                raise TypeError(f"{name} of a {kind.__name__} is {value!r}, where a text is needed")
        if not isinstance(row, Question):
            continue
        if not all(isinstance(value, str) for value in (row.id, row.type, *row.options)):
            raise TypeError(f"not all of {row!r} is text")
        if row.options and (isinstance(row.options, str) or (row.correct, row.answer) not in enumerate(row.options)):
            raise TypeError(f"options[correct] of {row!r} is not its answer; options are a tuple, correct is an index")
    return said
