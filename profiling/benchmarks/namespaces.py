"""Hosts made of Linux namespaces: each with a network, addresses, a name and processes of its own. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ETC = Path("/etc/netns")
"""``ip netns exec NAME`` shows the files of ``NAME`` in here as those of ``/etc``."""


@dataclass
class Host:
    """A network namespace, with a name under which its neighbours find it.

    Attributes:
        name: Host name, and name of the namespace.
        cables: Neighbour -> name of the interface that leads to it.
        addresses: Neighbour -> own address on that interface.
        processes: What was started there.
    """

    name: str
    cables: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
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

    def cable(self, neighbour: str, up: bool) -> None:
        """Plug a cable in, or pull it."""
        _ip("-n", self.name, "link", "set", self.cables[neighbour], "up" if up else "down")

    def limit(self, neighbour: str, rate: str) -> str | None:
        """Limit what is sent over a cable, by a token bucket.

        Args:
            neighbour: Where the cable leads.
            rate: As ``tc`` reads it, such as ``10mbit``.

        Returns:
            Why that cannot be here; ``None`` where it is so.
        """
        words = ["tc", "-n", self.name, "qdisc", "replace", "dev", self.cables[neighbour], "root", "tbf"]
        done = subprocess.run(
            [*words, "rate", rate, "burst", "64kb", "latency", "400ms"], capture_output=True, text=True
        )
        return done.stderr.strip() or "tc failed" if done.returncode else None


def why_not() -> str | None:
    """Why there can be no such hosts here; ``None`` where they can be."""
    if not hasattr(os, "geteuid") or os.geteuid():
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc", "unshare", "hostname") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not installed here (Debian: apt install iproute2 util-linux hostname)"
    probe = f"lmprobe{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode:
        return f"no network namespaces here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


@contextmanager
def star(centre: str, leaves: Sequence[str]) -> Iterator[list[Host]]:
    """Hosts with a cable (a veth pair) from the first to each of the others, and no other network.

    Args:
        centre: Name of the first; the names are made unique by the process id.
        leaves: Names of the others.
    """
    number = os.getpid()
    hosts = [Host(f"lm{number}-{name}") for name in (centre, *leaves)]
    first = hosts[0]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
            (ETC / host.name).mkdir(parents=True)
        for i, leaf in enumerate(hosts[1:]):
            net, inner, outer = f"10.{200 + number % 50}.{i}", f"leaf{i}", "eth0"
            _ip("link", "add", inner, "netns", first.name, "type", "veth", "peer", "name", outer, "netns", leaf.name)
            for host, other, device, last in ((first, leaf, inner, 1), (leaf, first, outer, 2)):
                host.cables[other.name], host.addresses[other.name] = device, f"{net}.{last}"
                _ip("-n", host.name, "addr", "add", f"{net}.{last}/24", "dev", device)
                _ip("-n", host.name, "link", "set", device, "up")
            known = {first.name: f"{net}.1", leaf.name: f"{net}.2"}
            for host in (first, leaf):
                with (ETC / host.name / "hosts").open("a") as file:
                    file.write("127.0.0.1 localhost\n" + "".join(f"{a} {name}\n" for name, a in known.items()))
        yield hosts
    finally:
        for host in hosts:
            host.kill()
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
            shutil.rmtree(ETC / host.name, ignore_errors=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
