"""Files that are written in one step: no reader, and no killed writer, ever leaves half of one."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
"""Error numbers of a disk that is full, read-only or failing, and not of a mistake of the person at the keyboard."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step; its folder is made where it is missing.

    Raises:
        OSError: If it cannot be written; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """The same for text, as UTF-8."""
    write_bytes(path, text.encode())


def give_up_output() -> None:
    """Send what is still to be printed nowhere: a log on a full disk would fail once more when the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
