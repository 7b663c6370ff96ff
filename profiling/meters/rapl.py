"""Energy of a PC's processor: the RAPL counters of Intel and AMD through Linux powercap."""

from __future__ import annotations

from pathlib import Path

from lit_mmpg import sysfs
from lit_mmpg.profiling.meters.sources import SourceLost, Unavailable

POWERCAP = "sys/class/powercap"


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
        self._last = [_read(p / "energy_uj") for p in packages]
        self._total_uj = [0] * len(packages)

    def read_j(self) -> float:
        """Joules since this object was made. Call it at least once per wrap of the counter (about a minute at 1 kW)."""
        for i, package in enumerate(self._packages):
            try:
                now = _read(package / "energy_uj", most=self._range[i])
            except sysfs.Unreadable as error:
                raise SourceLost(str(error)) from error
            step = now - self._last[i]
            self._total_uj[i] += step if step >= 0 else step + self._range[i] + 1
            self._last[i] = now
        return sum(self._total_uj) / 1e6

    def parts_j(self) -> dict[str, float]:
        """Joules of each package at the last reading, since this object was made."""
        return {str(p / "energy_uj"): uj / 1e6 for p, uj in zip(self._packages, self._total_uj, strict=True)}


def open_rapl(root: Path = Path("/")) -> RaplCounter | Unavailable:
    """The counters, or the reason why they cannot be read."""
    refused: list[str] = []
    zones = sysfs.find(root, f"{POWERCAP}/intel-rapl:*")
    packages = [zone for zone in zones if (sysfs.text(zone / "name", refused) or "").startswith("package")]
    if not packages:
        none = "this machine shows no RAPL package (virtual machine, or not x86)"
        return Unavailable("rapl", "; ".join(refused) or none)
    try:
        return RaplCounter(packages)
    except sysfs.Unreadable as error:
        if error.denied:
            return Unavailable("rapl", f"no permission to read {packages[0] / 'energy_uj'}; run as root")
        return Unavailable("rapl", str(error))


def _read(path: Path, least: int = 0, most: int = 2**63) -> int:
    return int(sysfs.read_number(path, least, most))
