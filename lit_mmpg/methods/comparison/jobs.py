"""Much of a comparison at once: each seed in a process of its own, or each cell on a worker of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import working
from lit_mmpg.launcher import CHILD_OF, SKIPPED, Cluster, Piece
from lit_mmpg.methods.comparison.plan import Comparison
from lit_mmpg.report import escape, wide_console
from lit_mmpg.texts import duration


def compute_in_processes(arguments: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Compute the cells of each seed in a process, ``jobs`` at a time; they find each other's work in the cell store.

    ``arguments`` are those of ``lit-mmpg compare`` without seeds and output.

    Raises:
        UserError: If a process fails; the others go on to their end before, so that nothing finished is lost.
    """
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    environment["PYTHONUNBUFFERED"] = "1"
    running: set[subprocess.Popen[str]] = set()
    stopped = threading.Event()

    def run(seed: int) -> int:
        if stopped.is_set():
            return 1
        command = [sys.executable, "-m", "lit_mmpg", "compare", *arguments, "--seeds", str(seed)]
        command.append(f"{CHILD_OF}={os.getpid()}")
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, errors="replace"
        )
        running.add(child)
        assert child.stdout is not None
        for line in child.stdout:
            print(f"[seed {seed}] {line}", end="", flush=True)
        running.discard(child)
        return child.wait()

    with ThreadPoolExecutor(jobs) as pool:
        try:
            codes = list(pool.map(run, seeds))
        except BaseException:
            stopped.set()
            for child in list(running):
                child.terminate()
            raise
    failed = [str(seed) for seed, code in zip(seeds, codes, strict=True) if code]
    if failed:
        raise UserError(
            f"seed {', '.join(failed)} stopped with an error, see above; finished cells are kept: mend it and give the "
            "same command again"
        )


def compute_on_cluster(
    cluster: Cluster, arguments: Sequence[str], comparison: Comparison, seeds: Sequence[int]
) -> None:
    """Compute the cells on a cluster, each after the run that it starts from.

    ``arguments`` are those of ``lit-mmpg compare`` without seeds and output.

    Raises:
        UserError: If a cell fails; the others are computed before, so that nothing finished is lost.
    """
    pieces = [
        Piece(
            f"{name} seed {seed}",
            ("-m", "lit_mmpg", "compare", *arguments, "--seeds", str(seed), "--cell", name),
            () if (start := comparison.start(name)) is None else (f"{start} seed {seed}",),
        )
        for name in (*comparison.runs, *comparison.adapted)
        for seed in seeds
    ]
    failed: list[str] = []
    console = wide_console()
    with working("cells on the cluster", len(pieces), "cells", console=console) as work:
        for ended in cluster.run(pieces, show=True):
            work.advance()
            if ended.code and ended.code != SKIPPED:
                failed.append(ended.name)
                console.print(escape("\n".join(ended.lines[-3:])))
            elif not ended.code:
                spent = duration(ended.seconds)
                console.print(escape(f"[{work.done}/{len(pieces)}] {ended.name} is finished: {spent} on {ended.host}"))
    if failed:
        raise UserError(
            f"{', '.join(failed)} stopped with an error, see above; finished cells are kept: mend it and give the "
            "same command again"
        )
