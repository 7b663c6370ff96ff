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
  issue 131 of rbonghi/jetson_stats (``ina3221x/6-0040/iio:device0``);
* whole trees: cooling devices and zones by the names of NVIDIA's device trees (``cpu-throttle-alert``,
  ``hot-surface-alert``, ``soc012-throttle-alert``, ``devfreq-gpu-gpc-0``), the kernel's drivers (``cpufreq-cpu0``,
  ``Processor``, ``intel_powerclamp``, ``TCC Offset``, ``iwlwifi_1``, ``LCD``), and the developer guides' paths.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lit_mmpg import sysfs

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


def cooling(root: Path, devices: Sequence[tuple[str, int]]) -> Path:
    """Cooling devices: (type, state)."""
    for number, (kind, state) in enumerate(devices):
        write(root / f"sys/class/thermal/cooling_device{number}", {"type": kind, "cur_state": state})
    return root / "sys/class/thermal"


def zones(root: Path, temperatures: Mapping[str, object]) -> None:
    """Thermal zones: type -> millidegrees, None for a zone without a reading."""
    for number, (kind, value) in enumerate(temperatures.items()):
        files = {"type": kind} | ({} if value is None else {"temp": value})
        write(root / f"sys/class/thermal/thermal_zone{number}", files)


def tegra(root: Path, model: str, release: str, gpu_hz: Mapping[str, int], compatible: str = "") -> None:
    write(root / "etc", {"nv_tegra_release": f"# {release}, GCID: 1, BOARD: generic, EABI: aarch64"})
    tree = write(root / "proc/device-tree", {})
    (tree / "model").write_bytes(model.encode() + b"\0")
    (tree / "compatible").write_bytes(b"".join(name.encode() + b"\0" for name in compatible.split()))
    for domain, hertz in gpu_hz.items():
        write(root / "sys/class/devfreq" / domain, {"cur_freq": hertz})
    for core in range(2):
        folder = root / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        write(folder, {"scaling_cur_freq": 1728000, "scaling_governor": "schedutil"})


def orin_nano_super(root: Path) -> None:
    orin_nano(root)
    tegra(
        root,
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "R36 (release), REVISION: 4.3",
        {"17000000.gpu": 1_020_000_000, "15340000.vic": 115_200_000},
        "nvidia,p3768-0000+p3767-0005-super nvidia,p3767-0005 nvidia,tegra234",
    )
    off = {"cv0-thermal": 0, "cv1-thermal": 0, "cv2-thermal": 0}
    zones(root, {"cpu-thermal": 49312, "gpu-thermal": 50000, **off, "tj-thermal": 71000})
    alerts = [(f"{block}-throttle-alert", 0) for block in ("cpu", "gpu", "cv0", "soc0")]
    cooling(root, [("cpufreq-cpu0", 0), *alerts, ("hot-surface-alert", 1), ("pwm-fan", 2), ("devfreq-17000000.gpu", 0)])
    write(root / "sys/class/hwmon/hwmon3", {"name": "soctherm_oc", "oc1_event_cnt": 0, "oc3_event_cnt": 4})
    write(root / "sys/class/hwmon/hwmon4", {"name": "pwmfan", "pwm1": 77})
    write(root / "sys/kernel/debug/bpmp/debug/clk/emc", {"rate": 3_199_000_000})


def orin_nano_with_ups(root: Path) -> None:
    orin_nano_super(root)
    ups = {"name": "ina219", "in1_input": 12300, "curr1_input": 26, "power1_input": 320_000}
    write(root / DRIVERS / "ina2xx" / "7-0041" / "hwmon" / "hwmon0", ups)


def agx_orin_board(root: Path) -> None:
    agx_orin(root)
    tegra(root, "NVIDIA Jetson AGX Orin Developer Kit", "R36 (release), REVISION: 4.0", {"17000000.gpu": 1_300_500_000})


def thor_board(root: Path) -> None:
    thor(root)
    gpu = {"gpu-gpc-0": 1_575_000_000, "gpu-nvd-0": 1_260_000_000, "bwmgr": 1}
    tegra(root, "NVIDIA Jetson AGX Thor Developer Kit", "R38 (release), REVISION: 2.1", gpu)
    zones(root, {"cpu-thermal": 60000, "gpu-thermal": 61000})
    cooling(root, [("soc012-throttle-alert", 0), ("devfreq-gpu-gpc-0", 18), ("devfreq-gpu-nvd-0", 0)])


def laptop(root: Path) -> None:
    """Its counter of energy stands still, as in many virtual machines."""
    rapl(root, uj=0)
    cooling(root, [("Processor", 0), ("intel_powerclamp", -1), ("TCC Offset", 10), ("LCD", 3), ("iwlwifi_1", 19)])
    zones(root, {"acpitz": -263200, "INT3400 Thermal": 20000, "x86_pkg_temp": 55000})


def rapl(root: Path, uj: int = 1_000_000, most: int = 262_143_328_850) -> Path:
    """Linux kernel documentation, Documentation/power/powercap/powercap.rst."""
    powercap = root / "sys/class/powercap"
    write(powercap / "intel-rapl:0", {"name": "package-0", "energy_uj": uj, "max_energy_range_uj": most})
    write(powercap / "intel-rapl:0:0", {"name": "core", "energy_uj": 5, "max_energy_range_uj": most})
    write(powercap / "intel-rapl:1", {"name": "psys", "energy_uj": 7, "max_energy_range_uj": most})
    return powercap / "intel-rapl:0" / "energy_uj"


def fast_sensors(root: Path) -> None:
    """Monitors that convert every 2 ms, so that 50 updates are over soon."""
    for folder in (root / DRIVERS).glob("*/*/hwmon/hwmon*"):
        write(folder, {"update_interval": 2})


def refuse(monkeypatch: pytest.MonkeyPatch, files: Mapping[Path, int]) -> None:
    """The kernel's refusals, played: file -> number of the error (root may read everything)."""
    read = sysfs.read_bytes

    def answer(path: Path) -> bytes:
        if path in files:
            raise OSError(files[path], os.strerror(files[path]), str(path))
        return read(path)

    monkeypatch.setattr(sysfs, "read_bytes", answer)


def refusing_library(folder: Path) -> Path:
    """``refuse.c`` compiled, to be preloaded: the kernel's refusals under every way to read."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here for the library that makes reads fail")
    library = folder / "refuse.so"
    source = Path(__file__).with_name("refuse.c")
    done = subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"the C compiler cannot make a shared library here: {done.stderr[-200:]}")
    return library
