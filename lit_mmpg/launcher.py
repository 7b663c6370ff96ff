"""Commands of this package as tasks of a Dask cluster: long work on machines of somebody else's scheduler.

Dask decides which worker does what, and gives the tasks of a worker that is gone to others. A task here is a process of
the worker, so that neither memory nor settings of one are left to the next, and a crash takes no worker with it.
Workers see the folder from which the work is started, and write their results there; what is finished is found there.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import lit_mmpg
from lit_mmpg.errors import UserError, install_hint

if TYPE_CHECKING:
    from distributed import Client

LAUNCHERS = ("local", "dask")
CHILD_OF = "--child-of"
"""Option of a command that another process starts: the id of that process, with which it ends."""
ENVIRONMENT = ("LIT_MMPG_DATA", "LIT_MMPG_TRUST", "MLFLOW_TRACKING_URI")
"""What a task takes from the environment of the command that started it; the rest is the worker's own."""
CONNECT_S = 20
SKIPPED = -1000
"""Exit status of a task that was not begun, since one that it needs has failed."""
LOST = -1001
"""Exit status of a task during which too many workers died."""


@dataclass(frozen=True)
class Piece:
    """Work that one worker does at a time.

    Attributes:
        name: What it is, for people.
        command: Arguments of the Python interpreter; ``CHILD_OF`` is added.
        needs: Names of the pieces that have to be finished before.
        text: What the process reads from its standard input.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Ended:
    """How a piece ended.

    Attributes:
        name: The piece.
        code: Exit status, ``SKIPPED`` or ``LOST``.
        lines: What the process wrote.
        host: Where it ran.
        seconds: How long.
    """

    name: str
    code: int
    lines: tuple[str, ...] = ()
    host: str = ""
    seconds: float = 0.0


def add_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options that choose a cluster."""
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, default="local", help=f"dask: {what} are tasks of a Dask cluster"
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="scheduler of the cluster (tcp://HOST:8786, tls://...) or its scheduler file; "
        "default: DASK_SCHEDULER_ADDRESS",
    )


def check_arguments(options: argparse.Namespace, other: str | None) -> None:
    """Refuse options that contradict each other, and a cluster without the package that talks to it.

    ``other`` is the option that says how many processes this machine starts, where it was given.

    Raises:
        UserError: If something does not fit.
    """
    if options.launcher == "local":
        if options.cluster is not None:
            raise UserError("--cluster names a cluster, but --launcher is local; add --launcher dask")
        return
    if other is not None:
        raise UserError(f"{other} counts processes of this machine; with --launcher dask the cluster's workers count")
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise UserError(f"--launcher dask needs the package distributed: {install_hint('cluster')}") from error
    if options.cluster is None and not os.environ.get("DASK_SCHEDULER_ADDRESS"):
        raise UserError(
            "--launcher dask: which cluster? Name its scheduler with --cluster tcp://HOST:8786 (dask scheduler starts "
            "one, dask worker tcp://HOST:8786 --nthreads 1 a worker)"
        )


@contextmanager
def connected(address: str | None, folder: Path, files: Sequence[Path] = ()) -> Iterator[Cluster]:
    """A cluster whose workers, those that are there by now, have this package and see the folder.

    Args:
        address: Scheduler, or scheduler file; ``None``: ``DASK_SCHEDULER_ADDRESS``.
        folder: Folder in which the workers write; it must exist.
        files: What else they have to see.

    Raises:
        UserError: If the scheduler does not answer, or a worker cannot do the work.
    """
    from distributed import Client

    if address is not None and "://" not in address and not Path(address).is_file():
        raise UserError(f"--cluster {address}: no such scheduler file, and an address begins with tcp:// or tls://")
    where: dict[str, Any] = {"address": address} if address is None or "://" in address else {"scheduler_file": address}
    try:
        client = Client(**where, timeout=CONNECT_S, set_as_default=False, name="lit-mmpg")
    except (OSError, ValueError) as error:
        shown = f"the scheduler {address or os.environ.get('DASK_SCHEDULER_ADDRESS')}"
        raise UserError(f"{shown} does not answer within {CONNECT_S} s ({error}); is it running?") from error
    token = folder / f".seen-{uuid4().hex}"
    token.touch()
    try:
        paths = [str(path.absolute()) for path in (token, *files)]
        hosts = _hosts(client, paths)
        if not hosts:
            print("the cluster has no workers yet; the work begins when one comes", flush=True)
        yield Cluster(client, hosts)
    finally:
        token.unlink(missing_ok=True)
        client.close()


def _hosts(client: Client, paths: list[str]) -> dict[str, str]:
    """Worker -> its host, of all workers that are there."""
    found = client.run(_look, paths, os.getcwd(), on_error="return")
    hosts: dict[str, str] = {}
    for worker, seen in found.items():
        if isinstance(seen, BaseException):
            raise UserError(
                f"worker {worker} cannot run this package ({type(seen).__name__}: {seen}); install the same "
                f"lit-mmpg {lit_mmpg.__version__} there"
            )
        host, version, missing = seen
        if version != lit_mmpg.__version__:
            raise UserError(f"worker {worker} on {host} has lit-mmpg {version}, this is {lit_mmpg.__version__}")
        if missing:
            raise UserError(
                f"worker {worker} on {host} does not see {missing[0]}: the folder of the work has to be one that all "
                "hosts share, under the same path"
            )
        hosts[worker] = host
    return hosts


def _look(paths: list[str], folder: str) -> tuple[str, str, list[str]]:
    """Host, version, and what cannot be seen; runs on a worker."""
    missing = [path for path in (folder, *paths) if not os.path.exists(path)]
    return socket.gethostname(), lit_mmpg.__version__, missing


class Cluster:
    """A connected cluster.

    Args:
        client: Its client.
        hosts: Worker -> host, of the workers that were there at first; others may come and go.
    """

    def __init__(self, client: Client, hosts: dict[str, str]) -> None:
        self.client, self.hosts = client, hosts

    @property
    def other_hosts(self) -> list[str]:
        """Hosts of workers that are not this one."""
        return sorted(set(self.hosts.values()) - {socket.gethostname()})

    def run(self, pieces: Sequence[Piece], show: bool = False) -> Iterator[Ended]:
        """Do all pieces, each after those that it needs; they come as they end.

        Args:
            pieces: The pieces, the most urgent first; one stands behind those that it needs.
            show: Print what the processes write, each line with the name of its piece.

        Raises:
            UserError: If the scheduler is gone.
        """
        from distributed import KilledWorker, as_completed

        topic = f"lit-mmpg-{uuid4().hex}"
        if show:
            self.client.subscribe_topic(topic, lambda event: print(event[1], flush=True))
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        futures: dict[str, Any] = {}
        for i, piece in enumerate(pieces):
            needs = [futures[name] for name in piece.needs]
            futures[piece.name] = self.client.submit(
                _do, piece, os.getcwd(), environment, topic if show else "", needs,
                key=f"{topic}-{i}", priority=-i, pure=False,
            )  # fmt: skip
        by_key = {future.key: piece for future, piece in zip(futures.values(), pieces, strict=True)}
        failed: set[str] = set()
        try:
            for future in as_completed(list(futures.values()), loop=self.client.loop):
                piece = by_key[future.key]
                if future.status in ("cancelled", "lost"):
                    raise UserError("the scheduler is gone; what is finished is kept: give the same command again")
                error = future.exception()
                if error is None:
                    ended: Ended = future.result()
                elif failed & set(piece.needs):
                    ended = _skipped(piece)
                elif isinstance(error, KilledWorker):
                    ended = Ended(piece.name, LOST, (f"{piece.name}: several workers died over it ({error})",))
                else:
                    ended = Ended(piece.name, LOST, (f"{piece.name}: {type(error).__name__}: {error}",))
                if ended.code:
                    failed.add(piece.name)
                yield ended
        finally:
            with suppress(OSError):  # the scheduler is gone
                self.client.cancel(list(futures.values()), force=True)
                if show:
                    self.client.unsubscribe_topic(topic)


def _skipped(piece: Piece) -> Ended:
    return Ended(piece.name, SKIPPED, (f"{piece.name}: what it needs has failed",))


def _do(piece: Piece, folder: str, environment: dict[str, str], topic: str, needs: list[Ended]) -> Ended:
    """Run a piece in a process of this worker, until it ends or is no longer wanted."""
    from distributed import get_worker

    if any(needed.code for needed in needs):
        return _skipped(piece)
    begun = time.monotonic()
    worker = get_worker()
    key = worker.get_current_task()
    child = subprocess.Popen(
        [sys.executable, *piece.command, f"{CHILD_OF}={os.getpid()}"],
        cwd=folder,
        env=os.environ | environment | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    over = threading.Event()

    def watch() -> None:
        # Dask ends no running task, neither when nobody waits for it nor when the worker itself should end.
        while not over.wait(0.5):
            task = worker.state.tasks.get(key)
            ending = worker.status.name in ("closing", "closed", "failed")
            if ending or task is None or task.state == "cancelled":
                child.terminate()

    threading.Thread(target=watch, daemon=True).start()
    lines: list[str] = []
    try:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(piece.text)
        child.stdin.close()
        for line in child.stdout:
            lines.append(line.rstrip("\n"))
            if topic:
                worker.log_event(topic, f"[{piece.name}] {lines[-1]}")
        code = child.wait()
    finally:
        over.set()
    return Ended(piece.name, code, tuple(lines), socket.gethostname(), time.monotonic() - begun)


def end_with(parent: int) -> None:
    """End this process soon after its parent is gone, however that ended: nobody would read its work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
