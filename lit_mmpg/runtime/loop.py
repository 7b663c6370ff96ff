"""A device at work: one clip after the other, asked or not asked, answered in any case."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.adaptation import Adaptation, adapt, restore, take_in
from lit_mmpg.runtime.camera import Camera, asked
from lit_mmpg.runtime.client import CloudClient
from lit_mmpg.runtime.folder import StateFolder
from lit_mmpg.runtime.journal import Journal, Record, Reply
from lit_mmpg.runtime.looking import Eye
from lit_mmpg.runtime.policies import Policy
from lit_mmpg.runtime.questions import Question, Questions
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.video import video_digest
from lit_mmpg.tasks import find_task

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
"""How long a cloud that failed is left alone: doubled with each failure in a row."""
REFUSED_PAUSE_S = 600.0
"""The same for a refusal that lasts until somebody mends something: another checkpoint, an unknown key."""

MOST_PENDING = 1000
"""Records that the state holds for a journal that cannot be written."""


class Device:
    """A device.

    Args:
        session: Its model.
        eye: How it looks at videos.
        questions: What it is asked.
        policy: When it asks the cloud.
        client: The cloud; ``None``: there is none.
        device_id: Its name; ``None``: that of the state in the folder, or ``device``.
        folder: Where it keeps its state; ``None``: nowhere.
        upload_codec: Codec of its uploads; ``None``: that of the checkpoint.
        noise: See :attr:`DeviceState.noise`.
        clock: Seconds that only grow; for tests.
        camera: Its camera, where a memory of camera models recognises it.

    Raises:
        UserError: If the codec is unknown, the state in the folder is another device's, or the journal none of ours.
    """

    def __init__(
        self,
        session: DeviceSession,
        eye: Eye,
        questions: Questions,
        policy: Policy,
        client: CloudClient | None = None,
        device_id: str | None = None,
        folder: StateFolder | None = None,
        upload_codec: str | None = None,
        noise: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        camera: Camera | None = None,
    ) -> None:
        self.session, self.eye, self.questions, self.policy = session, eye, questions, policy
        self.client, self.clock, self.camera = client, clock, camera
        self._folder = folder
        self.state = DeviceState.open(session.bundle, folder, device_id, "device")
        self.device_id = str(self.state.device_id)
        if camera is not None:
            camera.device_id = self.device_id
        self.state.uploads_with(upload_codec, noise)
        self.journal = Journal(folder.path, self.state.record, self.state.pending) if folder else None
        self.source = restore(session, self.state)
        self._number = self.journal.last if self.journal else 0
        self._failures, self._not_before = 0, 0.0
        self.storage_error = self.state.keep(folder)
        """Why what happened last is not on the disk; ``None`` where it is, or there is no folder."""
        notes = (folder.note if folder else None, self.state.note, self.journal.note if self.journal else None)
        self.notes = [note for note in notes if note]
        """What a person should know before the first clip."""

    def waiting(self, videos: Sequence[Path], again: bool = False) -> list[Path]:
        """Clips to be dealt with, each once; only those whose name is not new are read for that.

        Args:
            videos: The clips; the same video under the same name is the same clip, wherever it lies.
            again: Also those that were dealt with before.
        """
        named = Counter(video.name for video in videos)
        found: dict[object, Path] = {}
        for video in videos:
            key: object = video
            before = self.journal is not None and self.journal.names(video.name)
            if named[video.name] > 1 or (before and not again):
                try:
                    digest = video_digest(video)
                except UserError:  # told when its turn comes, if it has not come before
                    digest = ""
                if not again and self.journal is not None and self.journal.holds(video.name, digest):
                    continue
                key = (video.name, digest) if digest else video
            found.setdefault(key, video)
        return list(found.values())

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
        wants, outcome, situation = False, Adaptation(self.source), self.state.situation()
        if self.camera is not None and look.pixels is not None:
            self.camera.observe(look.pixels)
        if self.session.bundle.remembers:
            take_in(self.session, self.state, look.features, look.pixels)
            situation = self.state.situation()
        if self.client is not None and self.clock() >= self._not_before:
            wants = self.policy.asks(situation)
            if wants:
                outcome = adapt(self.session, self.state, self.client, self.device_id)
                self._note(outcome)
                times |= {"cloud": outcome.cloud_ms, "swap": outcome.swap_ms, "guard": outcome.guard_ms}
        before = time.perf_counter()
        clip = asked(self.session, self.camera, look.features, look.pixels)
        if self.camera is not None:
            times["camera"] = 1e3 * (time.perf_counter() - before)
            before = time.perf_counter()
        replies = self._replies(look.video, clip)
        times["answer"] = 1e3 * (time.perf_counter() - before)
        times["total"] = 1e3 * (time.perf_counter() - start)
        return self._commit(
            Record(
                self._number,
                video.name,
                digest,
                outcome.source,
                wants,
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
        pause = min(FIRST_PAUSE_S * 2 ** min(self._failures, 20), LONGEST_PAUSE_S)
        self._failures += 1
        self._not_before = self.clock() + (REFUSED_PAUSE_S if outcome.lasting else pause)

    def _replies(self, video: Path, clip: np.ndarray) -> tuple[Reply, ...]:
        """Answers in the order of the questions; sentences for a retrieval model, the most similar one first."""
        questions = self.questions.about(video.name)
        task = find_task(self.session.manifest.task)
        if not task.searches:
            return tuple(self._reply(clip, question) for question in questions)
        embedded = self.session.embed_video(clip)
        scores = np.array([embedded @ self.session.embed_text(question.text) for question in questions])
        found = task.decode(scores, [question.text for question in questions], ())
        return tuple(Reply(text, text, score, similarity=True) for text, score in found)

    def _reply(self, clip: np.ndarray, question: Question) -> Reply:
        answer = self.session.answer(clip, question.text, question.options)
        self.state.answered(answer.confidence)
        right = None if question.answer is None else answer.text == question.answer
        return Reply(question.text, answer.text, answer.confidence, right)

    def _commit(self, record: Record) -> Record:
        """Note a clip in the state, then in the journal; where one of them has no room, the other still gets it."""
        self.state.record = record.to_json()
        if self.journal is not None:
            self.state.pending = [waiting.to_json() for waiting in self.journal.waiting[-MOST_PENDING:]]
        self.storage_error = self.state.keep(self._folder)
        if self.journal is not None:
            try:
                self.journal.add(record)
            except OSError as error:
                self.storage_error = self.storage_error or f"{self.journal.path} cannot be written ({error.strerror})"
        return record
