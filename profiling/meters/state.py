"""The state of the device before and after a measurement: clocks, temperatures, power mode, and what slowed it down.

Paths follow the kernel's documentation (cpufreq, devfreq, thermal) and, for Jetson, NVIDIA's Jetson Linux developer
guides: ``nvpmodel -q`` for the power mode and ``oc*_event_cnt`` for over-current events. Nothing is set here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from profiling.meters.nvml import Gpu
from profiling.meters.sources import first_line

_GPU_DEVFREQ = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b|gb10b|nvgpu|gpc", re.IGNORECASE)
_COMMAND_TIMEOUT_S = 10


def read_state(root: Path = Path("/"), gpu: Gpu | None = None) -> dict[str, Any]:
    """What can be read now; a field is None, or a list empty, where the machine does not offer it.

    Args:
        root: Root of the file system.
        gpu: A GPU that NVML reads.

    Returns:
        ``cpu_mhz``, ``cpu_governors``, ``gpu_mhz``, ``temperatures_c``, ``cooling`` (cooling devices that are at work),
        ``throttle_counts`` (events since boot) and ``nvml``.
    """
    return {
        "cpu_mhz": [_thousandth(p) for p in _sorted(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")],
        "cpu_governors": sorted(
            {_text(p) for p in _sorted(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")} - {None}
        ),
        "gpu_mhz": {
            folder.name: value / 1e6
            for folder in _sorted(root, "sys/class/devfreq/*")
            if _GPU_DEVFREQ.search(folder.name) and (value := _number(folder / "cur_freq")) is not None
        },
        "temperatures_c": temperatures(root),
        "cooling": {
            f"{folder.name} {_text(folder / 'type') or ''}".strip(): int(state)
            for folder in _sorted(root, "sys/class/thermal/cooling_device*")
            if (state := _number(folder / "cur_state")) and not _is_fan(_text(folder / "type"))
        },
        "throttle_counts": throttle_counts(root),
        "nvml": None if gpu is None else gpu.state(),
    }


def temperatures(root: Path = Path("/")) -> dict[str, float]:
    """Temperatures by zone, °C. Zones that refuse to be read (a Tegra block that is switched off) are left out."""
    found = {}
    for zone in _sorted(root, "sys/class/thermal/thermal_zone*"):
        value = _number(zone / "temp")
        if value is not None:
            found[_text(zone / "type") or zone.name] = value / 1e3
    return found


def throttle_counts(root: Path = Path("/")) -> dict[str, int]:
    """Events since boot that slowed the machine: over-current on Jetson, thermal throttling of a PC's cores."""
    counts: dict[str, int] = {}
    for path in _sorted(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"):
        value = _number(path)
        if value is not None:
            counts[path.name.removesuffix("_event_cnt")] = int(value)
    cores = [_number(p) for p in _sorted(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")]
    if known := [int(c) for c in cores if c is not None]:
        counts["core_throttle"] = sum(known)
    return counts


def throttled(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Why a run was slowed down, one sentence each; empty where nothing says so."""
    reasons = []
    for name, count in after["throttle_counts"].items():
        events = count - before["throttle_counts"].get(name, 0)
        if events > 0:
            reasons.append(f"{name}: {events} events during the run")
    reasons += [f"{name} at state {state}" for name, state in after["cooling"].items()]
    for state in (before["nvml"], after["nvml"]):
        reasons += [f"GPU: {reason}" for reason in (state or {}).get("throttling") or []]
    return list(dict.fromkeys(reasons))


def power_mode(root: Path = Path("/"), run: Callable[[Sequence[str]], tuple[int, str]] | None = None) -> dict[str, Any]:
    """The power mode of a Jetson and whether ``jetson_clocks`` holds the clocks.

    Args:
        root: Root of the file system.
        run: Runs a command and returns its status and output; None runs it for real.

    Returns:
        ``nvpmodel`` (name), ``nvpmodel_id``, ``jetson_clocks`` (its text) and ``reason`` where a value is None.
    """
    mode: dict[str, Any] = {"nvpmodel": None, "nvpmodel_id": None, "jetson_clocks": None, "reason": None}
    run = run or _run
    status, output = run(["nvpmodel", "-q"])
    if status == 0:
        name = re.search(r"Power Mode:\s*(\S+)", output)
        number = re.search(r"^\s*(\d+)\s*$", output, re.MULTILINE)
        mode["nvpmodel"] = name[1] if name else None
        mode["nvpmodel_id"] = int(number[1]) if number else None
    else:
        saved = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
        mode["nvpmodel_id"] = int(saved[1]) if saved else None
        mode["reason"] = f"nvpmodel: {output}"
    status, output = run(["jetson_clocks", "--show"])
    if status == 0:
        mode["jetson_clocks"] = output.strip()
    else:
        mode["reason"] = "; ".join(filter(None, [mode["reason"], f"jetson_clocks: {output}"]))
    return mode


def busy_fraction(
    over_s: float = 0.5, root: Path = Path("/"), sleep: Callable[[float], None] = time.sleep
) -> float | None:
    """Share of time that the processors were busy, 0 to 1, over a moment; None where /proc/stat cannot be read."""
    before = _processor_times(root)
    sleep(over_s)
    after = _processor_times(root)
    if before is None or after is None:
        return None
    total, idle = (now - then for now, then in zip(after, before, strict=True))
    return 1 - idle / total if total > 0 else 0.0


def wait_quiet(most_s: float, quiet: float) -> tuple[bool | None, float | None]:
    """Wait until the processors are quiet.

    Args:
        most_s: Longest wait, seconds.
        quiet: Busy fraction that counts as quiet.

    Returns:
        Whether they are (None where that cannot be read), and the last busy fraction.
    """
    end = time.monotonic() + most_s
    while True:
        busy = busy_fraction()
        if busy is None:
            return None, None
        if busy <= quiet or time.monotonic() >= end:
            return busy <= quiet, busy


def _processor_times(root: Path) -> tuple[int, int] | None:
    try:
        fields = [int(f) for f in (root / "proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return (sum(fields), fields[3] + fields[4]) if len(fields) >= 5 else None


def _run(command: Sequence[str]) -> tuple[int, str]:
    if shutil.which(command[0]) is None:
        return 127, "not installed (not a Jetson, or JetPack is incomplete)"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return 1, first_line(error)
    return done.returncode, done.stdout if done.returncode == 0 else (done.stderr or done.stdout).strip()[:200]


def _sorted(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern), key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", str(p))])


def _is_fan(kind: str | None) -> bool:
    return kind is not None and "fan" in kind.lower()


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text().strip())
    except (OSError, ValueError):
        return None


def _thousandth(path: Path) -> float | None:
    value = _number(path)
    return None if value is None else value / 1e3
