"""Sysfs trees of boards, built from documentation and public dumps. They are not recordings of ours.

Sources:

* mainline driver: Linux kernel documentation, ``Documentation/hwmon/ina3221.rst`` and ``ina238.rst``;
* AGX Orin: dump of ``/sys/bus/i2c/drivers/ina3221/1-0041`` in the issue 212 of alumet-dev/alumet (JetPack 6: channels
  that the device tree disables keep files that answer with an I/O error, and the sum of shunt voltages has a label),
  device tree ``tegra234-p3701-0000.dtsi`` quoted in the issue 1613 of OE4T/meta-tegra;
* Orin Nano and NX: NVIDIA Jetson Linux developer guide r35.6 and r36, Platform Power and Performance;
* Thor: pull request 900 of rbonghi/jetson_stats (INA238 as VIN, microwatts), NVIDIA forum topic 366461 (INA238
  measures the input, INA3221 the module); the labels of its three INA3221 rails, and that VDD_GPU reads 0 while the GPU
  is gated, are in the README of swsususu/ThorFAN (a developer kit with Jetson Linux 38.4);
* TX2, Xavier, Nano on Jetson Linux 32: ``jetson/JetsonPowerRails.md`` of energymon/energymon, and the paths in the
  issue 131 of rbonghi/jetson_stats (``ina3221x/6-0040/iio:device0``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

DRIVERS = Path("sys/bus/i2c/drivers")


def write(folder: Path, files: Mapping[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def mainline(
    root: Path,
    device: str,
    hwmon: int,
    channels: Mapping[int, tuple[str, int, int]],
    update_ms: int | None = None,
    driver: str = "ina3221",
) -> Path:
    """Channels: number -> (label, millivolts, milliamperes)."""
    files: dict[str, object] = {"name": "ina3221", "in7_label": "sum of shunt voltages", "in7_input": 120}
    for number, (label, millivolts, milliamperes) in channels.items():
        files |= {
            f"in{number}_label": label,
            f"in{number}_input": millivolts,
            f"curr{number}_input": milliamperes,
            f"in{number + 3}_input": 40,
        }
    if update_ms is not None:
        files["update_interval"] = update_ms
    return write(root / DRIVERS / driver / device / "hwmon" / f"hwmon{hwmon}", files)


def orin_nano(root: Path) -> Path:
    return mainline(
        root, "1-0040", 1, {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 300), 3: ("VDD_SOC", 5000, 280)}
    )


def agx_orin(root: Path) -> tuple[Path, Path]:
    first = mainline(
        root,
        "1-0040",
        3,
        {1: ("VDD_GPU_SOC", 19000, 200), 2: ("VDD_CPU_CV", 19000, 50), 3: ("VIN_SYS_5V0", 5000, 900)},
    )
    second = mainline(root, "1-0041", 2, {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 19000, 40), 3: ("NC", 0, 0)})
    return first, second


def thor(root: Path) -> None:
    mainline(
        root,
        "2-0040",
        5,
        {1: ("VDD_GPU", 19000, 500), 2: ("VDD_CPU_SOC_MSS", 19000, 300), 3: ("VIN_SYS_5V0", 5000, 1000)},
    )
    write(
        root / DRIVERS / "ina238" / "2-0044" / "hwmon" / "hwmon6",
        {"name": "ina238", "in1_input": 19000, "curr1_input": 1500, "power1_input": 28_500_000, "temp1_input": 41000},
    )


def l4t32(root: Path, device: str, number: int, rails: Mapping[int, tuple[str, int]], folder: str = "") -> Path:
    """Rails: channel -> (name, milliwatts), NVIDIA's driver on Jetson Linux 32."""
    files: dict[str, object] = {}
    for channel, (name, milliwatts) in rails.items():
        files |= {
            f"rail_name_{channel}": name,
            f"in_power{channel}_input": milliwatts,
            f"in_voltage{channel}_input": 5000,
            f"in_current{channel}_input": milliwatts // 5,
        }
    return write(root / DRIVERS / "ina3221x" / device / (folder or f"iio:device{number}"), files)
