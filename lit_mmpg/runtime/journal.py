"""What a device did, clip by clip, in a file that survives being killed: one line of JSON for each clip.

A record is committed by the state that holds it (one file, replaced in one step) and then written here. A start after a
crash finds what is missing: a torn last line is overwritten, and records that only the state knows are added. So each
clip is in here once, whatever happened in between. Records that find no room wait, here and in the state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.adaptation import Source
from lit_mmpg.runtime.client import Traffic

FILE = "answers.jsonl"


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        question: What was asked.
        answer: What the device said; of a retrieval model, the sentence itself.
        confidence: How sure it was, 0 to 1; or how similar the sentence and the clip are, -1 to 1.
        right: Whether that is the known answer; ``None`` where none is known.
        similarity: Whether ``confidence`` is a similarity.
    """

    question: str
    answer: str
    confidence: float
    right: bool | None = None
    similarity: bool = False


@dataclass(frozen=True)
class Record:
    """One clip.

    Attributes:
        number: Which clip of this device's life it is, from 1.
        clip: Name of the file.
        digest: Which video it is (:func:`lit_mmpg.runtime.video.video_digest`).
        source: Parameters that answered.
        asked: Whether the cloud was asked for this clip.
        reason: Why the cloud did not help, as a short name; ``None`` where it did or was not asked.
        error: The same in words; or why the clip could not be read.
        replies: Answers.
        traffic: Bytes; ``None`` where nothing came back.
        drift: See :class:`lit_mmpg.runtime.policies.Situation`.
        uncertainty: Likewise.
        times_ms: Milliseconds by stage: ``decode``, ``encode``, ``cloud``, ``swap``, ``guard``, ``camera``, ``answer``,
            ``total``.
    """

    number: int
    clip: str
    digest: str
    source: Source
    asked: bool = False
    reason: str | None = None
    error: str | None = None
    replies: tuple[Reply, ...] = ()
    traffic: Traffic | None = None
    drift: float = 0.0
    uncertainty: float = 0.0
    times_ms: dict[str, float] = field(default_factory=dict)

    @property
    def unreadable(self) -> bool:
        """Whether the clip itself could not be read."""
        return self.reason == "unreadable"

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Inverse of :meth:`to_json`; what a newer version noted besides is passed over.

        Raises:
            TypeError: If a field is missing or of the wrong kind.
        """
        values = _known(cls, data)
        if not (
            type(values["number"]) is int and isinstance(values["clip"], str) and isinstance(values["digest"], str)
        ):
            raise TypeError("number, clip or digest is of the wrong kind")
        replies = tuple(Reply(**_known(Reply, reply)) for reply in values.get("replies", ()))
        traffic = Traffic(**_known(Traffic, values["traffic"])) if values.get("traffic") else None
        return cls(**{**values, "replies": replies, "traffic": traffic})


def _known(kind: type[Record | Reply | Traffic], data: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise TypeError(f"{type(data).__name__} in place of a {kind.__name__.lower()}")
    return {entry.name: data[entry.name] for entry in fields(kind) if entry.name in data}


class Journal:
    """The file. What is in it stays as it is; lines that cannot be read are passed over and said.

    Args:
        folder: Folder of the device's state.
        committed: The record of the latest clip that the state holds, if any.
        pending: Those before it that the state holds because they could not be written here.

    Attributes:
        records: All records, those that wait for room on the disk included.
        waiting: Records that could not be written yet.
        note: What a person should know of the file; ``None``: all is well.

    Raises:
        UserError: If the file is none of ours, or cannot be read.
    """

    def __init__(
        self, folder: Path, committed: Mapping[str, Any] | None, pending: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.path = folder / FILE
        self.waiting = list[Record]()
        self.note: str | None = None
        self._size, self._whole = 0, True
        self.records = self._read()
        self._done = {(record.clip, record.digest) for record in self.records}
        self._names = {record.clip for record in self.records}
        numbers = {record.number for record in self.records}
        for known in (*pending, *([] if committed is None else [committed])):
            try:
                record = Record.from_json(known)
            except (TypeError, KeyError) as error:
                self.note = f"the state holds a record that cannot be read ({error}); passed over"
                continue
            if record.number not in numbers:
                self._remember(record)
        try:
            self._write()
        except OSError as error:  # the state still holds them
            self.note = f"{self.path} cannot be written ({error.strerror})"

    @property
    def last(self) -> int:
        """Number of the latest clip, 0 before the first."""
        return max((record.number for record in self.records), default=0)

    def names(self, clip: str) -> bool:
        """Whether a clip of this name was dealt with."""
        return clip in self._names

    def holds(self, clip: str, digest: str) -> bool:
        """Whether a clip was dealt with."""
        return (clip, digest) in self._done

    def add(self, record: Record) -> None:
        """Write a line, down to the disk; and those that could not be written before.

        Raises:
            OSError: If the disk is full; the line is written with the next one.
        """
        self._remember(record)
        self._write()

    def _remember(self, record: Record) -> None:
        self.records.append(record)
        self._done.add((record.clip, record.digest))
        self._names.add(record.clip)
        self.waiting.append(record)

    def _write(self) -> None:
        if not self.waiting:
            return
        data = "".join(json.dumps(r.to_json()) + "\n" for r in self.waiting).encode()
        if not self._whole:
            data = b"\n" + data
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            self._size = min(self._size, file.seek(0, os.SEEK_END))  # shorter where somebody moved it away
            file.truncate(self._size)  # half a line of a write that failed
            file.seek(self._size)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(data)
        self._whole = True
        self.waiting.clear()

    def _read(self) -> list[Record]:
        try:
            if self.path.exists() and not self.path.is_file():
                raise UserError(f"{self.path} is not a file; move it away")
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}); mend it, or move it away") from error
        whole = data.rfind(b"\n") + 1
        records, bad = list[Record](), list[str]()
        for number, line in enumerate(data[:whole].split(b"\n"), 1):
            if line.strip():
                try:
                    records.append(_record(line))
                except ValueError as error:
                    bad.append(f"line {number} ({error})")
        self._size = whole
        try:  # a torn last line is overwritten by the next one; a whole one that lacks its end is a line
            records.append(_record(data[whole:]))
            self._size, self._whole = len(data), False
        except ValueError:
            pass
        if bad and not records:
            raise UserError(f"{self.path} is not a journal of this version: {bad[0]}; move it away")
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            self.note = f"{self.path}: {bad[0]}{more} cannot be read; left as it is"
        return records


def _record(line: bytes) -> Record:
    """The record of a line.

    Raises:
        ValueError: If there is none.
    """
    try:
        return Record.from_json(json.loads(line))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
