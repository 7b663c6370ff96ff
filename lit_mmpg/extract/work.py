"""Worker processes that decode and encode clips: a bad file costs its own features, a crashed worker nobody else's."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.data.vision import open_graph, run_graph
from lit_mmpg.errors import UserError
from lit_mmpg.extract.store import Settings
from lit_mmpg.runtime.video import one_clip, sample_video
from lit_mmpg.texts import printable
from lit_mmpg.writing import write_bytes


@dataclass(frozen=True)
class Job:
    """One clip: its id, its file, and where its features go."""

    clip: str
    video: str
    target: str


@dataclass(frozen=True)
class Done:
    """How a clip ended.

    Attributes:
        job: The clip.
        frames: Frames that were encoded.
        error: Why there are none; ``None`` where it went well.
    """

    job: Job
    frames: int = 0
    error: str | None = None


_STATE: dict[str, Any] = {}
"""Of one worker process: its encoder and the settings."""


def run_jobs(jobs: Sequence[Job], graph: Path, settings: Settings, workers: int) -> Iterator[Done]:
    """Do all jobs, in any order.

    A worker that dies takes the clips at work with it (which of them is at fault cannot be told); each of those is
    tried once more in a process of its own, and reported if that dies, too.
    """
    waiting = list(jobs)[::-1]
    while waiting:
        with _pool(graph, settings, workers) as pool:
            at_work: dict[Future[Done], Job] = {}
            suspects: list[Job] = []
            while waiting or at_work:
                while waiting and len(at_work) < workers + 1 and not suspects:
                    job = waiting.pop()
                    try:
                        at_work[pool.submit(_extract, job)] = job
                    except BrokenProcessPool:
                        suspects.append(job)
                if not at_work:
                    break
                for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                    job = at_work.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        suspects.append(job)
                    else:
                        yield future.result()
        for job in suspects:
            yield _alone(job, graph, settings)


def _alone(job: Job, graph: Path, settings: Settings) -> Done:
    with _pool(graph, settings, 1) as pool:
        try:
            return pool.submit(_extract, job).result()
        except BrokenProcessPool:
            return Done(job, error=f"{printable(job.video)}: the process that decoded it died")


def _pool(graph: Path, settings: Settings, workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin, (str(graph), settings, os.getpid()))


def _begin(graph: str, settings: Settings, parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _STATE.update(session=open_graph(graph), settings=settings)


def _end_with(parent: int) -> None:
    """Workers of a killed run would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _extract(job: Job) -> Done:
    settings: Settings = _STATE["settings"]
    try:
        with one_clip(job.video):
            sample = sample_video(job.video, settings.frames, (settings.height, settings.width), settings.sampling)
            features = run_graph(_STATE["session"], sample.pixels).astype(settings.dtype)
            if not np.isfinite(features).all():
                raise UserError(f"{printable(job.video)}: its features are not finite in {settings.dtype}")
    except UserError as error:
        return Done(job, error=str(error))
    data = io.BytesIO()
    np.save(data, features)
    write_bytes(Path(job.target), data.getvalue())
    return Done(job, len(features))
