from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest

from lit_mmpg import sysfs
from lit_mmpg.profiling import environment
from lit_mmpg.profiling.meters import memory, nvml, state
from lit_mmpg.profiling.meters.network import LinkModel, cost
from lit_mmpg.profiling.meters.sources import SourceLost, Unavailable
from lit_mmpg.profiling.tables import flags
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


def test_memory_of_a_board_and_what_was_swapped_meanwhile(tmp_path: Path) -> None:
    """proc(5) and the kernel's zram documentation: ``mm_stat`` holds the memory used as its third number."""
    info = "MemTotal: 8000 kB\nMemAvailable:   3000 kB\nSwapTotal: 4000 kB\nSwapFree: {} kB\n"
    boards.write(tmp_path / "proc", {"meminfo": info.format(4000)})
    for number, used in ((0, 8192), (1, 4096)):
        boards.write(tmp_path / f"sys/block/zram{number}", {"mm_stat": f"40960 9000 {used} 0 9000 0 0 0 0"})
    before = state.read_state(tmp_path)
    assert before["memory"] == {
        "available_bytes": 3000 * 1024,
        "swap_total_bytes": 4000 * 1024,
        "swap_used_bytes": 0,
        "zram_bytes": 12288,
    }
    boards.write(tmp_path / "proc", {"meminfo": info.format(1952)})
    row = {"latency": None, "throttled": [], "state_before": before, "state_after": state.read_state(tmp_path)}
    assert flags(row) == ["swapped out 2.0 MiB meanwhile"]
    assert flags(row | {"state_after": before}) == flags({"latency": None}) == []
    nothing = state.read_state(tmp_path / "elsewhere")
    assert set(nothing["memory"].values()) == {None}


def test_a_run_that_throttled_says_so(tmp_path: Path) -> None:
    root = jetson(tmp_path)
    before = state.read_state(root)
    assert state.throttled(before, before) == []
    (root / "sys/class/hwmon/hwmon1/oc3_event_cnt").write_text("7\n")
    (root / "sys/class/thermal/cooling_device1/cur_state").write_text("1\n")
    after = state.read_state(root)
    assert state.throttled(before, after) == [
        "oc3: 7 events during the run",
        "cooling_device1 gpu-throttle-alert at state 1: after",
    ]
    assert state.throttled(after, before) == ["cooling_device1 gpu-throttle-alert at state 1: before"]


@pytest.mark.parametrize(
    ("kind", "working", "slows"),
    [
        *[(f"{block}-throttle-alert", 1, True) for block in ("cpu", "gpu", "cv0", "soc012", "bcpu")],
        *[
            (kind, 3, True)
            for kind in ("cpufreq-cpu0", "thermal-cpufreq-0", "devfreq-17000000.gpu", "devfreq-gpu-gpc-0")
        ],
        *[(kind, 1, True) for kind in ("thermal-devfreq-0", "idle-cpu0", "Processor", "intel_powerclamp", "heavy")],
        *[
            (kind, 1, False)
            for kind in ("hot-surface-alert", "pwm-fan", "Fan", "LCD", "backlight", "iwlwifi_1", "BAT0")
        ],
        *[(kind, 10, False) for kind in ("TCC Offset", "ath11k_thermal", "mt7996_phy0", "B0D4", "")],
        *[(kind, -1, False) for kind in ("intel_powerclamp", "Processor", "gpu-throttle-alert")],
        *[("gpu-throttle-alert", nonsense, False) for nonsense in ("", "N/A", 4294967295, 0)],
    ],
)
def test_what_throttles_goes_by_its_kind(tmp_path: Path, kind: str, working: object, slows: bool) -> None:
    boards.cooling(tmp_path, [(kind, working)])
    now = state.read_state(tmp_path)
    assert bool(now["cooling"]) is slows and bool(state.throttled(now, now)) is slows
    assert bool(now["cooling_other"]) is (not slows and isinstance(working, int) and 0 < working < 100)


def test_throttling_that_comes_and_goes_while_something_runs_is_seen_with_its_time(tmp_path: Path) -> None:
    root = jetson(tmp_path)
    alert, counter = root / "sys/class/thermal/cooling_device1/cur_state", root / "sys/class/hwmon/hwmon1/oc1_event_cnt"
    before = state.read_state(root)

    def looked(watch: state.Watch, more: int) -> None:
        wanted, end = watch.looks + more, time.monotonic() + 60
        while watch.looks < wanted and time.monotonic() < end:
            time.sleep(1e-3)

    with state.Watch(root, interval_s=1e-3) as watch:
        boards.write(alert.parent, {"cur_state.new": 2})
        (alert.parent / "cur_state.new").replace(alert)  # in one step: the thread must never see an empty file
        looked(watch, 3)
        boards.write(alert.parent, {"cur_state.new": 0})
        (alert.parent / "cur_state.new").replace(alert)
        looked(watch, 2)
        watch.enter("energy by ina3221")
        counter.write_text("5\n")
    alert_episode, events = watch.episodes
    assert (alert_episode.what, alert_episode.phase) == ("cooling_device1 gpu-throttle-alert", "latency")
    assert (events.what, events.phase, events.most) == ("oc1", "energy by ina3221", 2)
    first, second = state.throttled(before, state.read_state(root), watch.episodes)
    assert first.startswith("oc1: 2 events during energy by ina3221 (")
    assert (
        second.startswith("cooling_device1 gpu-throttle-alert at state 2: during latency (") and "after" not in second
    )
    told = watch.to_json()
    assert told["looks"] == watch.looks and 0 <= told["cpu_fraction"] < 1 and len(told["episodes"]) == 2


def test_a_watch_hears_the_gpu(tmp_path: Path) -> None:
    gpu = nvml.open_gpu(Discrete())
    with state.Watch(tmp_path, gpu) as watch:
        pass
    assert {e.what for e in watch.episodes} == {"GPU: software thermal slowdown", "GPU: hardware thermal slowdown"}
    now = state.read_state(tmp_path, gpu)
    assert all("before" in reason and "after" in reason for reason in state.throttled(now, now, watch.episodes))


def test_events_since_boot_are_no_events_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = jetson(tmp_path)
    after = state.read_state(root)
    boards.refuse(monkeypatch, {root / "sys/class/hwmon/hwmon1/oc1_event_cnt": errno.EIO})
    before = state.read_state(root)
    assert "oc1" not in before["throttle_counts"] and state.throttled(before, after) == []


REFUSALS = [errno.EAGAIN, errno.EIO, errno.ENODEV, errno.EINVAL, errno.EPERM, errno.EACCES, errno.ETIMEDOUT]


@pytest.mark.parametrize("number", REFUSALS)
def test_a_file_that_refuses_is_null_and_says_why(tmp_path: Path, number: int, monkeypatch) -> None:
    root = jetson(tmp_path)
    files = {
        "sys/class/thermal/thermal_zone0/temp",
        "sys/class/thermal/cooling_device1/cur_state",
        "sys/class/devfreq/17000000.gpu/cur_freq",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        "sys/class/hwmon/hwmon1/oc1_event_cnt",
    }
    boards.refuse(monkeypatch, {root / name: number for name in files})
    now = state.read_state(root)
    assert now["temperatures_c"] == {"cpu-thermal": None} and now["gpu_mhz"] == {"17000000.gpu": None}
    assert now["cpu_mhz"] == [1510.4, None] and now["throttle_counts"] == {"oc3": 0} and now["cooling"] == {}
    assert len(now["unreadable"]) == len(files)
    for name in files:
        assert any(name in line and os.strerror(number) in line for line in now["unreadable"])


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"N/A", b"\0\0", b"\xff", b"-273200", b"2147483647", b"nan", b"1e3", b"<unknown>"]
)
def test_what_is_no_temperature_never_becomes_one(tmp_path: Path, content: bytes) -> None:
    root = jetson(tmp_path)
    (root / "sys/class/thermal/thermal_zone0/temp").write_bytes(content)
    now = state.read_state(root)
    assert now["temperatures_c"] == {"cpu-thermal": None} and "thermal_zone0/temp" in now["unreadable"][0]


def test_negative_temperatures_and_zones_of_one_name(tmp_path: Path) -> None:
    boards.zones(tmp_path, {"acpitz": -12500})
    boards.write(tmp_path / "sys/class/thermal/thermal_zone1", {"type": "acpitz", "temp": 30000})
    assert state.temperatures(tmp_path) == {"acpitz": -12.5, "acpitz (thermal_zone1)": 30.0}


def test_a_pipe_or_a_folder_in_the_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    root = jetson(tmp_path)
    zone = root / "sys/class/thermal/thermal_zone0"
    os.remove(zone / "temp")
    os.mkfifo(zone / "temp")
    os.remove(root / "sys/class/devfreq/17000000.gpu/cur_freq")
    (root / "sys/class/devfreq/17000000.gpu/cur_freq").mkdir()
    now = state.read_state(root)
    assert now["temperatures_c"] == {"cpu-thermal": None} and now["gpu_mhz"] == {"17000000.gpu": None}


def test_clocks_go_by_domain_and_fans_and_memory_are_told(tmp_path: Path, monkeypatch) -> None:
    boards.thor_board(tmp_path / "thor")
    assert state.read_state(tmp_path / "thor")["gpu_mhz"] == {"gpu-gpc-0": 1575.0, "gpu-nvd-0": 1260.0}
    boards.orin_nano_super(tmp_path / "nano")
    now = state.read_state(tmp_path / "nano")
    assert now["emc_mhz"] == 3199.0 and now["fans"] == {"pwmfan pwm1": {"pwm": 77}}
    emc = boards.write(tmp_path / "pc/sys/kernel/debug/bpmp/debug/clk/emc", {"rate": 3_199_000_000})
    boards.refuse(monkeypatch, {emc / "rate": errno.EACCES})
    assert state.read_state(tmp_path / "pc")["unreadable"] == []  # a PC's debugfs is closed and has none
    folder = boards.write(tmp_path / "old/sys/class/devfreq/57000000.unit/device/of_node", {"name": "ga10b"})
    boards.write(folder.parents[1], {"cur_freq": 1000000})
    assert state.read_state(tmp_path / "old")["gpu_mhz"] == {"57000000.unit": 1.0}


def test_power_mode_is_read_and_never_set(tmp_path: Path) -> None:
    asked = []

    def run(command):
        asked.append(list(command))
        return (0, NVPMODEL) if command[0] == "nvpmodel" else (1, "Error: root privilege is needed")

    mode = state.power_mode(tmp_path, run)
    assert (mode["nvpmodel"], mode["nvpmodel_id"]) == ("MAXN_SUPER", 2)
    assert mode["jetson_clocks"] is None and "root" in mode["reason"]
    assert asked == [["nvpmodel", "-q"], ["jetson_clocks", "--show"]]


@pytest.mark.parametrize(
    ("output", "name", "number", "fan"),
    [
        ("NV Power Mode: MAXN SUPER\n2\n", "MAXN SUPER", 2, None),
        ("NV Fan Mode:quiet\nNV Power Mode: 15W\n0\n", "15W", 0, "quiet"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 'MODE 30W ALL'\r\n 03 \r\n", "MODE 30W ALL", 3, None),
        ('NV Power Mode:"25W"\n1', "25W", 1, None),
        ("NV Power Mode: 7\n4\n", "7", 4, None),
        ("NV Power Mode:\n1\n", "15W LOW", 1, None),
        ("NVPM WARN: power mode is not set!\n", None, None, None),
        ("", None, None, None),
    ],
)
def test_names_of_power_modes_keep_their_blanks(tmp_path: Path, output, name, number, fan) -> None:
    conf = '< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME="15W LOW" >\n< PM_CONFIG DEFAULT=0 >'
    boards.write(tmp_path / "etc", {"nvpmodel.conf": conf})
    mode = state.power_mode(tmp_path, lambda command: (0, output) if command[0] == "nvpmodel" else (1, "root only"))
    assert (mode["nvpmodel"], mode["nvpmodel_id"], mode["fan_mode"]) == (name, number, fan)
    assert mode["nvpmodel"] or "names no power mode" in mode["reason"]


def test_power_mode_from_the_saved_status_without_the_tool(tmp_path: Path) -> None:
    boards.write(tmp_path / "var/lib/nvpmodel", {"status": "pmode:0001 fmode:quiet"})
    boards.write(
        tmp_path / "etc", {"nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=MAXN SUPER >"}
    )
    mode = state.power_mode(tmp_path, lambda command: (127, "not installed"))
    assert (mode["nvpmodel_id"], mode["nvpmodel"]) == (1, "MAXN SUPER") and "not installed" in mode["reason"]


@pytest.mark.parametrize("first", ["", "cpu", "cpu 1 2 3", "cpu a b c d e f g h", "intr 1 2 3 4 5 6 7 8"])
def test_a_load_that_is_not_told_is_not_called_quiet(tmp_path: Path, first: str) -> None:
    boards.write(tmp_path / "proc", {"stat": first})
    assert state.wait_quiet(0.0, 1.0, tmp_path) == (None, None)
    boards.write(tmp_path / "proc", {"stat": "cpu  10 0 10 80 0 0 0 0 0 0"})  # stands still
    assert state.busy_fraction(root=tmp_path, sleep=lambda _: None) is None


def test_board_module_and_memory_are_told_or_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boards.orin_nano_super(tmp_path)
    boards.write(tmp_path / "proc", {"meminfo": "MemTotal:        7802968 kB\nMemFree: 1 kB"})
    told = environment.describe(tmp_path)
    assert told["board"] == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert told["module"] == "Jetson Orin Nano 8GB of the developer kit (p3767-0005)"
    assert (told["jetson_linux"], told["memory_bytes"]) == ("36.4.3", 7802968 * 1024)
    tree = tmp_path / "proc/device-tree"
    boards.refuse(
        monkeypatch, dict.fromkeys([tree / "model", tree / "compatible", tmp_path / "proc/meminfo"], errno.EIO)
    )
    told = environment.describe(tmp_path)
    assert told["board"] is None and told["module"] is None and told["memory_bytes"] is None
    assert [Path(line.split(" answers ")[0]).name for line in told["unreadable"]] == ["meminfo", "model", "compatible"]


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


def test_nvmap_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = tmp_path / memory.NVMAP
    boards.write(clients.parent, {clients.name: NVMAP})
    assert memory.device_bytes(4242, None, tmp_path)[0] == 131072 * 1024 + 2 * 2**20
    for number, told in ((errno.EACCES, "run as root"), (errno.EAGAIN, os.strerror(errno.EAGAIN))):
        with monkeypatch.context() as patch:
            boards.refuse(patch, {clients: number})
            size, why = memory.device_bytes(4242, None, tmp_path)
        assert size is None and told in why and str(clients) in why


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


def processor(root: Path, number: int, package: object, core: object, events: object) -> None:
    folder = root / f"sys/devices/system/cpu/cpu{number}"
    boards.write(folder / "topology", {"physical_package_id": package})
    boards.write(folder / "thermal_throttle", {"core_throttle_count": core, "package_throttle_count": events})


def test_events_are_counted_file_by_file(tmp_path: Path) -> None:
    processor(tmp_path, 0, 0, 5, 50)
    processor(tmp_path, 1, 0, "N/A", 50)
    processor(tmp_path, 2, 1, 7, 0)
    boards.write(tmp_path / "sys/class/hwmon/hwmon1", {"oc1_event_cnt": 2})
    boards.write(tmp_path / "sys/class/hwmon/hwmon2", {"oc1_event_cnt": ""})
    before = state.read_state(tmp_path)
    assert before["throttle_counts"] == {"oc1": 2, "core_throttle": 12, "package_throttle": 50}
    processor(tmp_path, 0, 0, 32, 50)
    processor(tmp_path, 1, 0, 700, 50)  # could not be read before: events since boot
    processor(tmp_path, 2, 1, 3, 40)  # its core counts anew
    boards.write(tmp_path / "sys/class/hwmon/hwmon2", {"oc1_event_cnt": 9})
    after = state.read_state(tmp_path)
    assert state.throttled(before, after) == [
        "core_throttle: 27 events during the run",
        "package_throttle: 40 events during the run",
    ]
    shutil.rmtree(tmp_path / "sys/devices/system/cpu/cpu2")
    assert state.throttled(before, state.read_state(tmp_path)) == ["core_throttle: 27 events during the run"]


def test_a_watch_counts_file_by_file_too(tmp_path: Path) -> None:
    processor(tmp_path, 0, 0, 5, 50)
    processor(tmp_path, 1, 1, "", 0)
    with state.Watch(tmp_path, interval_s=60) as watch:
        processor(tmp_path, 1, 1, 700, 40)
        watch.enter("energy by rapl")
        processor(tmp_path, 1, 1, 703, 40)
    assert [(e.what, e.phase, e.most) for e in watch.episodes] == [
        ("package_throttle", "latency", 40),
        ("core_throttle", "energy by rapl", 3),
    ]


@pytest.mark.parametrize("told", ["1 2 \u00b2 4", "1 2", "1 2 " + 5000 * "9", "a b c", "1 2 -3 4"])
def test_garbled_memory_statistics_are_a_reason(told: str, tmp_path: Path) -> None:
    boards.write(tmp_path / "sys/block/zram0", {"mm_stat": told})
    boards.write(tmp_path / "proc", {"meminfo": "SwapTotal: 10 kB\nSwapFree: 50 kB"})
    now = state.read_state(tmp_path)
    assert now["memory"]["zram_bytes"] is None and now["memory"]["swap_used_bytes"] is None
    assert any("mm_stat" in reason for reason in now["unreadable"])
    assert any("swap are free" in reason for reason in now["unreadable"])


def test_two_fans_of_one_name_are_two(tmp_path: Path) -> None:
    for number, duty in ((1, 100), (2, 0)):
        boards.write(tmp_path / f"sys/class/hwmon/hwmon{number}", {"name": "pwmfan", "pwm1": duty})
    assert state.read_state(tmp_path)["fans"] == {"pwmfan pwm1": {"pwm": 100}, "pwmfan pwm1 (hwmon2)": {"pwm": 0}}


@pytest.mark.parametrize(
    ("told", "name"),
    [("model name\t: \nstepping\t: 3", None), ("model name\t:\nHardware\t: Some chip ", "Some chip")],
)
def test_no_processor_is_called_by_another_field(told: str, name: str | None, tmp_path: Path) -> None:
    boards.write(tmp_path / "proc", {"cpuinfo": told})
    assert sysfs.processor_name(tmp_path) == name
