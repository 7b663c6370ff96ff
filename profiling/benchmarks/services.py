"""Servers in processes of their own, for benchmarks on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lit_mmpg import sysfs
from lit_mmpg.errors import UserError

ROOT = Path(__file__).parents[3]
LITSERVE, LITSERVE_FOLDER = "litserve==0.2.19", Path("outputs/litserve")


class Service:
    """A server process with its children."""

    def __init__(self, command: Sequence[str], port: int, log: Path, ready: str) -> None:
        self.port, self._log = port, log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        deadline = time.monotonic() + 300
        while not self._answers(ready):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise UserError(f"the service did not start: {log.read_text()[-500:]}")
            time.sleep(0.2)

    @property
    def url(self) -> str:
        """Where adaptations are asked for."""
        return f"http://127.0.0.1:{self.port}/v1/adapt"

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def rss_bytes(self) -> int:
        """Resident memory of the process and its children."""
        return sum(int(fields[21]) for fields in self._tree()) * os.sysconf("SC_PAGE_SIZE")

    def _tree(self) -> list[list[str]]:
        """Fields of ``/proc/PID/stat`` behind the name, for the process and all below it."""
        pids, found = {self.process.pid}, []
        for folder in sorted((p for p in Path("/proc").iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
            fields = (sysfs.text(folder / "stat") or "").rpartition(")")[2].split()  # none: ended meanwhile
            if fields and (int(folder.name) in pids or int(fields[1]) in pids):
                pids.add(int(folder.name))
                found.append(fields)
        return found

    def cpu_s(self) -> float:
        """Processor time of the process and its children so far, seconds."""
        return sum(sum(map(int, fields[11:13])) for fields in self._tree()) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it."""
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(20)
        except ProcessLookupError:
            pass
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)


def free_port() -> int:
    """A port of loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int, log: Path, ready: str) -> Iterator[Service]:
    """A service that is ended with the block."""
    service = Service(command, port, log, ready)
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def litserve(ckpt: Path, folder: Path) -> Iterator[Service]:
    """A checkpoint behind LitServe, in an environment that adds LitServe to the packages of this one."""
    home = LITSERVE_FOLDER.absolute()
    python, ready = home / "bin" / "python", home / ".ready"
    if not ready.is_file():
        print(f"installing {LITSERVE} into {LITSERVE_FOLDER}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        own, ours = (sysconfig.get_path("purelib", vars={"base": str(path)}) for path in (home, sys.prefix))
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", LITSERVE], check=True)
        (Path(own) / "shared.pth").write_text(f"import site; site.addsitedir({ours!r})\n", encoding="utf-8")
        ready.touch()
    port = free_port()
    command = [str(python), "-m", "lit_mmpg.profiling.benchmarks.litserve_app", str(ckpt), str(port)]
    with running(command, port, folder / "litserve.log", "/health") as service:
        yield service
