"""Who called sudo: a board's rails and clocks may need root, its caches and results belong to the user."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

CLOCK_SLACK_S = 2.0
"""File systems keep times more coarsely than the clock."""


class Invoker(NamedTuple):
    """The user who called sudo."""

    home: Path
    uid: int
    gid: int


def invoker() -> Invoker | None:
    """The user behind ``sudo``; None where this process is not root, or root itself called."""
    name = os.environ.get("SUDO_USER")
    if not name or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    import pwd

    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Invoker(Path(entry.pw_dir), entry.pw_uid, entry.pw_gid) if entry.pw_uid != 0 else None


@contextmanager
def handed_over(*folders: Path) -> Iterator[None]:
    """What root writes into these folders meanwhile belongs to the user who called sudo; nothing where nobody did.

    The folders may not exist yet: what is made around them goes along. What cannot be changed stays as it is.
    """
    user, began_s = invoker(), time.time()
    tops = [
        next((p for p in reversed([f, *f.parents]) if not os.path.lexists(p)), f) for f in map(Path.absolute, folders)
    ]
    try:
        yield
    finally:
        if user is not None:
            for top in tops:
                inside = (Path(root, name) for root, inner, files in os.walk(top) for name in (*inner, *files))
                for place in (top, *inside):
                    with suppress(OSError):
                        found = place.lstat()
                        # A file with a second name may lie elsewhere as well: that one is not given away.
                        if found.st_uid == 0 and found.st_ctime >= began_s - CLOCK_SLACK_S and _one_name(found):
                            os.chown(place, user.uid, user.gid, follow_symlinks=False)


def _one_name(found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) or found.st_nlink == 1
