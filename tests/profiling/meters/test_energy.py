from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from lit_mmpg.profiling.meters.energy import EnergyConfig, Recorder, measure, nothing
from lit_mmpg.profiling.meters.rails import RailSource, open_rails
from lit_mmpg.profiling.meters.rapl import RaplCounter, open_rapl
from lit_mmpg.profiling.meters.sources import SourceLost, Unavailable
from tests.profiling.meters import boards

IDLE_W, LOAD_W = 4.0, 11.0


class Board:
    """A board whose power is known at every moment: idle, or under load while work runs."""

    name, scope, scope_note, total = "ina3221", "module", "a board of known power", ("VDD_IN",)
    update_interval_known = True
    resolution_w = 0.0

    def __init__(self, update_s: float = 0.004) -> None:
        self.update_interval_s = update_s
        self.load = False
        self.true_j = 0.0
        self.begin = self.unit_s = 0.0

    def read_w(self) -> dict[str, float]:
        return {"VDD_IN": LOAD_W if self.load else IDLE_W, "VDD_SOC": 1.0}

    def work(self) -> None:
        self.load = True
        time.sleep(0.01)


FAST = EnergyConfig(min_window_s=0.4, idle_s=0.3)


def test_a_load_of_known_power_gross_and_net() -> None:
    board = Board()
    # Work that never lets the power fall again: the window is all load, the idle window before it is not.
    energy = measure(board, board.work, FAST)
    assert energy.reason is None and energy.window is not None and energy.idle is not None
    unit_s = energy.window.duration_s / energy.units
    assert energy.idle_w == pytest.approx(IDLE_W)
    assert energy.gross_j_per_unit == pytest.approx(LOAD_W * unit_s, rel=1e-6)
    assert energy.net_j_per_unit == pytest.approx((LOAD_W - IDLE_W) * unit_s, rel=1e-6)
    assert energy.window.rails_j["VDD_SOC"] == pytest.approx(energy.window.duration_s)
    assert energy.estimate is False and (energy.source, energy.scope) == ("ina3221", "module")


def test_duty_cycle_stays_within_the_stated_bound() -> None:
    board = Board()

    def half_of_the_time() -> None:
        board.load = True
        begin = time.perf_counter()
        time.sleep(0.03)
        board.load = False
        board.true_j += LOAD_W * (time.perf_counter() - begin)
        begin = time.perf_counter()
        time.sleep(0.03)
        board.true_j += IDLE_W * (time.perf_counter() - begin)

    energy = measure(board, half_of_the_time, FAST)
    true = board.true_j / (energy.units + 1)  # the unit before the window counts in the board's own account
    assert abs(energy.gross_j_per_unit - true) <= energy.bound_j_per_unit + 0.02 * true


def test_the_window_spans_fifty_updates_and_the_cost_of_reading_is_stated() -> None:
    board = Board(update_s=0.016)
    energy = measure(board, board.work, EnergyConfig(min_window_s=0.01, idle_s=0.01))
    for window in (energy.window, energy.idle):
        assert window.updates >= 50 and window.duration_s >= 0.8
        assert window.readings >= 50
        assert len(window.times_s) == len(window.power_w) == window.readings
        assert 0 < window.read_ms < 5 and 0 <= window.cpu_fraction < 0.5


def test_a_unit_before_the_window_is_not_counted() -> None:
    board, done = Board(), []
    energy = measure(board, lambda: (done.append(1), board.work()), FAST)
    assert energy.units == len(done) - 1


def test_a_busy_machine_is_said() -> None:
    board = Board()
    energy = measure(board, board.work, FAST, wait_quiet=lambda most, quiet: (False, 0.73))
    assert energy.idle_quiet is False and any("73%" in note for note in energy.notes)


def test_a_rail_that_vanishes_in_the_window_gives_a_reason_and_no_number(tmp_path: Path) -> None:
    folder = boards.orin_nano(tmp_path)
    (folder / "update_interval").write_text("4\n")
    source = open_rails(tmp_path)
    assert isinstance(source, RailSource)
    count = [0]

    def work() -> None:
        time.sleep(0.01)
        count[0] += 1
        if count[0] == 10:
            os.remove(folder / "curr1_input")

    energy = measure(source, work, FAST)
    assert energy.gross_j_per_unit is None and energy.net_j_per_unit is None
    assert energy.reason is not None and "VDD_IN cannot be read any more" in energy.reason


def test_sysfs_rails_end_to_end(tmp_path: Path) -> None:
    folder = boards.orin_nano(tmp_path)
    (folder / "update_interval").write_text("4\n")
    source = open_rails(tmp_path)

    def work() -> None:
        new = folder / "new"  # replaced in one step: a reader must never see an empty file
        new.write_text("2400\n")
        new.replace(folder / "curr1_input")
        time.sleep(0.01)

    energy = measure(source, work, FAST)
    assert energy.idle_w == pytest.approx(6.0)
    assert energy.gross_j_per_unit == pytest.approx(12.0 * energy.window.duration_s / energy.units, rel=1e-6)


def test_unknown_board_keeps_its_rails_without_a_total(tmp_path: Path) -> None:
    boards.mainline(tmp_path, "3-0042", 4, {1: ("MY_5V", 5000, 100)}, update_ms=4)
    energy = measure(open_rails(tmp_path), lambda: time.sleep(0.01), FAST)
    assert energy.gross_j_per_unit is None and "no rule" in energy.reason
    assert energy.window.power_w == []  # what somebody has connected adds up to nothing
    assert energy.window.rails_j["MY_5V"] == pytest.approx(0.5 * energy.window.duration_s)


def test_a_reading_that_fails_once_is_a_gap_and_no_loss() -> None:
    class Hiccup(Board):
        count = 0

        def read_w(self) -> dict[str, float]:
            self.count += 1
            if self.count in (20, 21):
                raise SourceLost("try again")
            return super().read_w()

    with Recorder(Hiccup()) as recorder:
        time.sleep(0.3)
    window = recorder.window()
    assert window.failed == 2
    assert window.energy_j == pytest.approx(IDLE_W * window.duration_s)


def test_recorder_refuses_half_a_window() -> None:
    class Dying(Board):
        def read_w(self) -> dict[str, float]:
            if self.load:
                raise SourceLost("gone")
            return super().read_w()

    board = Dying()
    with Recorder(board) as recorder:
        board.load = True
        time.sleep(0.05)
    with pytest.raises(SourceLost, match="gone"):
        recorder.window()


def test_rapl_counts_packages_only_and_survives_the_wrap(tmp_path: Path) -> None:
    counter_file = boards.rapl(tmp_path, uj=262_143_000_000)
    counter = open_rapl(tmp_path)
    assert isinstance(counter, RaplCounter) and counter.scope == "package"
    counter_file.write_text("262143300000\n")
    assert counter.read_j() == pytest.approx(0.3)
    counter_file.write_text("171150\n")
    assert counter.read_j() == pytest.approx(0.3 + (262_143_328_850 - 262_143_300_000 + 1 + 171_150) / 1e6)


@pytest.mark.parametrize("now", [4_999_000, 0, 200_000_000_000])
def test_a_counter_that_was_set_anew_or_jumps_is_no_wrap(tmp_path: Path, now: int) -> None:
    file = boards.rapl(tmp_path, uj=5_000_000)
    counter = open_rapl(tmp_path)
    file.write_text(f"{now}\n")
    assert isinstance(counter, RaplCounter)
    with pytest.raises(SourceLost, match=f"energy_uj went from 5000000 to {now}: set anew"):
        counter.read_j()


@pytest.mark.parametrize("name", ["", None])
def test_a_package_that_does_not_tell_its_name_leaves_no_half_total(tmp_path: Path, name: str | None) -> None:
    boards.rapl(tmp_path)
    second = tmp_path / "sys/class/powercap/intel-rapl:7"
    boards.write(second, {"energy_uj": 9, "max_energy_range_uj": 10**9} | ({} if name is None else {"name": name}))
    found = open_rapl(tmp_path)
    assert isinstance(found, Unavailable) and "intel-rapl:7/name" in found.reason


def test_counter_windows_state_their_bound(tmp_path: Path) -> None:
    counter_file = boards.rapl(tmp_path)
    counter = open_rapl(tmp_path)
    value = [1_000_000]

    def work() -> None:
        time.sleep(0.01)
        value[0] += 150_000  # 15 W and a little less for what sleeping takes longer
        counter_file.write_text(f"{value[0]}\n")

    energy = measure(counter, work, FAST)
    assert energy.gross_j_per_unit == pytest.approx(0.15)
    assert energy.idle_w == 0 and any("below what it resolves" in note for note in energy.notes)
    assert 0 < energy.bound_j_per_unit < 0.15


def test_rapl_without_permission_or_package_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_rapl(tmp_path), Unavailable)
    forbidden = boards.rapl(tmp_path)
    boards.refuse(monkeypatch, {forbidden: errno.EACCES})
    refused = open_rapl(tmp_path)
    assert isinstance(refused, Unavailable) and "run as root" in refused.reason


@pytest.mark.parametrize("content", ["", "N/A", "-5", "nan", "1e30", "99999999999999999999"])
def test_a_counter_that_holds_nonsense_is_a_reason_and_no_number(tmp_path: Path, content: str) -> None:
    file = boards.rapl(tmp_path)
    counter = open_rapl(tmp_path)
    file.write_text(content)
    assert isinstance(counter, RaplCounter)
    with pytest.raises(SourceLost, match="energy_uj"):
        counter.read_j()
    refused = open_rapl(tmp_path)
    assert isinstance(refused, Unavailable) and "energy_uj" in refused.reason


def test_a_counter_that_never_moves_measured_nothing(tmp_path: Path) -> None:
    boards.rapl(tmp_path, uj=0)
    energy = measure(open_rapl(tmp_path), lambda: time.sleep(0.01), FAST)
    assert energy.gross_j_per_unit is None and energy.net_j_per_unit is None and energy.idle_w is None
    assert "energy_uj did not move" in energy.reason


def test_one_package_of_two_that_stands_still_makes_no_total(tmp_path: Path) -> None:
    file, value = boards.rapl(tmp_path), [1_000_000]
    boards.write(
        tmp_path / "sys/class/powercap/intel-rapl:7",
        {"name": "package-1", "energy_uj": 9, "max_energy_range_uj": 10**9},
    )

    def work() -> None:
        time.sleep(0.01)
        value[0] += 150_000
        file.write_text(f"{value[0]}\n")

    energy = measure(open_rapl(tmp_path), work, FAST)
    assert energy.gross_j_per_unit is None and "intel-rapl:7/energy_uj did not move" in energy.reason


def test_a_sensor_that_reads_zero_throughout_measured_nothing(tmp_path: Path) -> None:
    boards.write(boards.orin_nano(tmp_path), {"update_interval": 4, "curr1_input": 0})
    energy = measure(open_rails(tmp_path), lambda: time.sleep(0.01), FAST)
    assert energy.gross_j_per_unit is None and "VDD_IN read 0 W in all" in energy.reason


def test_readings_too_rare_to_integrate_are_a_reason() -> None:
    with Recorder(Board(update_s=1e3)) as recorder:
        pass
    with pytest.raises(SourceLost, match="at least 2 are needed"):
        recorder.window()


def test_nothing_keeps_every_reason() -> None:
    energy = nothing([Unavailable("rapl", "a"), Unavailable("nvml", "b")])
    assert energy.gross_j_per_unit is None and energy.reason == "rapl: a; nvml: b"
    assert energy.units == 0
