"""``lit-mmpg profile run`` end to end on the file systems of boards, made here from documented names."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.profiling import document as documents
from lit_mmpg.profiling.cli import main
from lit_mmpg.sysfs import ROOT_VARIABLE
from tests.profiling.bundles import make_bundle
from tests.profiling.meters import boards

ROOT = Path(__file__).parents[2]
CONFIG = """
name: tree
engines: [{engine: onnxruntime, precisions: [fp32]}]
scenarios: [answer]
latency: {warmup: 1, min_count: 4, min_time_s: 0.0, attempts: 1}
energy: {min_window_s: 0.3, idle_s: 0.3, max_wait_idle_s: 0.0, model: false}
sustained: {duration_s: 0.2, interval_s: 0.1}
measure_memory: false
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle")


def arguments(bundle: Path, folder: Path, *more: str) -> list[str]:
    (folder / "tree.yaml").write_text(CONFIG)
    named = ["--bundle", str(bundle), "--config", str(folder / "tree.yaml"), "--output", str(folder / "out")]
    return ["run", *named, "--no-record", *more]


def finished(folder: Path) -> dict[str, Any]:
    profile = documents.load(folder / "out" / "profile.json")
    assert [row["status"] for row in profile["rows"]] == ["ok"] * len(profile["rows"])
    assert "</html>" in (folder / "out" / "report.html").read_text()
    return profile


@pytest.fixture
def profile(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(board, *more: str) -> dict[str, Any]:
        tree = tmp_path / "tree"
        board(tree)
        boards.fast_sensors(tree)
        monkeypatch.setenv(ROOT_VARIABLE, str(tree))
        assert main(arguments(bundle, tmp_path, *more)) == 0
        return finished(tmp_path)

    return run


def watts(profile: dict[str, Any]) -> list[tuple[str, str, Any]]:
    readings = [reading for row in profile["rows"] for reading in row["energy"]]
    return [(r["source"], r["scope"], r["idle_w"] and pytest.approx(r["idle_w"])) for r in readings]


def test_orin_nano_with_zones_that_are_off_and_a_hot_surface(profile) -> None:
    told = profile(boards.orin_nano_super)
    assert watts(told) == [("ina3221", "module", 6.0)] * 2
    machine, row = told["environment"], told["rows"][0]
    assert (machine["module"], machine["jetson_linux"]) == (
        "Jetson Orin Nano 8GB of the developer kit (p3767-0005)",
        "36.4.3",
    )
    assert row["throttled"] == [] and row["state_before"]["cooling_other"] == {
        "cooling_device5 hot-surface-alert": 1,
        "cooling_device6 pwm-fan": 2,
    }


def test_orin_nano_with_a_ups_counts_the_module_alone(profile) -> None:
    told = profile(boards.orin_nano_with_ups)
    assert watts(told) == [("ina3221", "module", 6.0)] * 2
    assert told["environment"]["rails"]["ina219 7-0041"] == pytest.approx(0.32)
    for row in told["rows"]:
        assert "carrier board is not in it" in row["energy"][0]["scope_note"]


def test_agx_orin_is_the_sum_of_its_three_rails(profile) -> None:
    assert watts(profile(boards.agx_orin_board)) == [("ina3221", "module", 3.8 + 0.95 + 4.5)] * 2


def test_thor_names_its_clocks_and_what_slowed_it_and_when(profile) -> None:
    told = profile(boards.thor_board, "--scenarios", "answer", "sustained")
    assert watts(told) == [("ina238", "board", 28.5)] * 2
    for row in told["rows"]:
        (reason,) = row["throttled"]
        assert reason.startswith("cooling_device1 devfreq-gpu-gpc-0 at state 18: before, during latency (")
        assert reason.endswith(", after") and ("during energy by ina238" in reason) == (row["scenario"] == "answer")
        assert row["throttle_watch"]["looks"] >= 2
    clocks = told["rows"][-1]["series"]["sustained"]["clocks_mhz"]
    assert set(clocks["gpu-gpc-0"]) == {1575.0} and set(clocks["gpu-nvd-0"]) == {1260.0} and "bwmgr" not in clocks


def test_a_laptop_that_throttles_nothing_and_whose_counter_stands_still(profile) -> None:
    told = profile(boards.laptop)
    row = told["rows"][0]
    assert row["throttled"] == [] and row["state_before"]["cooling"] == {}
    assert row["state_before"]["temperatures_c"] == {"acpitz": None, "INT3400 Thermal": 20.0, "x86_pkg_temp": 55.0}
    rapl, nothing = row["energy"]
    assert rapl["gross_j_per_unit"] is None and "did not move" in rapl["reason"] and nothing["source"] == "none"


def test_drivers_that_refuse_cost_a_value_and_no_row(bundle: Path, tmp_path: Path) -> None:
    tree, library = tmp_path / "tree", boards.refusing_library(tmp_path)
    boards.orin_nano_super(tree)
    boards.fast_sensors(tree)
    refused = {
        "thermal_zone2/temp": errno.EAGAIN,
        "thermal_zone0/temp": errno.EIO,
        "17000000.gpu/cur_freq": errno.ENODEV,
        "cpu1/cpufreq": errno.EINVAL,
        "cooling_device2/cur_state": errno.EAGAIN,
        "hwmon1/curr3_input": errno.EAGAIN,
        "hwmon1/in2_label": errno.EIO,
        "hwmon3/oc3": errno.EPERM,
        "device-tree/compatible": errno.EAGAIN,
    }
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "REFUSE_READS": "\n".join(f"{number} {name}" for name, number in refused.items()),
        ROOT_VARIABLE: str(tree),
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        "-m",
        "lit_mmpg.profiling",
        *arguments(bundle, tmp_path, "--scenarios", "answer", "sustained"),
    ]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    told = finished(tmp_path)
    assert watts(told) == [("ina3221", "module", 6.0)] * 2
    machine, row = told["environment"], told["rows"][0]
    assert machine["module"] is None and set(machine["rails"]) == {"VDD_IN", "ina3221 1-0040 channel 2"}
    state = row["state_before"]
    assert state["temperatures_c"]["cv0-thermal"] is None and state["temperatures_c"]["cpu-thermal"] is None
    assert state["gpu_mhz"] == {"17000000.gpu": None} and state["cpu_mhz"] == [1728.0, None]
    assert row["throttled"] == [] and state["throttle_counts"] == {"oc1": 0}
    said = " ".join([*state["unreadable"], *machine["rails_unreadable"], *machine["unreadable"]])
    assert all(name in said for name in refused)


def test_a_root_that_is_none_is_named(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=ROOT_VARIABLE):
        main(arguments(bundle, tmp_path))
