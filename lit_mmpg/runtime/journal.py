"""What a device did, clip by clip, in a file that survives being killed: one line of JSON for each clip.

A record is committed by the state that holds it (one file, replaced in one step) and then written here. A start after a
crash finds what is missing: a torn last line is overwritten, and a record that only the state knows is added. So each
clip is in here once, whatever happened in between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
        times_ms: Milliseconds by stage: ``decode``, ``encode``, ``cloud``, ``swap``, ``answer``, ``total``.
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
        """Inverse of :meth:`to_json`.

        Raises:
            TypeError: If a field is missing or unknown.
        """
        replies = tuple(Reply(**reply) for reply in data["replies"])
        traffic = Traffic(**data["traffic"]) if data["traffic"] else None
        return cls(**{**data, "replies": replies, "traffic": traffic})


class Journal:
    """The file.

    Args:
        folder: Folder of the device's state.
        committed: The record that the state holds, if any.

    Raises:
        UserError: If the file is none of ours, or cannot be written.
    """

    def __init__(self, folder: Path, committed: Mapping[str, Any] | None) -> None:
        self.path = folder / FILE
        self._size, self._waiting = 0, list[Record]()
        self.records = self._read()
        self._done = {(record.clip, record.digest) for record in self.records}
        self._names = {record.clip for record in self.records}
        if committed is not None:
            record = Record.from_json(committed)
            if record.number > self.last:
                self.add(record)

    @property
    def last(self) -> int:
        """Number of the latest clip, 0 before the first."""
        return self.records[-1].number if self.records else 0

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
        self.records.append(record)
        self._done.add((record.clip, record.digest))
        self._names.add(record.clip)
        self._waiting.append(record)
        data = "".join(json.dumps(r.to_json()) + "\n" for r in self._waiting).encode()
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.truncate(self._size)  # half a line of a write that failed
            file.seek(self._size)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(data)
        self._waiting.clear()

    def _read(self) -> list[Record]:
        if not self.path.is_file():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # a torn last line is overwritten by the next one
        self._size = len(whole)
        try:
            return [Record.from_json(json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.path} is not a journal of this version ({error}); move it away") from error
