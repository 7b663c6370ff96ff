"""Power rails of NVIDIA Jetson boards: INA3221 and INA238 monitors, found by the labels of their channels.

Layouts that are read, never by hwmon number, which changes from boot to boot:

* mainline driver (Jetson Linux 34 and later): ``/sys/bus/i2c/drivers/ina3221/<bus-address>/hwmon/hwmon*/`` with
  ``in{N}_label``, ``in{N}_input`` (mV) and ``curr{N}_input`` (mA);
* NVIDIA's older driver (Jetson Linux 32): ``/sys/bus/i2c/drivers/ina3221x/<bus-address>/iio:device*/`` with
  ``rail_name_{N}`` and ``in_power{N}_input`` (mW), or ``iio_device`` on the oldest;
* INA238 (Jetson Thor's input): ``/sys/bus/i2c/drivers/ina238/<bus-address>/hwmon/hwmon*/`` with ``power1_input`` (µW).

What the labels cover follows NVIDIA's Jetson Linux developer guides (Platform Power and Performance). None of this was
verified on hardware by us.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from profiling.meters.sources import SourceLost, Unavailable, first_line

DRIVERS = "sys/bus/i2c/drivers"
DEFAULT_UPDATE_S = 0.1
"""Assumed where the driver does not say how often it converts."""

_NOT_CONNECTED = {"", "NC", "N/C", "UNUSED"}
_SUM = re.compile(r"sum of shunt voltages", re.IGNORECASE)


@dataclass(frozen=True)
class Rule:
    """Which rails make a total.

    Attributes:
        rails: Labels, all of which must be there.
        scope: ``module`` or ``board``.
        note: What the total covers and what it leaves out.
    """

    rails: tuple[str, ...]
    scope: str
    note: str


RULES = (
    Rule(("VIN",), "board", "input of the carrier board (Jetson Thor)"),
    Rule(("VDD_IN", "VDD_MUX"), "board", "module and carrier board (Jetson TX1 and TX2 developer kits)"),
    Rule(("VDD_IN",), "module", "input of the module; the carrier board is not in it"),
    Rule(("POM_5V_IN",), "board", "5 V input of the Jetson Nano"),
    Rule(
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        "module",
        "sum of the three input rails of the Jetson AGX Orin module; the carrier board is not in it",
    ),
    Rule(
        ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
        "module",
        "sum of the three input rails of the Jetson Thor module; the carrier board is not in it",
    ),
    Rule(
        ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
        "module",
        "sum of the rails of the Jetson AGX Xavier module; the carrier board is not in it",
    ),
)
"""First rule whose rails are all there wins."""


@dataclass(frozen=True)
class Rail:
    """One channel of a monitor.

    Attributes:
        label: Name on the board's schematic, upper case.
        monitor: ``ina3221`` or ``ina238``.
        read_w: Reads the power, watts.
        files: What is read.
        update_s: Seconds between conversions, None where the driver does not say.
        resolution_w: Step of the reading, watts.
    """

    label: str
    monitor: str
    read_w: Callable[[], float]
    files: tuple[Path, ...]
    update_s: float | None
    resolution_w: float


class RailSource:
    """Power of a Jetson's rails.

    Args:
        rails: All rails that can be read; their labels differ.
        rule: The rule that makes the total, or None: then the rails are reported one by one and no total exists.
    """

    def __init__(self, rails: tuple[Rail, ...], rule: Rule | None) -> None:
        self.rails = {rail.label: rail for rail in rails}
        self.total: Sequence[str] = rule.rails if rule else ()
        chosen = [self.rails[label] for label in self.total] or list(rails)
        monitors = sorted({rail.monitor for rail in chosen})
        self.name = "+".join(monitors)
        self.scope = rule.scope if rule else "rails"
        self.scope_note = rule.note if rule else "unknown board: rails as they are labelled, no total is formed"
        known = [rail.update_s for rail in chosen if rail.update_s]
        self.update_interval_known = len(known) == len(chosen)
        self.update_interval_s = max(known) if self.update_interval_known else max([DEFAULT_UPDATE_S, *known])
        self.resolution_w = sum(rail.resolution_w for rail in chosen)

    def read_w(self) -> Mapping[str, float]:
        """Watts of every rail; a rail outside the total that cannot be read is left out.

        Raises:
            SourceLost: If a rail of the total (or, without a total, every rail) cannot be read.
        """
        readings: dict[str, float] = {}
        for label, rail in self.rails.items():
            try:
                readings[label] = rail.read_w()
            except (OSError, ValueError) as error:
                if label in self.total:
                    raise SourceLost(f"rail {label} cannot be read any more: {first_line(error)}") from error
        if not readings:
            raise SourceLost("no rail can be read any more")
        return readings


def find_rails(root: Path = Path("/")) -> tuple[tuple[Rail, ...], tuple[str, ...]]:
    """All rails that can be read now.

    Args:
        root: Root of the file system.

    Returns:
        The rails, and sentences about channels that exist and cannot be read.
    """
    rails: dict[str, Rail] = {}
    problems: list[str] = []
    drivers = root / DRIVERS
    for driver in ("ina238", "ina2xx", "ina3221", "ina3221x"):
        for device in sorted((drivers / driver).glob("*-*")):
            folders = [*sorted(device.glob("hwmon/hwmon*")), *sorted(device.glob("iio:device*")), device / "iio_device"]
            for folder in folders:
                if not folder.is_dir():
                    continue
                found = _ina238(folder, device) if driver in ("ina238", "ina2xx") else _ina3221(folder, problems)
                for rail in found:
                    try:
                        rail.read_w()
                    except PermissionError:
                        problems.append(f"no permission to read {rail.label} ({rail.files[0]}); run as root")
                    except (OSError, ValueError) as error:
                        problems.append(f"{rail.label} cannot be read: {first_line(error)}")
                    else:
                        rails.setdefault(rail.label, rail)
    return tuple(rails.values()), tuple(problems)


def open_rails(root: Path = Path("/")) -> RailSource | Unavailable:
    """The board's power monitor, or the reason why there is none."""
    rails, problems = find_rails(root)
    if not rails:
        return Unavailable("ina3221", "; ".join(problems) or "no INA3221 or INA238 is bound to its driver")
    labels = {rail.label for rail in rails}
    rule = next((rule for rule in RULES if labels.issuperset(rule.rails)), None)
    return RailSource(rails, rule)


def _ina3221(folder: Path, problems: list[str]) -> list[Rail]:
    rails = []
    for label_file in sorted([*folder.glob("in*_label"), *folder.glob("rail_name_*")]):
        match = re.fullmatch(r"in(\d+)_label|rail_name_(\d+)", label_file.name)
        if match is None:
            continue
        try:
            label = label_file.read_text().strip().upper()
        except OSError as error:
            problems.append(f"{label_file} cannot be read: {first_line(error)}")
            continue
        if label in _NOT_CONNECTED or _SUM.match(label):
            continue
        if match[2] is not None:
            files: tuple[Path, ...] = (folder / f"in_power{match[2]}_input",)
            rails.append(Rail(label, "ina3221", _scaled(files[0], 1e-3), files, None, 1e-3))
            continue
        voltage, current = folder / f"in{match[1]}_input", folder / f"curr{match[1]}_input"
        if not (voltage.exists() and current.exists()):
            # Channels that the device tree disables keep a label on some kernels.
            problems.append(f"{label} has no {'voltage' if not voltage.exists() else 'current'} reading in {folder}")
            continue
        rails.append(
            Rail(label, "ina3221", _product(voltage, current), (voltage, current), _update_s(folder), _step_w(voltage))
        )
    return rails


def _ina238(folder: Path, device: Path) -> list[Rail]:
    power = folder / "power1_input"
    if not power.exists():
        return []
    label = "VIN"
    for name in (folder / "in1_label", folder / "power1_label", device / "of_node" / "label"):
        try:
            label = name.read_text().strip().strip("\0").upper() or label
            break
        except OSError:
            continue
    monitor = "ina238"
    with contextlib.suppress(OSError):
        monitor = (folder / "name").read_text().strip() or monitor
    return [Rail(label, monitor, _scaled(power, 1e-6), (power,), _update_s(folder), 1e-3)]


def _number(path: Path) -> float:
    return float(path.read_text().strip())


def _scaled(path: Path, scale: float) -> Callable[[], float]:
    return lambda: _number(path) * scale


def _product(voltage: Path, current: Path) -> Callable[[], float]:
    return lambda: _number(voltage) * _number(current) * 1e-6


def _step_w(voltage: Path) -> float:
    """The driver reports whole milliamperes: one of them at this rail's voltage."""
    try:
        return abs(_number(voltage)) * 1e-6
    except (OSError, ValueError):
        return 0.0


def _update_s(folder: Path) -> float | None:
    try:
        milliseconds = _number(folder / "update_interval")
    except (OSError, ValueError):
        return None
    return milliseconds / 1e3 if milliseconds > 0 else None
