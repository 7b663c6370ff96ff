"""Files that are written in one step: no reader, and no killed writer, ever leaves half of one."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mmpg.errors import UserError

if TYPE_CHECKING:
    import numpy as np

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
"""Error numbers of a disk that is full, read-only or failing, and not of a mistake of the person at the keyboard."""


def write_bytes(path: Path, data: bytes | memoryview, synced: bool = False) -> None:
    """Write a file in one step; its folder is made where it is missing, and a link to a file stays a link.

    Args:
        path: The file.
        data: What it will hold.
        synced: Wait until the data are on the disk, so that a power cut leaves no empty file either.

    Raises:
        OSError: If it cannot be written; what was there before is still there.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a full disk does not say of which file
        raise


def write_text(path: Path, text: str, synced: bool = False) -> None:
    """The same for text, as UTF-8."""
    write_bytes(path, text.encode(), synced)


def tensors_as_bytes(tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """Arrays as safetensors, whose library takes memory as it lies: a view would be saved as other numbers."""
    import numpy as np
    from safetensors.numpy import save

    return save({name: np.asarray(array, order="C") for name, array in tensors.items()}, metadata)


def require_writable(path: Path, option: str, *suffixes: str) -> None:
    """Check that a file can be written, before anything long; missing folders will be made.

    Args:
        path: The file.
        option: Option that names it.
        suffixes: Ends that its name may have; none: any.

    Raises:
        UserError: If it has another end, or is in no folder that can be written to.
    """
    if suffixes and path.suffix not in suffixes:
        raise UserError(f"{option} {path}: name a file that ends in {suffixes[0]}")
    folder = path.parent
    while not os.path.exists(folder) and folder.parent != folder:
        folder = folder.parent
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: cannot be written; name a file in a folder that you may write to")


def give_up_output() -> None:
    """Send what is still to be printed nowhere: a log on a full disk would fail once more when the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
