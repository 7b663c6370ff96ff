"""Energy of a PC's processor: the RAPL counters of Intel and AMD through Linux powercap."""

from __future__ import annotations

import time
from pathlib import Path

from lit_mmpg import sysfs
from lit_mmpg.profiling.meters.sources import SourceLost, Unavailable

POWERCAP = "sys/class/powercap"
MOST_W, SLACK_J = 2000.0, 100.0
"""No package takes more, but for what readings miss of a moment: the counter was set anew, or holds nonsense."""


class RaplCounter:
    """Sum of the packages' counters, unwrapped.

    Args:
        packages: Folders that hold ``energy_uj`` and ``max_energy_range_uj``.
    """

    name, scope = "rapl", "package"
    scope_note = "processor packages (cores, caches, memory controller); DRAM, disks, GPU and fans are not in it"
    update_interval_s = 1e-3
    """RAPL counters advance about every millisecond (Intel SDM volume 3, chapter on power and thermal management)."""
    resolution_j = 61e-6

    def __init__(self, packages: list[Path]) -> None:
        self._packages = packages
        self._range = [_read(p / "max_energy_range_uj", least=1) for p in packages]
        self._last = [_read(p / "energy_uj", most=most) for p, most in zip(packages, self._range, strict=True)]
        self._total_uj, self._read_s = [0] * len(packages), time.monotonic()

    def read_j(self) -> float:
        """Joules since this object was made. Call it at least once per wrap of the counter (about a minute at 1 kW).

        Raises:
            SourceLost: If a counter cannot be read, was set anew, or jumps by more than a package takes.
        """
        now_s = time.monotonic()
        most_uj = 1e6 * (MOST_W * (now_s - self._read_s) + SLACK_J)
        self._read_s = now_s
        for i, package in enumerate(self._packages):
            try:
                now = _read(package / "energy_uj", most=self._range[i])
            except sysfs.Unreadable as error:
                raise SourceLost(str(error)) from error
            step = (now - self._last[i]) % (self._range[i] + 1)
            if step > most_uj:
                told = f"{package / 'energy_uj'} went from {self._last[i]} to {now}: set anew, or no reading"
                raise SourceLost(told)
            self._total_uj[i] += step
            self._last[i] = now
        return sum(self._total_uj) / 1e6

    def parts_j(self) -> dict[str, float]:
        """Joules of each package at the last reading, since this object was made."""
        return {str(p / "energy_uj"): uj / 1e6 for p, uj in zip(self._packages, self._total_uj, strict=True)}


def open_rapl(root: Path = Path("/")) -> RaplCounter | Unavailable:
    """The counters, or the reason why they cannot be read."""
    zones = [zone for zone in sysfs.find(root, f"{POWERCAP}/intel-rapl:*") if zone.name.count(":") == 1]
    try:
        packages = [zone for zone in zones if sysfs.read_text(zone / "name").startswith("package")]
        if not packages:
            return Unavailable("rapl", "this machine shows no RAPL package (virtual machine, or not x86)")
        return RaplCounter(packages)
    except sysfs.Unreadable as error:  # a sum without one of the packages would be half of the truth
        return Unavailable("rapl", f"no permission ({error}); run as root" if error.denied else str(error))


def _read(path: Path, least: int = 0, most: int = 2**63) -> int:
    return int(sysfs.read_number(path, least, most))
