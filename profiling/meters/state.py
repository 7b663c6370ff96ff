"""The state of the device around a measurement: clocks, temperatures, power mode, and what slowed it down.

Paths follow the kernel's documentation (cpufreq, devfreq, thermal) and, for Jetson, NVIDIA's Jetson Linux developer
guides: ``nvpmodel -q`` for the power mode and ``oc*_event_cnt`` for over-current events. Nothing is set here. Not
verified on hardware: tried on trees built from these documents.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_mmpg import sysfs
from lit_mmpg.errors import first_line
from lit_mmpg.profiling.meters.nvml import Gpu
from lit_mmpg.runtime.engines.cache import power_mode_names

THROTTLING_KINDS = (
    # Kernel, Documentation/driver-api/thermal: what lowers a clock or keeps a processor idle.
    r"(thermal-)?cpufreq-.+",
    r"(thermal-)?devfreq-.+",
    r"(thermal-)?(cpu)?idle-.+",
    # ACPI's processor (P and T states) and Intel's idle injection, which is at work above 0 only.
    r"processor",
    r"intel_powerclamp",
    # NVIDIA's software throttling by block (cpu, gpu, cv0, soc012, ...), that of older releases, SOCTHERM's hardware.
    r".+-throttle-alert",
    r".+-balanced",
    r"(tegra|throttle)?[-_]?(heavy|light)",
)
"""Cooling devices that slow the machine, by their ``type``. All others do not: fans, warnings (``hot-surface-alert``),
displays, radios, batteries, offsets (``TCC Offset``)."""

WATCH_INTERVAL_S = 0.25
"""Kernels look at a hot zone every second or so and hold a state at least as long."""

_THROTTLING = re.compile("|".join(THROTTLING_KINDS), re.IGNORECASE)
_GPU_DEVFREQ = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b|gb10b|nvgpu|gpc", re.IGNORECASE)
_EMC_HZ = ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "sys/kernel/debug/clk/emc/clk_rate")
_MOST_HZ = 1e11
_MOST_STATE = 1e5
_MOST_COUNT = 2.0**63
_LEAST_MILLIDEGREES, _MOST_MILLIDEGREES = -100_000, 300_000
"""Drivers answer with sentinels outside of it where a sensor is off (absolute zero and below, the largest integer)."""
_COMMAND_TIMEOUT_S = 10


def read_state(root: Path = Path("/"), gpu: Gpu | None = None) -> dict[str, Any]:
    """What can be read now; a field is None, or a list empty, where the machine does not offer it.

    Args:
        root: Root of the file system.
        gpu: A GPU that NVML reads.

    Returns:
        ``cpu_mhz`` (by core), ``cpu_governors``, ``gpu_mhz`` (by clock domain), ``emc_mhz`` (memory of a Jetson),
        ``temperatures_c`` (by zone), ``fans``, ``cooling`` (devices at work that slow the machine, with their states),
        ``cooling_other`` (devices at work that do not), ``throttle_counters`` (events since boot by name and place) and
        ``throttle_counts`` (by name), ``memory`` (bytes available, of swap, and what zram's compressed pages take),
        ``nvml``, and
        ``unreadable``: why a file that exists gave no value, which is None then.
    """
    refused: list[str] = []
    counters = throttle_counters(root, refused)
    working = _cooling(_cooling_devices(root, refused), refused)
    return {
        "cpu_mhz": [
            _scaled(path, 1e-3, _MOST_HZ / 1e3, refused)
            for path in sysfs.find(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
        ],
        "cpu_governors": sorted(
            {
                name
                for path in sysfs.find(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")
                if (name := sysfs.text(path, refused))
            }
        ),
        "gpu_mhz": {
            folder.name: _scaled(folder / "cur_freq", 1e-6, _MOST_HZ, refused)
            for folder in sysfs.find(root, "sys/class/devfreq/*")
            if _GPU_DEVFREQ.search(folder.name) or _GPU_DEVFREQ.search(sysfs.text(folder / "device/of_node/name") or "")
        },
        "emc_mhz": _emc_mhz(root, refused),
        "temperatures_c": temperatures(root, refused),
        "fans": _fans(root, refused),
        "cooling": {name: state for name, (state, slows) in working.items() if slows},
        "cooling_other": {name: state for name, (state, slows) in working.items() if not slows},
        "throttle_counters": counters,
        "throttle_counts": {name: _added(found) for name, found in counters.items()},
        "memory": _memory(root, refused),
        "nvml": None if gpu is None else gpu.state(),
        "unreadable": refused,
    }


def _memory(root: Path, refused: list[str]) -> dict[str, int | None]:
    """Bytes of /proc/meminfo, and ``mem_used_total`` of every zram device (kernel, admin-guide/blockdev/zram)."""
    info = root / "proc/meminfo"
    total, free = (sysfs.kilobytes(info, field) for field in ("SwapTotal", "SwapFree"))
    if total is not None and free is not None and free > total:
        refused.append(f"{info} says that {free} bytes of {total} of swap are free")
        total = free = None
    zram: int | None = None
    for path in sysfs.find(root, "sys/block/zram*/mm_stat"):
        if not (told := sysfs.text(path, refused)):
            continue
        if match := re.match(r"[0-9]+[ \t]+[0-9]+[ \t]+([0-9]{1,18})([ \t]|$)", told):
            zram = (zram or 0) + int(match[1])
        else:
            refused.append(f"{path} holds {told[:40]!r}, which is no list of numbers")
    return {
        "available_bytes": sysfs.kilobytes(info, "MemAvailable"),
        "swap_total_bytes": total,
        "swap_used_bytes": None if total is None or free is None else total - free,
        "zram_bytes": zram,
    }


def temperatures(root: Path = Path("/"), refused: list[str] | None = None) -> dict[str, float | None]:
    """Temperatures by zone, °C.

    Args:
        root: Root of the file system.
        refused: Collects why a zone that refuses (a Tegra block that is powered off) is None.
    """
    found: dict[str, float | None] = {}
    for zone in sysfs.find(root, "sys/class/thermal/thermal_zone*"):
        try:
            value: float | None = sysfs.read_number(zone / "temp", _LEAST_MILLIDEGREES, _MOST_MILLIDEGREES) / 1e3
        except sysfs.Unreadable as error:
            if error.absent:
                continue
            value = None
            if refused is not None:
                refused.append(str(error))
        name = sysfs.text(zone / "type") or zone.name
        found[f"{name} ({zone.name})" if name in found else name] = value
    return found


Counters = dict[str, dict[str, int]]
"""What counts events -> where (``hwmon3``, ``cpu0``; ``0/cpu0``: by a processor of package 0) -> events."""


def throttle_counters(root: Path = Path("/"), refused: list[str] | None = None) -> Counters:
    """Events since boot that slowed the machine, file by file: over-current on Jetson, a PC's processors too hot."""
    counters: Counters = {}

    def note(name: str, where: str, path: Path) -> None:
        value = sysfs.number(path, 0, _MOST_COUNT, refused)
        if value is not None:
            counters.setdefault(name, {})[where] = int(value)

    for path in sysfs.find(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"):
        note(path.name.removesuffix("_event_cnt"), path.parent.name, path)
    for folder in sysfs.find(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle"):
        processor = folder.parent
        note("core_throttle", processor.name, folder / "core_throttle_count")
        package = sysfs.text(processor / "topology/physical_package_id") or "0"
        note("package_throttle", f"{package}/{processor.name}", folder / "package_throttle_count")
    return counters


def _added(found: dict[str, int]) -> int:
    """Events of one name. Every processor of a package counts the package's, so the most of them is their number."""
    most: dict[str, int] = {}
    for where, count in found.items():
        group = where.partition("/")[0]
        most[group] = max(count, most.get(group, 0))
    return sum(most.values())


@dataclass
class Episode:
    """Something that slowed the machine while it was watched.

    Attributes:
        what: A cooling device, a counter of events, or a reason of the GPU.
        phase: What was measured then.
        from_s: First look that saw it, seconds since the watch began.
        to_s: Last look that saw it.
        most: Highest state; of a counter the number of events; None for the GPU.
    """

    what: str
    phase: str
    from_s: float
    to_s: float
    most: int | None = None


class Watch:
    """Looks for throttling while something else runs. Use as a context manager; say :meth:`enter` as it goes on.

    Four times a second a thread reads the states of the cooling devices that throttle: some ten small files in a
    fraction of a millisecond, and the interpreter is free during each read. So at most four single latencies of a
    second can be touched, each by less than that; the share of a core that it took is in the report. Counters of events
    lose nothing, so they are read between the phases only.

    Args:
        root: Root of the file system.
        gpu: A GPU that NVML reads.
        interval_s: Between two looks.
    """

    def __init__(self, root: Path = Path("/"), gpu: Gpu | None = None, interval_s: float = WATCH_INTERVAL_S) -> None:
        self.interval_s = interval_s
        self.looks = 0
        self._root, self._gpu = root, gpu
        self._devices = [device for device in _cooling_devices(root) if device[2]]
        self._episodes: dict[tuple[str, str], Episode] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="throttling", daemon=True)
        self._phase = ("latency", 0.0)  # what is measured first
        self._start_s = self._end_s = time.perf_counter()
        self._counters = throttle_counters(root)
        self._cpu_s = 0.0

    def __enter__(self) -> Watch:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self.enter(self._phase[0])
        self._end_s = time.perf_counter()

    def enter(self, phase: str) -> None:
        """Another part of the measurement begins.

        Args:
            phase: In words, for example ``energy by ina3221``.
        """
        (ending, began_s), now_s = self._phase, time.perf_counter() - self._start_s
        counters = throttle_counters(self._root)
        for name, events in _steps(self._counters, counters).items():
            episode = self._extend(name, ending, began_s)
            episode.to_s, episode.most = now_s, (episode.most or 0) + events
        for name, found in counters.items():
            self._counters.setdefault(name, {}).update(found)
        self._phase = (phase, now_s)

    def _loop(self) -> None:
        cpu_s = time.thread_time()
        while not self._stop.wait(self.interval_s):
            self._look()
        self._cpu_s = time.thread_time() - cpu_s

    def _look(self) -> None:
        now_s, phase = time.perf_counter() - self._start_s, self._phase[0]
        for name, (state, _) in _cooling(self._devices).items():
            episode = self._extend(name, phase, now_s)
            episode.most = max(episode.most or 0, state)
        for reason in (None if self._gpu is None else self._gpu.throttling()) or ():
            self._extend(f"GPU: {reason}", phase, now_s)
        self.looks += 1

    def _extend(self, what: str, phase: str, now_s: float) -> Episode:
        episode = self._episodes.setdefault((what, phase), Episode(what, phase, now_s, now_s))
        episode.to_s = now_s
        return episode

    @property
    def episodes(self) -> list[Episode]:
        """What was seen, in the order in which it began."""
        return sorted(self._episodes.values(), key=lambda e: e.from_s)

    def to_json(self) -> dict[str, Any]:
        """Plain data: how often was looked, what that took, and the episodes."""
        duration_s = self._end_s - self._start_s
        return {
            "looks": self.looks,
            "interval_s": self.interval_s,
            "cpu_fraction": self._cpu_s / duration_s if duration_s > 0 else None,
            "episodes": [asdict(episode) for episode in self.episodes],
        }


def throttled(before: dict[str, Any], after: dict[str, Any], during: Iterable[Episode] = ()) -> list[str]:
    """What slowed a run down and when, one sentence each; empty where nothing says so.

    Args:
        before: State before it.
        after: State after it.
        during: What a :class:`Watch` saw in between.
    """
    seen: dict[str, list[Episode]] = {}
    for episode in during:
        seen.setdefault(episode.what, []).append(episode)
    reasons = []
    stepped = _steps(before["throttle_counters"], after["throttle_counters"])
    counters = {*before["throttle_counters"], *after["throttle_counters"]}
    for name in sorted(counters & {*stepped, *seen}):
        events = stepped.get(name) or sum(e.most or 0 for e in seen.get(name, ()))
        times = ", ".join(_during(e) for e in seen.get(name, ()))
        reasons.append(f"{name}: {events} events {times or 'during the run'}")
    active = [before["cooling"], after["cooling"]]
    gpu = [{f"GPU: {r}": None for r in (state["nvml"] or {}).get("throttling") or ()} for state in (before, after)]
    names = [*active[0], *gpu[0], *(name for name in seen if name not in counters), *active[1], *gpu[1]]
    for name in dict.fromkeys(names):
        episodes = seen.get(name, ())
        states = [state[name] for state in active if name in state] + [e.most for e in episodes if e.most]
        times = ", ".join(
            ["before"] * (name in active[0] or name in gpu[0])
            + [_during(e) for e in episodes]
            + ["after"] * (name in active[1] or name in gpu[1])
        )
        reasons.append(f"{name} at state {max(states)}: {times}" if states else f"{name}: {times}")
    return reasons


def power_mode(root: Path = Path("/"), run: Callable[[Sequence[str]], tuple[int, str]] | None = None) -> dict[str, Any]:
    """The power mode of a Jetson and whether ``jetson_clocks`` holds the clocks.

    Args:
        root: Root of the file system.
        run: Runs a command and returns its status and output; None runs it for real.

    Returns:
        ``nvpmodel`` (name, blanks and all), ``nvpmodel_id``, ``fan_mode``, ``jetson_clocks`` (its text) and ``reason``
        where a value is None. What ``nvpmodel`` does not tell comes from its saved status and ``/etc/nvpmodel.conf``.
    """
    mode: dict[str, Any] = dict.fromkeys(("nvpmodel", "nvpmodel_id", "fan_mode", "jetson_clocks", "reason"))
    run = run or _run
    status, output = run(["nvpmodel", "-q"])
    if status == 0:
        mode["nvpmodel"] = _told(r"NV Power Mode", output)
        mode["fan_mode"] = _told(r"NV Fan Mode", output)
        numbers = re.findall(r"^[ \t]*([0-9]{1,9})[ \t\r]*$", output, re.MULTILINE)
        mode["nvpmodel_id"] = int(numbers[-1]) if numbers else None
        if mode["nvpmodel"] is None:
            mode["reason"] = f"nvpmodel -q names no power mode: {first_line(Exception(output))[:200]}"
    else:
        mode["reason"] = f"nvpmodel: {output}"
    if mode["nvpmodel_id"] is None:
        saved = re.search(r"pmode:([0-9]{1,9})", sysfs.text(root / "var/lib/nvpmodel/status") or "")
        mode["nvpmodel_id"] = int(saved[1]) if saved else None
    if mode["nvpmodel"] is None and mode["nvpmodel_id"] is not None:
        mode["nvpmodel"] = power_mode_names(root).get(mode["nvpmodel_id"])
    status, output = run(["jetson_clocks", "--show"])
    if status == 0:
        mode["jetson_clocks"] = output.strip()
    else:
        mode["reason"] = "; ".join(filter(None, [mode["reason"], f"jetson_clocks: {output}"]))
    return mode


def busy_fraction(root: Path = Path("/"), sleep: Callable[[float], None] = time.sleep) -> float | None:
    """Share of time that the processors were busy, 0 to 1, over half a second; None where /proc/stat does not tell."""
    before = _processor_times(root)
    if before is None:
        return None
    sleep(0.5)
    after = _processor_times(root)
    if after is None:
        return None
    total, idle = (now - then for now, then in zip(after, before, strict=True))
    return min(1.0, max(0.0, 1 - idle / total)) if total > 0 else None


def wait_quiet(most_s: float, quiet: float, root: Path = Path("/")) -> tuple[bool | None, float | None]:
    """Wait until the processors are quiet.

    Args:
        most_s: Longest wait, seconds.
        quiet: Busy fraction that counts as quiet.
        root: Root of the file system.

    Returns:
        Whether they are (None where that cannot be read), and the last busy fraction.
    """
    end = time.monotonic() + most_s
    while True:
        busy = busy_fraction(root=root)
        if busy is None:
            return None, None
        if busy <= quiet or time.monotonic() >= end:
            return busy <= quiet, busy


def _processor_times(root: Path) -> tuple[int, int] | None:
    first = (sysfs.text(root / "proc/stat") or "").split("\n", 1)[0].split()
    times = [int(field) for field in first[1:9] if re.fullmatch("[0-9]{1,20}", field)]
    return (sum(times), times[3] + times[4]) if first[:1] == ["cpu"] and len(times) == len(first[1:9]) >= 5 else None


def _run(command: Sequence[str]) -> tuple[int, str]:
    if shutil.which(command[0]) is None:
        return 127, "not installed (not a Jetson, or JetPack is incomplete)"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,  # a question is answered by the end of the file, not waited for
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return 1, first_line(error)
    return done.returncode, done.stdout if done.returncode == 0 else (done.stderr or done.stdout).strip()[:200]


def _told(label: str, output: str) -> str | None:
    """Text behind ``label:`` up to the end of its line, blanks within it kept, quotes around it dropped."""
    match = re.search(rf"^[ \t]*{label}[ \t]*:[ \t]*(\S.*?)[ \t\r]*$", output, re.MULTILINE)
    return match[1].strip("\"'").strip() or None if match else None


def _cooling_devices(root: Path, refused: list[str] | None = None) -> list[tuple[str, Path, bool]]:
    """Name, folder and whether it throttles, of every cooling device."""
    found = []
    for folder in sysfs.find(root, "sys/class/thermal/cooling_device*"):
        kind = sysfs.text(folder / "type", refused) or ""
        found.append((f"{folder.name} {kind}".strip(), folder, _THROTTLING.fullmatch(kind) is not None))
    return found


def _cooling(
    devices: Iterable[tuple[str, Path, bool]], refused: list[str] | None = None
) -> dict[str, tuple[int, bool]]:
    """State of each device at work and whether it throttles. 0 is at rest, and so is a negative state (powerclamp)."""
    found = {}
    for name, folder, slows in devices:
        state = sysfs.number(folder / "cur_state", -_MOST_STATE, _MOST_STATE, refused)
        if state is not None and state > 0:
            found[name] = (int(state), slows)
    return found


def _emc_mhz(root: Path, refused: list[str]) -> float | None:
    if not os.path.exists(root / "etc/nv_tegra_release"):
        return None  # not a Jetson: debugfs would only say that it is closed
    rates = (_scaled(root / name, 1e-6, _MOST_HZ, refused) for name in _EMC_HZ)
    return next((rate for rate in rates if rate is not None), None)


def _fans(root: Path, refused: list[str]) -> dict[str, dict[str, float | None]]:
    """Duty (0 to 255) and speed of each fan that a hardware monitor shows."""
    found: dict[str, dict[str, float | None]] = {}
    for kind, pattern, most in (("pwm", "pwm[0-9]", 255), ("rpm", "fan[0-9]_input", 1e6), ("rpm", "rpm", 1e6)):
        for path in sysfs.find(root, f"sys/class/hwmon/hwmon*/{pattern}"):
            name = f"{sysfs.text(path.parent / 'name') or path.parent.name} {path.name.removesuffix('_input')}"
            name = f"{name} ({path.parent.name})" if name in found else name
            found[name] = {kind: sysfs.number(path, 0, most, refused)}
    return found


def _steps(before: Counters, after: Counters) -> dict[str, int]:
    """Events between two readings; a place that could not be read before, or counts anew, says nothing about them."""
    stepped = {}
    for name, found in after.items():
        then = before.get(name, {})
        if events := _added({where: max(0, count - then[where]) for where, count in found.items() if where in then}):
            stepped[name] = events
    return stepped


def _during(episode: Episode) -> str:
    span = f"{episode.from_s:.1f} to {episode.to_s:.1f}" if episode.to_s > episode.from_s else f"{episode.from_s:.1f}"
    return f"during {episode.phase} ({span} s)"


def _scaled(path: Path, scale: float, most: float, refused: list[str]) -> float | None:
    value = sysfs.number(path, 0, most, refused)
    return None if value is None else value * scale
