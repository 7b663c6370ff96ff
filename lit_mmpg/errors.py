"""The one exception for mistakes that the person at the keyboard can mend, and the hint at what was meant."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Bad input: the message names the file, the field and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


_SHOWN = 40
_NO_MEMORY = re.compile(r"out of memory|(can.t|failed to|unable to) allocate (memory|[\d.]+ \w?i?B)", re.IGNORECASE)
"""How torch, its accelerators, ONNX Runtime and numpy say it."""


class Faults(list[str]):
    """Messages of faults.

    Attributes:
        broken: Whether a file could not be used at all, so that what was read is not all there is.
    """

    broken: bool = False


_collected: ContextVar[Faults | None] = ContextVar("_collected", default=None)


def fault(message: str) -> None:
    """Note a fault of the data; outside :func:`collected` it is raised at once.

    Raises:
        UserError: Outside :func:`collected`.
    """
    found = _collected.get()
    if found is None:
        raise UserError(message)
    if message not in found:
        found.append(message)


@contextmanager
def collected() -> Iterator[Faults]:
    """Collect all faults noted inside, and raise them as one report at the end.

    A :class:`UserError` that is raised inside ends the block and joins the report. Inside another such block, faults
    are left to the outer one, which goes on.

    Raises:
        UserError: If there was a fault; one alone keeps its message as it is.
    """
    outer = _collected.get()
    found = Faults() if outer is None else outer
    token = _collected.set(found)
    try:
        yield found
    except UserError as error:
        found.broken = True
        if str(error) not in found:
            found.append(str(error))
    finally:
        _collected.reset(token)
    if outer is None and found:
        raise UserError(_report(found))


def _report(found: list[str]) -> str:
    if len(found) == 1:
        return found[0]
    lines = [f"  - {message}" for message in found[:_SHOWN]]
    rest = len(found) - len(lines)
    return "\n".join([f"{len(found)} problems:", *lines, *([f"  ... and {rest} more"] if rest else [])])


def find_user_error(error: BaseException) -> UserError | None:
    """The :class:`UserError` that an exception is or was raised from, however libraries wrapped it.

    Memory that ran out is one, too: some size was too large.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    full: BaseException | None = None
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, MemoryError) or _NO_MEMORY.search(str(cause)):
            full = cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    if full is None:
        return None
    said = f" ({first_line(full)})" if str(full) else ""
    return UserError(
        f"there is not enough memory{said}; lower the sizes of the model, of data.batch or of what is measured, or end "
        "what else runs here"
    )


def first_line(error: BaseException) -> str:
    """First line of an error's text, or the name of its type."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def reason_of(error: BaseException) -> str:
    """Why something failed, for a report that goes on: the text of a mistake, of anything else the type and a line."""
    mistake = find_user_error(error)
    return str(mistake) if mistake else f"{type(error).__name__}: {first_line(error)}"


def install_hint(extra: str) -> str:
    """How to add an extra of this package, which no index holds: from its checkout, or from its wheel."""
    root = Path(__file__).parents[1]
    if (root / "pyproject.toml").is_file():
        return f"run pip install -e '{os.path.relpath(root)}[{extra}]'"
    return f"run pip install 'FILE.whl[{extra}]' with the wheel of lit-mmpg"


def closest(name: str, known: Iterable[str]) -> str:
    """Hint with the most similar of the known names, '' where none is similar.

    Example:
        >>> closest("predicct", ["fit", "predict"])
        "; did you mean 'predict'?"
    """
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def path_of(given: Any, what: str) -> Path:
    """What somebody gave as a path, with the home folder for ``~``; whether anything is there is another question.

    Raises:
        UserError: If it is none, or longer than paths may be.
    """
    try:
        path = Path(given).expanduser()
        os.lstat(path)
    except (TypeError, ValueError, RuntimeError):  # no text, a NUL in it, the home of nobody
        raise UserError(f"{what} is {given!r}, which is no path; give one as text") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{what} {str(given)[:60]}... is too long for a path; give a shorter one") from None
    return path


def nearest(path: Path) -> str:
    """Hint: what else is there, the most similar existing name in the same folder, or the first missing folder."""
    missing = path
    try:
        if path.exists():
            return f" (it is a {'folder' if path.is_dir() else 'file'})"
        while missing.parent != missing and not missing.parent.is_dir():
            missing = missing.parent
        if missing.is_symlink():
            return f" ({missing} is a link to something that does not exist)"
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
