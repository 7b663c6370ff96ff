"""A device at work: one clip after the other, asked or not asked, answered in any case."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.adaptation import Adaptation, adapt, restore, take_in
from lit_mmpg.runtime.client import CloudClient
from lit_mmpg.runtime.journal import Journal, Record, Reply
from lit_mmpg.runtime.looking import Eye, Look
from lit_mmpg.runtime.policies import Policy
from lit_mmpg.runtime.questions import Question, Questions
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.video import video_digest

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
"""How long a cloud that failed is left alone: doubled with each failure in a row."""


class StateFolder:
    """The folder of one device, held by one process.

    Args:
        path: The folder; made where it is missing.

    Raises:
        UserError: If another process holds it, or it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock: Any = (path / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path} is in use by another device process; give each device a folder") from error
        except OSError as error:
            raise UserError(f"{path} cannot be used as a state folder ({error.strerror})") from error

    def close(self) -> None:
        """Let others have it."""
        self._lock.close()


class Device:
    """A device.

    Args:
        session: Its model.
        eye: How it looks at videos.
        questions: What it is asked.
        policy: When it asks the cloud.
        client: The cloud; ``None``: there is none.
        device_id: Its name.
        folder: Where it keeps its state; ``None``: nowhere.
        upload_codec: Codec of its uploads; ``None``: that of the checkpoint.
        noise: See :attr:`DeviceState.noise`.
        clock: Seconds that only grow; for tests.

    Raises:
        UserError: If the codec is unknown, or the journal in the folder is none of ours.
    """

    def __init__(
        self,
        session: DeviceSession,
        eye: Eye,
        questions: Questions,
        policy: Policy,
        client: CloudClient | None = None,
        device_id: str = "device",
        folder: StateFolder | None = None,
        upload_codec: str | None = None,
        noise: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session, self.eye, self.questions, self.policy = session, eye, questions, policy
        self.client, self.device_id, self.clock = client, device_id, clock
        self._folder = folder.path if folder else None
        self.state = DeviceState.load(session.bundle, self._folder)
        if client is not None:
            session.bundle.upload_codec(upload_codec)
            self.state.codec = upload_codec
        self.state.noise = noise
        self.journal = Journal(self._folder, self.state.record) if self._folder else None
        self.source = restore(session, self.state)
        self._number = max(self.journal.last if self.journal else 0, (self.state.record or {}).get("number", 0))
        self._failures, self._not_before = 0, 0.0
        # A request of a former run may have left without being noted: its number is not used again.
        self.state.sequence += 1
        self.storage_error = self._save()

    def known(self, video: Path) -> bool:
        """Whether the clip was dealt with before; only clips of known names are read for that."""
        if self.journal is None or not self.journal.names(video.name):
            return False
        try:
            return self.journal.holds(video.name, video_digest(video))
        except UserError:
            return self.journal.holds(video.name, "")

    def take(self, video: Path) -> Record:
        """Deal with one clip: whatever fails, the device is ready for the next one.

        Returns:
            What happened, committed to the disk where there is a folder.
        """
        start = time.perf_counter()
        self._number += 1
        digest = ""
        try:
            digest = video_digest(video)
            look = self.eye.look(video)
        except UserError as error:
            return self._commit(
                Record(self._number, video.name, digest, self.source, reason="unreadable", error=str(error))
            )
        times = {"decode": look.decode_ms, "encode": look.encode_ms}
        asked, outcome, situation = False, Adaptation(self.source), self.state.situation()
        if self.session.bundle.remembers:
            take_in(self.session, self.state, look.features)
            situation = self.state.situation()
        if self.client is not None and self.clock() >= self._not_before:
            asked = self.policy.asks(situation)
            if asked:
                outcome = adapt(self.session, self.state, self.client, self.device_id)
                self._note(outcome)
                times |= {"cloud": outcome.cloud_ms, "swap": outcome.swap_ms}
        before = time.perf_counter()
        replies = self._replies(look)
        times["answer"] = 1e3 * (time.perf_counter() - before)
        times["total"] = 1e3 * (time.perf_counter() - start)
        return self._commit(
            Record(
                self._number,
                video.name,
                digest,
                outcome.source,
                asked,
                outcome.reason,
                outcome.error,
                replies,
                outcome.traffic,
                situation.drift,
                situation.uncertainty,
                {name: round(value, 3) for name, value in times.items()},
            )
        )

    def _note(self, outcome: Adaptation) -> None:
        if outcome.source == "cloud":
            self.source, self._failures = "cached", 0  # from the next clip on these are the parameters of before
            return
        pause = min(FIRST_PAUSE_S * 2**self._failures, LONGEST_PAUSE_S)
        self._failures += 1
        self._not_before = self.clock() + pause

    def _replies(self, look: Look) -> tuple[Reply, ...]:
        """Answers in the order of the questions; sentences for a retrieval model, the most similar one first."""
        questions = self.questions.about(look.video.stem)
        if self.session.manifest.task != "retrieval":
            return tuple(self._reply(look, question) for question in questions)
        video = self.session.embed_video(look.features)
        scores = [float(video @ self.session.embed_text(question.text)) for question in questions]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return tuple(Reply(questions[i].text, questions[i].text, scores[i], similarity=True) for i in order)

    def _reply(self, look: Look, question: Question) -> Reply:
        answer = self.session.answer(look.features, question.text, question.options)
        self.state.answered(answer.confidence)
        right = None if question.answer is None else answer.text == question.answer
        return Reply(question.text, answer.text, answer.confidence, right)

    def _commit(self, record: Record) -> Record:
        self.state.record = record.to_json()
        self.storage_error = self._save()
        if self.journal is not None and self.storage_error is None:
            try:
                self.journal.add(record)
            except OSError as error:  # the state holds the record: the next start adds it
                self.storage_error = f"{self.journal.path}: {error.strerror}"
        return record

    def _save(self) -> str | None:
        if self._folder is None:
            return None
        try:
            self.state.save(self._folder)
        except OSError as error:
            return f"{self._folder}: the state cannot be written ({error.strerror}); it goes on without"
        return None
