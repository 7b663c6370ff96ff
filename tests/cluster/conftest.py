"""Hosts made of Linux namespaces: each with a network, an address, a name and processes of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Host:
    """A network namespace with its own name and ``/etc/hosts``; a program that it starts is the first of its processes.

    Attributes:
        name: Its host name, under which the others find it.
        address: Its address on the bridge.
    """

    name: str
    address: str
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program there. When it is killed, all that it has started is killed by the kernel."""
        name_it = f'hostname {self.name} && exec "$@"'
        around = ["ip", "netns", "exec", self.name, "unshare", "--uts", "--pid", "--fork", "--kill-child"]
        process = subprocess.Popen([*around, "--mount-proc", "sh", "-c", name_it, "sh", *command], **options)
        self.processes.append(process)
        return process

    def kill(self) -> None:
        """As when its power fails: every process at once, none can say good-bye."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(30)
        self.processes.clear()


def why_no_hosts() -> str | None:
    """Why there can be no namespaces here; ``None`` where they can be."""
    if os.geteuid():
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare", "hostname") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed here (Debian: apt install iproute2 util-linux hostname)"
    probe = f"lmprobe{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


def ip(*words: str) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable (a veth pair) between them and no other network."""
    reason = why_no_hosts()
    if reason is not None:
        pytest.skip(reason)
    number = os.getpid() % 250
    hosts = tuple(Host(f"lm{os.getpid()}-{side}", f"10.213.{number}.{i}") for i, side in ((1, "a"), (2, "b")))
    try:
        for host in hosts:
            ip("netns", "add", host.name)
            folder = Path("/etc/netns", host.name)  # `ip netns exec` shows its files as those of /etc
            folder.mkdir(parents=True)
            lines = ["127.0.0.1 localhost", *(f"{other.address} {other.name}" for other in hosts)]
            (folder / "hosts").write_text("\n".join(lines) + "\n")
        a, b = hosts
        ip("link", "add", "eth0", "netns", a.name, "type", "veth", "peer", "name", "eth0", "netns", b.name)
        for host in hosts:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.name, "link", "set", "lo", "up")
            ip("-n", host.name, "link", "set", "eth0", "up")
        yield a, b
    finally:
        for host in hosts:
            host.kill()
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
            shutil.rmtree(Path("/etc/netns", host.name), ignore_errors=True)
