"""Whether a video file is as long as its own container says: a copy that was cut off still opens and plays.

Only lengths in bytes count. Durations and numbers of frames in headers are no evidence: trimmed files promise pictures
that are not shown, files with late sound outlast their pictures, and streams that were remuxed keep the length of their
source.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_BOXES = (b"moov", b"mdat", b"moof")
"""Boxes of an ISO file that hold the video; behind them some writers leave bytes that are no boxes."""
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_OPEN_RIFF = (0, 0x7FFFFFFF, 0xFFFFFFFF)
"""Lengths that writers leave in a RIFF header which they could not go back to."""
_RIFF_SLACK = 64
"""Some writers count the eight bytes of the header, too."""
_PACKETS = ((188, 0), (192, 4), (204, 0))
"""Length of the packets of a transport stream, and where in them the sync byte is."""


def missing_bytes(path: Path) -> int:
    """How many bytes a file lacks at its end, at least; 0 where it is whole or its container does not say.

    Knows MP4/QuickTime, Matroska/WebM, AVI, MPEG program and transport streams. Recordings that were never finished
    promise nothing, and are whole if their last element is.

    Raises:
        OSError: If the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(3 * 204)
        walk: Callable[[BinaryIO, int], int] | None = None
        if head[4:8] in (b"ftyp", b"styp", b"wide", b"free", b"skip", b"pnot", *_BOXES):
            walk = _iso
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            walk = _ebml
        elif head[:4] == b"RIFF":
            walk = _riff
        elif head[:4] == b"\0\0\1\xba":
            walk = _program_stream
        if walk is not None:
            return max(0, walk(file, size) - size)
    for length, sync in _PACKETS:
        if head[sync::length][:3] == b"GGG":
            return -size % length
    return 0


def _iso(file: BinaryIO, size: int) -> int:
    """Where the last box ends."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, kind = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        if length < 8:  # to the end of the file, or no box
            break
        if position + length > size and kind not in _BOXES:
            break
        position += length
    return position


def _ebml(file: BinaryIO, size: int) -> int:
    """Where the last element ends; segments and clusters of unknown length are entered."""
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(12)
        width = 9 - head[0].bit_length()
        used = width + (9 - head[width].bit_length() if len(head) > width else 1)
        if width > 4 or used > width + 8:  # no element
            break
        if len(head) < used:
            return position + used
        kind, length = int.from_bytes(head[:width], "big"), int.from_bytes(head[width:used], "big")
        bits = 7 * (used - width)
        length &= (1 << bits) - 1
        position += used
        if length == (1 << bits) - 1:
            if kind not in (_SEGMENT, _CLUSTER):
                break
        else:
            position += length
    return position


def _riff(file: BinaryIO, size: int) -> int:
    """Where the last RIFF list ends; long AVI files have several. Lists of unknown length are entered."""
    position, entered = 0, False
    while position + 8 <= size:
        file.seek(position)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind in (b"RIFF", b"LIST") and length in _OPEN_RIFF:
            position, entered = position + 12, True
        elif kind == b"RIFF" or entered:
            position += 8 + length + length % 2
        else:
            break
    return position if position > size + _RIFF_SLACK else size


def _program_stream(file: BinaryIO, size: int) -> int:
    """Where the last packet ends."""
    position = 0
    while position + 4 <= size:
        file.seek(position)
        head = file.read(14)
        if head[:3] != b"\0\0\1" or head[3] < 0xB9:
            break
        head = head.ljust(14, b"\0")
        if head[3] == 0xBA:
            position += 14 + (head[13] & 7) if head[4] >> 6 == 1 else 12
        else:
            position += 4 if head[3] == 0xB9 else 6 + int.from_bytes(head[4:6], "big")
    return position
