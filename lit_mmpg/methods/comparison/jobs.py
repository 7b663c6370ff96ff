"""Several seeds of a comparison at once, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lit_mmpg.errors import UserError


def compute_in_processes(arguments: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Compute the cells of each seed in a process, ``jobs`` at a time; they find each other's work in the cell store.

    Args:
        arguments: Arguments of ``lit-mmpg compare`` without seeds and output.
        seeds: The seeds.
        jobs: Most processes at a time.

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
        command.append(f"--cells-for={os.getpid()}")
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


def end_with(parent: int) -> None:
    """End this process soon after its parent is gone, however that ended: nobody would read its work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
