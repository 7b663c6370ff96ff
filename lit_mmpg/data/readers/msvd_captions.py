"""Layout ``msvd_captions``: ``AllVideoDescriptions.txt`` of MSVD (Chen and Dolan, ACL 2011).

One line per sentence, ``NAME_START_END sentence``; lines that start with ``#`` are comments. The splits that everybody
uses are those of MSVD-QA's files.
"""

from __future__ import annotations

from pathlib import Path

from lit_mmpg.data.readers.files import read_lines, require_file
from lit_mmpg.errors import fault
from lit_mmpg.records import Caption, Place


def read_msvd_captions(path: Path) -> list[Caption]:
    """All sentences, in the order of the file.

    Raises:
        UserError: If the file is missing, is no text, or a line has a clip but no sentence.
    """
    file = require_file(path, "layout msvd_captions")
    captions = []
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip() or line.startswith("#"):
            continue
        clip, _, sentence = line.strip().partition(" ")
        if sentence.strip():
            captions.append(Caption(clip, sentence.strip(), place=Place(file, number)))
        else:
            fault(f"{file}, line {number}: '{clip}' has no sentence; a line is 'NAME_START_END sentence'")
    return captions
