from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from profiling.meters import memory, nvml, state
from profiling.meters.network import LinkModel, cost
from profiling.meters.sources import SourceLost, Unavailable
from tests.profiling.meters import boards

NVPMODEL = "NV Power Mode: MAXN_SUPER\n2\n"
"""Output of ``nvpmodel -q`` as in NVIDIA's developer guide for Jetson Linux r36."""


def jetson(root: Path) -> Path:
    """Linux kernel documentation (cpufreq, devfreq, thermal sysfs); NVIDIA developer guide r36 (``soctherm_oc``)."""
    for core in range(2):
        boards.write(
            root / f"sys/devices/system/cpu/cpu{core}/cpufreq",
            {"scaling_cur_freq": 1510400, "scaling_governor": "schedutil"},
        )
    boards.write(root / "sys/class/devfreq/17000000.gpu", {"cur_freq": 306000000})
    boards.write(root / "sys/class/devfreq/15340000.vic", {"cur_freq": 115200000})
    boards.write(root / "sys/class/thermal/thermal_zone0", {"type": "cpu-thermal", "temp": 48531})
    boards.write(root / "sys/class/thermal/thermal_zone1", {"type": "cv0-thermal"})  # switched off: no reading
    boards.write(root / "sys/class/thermal/cooling_device0", {"type": "pwm-fan", "cur_state": 2})
    boards.write(root / "sys/class/thermal/cooling_device1", {"type": "gpu-throttle-alert", "cur_state": 0})
    boards.write(root / "sys/class/hwmon/hwmon1", {"name": "soctherm_oc", "oc1_event_cnt": 3, "oc3_event_cnt": 0})
    return root


def test_state_of_a_jetson(tmp_path: Path) -> None:
    now = state.read_state(jetson(tmp_path))
    assert now["cpu_mhz"] == [1510.4, 1510.4] and now["cpu_governors"] == ["schedutil"]
    assert now["gpu_mhz"] == {"17000000.gpu": 306.0}
    assert now["temperatures_c"] == {"cpu-thermal": 48.531}
    assert now["throttle_counts"] == {"oc1": 3, "oc3": 0}
    assert now["cooling"] == {}  # a fan that turns slows nothing down


def test_a_run_that_throttled_says_so(tmp_path: Path) -> None:
    root = jetson(tmp_path)
    before = state.read_state(root)
    assert state.throttled(before, before) == []
    (root / "sys/class/hwmon/hwmon1/oc3_event_cnt").write_text("7\n")
    (root / "sys/class/thermal/cooling_device1/cur_state").write_text("1\n")
    reasons = state.throttled(before, state.read_state(root))
    assert reasons == ["oc3: 7 events during the run", "cooling_device1 gpu-throttle-alert at state 1"]


def test_power_mode_is_read_and_never_set(tmp_path: Path) -> None:
    asked = []

    def run(command):
        asked.append(list(command))
        return (0, NVPMODEL) if command[0] == "nvpmodel" else (1, "Error: root privilege is needed")

    mode = state.power_mode(tmp_path, run)
    assert (mode["nvpmodel"], mode["nvpmodel_id"]) == ("MAXN_SUPER", 2)
    assert mode["jetson_clocks"] is None and "root" in mode["reason"]
    assert asked == [["nvpmodel", "-q"], ["jetson_clocks", "--show"]]


def test_power_mode_from_the_saved_status_without_the_tool(tmp_path: Path) -> None:
    boards.write(tmp_path / "var/lib/nvpmodel", {"status": "pmode:0001"})
    mode = state.power_mode(tmp_path, lambda command: (127, "not installed"))
    assert mode["nvpmodel_id"] == 1 and "not installed" in mode["reason"]


def test_this_machine_has_a_state_and_a_load() -> None:
    now = state.read_state()
    assert set(now) >= {"cpu_mhz", "temperatures_c", "throttle_counts", "nvml"}
    assert state.throttled(now, now) == [] or now["cooling"]
    end = time.perf_counter() + 0.3

    def spin(_: float) -> None:
        while time.perf_counter() < end:
            pass

    assert state.busy_fraction(sleep=spin) >= 0.5 / (os.cpu_count() or 1)


def test_peak_memory_of_this_process_is_read() -> None:
    block = bytearray(64 * 2**20)
    block[:: 2**12] = b"x" * len(block[:: 2**12])
    peak, now = memory.status_bytes("VmHWM"), memory.status_bytes("VmRSS")
    assert peak >= now > 64 * 2**20
    assert memory.status_bytes("VmHWM", pid=2**22 + 1) is None


def test_a_worker_that_dies_gives_its_last_words() -> None:
    result = memory.measure({"bundle": "/nonexistent", "engine": "onnxruntime", "roles": {"model": "fp32"}})
    assert result.peak_rss_bytes is None and "nonexistent" in result.reason


NVMAP = """CLIENT                        PROCESS      PID        SIZE
user                         Xorg     1711      16384K
user                       python     4242     131072K
user                       python     4242          2M
user                  gnome-shell     1805          0K
total                                        149504K
"""
"""Form of NvMap's table of clients in debugfs (sizes with a unit, one line per client)."""


def test_nvmap_counts_one_process() -> None:
    assert memory.nvmap_bytes(NVMAP, 4242) == 131072 * 1024 + 2 * 2**20
    assert memory.nvmap_bytes(NVMAP, 1) == 0


class NVMLError(Exception):
    pass


class Tegra:
    """NVML as on an Orin: it starts, counts one GPU, names it, and refuses the rest (issue 40 of
    HazyResearch/intelligence-per-watt lists the calls: power, energy, temperature, utilisation, memory, clocks)."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "Orin (nvgpu)"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "540.4.0"

    def __getattr__(self, name: str):
        def refuse(*_: object) -> None:
            raise NVMLError("Not Supported")

        return refuse


class Discrete(Tegra):
    """A GPU that answers."""

    reasons = 0x60

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return 123_456

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 75_500

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self.reasons


class OnlyPower(Discrete):
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        raise NVMLError("Not Supported")


def test_nvml_that_starts_and_refuses_is_unavailable_with_the_call_named() -> None:
    gpu = nvml.open_gpu(Tegra())
    assert isinstance(gpu, nvml.Gpu)
    energy = nvml.open_energy(gpu)
    assert isinstance(energy, Unavailable)
    assert "nvmlDeviceGetTotalEnergyConsumption: Not Supported" in energy.reason
    assert "nvmlDeviceGetPowerUsage: Not Supported" in energy.reason
    assert gpu.describe()["name"] == "Orin (nvgpu)" and gpu.describe()["memory_total_bytes"] is None
    assert set(gpu.state().values()) == {None}
    assert gpu.process_bytes(1)[0] is None and "Not Supported" in gpu.process_bytes(1)[1]
    with pytest.raises(SourceLost):
        gpu.read("nvmlDeviceGetPowerUsage")


def test_nvml_counter_is_preferred_to_polling() -> None:
    counter = nvml.open_energy(nvml.open_gpu(Discrete()))
    assert isinstance(counter, nvml.NvmlCounter) and counter.read_j() == pytest.approx(123.456)
    polled = nvml.open_energy(nvml.open_gpu(OnlyPower()))
    assert isinstance(polled, nvml.NvmlPower) and polled.read_w() == {"gpu": 75.5}
    assert nvml.open_gpu(Discrete()).state()["throttling"] == ["software thermal slowdown", "hardware thermal slowdown"]


LTE = LinkModel("lte", 6, 13, 70, "a", 1.288, 0.43839, 0.05197, 1.06, 11.576, "b")


def test_link_model_against_its_formula_by_hand() -> None:
    result = cost(LTE, upload_bytes=6_000_000 // 8, download_bytes=13_000_000 // 8)  # a second each way
    assert result.time_ms == pytest.approx(2070)
    up_w, down_w = 1.288 + 0.43839 * 6, 1.288 + 0.05197 * 13
    assert result.energy_j == pytest.approx(up_w + down_w + 1.288 * 0.070 + 1.06 * 11.576)
    assert result.tail_j == pytest.approx(1.06 * 11.576)
    assert result.model and result.source == "a; b"


def test_link_without_power_figures_has_no_energy() -> None:
    result = cost(LinkModel("5g", 50, 300, 30, "a"), 2000, 8000)
    assert result.energy_j is None and result.time_ms > 30
