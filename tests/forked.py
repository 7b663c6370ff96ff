"""Commands of lit-mmpg in processes of their own, each a fork of one that has imported torch and Lightning already.

They run the same code as ``python -m lit_mmpg``, without ten seconds of imports each, in a session of their own, and
signals reach them as they reach any process.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from tests import shared

ROOT = Path(__file__).parents[1]
FINISHED = 4


class Process:
    """A running command, as ``subprocess.Popen`` has it.

    Args:
        arguments: Of ``lit-mmpg``.
        cwd: Its folder; the current one when None.
        env: Its environment; that of this process when None.
        stdout: A file, ``subprocess.PIPE``, or None for that of this process.
        stderr: Likewise, or ``subprocess.STDOUT``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        stdout: Any = None,
        stderr: Any = None,
    ) -> None:
        self.args, self.returncode = list(arguments), None
        self.stdout: IO[str] | None = None
        ours = None
        if stdout == subprocess.PIPE:
            reader, ours = os.pipe()
            self.stdout = os.fdopen(reader, encoding="utf-8", errors="replace")
        out = 1 if stdout is None else ours if ours is not None else stdout.fileno()
        err = out if stderr == subprocess.STDOUT else 2 if stderr is None else stderr.fileno()
        asked = {"arguments": self.args, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        self._talk = socket.socket(socket.AF_UNIX)
        self._talk.connect(start())
        data = json.dumps(asked).encode()
        with open(os.devnull, "rb") as nothing:
            fds = array.array("i", [nothing.fileno(), out, err])
            self._talk.sendmsg([len(data).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        self._talk.sendall(data)
        if ours is not None:
            os.close(ours)
        self.pid = int.from_bytes(_exactly(self._talk, 4), "big")

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once there is one."""
        if self.returncode is None:
            if not select.select([self._talk], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = int.from_bytes(_exactly(self._talk, FINISHED), "big", signed=True)
            self._talk.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run(
    arguments: Sequence[str],
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with what it printed."""
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        process = Process(arguments, cwd, env, out, err)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(process.args, process.wait(), *texts)


def _exactly(talk: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = talk.recv(count - len(data))
        assert part, "the process that others are forked from has ended"
        data += part
    return data


def start() -> str:
    """The socket of the process that others are forked from, which the first one that asks starts."""
    path = shared.FOLDER / "forked.socket"
    with FileLock(shared.FOLDER / "forked.lock"):
        if not path.exists():
            owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
            environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "tests.forked", str(path), str(owner)]
            server = subprocess.Popen(command, cwd=ROOT, env=environ, start_new_session=True)
            while not path.exists():
                assert server.poll() is None
                time.sleep(0.05)
    return str(path)


def serve(path: str, owner: int) -> None:
    """Fork commands until the process that owns this one has ended."""
    import mlflow  # noqa: F401

    import lit_mmpg.training.evaluation
    import lit_mmpg.training.lightning_cli
    import lit_mmpg.training.stages  # noqa: F401

    shared.keep_torchlib()
    shared.FOLDER = Path(path).parent
    shared.keep_tables()
    gc.collect()
    gc.freeze()
    running: dict[int, socket.socket] = {}
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wakes)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # whoever sees it may connect
    while _alive(owner):
        ready = select.select([listener, woken], [], [], 1.0)[0]
        if woken in ready:
            os.read(woken, 4096)
        if listener in ready:
            talk, _ = listener.accept()
            head, fds = socket.recv_fds(talk, 4, 3)[:2]
            asked = json.loads(_exactly(talk, int.from_bytes(head, "big")))
            child = os.fork()
            if not child:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for open_one in (listener, talk, *running.values()):
                    open_one.close()
                os.close(woken)
                os.close(wakes)
                _command(asked, fds)
            for number in fds:
                os.close(number)
            running[child] = talk
            talk.sendall(child.to_bytes(4, "big"))
        while running:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                break
            talk = running.pop(child)
            with contextlib.suppress(OSError):  # whoever asked may be gone
                talk.sendall(os.waitstatus_to_exitcode(status).to_bytes(FINISHED, "big", signed=True))
            talk.close()
    for child in running:
        os.kill(child, signal.SIGKILL)


def _command(asked: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Run a command in this process, and end it."""
    for number, file in enumerate(fds):
        os.dup2(file, number)
        os.close(file)
    os.setsid()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    found = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part not in sys.path]
    sys.path[:0] = [asked["cwd"], *found]
    sys.argv = ["lit-mmpg", *asked["arguments"]]
    from lit_mmpg import __main__, cli

    sys.modules["__main__"] = __main__  # which other processes of a distributed run are started with

    status: Any = 1
    try:
        status = cli.main(asked["arguments"])
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
