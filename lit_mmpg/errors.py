"""The one exception for mistakes that the person at the keyboard can mend, and the hint at what was meant."""

from __future__ import annotations

from collections.abc import Iterable
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


def closest(name: str, known: Iterable[str]) -> str:
    """Hint with the most similar of the known names, '' where none is similar."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def nearest(path: Path) -> str:
    """Hint with the most similar existing name in the same folder, or the first folder that is missing."""
    missing = path
    try:
        while missing.parent != missing and not missing.parent.is_dir():
            missing = missing.parent
        if not missing.parent.is_dir():
            return ""
        names = sorted(entry.name for entry in missing.parent.iterdir())
    except OSError:  # a folder that may not be read, a name that is too long
        return ""
    close = get_close_matches(missing.name, names, n=1, cutoff=0.5)
    return (
        f"; did you mean {missing.parent / close[0]}?"
        if close
        else f" (there is no '{missing.name}' in {missing.parent})"
    )
