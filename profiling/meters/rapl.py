"""Energy of a PC's processor: the RAPL counters of Intel and AMD through Linux powercap."""

from __future__ import annotations

from pathlib import Path

from profiling.meters.sources import SourceLost, Unavailable, first_line

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
        self._range = [int((p / "max_energy_range_uj").read_text()) for p in packages]
        self._last = [int((p / "energy_uj").read_text()) for p in packages]
        self._total_uj = 0

    def read_j(self) -> float:
        """Joules since this object was made. Call it at least once per wrap of the counter (about a minute at 1 kW)."""
        for i, package in enumerate(self._packages):
            try:
                now = int((package / "energy_uj").read_text())
            except (OSError, ValueError) as error:
                raise SourceLost(f"{package / 'energy_uj'} cannot be read any more: {first_line(error)}") from error
            step = now - self._last[i]
            self._total_uj += step if step >= 0 else step + self._range[i] + 1
            self._last[i] = now
        return self._total_uj / 1e6


def open_rapl(root: Path = Path("/")) -> RaplCounter | Unavailable:
    """The counters, or the reason why they cannot be read."""
    zones = sorted((root / POWERCAP).glob("intel-rapl:*"))
    packages = []
    for zone in zones:
        try:
            if (zone / "name").read_text().strip().startswith("package"):
                packages.append(zone)
        except OSError:
            continue
    if not packages:
        return Unavailable("rapl", "this machine shows no RAPL package (virtual machine, or not x86)")
    try:
        return RaplCounter(packages)
    except PermissionError:
        return Unavailable("rapl", f"no permission to read {packages[0] / 'energy_uj'}; run as root")
    except (OSError, ValueError) as error:
        return Unavailable("rapl", f"{packages[0]} cannot be read: {first_line(error)}")
