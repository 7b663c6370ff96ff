"""Power rails of NVIDIA Jetson boards: INA3221 and INA238 monitors, found by the labels of their channels.

Layouts that are read, never by hwmon number, which changes from boot to boot:

* mainline driver (Jetson Linux 34 and later): ``/sys/bus/i2c/drivers/ina3221/<bus-address>/hwmon/hwmon*/`` with
  ``in{N}_label``, ``in{N}_input`` (mV) and ``curr{N}_input`` (mA);
* NVIDIA's older driver (Jetson Linux 32): ``/sys/bus/i2c/drivers/ina3221x/<bus-address>/iio:device*/`` with
  ``rail_name_{N}`` and ``in_power{N}_input`` (mW), or ``iio_device`` on the oldest;
* INA238 (Jetson Thor's input): ``/sys/bus/i2c/drivers/ina238/<bus-address>/hwmon/hwmon*/`` with ``power1_input`` (µW);
* INA219, INA226, INA230 and others that users connect (a UPS, a meter): ``ina2xx``, with the same file.

What the labels cover follows NVIDIA's Jetson Linux developer guides (Platform Power and Performance). None of this was
verified on hardware by us.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lit_mmpg import sysfs
from lit_mmpg.profiling.meters.energy import FAILURES, NO_TOTAL
from lit_mmpg.profiling.meters.sources import SourceLost, Unavailable

DRIVERS = "sys/bus/i2c/drivers"
DEFAULT_UPDATE_S = 0.1
"""Assumed where the driver does not say how often it converts."""

MOST_V, MOST_A, MOST_W = 100.0, 200.0, 2000.0
"""More than these chips measure: a sentinel or nonsense, no reading."""

_NOT_CONNECTED = {"NC", "N/C", "UNUSED"}
_THOR_RAILS, _THOR_INPUT = {"VDD_GPU", "VDD_CPU_SOC_MSS"}, "0044"


@dataclass(frozen=True)
class Rule:
    """Which rails make a total.

    Attributes:
        rails: Labels, all of which must be there.
        scope: ``module`` or ``board``.
        note: What the total covers and what it leaves out.
        monitor: Chip that reads them.
    """

    rails: tuple[str, ...]
    scope: str
    note: str
    monitor: str = "ina3221"


RULES = (
    Rule(("VIN",), "board", "input of the carrier board (Jetson Thor)", "ina238"),
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
        label: Name on the board's schematic, upper case; chip and place where the chip does not tell.
        monitor: Chip, for example ``ina3221``.
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
        problems: Why other channels are not among the rails.
    """

    def __init__(self, rails: tuple[Rail, ...], rule: Rule | None, problems: Sequence[str] = ()) -> None:
        self.problems = problems
        self.no_total = "; ".join([NO_TOTAL, *problems])
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
            SourceLost: If a rail of the total (without a total: every rail) cannot be read, or the total is negative.
        """
        readings: dict[str, float] = {}
        for label, rail in self.rails.items():
            try:
                readings[label] = rail.read_w()
            except sysfs.Unreadable as error:
                if label in self.total:
                    raise SourceLost(f"rail {label} cannot be read any more: {error}") from error
        if not readings:
            raise SourceLost("no rail can be read any more")
        if (total := sum(readings[label] for label in self.total)) < 0:
            raise SourceLost(f"{' + '.join(self.total)} reads {total:.3g} W, which no input takes")
        return readings


def find_rails(root: Path = Path("/")) -> tuple[tuple[Rail, ...], tuple[str, ...]]:
    """All rails that can be read now.

    A channel of an INA3221 goes by its label. Every other chip, and a channel without a label, goes by chip and place
    (``ina219 7-0041``): somebody has connected it to something unknown, so it is listed and is part of no total. The
    one exception is the INA238 of a Jetson Thor at its documented address, ``VIN``. Of two chips with one label the
    board's own is the one with more labelled channels; where both have as many, neither is part of a total.

    Args:
        root: Root of the file system.

    Returns:
        The rails, and sentences about channels that exist and cannot be read.
    """
    found: list[tuple[Rail, Path]] = []
    problems: list[str] = []
    seen: set[str] = set()
    for driver in ("ina3221", "ina3221x", "ina238", "ina2xx"):
        for device in sysfs.find(root, f"{DRIVERS}/{driver}/*-*"):
            for folder in (*sysfs.find(device, "hwmon/hwmon*"), *sysfs.find(device, "iio*device*")):
                place = os.path.realpath(folder)
                if os.path.isdir(place) and place not in seen:  # the same chip may be reached in two ways
                    seen.add(place)
                    listed = _ina3221(folder, device, problems) if "3221" in driver else _other(folder, device, driver)
                    found += [(rail, device) for rail in listed]
    labels = {rail.label for rail, _ in found}
    rails: dict[str, Rail] = {}
    readable: list[tuple[Rail, Path]] = []
    for rail, device in found:
        if rail.label == f"ina238 {device.name}" and _is_thors_input(root, device, found, labels):
            rail = replace(rail, label="VIN")
        try:
            _first_reading(rail)
        except sysfs.Unreadable as error:
            denied = f"no permission to read {rail.label} ({error}); run as root"
            problems.append(denied if error.denied else f"{rail.label} cannot be read ({error})")
            continue
        readable.append((rail, device))
    for rail, device in readable:
        owner = _owner(rail.label, readable)
        # A Thor's input is known by its place, whatever label somebody else's chip has.
        if device != owner and (rail.monitor, rail.label) != ("ina238", "VIN"):
            rail = replace(rail, label=f"{rail.label} ({device.name})")
            which = f"which is taken for that of {owner.name}" if owner else "nobody knows which is the board's own"
            problems.append(f"{rail.label} repeats the label of another monitor ({which}) and is in no total")
        rails[rail.label] = rail
    return tuple(rails.values()), tuple(problems)


def _owner(label: str, rails: Sequence[tuple[Rail, Path]]) -> Path | None:
    """The monitor whose channel has this label: of several, the only one with most labelled channels."""
    named = [device for rail, device in rails if rail.monitor == "ina3221" and "channel" not in rail.label]
    devices = list(dict.fromkeys(device for rail, device in rails if rail.label == label))
    most = max(map(named.count, devices))
    first, *others = [device for device in devices if named.count(device) == most]
    return None if others else first


def open_rails(root: Path = Path("/")) -> RailSource | Unavailable:
    """The board's power monitor, or the reason why there is none."""
    rails, problems = find_rails(root)
    if not rails:
        return Unavailable("ina3221", "; ".join(problems) or "no INA3221 or INA238 is bound to its driver")
    model = sysfs.device_tree(root, "model") or "NVIDIA Jetson"  # without a tree the labels decide
    if not re.search("nvidia|jetson|tegra", model, re.IGNORECASE) and not os.path.exists(root / "etc/nv_tegra_release"):
        return RailSource(rails, None, (*problems, f"the board is a {model[:60]}, whose rails are not known"))
    monitors = {rail.label: rail.monitor for rail in rails}
    rule = next((rule for rule in RULES if all(monitors.get(label) == rule.monitor for label in rule.rails)), None)
    return RailSource(rails, rule, problems)


def _first_reading(rail: Rail) -> float:
    """A reading, tried as often as a recorder would: a busy bus refuses now and then."""
    for _ in range(FAILURES - 1):
        with contextlib.suppress(sysfs.Unreadable):
            return rail.read_w()
    return rail.read_w()


def _ina3221(folder: Path, device: Path, problems: list[str]) -> list[Rail]:
    rails = []
    files: tuple[Path, ...]
    for number in range(4):  # the mainline driver counts its three channels from 1, NVIDIA's older one from 0
        voltage, current = folder / f"in{number}_input", folder / f"curr{number}_input"
        power = folder / f"in_power{number}_input"
        if os.path.exists(power):
            label, files = sysfs.text(folder / f"rail_name_{number}", problems), (power,)
            read, step = _scaled(power, 1e-3), 1e-3
        elif os.path.exists(voltage) or (number and os.path.exists(current)):
            label, files = sysfs.text(folder / f"in{number}_label", problems), (voltage, current)
            read, step = _product(voltage, current), abs(sysfs.number(voltage) or 0.0) * 1e-6  # whole milliamperes
        else:
            continue
        name = (label or "").upper()
        if name in _NOT_CONNECTED or sysfs.number(folder / f"in{number}_enable") == 0:
            continue
        name = name or f"ina3221 {device.name} channel {number}"
        if missing := [file for file in files if not os.path.exists(file)]:
            # Channels that the device tree disables keep a label on some kernels.
            what = "voltage" if missing[0] == voltage else "current"
            problems.append(f"{name} has no {what} reading in {folder}")
            continue
        rails.append(Rail(name, "ina3221", read, files, _update_s(folder), step))
    return rails


def _other(folder: Path, device: Path, driver: str) -> list[Rail]:
    power = folder / "power1_input"
    if not os.path.exists(power):
        return []
    chip = (sysfs.text(folder / "name") or driver).lower()
    names = (folder / "in1_label", folder / "power1_label", folder / "label", device / "of_node" / "label")
    label = next((told for name in names if (told := sysfs.text(name))), "")
    return [
        Rail(f"{chip} {device.name} {label}".strip(), chip, _scaled(power, 1e-6), (power,), _update_s(folder), 1e-3)
    ]


def _is_thors_input(root: Path, device: Path, found: Sequence[tuple[Rail, Path]], labels: set[str]) -> bool:
    """Whether an INA238 is the one that a Jetson Thor's carrier board has at its input."""
    bus, _, address = device.name.partition("-")
    model = sysfs.device_tree(root, "model") or ""
    thor = "thor" in model.lower() or labels.issuperset(_THOR_RAILS)
    buses = {place.name.partition("-")[0] for rail, place in found if rail.label in _THOR_RAILS}
    return thor and address == _THOR_INPUT and (not buses or bus in buses)


def _scaled(path: Path, scale: float) -> Callable[[], float]:
    most = MOST_W / scale
    return lambda: sysfs.read_number(path, -most, most) * scale


def _product(voltage: Path, current: Path) -> Callable[[], float]:
    return lambda: (
        sysfs.read_number(voltage, -1e3, MOST_V * 1e3) * sysfs.read_number(current, -MOST_A * 1e3, MOST_A * 1e3) * 1e-6
    )


def _update_s(folder: Path) -> float | None:
    milliseconds = sysfs.number(folder / "update_interval", 0, 60_000)
    return milliseconds / 1e3 if milliseconds else None
