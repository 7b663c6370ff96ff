"""Memory: peak of a fresh process that only runs one engine, and what the accelerator holds for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_mmpg import sysfs
from lit_mmpg.profiling.meters.nvml import Gpu

NVMAP = "sys/kernel/debug/nvmap/iovmm/clients"
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Memory:
    """Memory of one engine.

    Attributes:
        peak_rss_bytes: Most resident memory of a fresh process that opened the bundle, activated the engine, swapped
            parameters and inferred; interpreter and libraries included. None with a reason.
        base_rss_bytes: The same process before it loaded the engine's library.
        activated_rss_bytes: The same process once the engines are ready, before the first inference.
        inference_rss_bytes: By how much the peak of inferences and swaps exceeds that: an engine's workspace on the
            processor, inputs, outputs and parameters. None where the system does not start a peak anew.
        device_bytes: Memory on the accelerator; None with ``device_reason``.
        device_reason: Where ``device_bytes`` comes from, or why there is none.
        engine_bytes: Size of what the engine loads or has built.
        workspace_bytes: Memory that the engine asks for activations; None where it does not say.
        clips: Clips of the stream that the process lived through, messages and adaptations included; 0: none, it ran
            single inferences.
        reason: Why ``peak_rss_bytes`` is None.
    """

    peak_rss_bytes: int | None = None
    base_rss_bytes: int | None = None
    activated_rss_bytes: int | None = None
    inference_rss_bytes: int | None = None
    device_bytes: int | None = None
    device_reason: str | None = None
    engine_bytes: int | None = None
    workspace_bytes: int | None = None
    clips: int = 0
    reason: str | None = None


def measure(request: dict[str, Any], timeout_s: float = TIMEOUT_S) -> Memory:
    """Run one engine in a fresh process and read its memory.

    Args:
        request: What :mod:`lit_mmpg.profiling.worker` takes.
        timeout_s: Longest run.

    Returns:
        The memory, or a reason.
    """
    # By path, so that it is found from any folder and a standard library's package of this name is never taken.
    root = str(Path(__file__).parents[3])
    call = "from lit_mmpg.profiling.worker import main; sys.exit(main(sys.argv[1]))"
    code = f"import sys; sys.path.insert(0, {root!r}); {call}"
    command = [sys.executable, "-c", code, json.dumps(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return Memory(reason=f"the process took longer than {timeout_s:.0f} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        tail = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Memory(reason=f"the process ended with status {done.returncode}: {tail[:300]}")
    return Memory(**json.loads(lines[-1]))


def status_bytes(field: str, pid: int | str = "self") -> int | None:
    """A field of /proc/PID/status in bytes: ``VmHWM`` is the peak of resident memory, ``VmRSS`` what it is now.

    ``getrusage`` is no substitute: its peak survives exec, so a child starts with the peak of its parent.
    """
    return sysfs.kilobytes(Path(f"/proc/{pid}/status"), field)


def restart_peak() -> bool:
    """Start this process's peak of resident memory anew; whether the system can (Linux, proc(5), ``clear_refs``)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def device_bytes(pid: int, gpu: Gpu | None, root: Path = Path("/")) -> tuple[int | None, str]:
    """Memory that the accelerator holds for a process.

    On a Jetson the GPU uses the board's memory: NvMap lists it by process, for root only. Elsewhere NVML knows.

    Returns:
        Bytes or None, and the source or the reason.
    """
    clients = root / NVMAP
    try:
        return nvmap_bytes(sysfs.read_text(clients), pid), "NvMap, memory of the process that the GPU can reach"
    except sysfs.Unreadable as error:
        if error.denied:
            return None, f"no permission to read {clients}; run as root (a Jetson's GPU uses the board's memory)"
        if not error.absent:
            return None, str(error)
    if gpu is None:
        return None, "no accelerator"
    return gpu.process_bytes(pid)


def nvmap_bytes(text: str, pid: int) -> int:
    """Bytes of a process in NvMap's table of clients (``CLIENT PROCESS PID SIZE``, sizes with K, M or none)."""
    total = 0
    for line in text.splitlines():
        match = re.fullmatch(r"\s*\S+\s+.+?\s+(\d+)\s+(\d+)([KMG]?)\s*", line)
        if match and int(match[1]) == pid:
            total += int(match[2]) * {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}[match[3]]
    return total
