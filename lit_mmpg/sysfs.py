"""Files of sysfs, procfs and debugfs, read so that one that refuses never ends what reads it.

Such files are answers of drivers: the thermal zone of a block that is powered off answers EAGAIN (which Python's text
mode turns into a TypeError), a sensor that has lost its bus EIO, a channel that is switched off ENODATA; others are
empty, hold ``N/A`` or a sentinel. Each becomes one :class:`Unreadable` that names the file. Everything that reads these
file systems reads through here.

The environment variable ``LIT_MMPG_ROOT`` names another root than ``/`` for the profiling harness: the file systems of
a host that a container mounts elsewhere, or a tree made by hand.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from lit_mmpg.errors import UserError

ROOT_VARIABLE = "LIT_MMPG_ROOT"
MOST_BYTES = 4 * 2**20
"""No file that is read here is longer; /proc/cpuinfo of 512 processors has under 1 MiB."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?")
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


class Unreadable(Exception):
    """A file that does not tell; the message names it and says why.

    Attributes:
        absent: Whether there is no such file at all.
        denied: Whether permission is missing.
    """

    def __init__(self, path: Path, why: str, number: int | None = None) -> None:
        super().__init__(f"{path} {why}")
        self.absent = number in _ABSENT
        self.denied = number in (errno.EACCES, errno.EPERM)


def system_root() -> Path:
    """Root of the file systems that are read: ``/``, or what ``LIT_MMPG_ROOT`` names.

    Raises:
        UserError: If it names no folder.
    """
    name = os.environ.get(ROOT_VARIABLE) or "/"
    if not os.path.isdir(name):
        raise UserError(f"{ROOT_VARIABLE}={name} is not a folder; unset it to read this machine's own /sys and /proc")
    return Path(name)


def read_bytes(path: Path) -> bytes:
    """Content of a file, at most ``MOST_BYTES``.

    Raises:
        OSError: As the kernel says it.
    """
    # Without blocking: a pipe or a terminal in the place of a file holds nobody up.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        parts: list[bytes] = []
        while (size := sum(map(len, parts))) < MOST_BYTES and (
            part := os.read(descriptor, min(65536, MOST_BYTES - size))
        ):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """Text of a file without the blanks and NULs around it; bytes that are no UTF-8 are replaced.

    Raises:
        Unreadable: If it refuses, or holds nothing.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise Unreadable(path, f"answers '{error.strerror or error}'", error.errno) from error
    text = content.decode(errors="replace").strip("\0 \t\r\n")
    if not text:
        raise Unreadable(path, "is empty")
    return text


def read_number(path: Path, least: float = -1e18, most: float = 1e18) -> float:
    """Number in a file.

    Args:
        path: The file.
        least: Smaller numbers are no readings.
        most: Larger numbers are no readings.

    Raises:
        Unreadable: If it refuses, or holds anything but one number in this range.
    """
    text = read_text(path)
    if _NUMBER.fullmatch(text) is None:
        raise Unreadable(path, f"holds {text[:40]!r}, which is no number")
    value = float(text)
    if not least <= value <= most:
        raise Unreadable(path, f"holds {text}, which is no possible reading")
    return value


def text(path: Path, refused: list[str] | None = None) -> str | None:
    """The same, None where the file does not tell; why goes to ``refused`` unless there is no such file."""
    try:
        return read_text(path)
    except Unreadable as error:
        _note(error, refused)
        return None


def number(path: Path, least: float = -1e18, most: float = 1e18, refused: list[str] | None = None) -> float | None:
    """The same for a number."""
    try:
        return read_number(path, least, most)
    except Unreadable as error:
        _note(error, refused)
        return None


def kilobytes(path: Path, field: str) -> int | None:
    """A field of /proc/meminfo or /proc/PID/status, ``MemTotal:  123 kB``, in bytes; None where the file has none."""
    match = re.search(rf"^{re.escape(field)}:[ \t]+([0-9]{{1,18}}) kB", text(path) or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def device_tree(root: Path, name: str) -> str | None:
    """A property of the device tree's root, such as ``model``; None where there is no such tree."""
    folders = ("proc/device-tree", "sys/firmware/devicetree/base")
    return next((told for folder in folders if (told := text(root / folder / name))), None)


def processor_name(root: Path = Path("/")) -> str | None:
    """Name of the processor from /proc/cpuinfo; None where it tells none, as on many Arm boards."""
    told = text(root / "proc/cpuinfo") or ""
    found = re.search(r"^(?:model name|Model|Hardware)[ \t]*:[ \t]*(\S.*)$", told, re.MULTILINE)
    return found[1].strip() if found else None


def find(root: Path, pattern: str) -> list[Path]:
    """Paths below a root that match a pattern, numbers in their names in order; folders that refuse are passed over."""
    try:
        paths = list(root.glob(pattern))
    except OSError:
        return []
    return sorted(
        paths, key=lambda p: [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"([0-9]+)", str(p))]
    )


def _note(error: Unreadable, refused: list[str] | None) -> None:
    if refused is not None and not error.absent:
        refused.append(str(error))
