"""Worker processes that decode and encode clips: a bad file costs its own features, a crashed worker nobody else's."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.data.vision import open_graph, run_graph
from lit_mmpg.errors import UserError
from lit_mmpg.extract.store import Settings
from lit_mmpg.launcher import CHILD_OF, Piece, connected, end_with
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


CLIPS_PER_TASK = 64
TOLD = "done "
"""Begins the lines of a task that tell of a clip."""

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


def run_on_cluster(
    jobs: Sequence[Job], settings: Settings, address: str | None, graph: Path, videos: Path
) -> Iterator[Done]:
    """Do all jobs on a cluster (:func:`lit_mmpg.launcher.connected`), some clips in each task.

    A worker that dies takes nothing that is finished with it: another one goes on with the rest of its clips. All
    workers have to see the graph and the folder of the videos.
    """
    if not jobs:
        return
    with connected(address, Path(jobs[0].target).parent, (graph, videos)) as cluster:
        # Small enough that all workers end at about the same time, large enough that the start of a process is little.
        size = min(CLIPS_PER_TASK, -(-len(jobs) // (4 * max(1, len(cluster.hosts)))))
        parts = {f"clips {i + 1} to {i + len(p)}": p for i in range(0, len(jobs), size) if (p := jobs[i : i + size])}
        shared = {"graph": str(graph), "settings": asdict(settings)}
        pieces = [
            Piece(name, ("-m", "lit_mmpg.extract.work"), text=json.dumps(shared | {"jobs": list(map(asdict, part))}))
            for name, part in parts.items()
        ]
        for ended in cluster.run(pieces):
            told = {}
            for line in ended.lines:
                if line.startswith(TOLD):
                    clip, frames, error = json.loads(line[len(TOLD) :])
                    told[clip] = (frames, error)
            why = f"the task ended with {ended.code}: {printable(' '.join(ended.lines[-2:]))}"
            for job in parts[ended.name]:
                yield Done(job, *told.get(job.clip, (0, f"{printable(job.video)}: {why}")))


def main() -> None:
    """A task of :func:`run_on_cluster`: jobs come as JSON on standard input, a line for each goes out."""
    end_with(int(sys.argv[1].removeprefix(f"{CHILD_OF}=")))
    asked = json.load(sys.stdin)
    jobs = [Job(**job) for job in asked["jobs"]]
    there = [job for job in jobs if Path(job.target).is_file()]  # by a worker that has died since
    for job in there:
        _tell(Done(job, len(np.load(job.target, mmap_mode="r", allow_pickle=False))))
    rest = [job for job in jobs if job not in there]
    for done in run_jobs(rest, Path(asked["graph"]), Settings(**asked["settings"]), 1):
        _tell(done)


def _tell(done: Done) -> None:
    print(TOLD + json.dumps([done.job.clip, done.frames, done.error]), flush=True)


def _alone(job: Job, graph: Path, settings: Settings) -> Done:
    with _pool(graph, settings, 1) as pool:
        try:
            return pool.submit(_extract, job).result()
        except BrokenProcessPool:
            return Done(job, error=f"{printable(job.video)}: the process that decoded it died")


def _pool(graph: Path, settings: Settings, workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin, (str(graph), settings, os.getpid()))


def _begin(graph: str, settings: Settings, parent: int) -> None:
    end_with(parent)  # workers of a killed run would wait for work for ever
    _STATE.update(session=open_graph(graph), settings=settings)


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


if __name__ == "__main__":
    main()
