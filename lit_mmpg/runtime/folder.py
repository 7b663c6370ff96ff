"""The folder in which a device keeps its state: held by one process at a time.

A full or read-only disk costs memory, not answers: where nothing can be written the folder can still be held, and what
it holds can be read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
from pathlib import Path
from typing import IO

from lit_mmpg.errors import UserError
from lit_mmpg.writing import FULL


class FolderInUseError(UserError):
    """Another process holds the folder."""


class StateFolder:
    """The folder of one device, held by one process.

    The lock is ``flock`` on a file in the folder. Where the file system has none (some network and FUSE file systems),
    or the file cannot be made because the disk is full or read-only, it is a name of this machine (an abstract socket):
    that keeps out other processes of the same machine, and vanishes with its process as well.

    Args:
        path: The folder; made where it is missing and the disk has room.

    Attributes:
        path: The folder.
        note: What a person should know of the folder: it cannot be written to, or has no locks; ``None``: all is well.

    Raises:
        FolderInUseError: If another process holds it.
        UserError: If it cannot be a folder, or cannot be held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.note: str | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in FULL:
                raise UserError(f"{path} cannot be used as a state folder ({error.strerror})") from error
        self._lock = self._hold()

    def close(self) -> None:
        """Let others have it."""
        self._lock.close()

    def _hold(self) -> IO[bytes] | socket.socket:
        used = f"{self.path} is in use by another device process; give each device a folder"
        try:
            file = os.fdopen(os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "rb+")
        except OSError as error:
            self.note = f"{self.path} cannot be written to ({error.strerror}); nothing is remembered"
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError as error:
                file.close()
                raise FolderInUseError(used) from error
            except OSError as error:
                file.close()
                self.note = (
                    f"the file system of {self.path} has no locks ({error.strerror}); only processes of this machine "
                    "are kept out"
                )
        name = hashlib.sha256(os.fsencode(os.path.realpath(self.path))).hexdigest()
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(f"\0lit-mmpg/{name}")
        except OSError as error:
            held.close()
            if error.errno == errno.EADDRINUSE:
                raise FolderInUseError(used) from error
            raise UserError(f"{self.note}; it cannot be held otherwise here, name a folder on a local disk") from error
        return held
