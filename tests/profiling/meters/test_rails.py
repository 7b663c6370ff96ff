from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lit_mmpg import sysfs
from lit_mmpg.profiling.meters.rails import RailSource, find_rails, open_rails
from lit_mmpg.profiling.meters.sources import SourceLost, Unavailable
from tests.profiling.meters import boards


def opened(root: Path) -> RailSource:
    source = open_rails(root)
    assert isinstance(source, RailSource), source
    return source


def total(source: RailSource) -> float:
    readings = source.read_w()
    return sum(readings[label] for label in source.total)


def test_orin_nano_and_nx_total_is_the_input_rail_alone(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path)
    source = opened(tmp_path)
    assert source.total == ("VDD_IN",)
    assert source.read_w() == pytest.approx({"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 1.5, "VDD_SOC": 1.4})
    assert (source.name, source.scope, total(source)) == ("ina3221", "module", pytest.approx(6.0))
    assert "carrier" in source.scope_note
    assert not source.update_interval_known
    assert source.resolution_w == pytest.approx(5e-3)  # one milliampere at 5 V


def test_labels_decide_not_the_numbers_of_channels_or_monitors(tmp_path: Path) -> None:
    boards.mainline(
        tmp_path, "7-0040", 11, {1: ("VDD_SOC", 5000, 280), 2: ("NC", 0, 0), 3: ("VDD_IN", 5000, 1200)}, update_ms=20
    )
    source = opened(tmp_path)
    assert total(source) == pytest.approx(6.0)
    assert set(source.rails) == {"VDD_SOC", "VDD_IN"}  # neither NC nor the sum of shunt voltages
    assert source.update_interval_s == pytest.approx(0.02)
    assert source.update_interval_known


def test_agx_orin_total_is_the_sum_of_three_rails_and_counts_no_part_twice(tmp_path: Path) -> None:
    boards.agx_orin(tmp_path)
    source = opened(tmp_path)
    assert source.total == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert total(source) == pytest.approx(3.8 + 0.95 + 4.5)  # VDDQ_VDD2_1V8AO is part of VIN_SYS_5V0
    assert source.read_w()["VDDQ_VDD2_1V8AO"] == pytest.approx(0.76)


def test_thor_total_is_the_boards_input_in_microwatts(tmp_path: Path) -> None:
    boards.thor(tmp_path)
    source = opened(tmp_path)
    assert (source.name, source.scope, source.total) == ("ina238", "board", ("VIN",))
    assert total(source) == pytest.approx(28.5)


def test_thor_without_its_input_monitor_falls_back_to_the_module(tmp_path: Path) -> None:
    boards.thor(tmp_path)
    os.remove(tmp_path / boards.DRIVERS / "ina238/2-0044/hwmon/hwmon6/power1_input")
    source = opened(tmp_path)
    assert (source.name, source.scope) == ("ina3221", "module")
    assert total(source) == pytest.approx(9.5 + 5.7 + 5.0)


def test_agx_xavier_and_tx2_and_nano_on_the_old_driver(tmp_path: Path) -> None:
    xavier = tmp_path / "xavier"
    boards.l4t32(xavier, "1-0040", 0, {0: ("GPU", 600), 1: ("CPU", 500), 2: ("SOC", 1400)})
    boards.l4t32(xavier, "1-0041", 1, {0: ("CV", 0), 1: ("VDDRQ", 300), 2: ("SYS5V", 1800)})
    assert total(opened(xavier)) == pytest.approx(4.6)

    tx2 = tmp_path / "tx2"
    boards.l4t32(tx2, "0-0040", 0, {0: ("VDD_SYS_GPU", 152), 1: ("VDD_SYS_SOC", 457)}, folder="iio_device")
    boards.l4t32(tx2, "0-0041", 1, {0: ("VDD_IN", 2500), 1: ("VDD_SYS_CPU", 200)}, folder="iio_device")
    boards.l4t32(tx2, "0-0042", 2, {0: ("VDD_MUX", 3000), 1: ("VDD_5V0_IO_SYS", 900)}, folder="iio_device")
    source = opened(tx2)
    assert (source.scope, total(source)) == ("board", pytest.approx(5.5))

    nano = tmp_path / "nano"
    boards.l4t32(nano, "6-0040", 0, {0: ("POM_5V_IN", 2300), 1: ("POM_5V_GPU", 100), 2: ("POM_5V_CPU", 400)})
    source = opened(nano)
    assert (source.scope, total(source)) == ("board", pytest.approx(2.3))


def test_unknown_board_lists_its_rails_and_forms_no_total(tmp_path: Path) -> None:
    boards.mainline(tmp_path, "3-0042", 4, {1: ("MY_5V", 5000, 100), 2: ("MY_3V3", 3300, 50)})
    source = opened(tmp_path)
    assert source.total == () and source.scope == "rails"
    assert source.read_w() == pytest.approx({"MY_5V": 0.5, "MY_3V3": 0.165})


def test_disabled_channels_without_readings_are_told_and_left_out(tmp_path: Path) -> None:
    folder = boards.orin_nano(tmp_path)
    os.remove(folder / "curr3_input")
    rails, problems = find_rails(tmp_path)
    assert [rail.label for rail in rails] == ["VDD_IN", "VDD_CPU_GPU_CV"]
    assert any("VDD_SOC has no current reading" in problem for problem in problems)


def test_a_rail_of_the_total_that_vanishes_is_an_error_and_another_is_left_out(tmp_path: Path) -> None:
    folder = boards.orin_nano(tmp_path)
    source = opened(tmp_path)
    os.remove(folder / "in3_input")
    assert set(source.read_w()) == {"VDD_IN", "VDD_CPU_GPU_CV"}
    os.remove(folder / "curr1_input")
    with pytest.raises(SourceLost, match="VDD_IN"):
        source.read_w()


def test_nonsense_in_a_file_is_no_reading(tmp_path: Path) -> None:
    folder = boards.orin_nano(tmp_path)
    (folder / "curr1_input").write_text("\n")
    rails, problems = find_rails(tmp_path)
    assert [rail.label for rail in rails] == ["VDD_CPU_GPU_CV", "VDD_SOC"]
    assert any("VDD_IN cannot be read" in problem for problem in problems)


def test_no_permission_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = boards.orin_nano(tmp_path)
    forbidden = {folder / f"{kind}{n}_input": errno.EACCES for kind in ("in", "curr") for n in (1, 2, 3)}
    boards.refuse(monkeypatch, forbidden)
    source = open_rails(tmp_path)
    assert isinstance(source, Unavailable)
    assert "no permission" in source.reason and "run as root" in source.reason


def test_a_machine_without_monitors_says_so(tmp_path: Path) -> None:
    source = open_rails(tmp_path)
    assert isinstance(source, Unavailable) and "bound to its driver" in source.reason


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EIO, errno.ENODEV, errno.EINVAL, errno.EPERM, errno.ENODATA])
def test_a_rail_that_refuses_is_named_with_its_file(tmp_path: Path, number: int, monkeypatch) -> None:
    folder = boards.orin_nano(tmp_path)
    source = opened(tmp_path)
    boards.refuse(monkeypatch, {folder / "curr1_input": number, folder / "in3_label": number})
    with pytest.raises(SourceLost, match=r"VDD_IN.*curr1_input"):
        source.read_w()
    rails, problems = find_rails(tmp_path)
    assert [rail.label for rail in rails] == ["VDD_CPU_GPU_CV", "ina3221 1-0040 channel 3"]
    assert all(any(name in problem for problem in problems) for name in ("curr1_input", "in3_label"))
    assert opened(tmp_path).total == () and "curr1_input" in opened(tmp_path).no_total


@pytest.mark.parametrize("content", [b"", b"N/A", b"\xff\xfe", b"\0\0", b"4294967295", b"nan", b"1_000", b"12 13"])
def test_what_is_no_reading_never_becomes_one(tmp_path: Path, content: bytes) -> None:
    (boards.orin_nano(tmp_path) / "curr1_input").write_bytes(content)
    rails, problems = find_rails(tmp_path)
    assert [rail.label for rail in rails] == ["VDD_CPU_GPU_CV", "VDD_SOC"] and "curr1_input" in problems[0]


def test_a_bus_that_is_busy_once_loses_no_rail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = boards.orin_nano(tmp_path)
    refused = {folder / "curr1_input": errno.EAGAIN}
    boards.refuse(monkeypatch, refused)
    read = sysfs.read_number

    def once(path: Path, *limits: float) -> float:
        try:
            return read(path, *limits)
        finally:
            refused.pop(path, None)

    monkeypatch.setattr(sysfs, "read_number", once)
    assert opened(tmp_path).total == ("VDD_IN",)


def test_numbers_are_read_with_blanks_and_signs_around_them(tmp_path: Path) -> None:
    folder = boards.orin_nano(tmp_path)
    (folder / "in1_label").write_bytes(b" vdd_in \n\0")
    (folder / "curr1_input").write_bytes(b" +1200 \n\n\0")
    (folder / "curr3_input").write_text("-16\n")  # the offset of a gated rail
    source = opened(tmp_path)
    assert total(source) == pytest.approx(6.0) and source.read_w()["VDD_SOC"] == pytest.approx(-0.08)
    (folder / "curr1_input").write_text("-1200\n")
    with pytest.raises(SourceLost, match="VDD_IN reads -6 W"):
        source.read_w()


def chip(root: Path, name: str, place: str, driver: str = "ina2xx", **files: object) -> Path:
    folder = root / boards.DRIVERS / driver / place / "hwmon" / f"hwmon{10 + int(place[-2:])}"
    return boards.write(folder, {"name": name, "power1_input": 320_000, **files})


@pytest.mark.parametrize(
    ("name", "driver", "files"),
    [
        ("ina219", "ina2xx", {}),
        ("ina226", "ina2xx", {"label": "VIN"}),
        ("ina238", "ina238", {}),
        ("ina238", "ina238", {"in1_label": "VIN"}),
        ("ina228", "ina238", {}),
    ],
)
def test_a_chip_that_somebody_connected_is_listed_and_in_no_total(tmp_path: Path, name, driver, files) -> None:
    alone, beside, thor = (tmp_path / kind for kind in ("alone", "beside", "thor"))
    boards.orin_nano(beside)
    boards.thor(thor)
    for root in (alone, beside, thor):
        chip(root, name, "7-0041", driver, **files)
    raw = " ".join([f"{name} 7-0041", *files.values()])
    assert (opened(alone).total, opened(alone).scope, list(opened(alone).read_w())) == ((), "rails", [raw])
    assert total(opened(beside)) == pytest.approx(6.0) and opened(beside).read_w()[raw] == pytest.approx(0.32)
    assert opened(beside).name == "ina3221"
    assert total(opened(thor)) == pytest.approx(28.5) and opened(thor).read_w()[raw] == pytest.approx(0.32)


def test_thors_input_counts_on_a_thor_at_its_address_only(tmp_path: Path) -> None:
    chip(tmp_path, "ina238", "2-0044", "ina238", power1_input=72_500_000)
    assert opened(tmp_path).total == ()
    boards.tegra(tmp_path, "NVIDIA Jetson AGX Thor Developer Kit", "R38 (release), REVISION: 2.1", {})
    assert total(opened(tmp_path)) == pytest.approx(72.5)


def test_channels_without_label_or_switched_off(tmp_path: Path) -> None:
    folder = boards.orin_nano(tmp_path)
    os.remove(folder / "in2_label")
    boards.write(folder, {"in3_enable": 0, "in7_label": "sum of shunt voltages", "curr7_input": 9, "curr4_input": 9})
    assert set(opened(tmp_path).rails) == {"VDD_IN", "ina3221 1-0040 channel 2"}


def test_one_chip_seen_twice_counts_once_and_a_second_with_its_label_not_at_all(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path)
    drivers = tmp_path / boards.DRIVERS
    (drivers / "ina3221x").mkdir()
    (drivers / "ina3221x" / "1-0040").symlink_to(drivers / "ina3221" / "1-0040")
    assert list(opened(tmp_path).rails) == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"] and not opened(tmp_path).problems
    boards.mainline(tmp_path, "9-0040", 9, {1: ("VDD_IN", 12000, 500)})
    source = opened(tmp_path)
    assert total(source) == pytest.approx(6.0) and source.read_w()["VDD_IN (9-0040)"] == pytest.approx(6.0)
    assert any("repeats the label" in problem for problem in source.problems)


def test_the_boards_own_rail_is_told_by_what_its_chip_has_beside_it(tmp_path: Path) -> None:
    boards.orin_nano(tmp_path)
    boards.mainline(tmp_path, "0-0041", 2, {1: ("VDD_IN", 36000, 1000)})  # before the board's own in every order
    boards.mainline(tmp_path, "7-0041", 7, {1: ("VIN", 12000, 50)})  # a Thor's label on no Thor
    source = opened(tmp_path)
    assert source.total == ("VDD_IN",) and total(source) == pytest.approx(6.0) and source.scope == "module"
    assert source.read_w()["VDD_IN (0-0041)"] == pytest.approx(36.0)
    assert any("taken for that of 1-0040" in problem for problem in source.problems)


def test_where_nothing_tells_which_rail_is_the_boards_own_there_is_no_total(tmp_path: Path) -> None:
    for bus, watts in (("1-0040", 1200), ("2-0040", 7000)):
        boards.mainline(tmp_path, bus, int(bus[0]), {1: ("VDD_IN", 5000, watts)})
    source = opened(tmp_path)
    assert not source.total and "nobody knows which is the board's own" in source.no_total


@pytest.mark.parametrize(("model", "totals"), [("Acme Rock 5", ()), ("NVIDIA Jetson Orin Nano", ("VDD_IN",))])
def test_rules_are_for_jetsons(model: str, totals: tuple[str, ...], tmp_path: Path) -> None:
    boards.mainline(tmp_path, "1-0040", 1, {1: ("VDD_IN", 5000, 1200), 2: ("VDD_SOC", 5000, 300)})
    boards.write(tmp_path / "sys/firmware/devicetree/base", {"model": model})
    assert opened(tmp_path).total == totals


def test_a_thors_input_is_known_where_only_the_firmware_shows_the_tree(tmp_path: Path) -> None:
    boards.thor(tmp_path)
    boards.mainline(tmp_path, "0-0041", 31, {1: ("VIN", 12000, 50)})
    tree = tmp_path / "sys/firmware/devicetree/base"
    boards.write(tree, {"model": "NVIDIA Jetson AGX Thor Developer Kit"})
    (tmp_path / "proc/device-tree/model").unlink(missing_ok=True)
    source = opened(tmp_path)
    assert source.total == ("VIN",) and total(source) == pytest.approx(28.5)
