"""The one exception for mistakes that the person at the keyboard can mend, and the hint at what was meant."""

from __future__ import annotations

import unicodedata
from difflib import get_close_matches
from pathlib import Path


class UserError(Exception):
    """Bad input: the message names the file, the field and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def find_user_error(error: BaseException) -> UserError | None:
    """The :class:`UserError` that an exception is or was raised from, however libraries wrapped it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, UserError):
            return cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None


def printable(text: object) -> str:
    """A text from outside (the name of a file, say) for a screen or a page: one line, without control characters.

    Control characters, marks that turn the direction of writing, and bytes that are no UTF-8 become backslash escapes.
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNPRINTABLE and c not in _JOINERS else c
        for c in str(text)
    )


_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"
"""Parts of words and of emoji."""


def nearest(path: Path) -> str:
    """Hint with the most similar existing name in the same folder, or the first folder that is missing."""
    missing = path
    while missing.parent != missing and not missing.parent.is_dir():
        missing = missing.parent
    if not missing.parent.is_dir():
        return ""
    names = sorted(entry.name for entry in missing.parent.iterdir())
    close = get_close_matches(missing.name, names, n=1, cutoff=0.5)
    return (
        f"; did you mean {missing.parent / close[0]}?"
        if close
        else f" (there is no '{missing.name}' in {missing.parent})"
    )
