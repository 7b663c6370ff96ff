"""``lit-mmpg profile report`` of several boards: one real profile of this machine, and copies with a board's values.

The boards' names, power modes and rails are those of NVIDIA's documentation; their times and joules are made up. Not
verified on hardware.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path

import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.profiling import document as documents
from lit_mmpg.profiling.boards import compare_boards
from lit_mmpg.profiling.cli import main
from lit_mmpg.profiling.meters.latency import Latency
from tests.profiling.bundles import make_bundle

CONFIG = """
name: cpu
engines: [{engine: onnxruntime}]
batches: [1, 4]
scenarios: [answer]
encoder: without
latency: {warmup: 1, min_count: 20, min_time_s: 0.0, max_time_s: 5.0, attempts: 1}
measure_energy: false
measure_memory: false
"""
NANO, ORIN = "NVIDIA Jetson Orin Nano Developer Kit", "NVIDIA Jetson AGX Orin Developer Kit"
MADE = [  # board, power mode, scope, and for batches 1 and 4: milliseconds, joules of the whole batch
    ("nano-7W", NANO, "7W", "module", (8.0, 0.020), (24.0, 0.060)),
    ("nano-15W", NANO, "15W", "module", (4.0, 0.024), (12.0, 0.096)),
    ("agx", ORIN, "MODE_30W", "module", (2.0, 0.030), (9.0, 0.160)),
    ("agx-board", ORIN, "MODE_50W", "board", (1.0, 0.080), (3.0, 0.200)),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("boards")
    bundle = make_bundle(folder / "bundle")
    (folder / "cpu.yaml").write_text(CONFIG)
    arguments = ["run", "--bundle", str(bundle), "--config", str(folder / "cpu.yaml"), "--output", str(folder)]
    assert main([*arguments, "--no-record"]) == 0
    cpu = documents.load(folder / "profile.json")
    found = {"cpu": folder / "profile.json"}
    for name, board, mode, scope, *values in MADE:
        made = copy.deepcopy(cpu)
        made["environment"] |= {"board": board, "power_mode": {"nvpmodel": mode}}
        for row, (ms, joules) in zip(made["rows"], values, strict=True):
            row["latency"] = asdict(Latency.of_wall([ms] * 20, ms, 0.0))
            row["energy"] = [
                {"source": "ina3221", "scope": scope, "scope_note": "", "estimate": False, "gross_j_per_unit": joules,
                 "net_j_per_unit": joules / 2, "bound_j_per_unit": 0.0, "reason": None, "notes": []}
            ]  # fmt: skip
        found[name] = folder / f"{name}.json"
        documents.save(made, found[name])
    return found


def test_boards_share_a_page_and_only_like_is_compared_with_like(files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "boards.html"
    assert main(["report", *map(str, files.values()), "--output", str(output)]) == 0
    page = output.read_text()
    module, board = page.split("Latency against energy, module")[1].split("Latency against energy, board")
    said = module.split("figcaption>")[1]
    # Per clip, 7 W: 8 ms at 20 mJ and 24 ms at 15 mJ; 15 W: 4 ms at 24 mJ; AGX: 2 ms at 30 mJ; the others are beaten.
    assert said.count(NANO) == 3 and said.count(ORIN) == 1 and f"{NANO}, 15W: onnxruntime fp32 ×4" not in said
    assert "50W" not in module.split("<h2>")[0] and "50W" in board
    assert f"{NANO}, 7W" in page and "66.67" in page
    rows = compare_boards([(files["nano-7W"], documents.load(files["nano-7W"]))])["boards"][0]["rows"]
    assert [row["energy_j"] for row in rows] == pytest.approx([0.020, 0.015])


def test_a_machine_without_energy_is_shown_with_its_reason(files: dict[str, Path]) -> None:
    cpu = compare_boards([(files["cpu"], documents.load(files["cpu"]))])["boards"][0]
    assert cpu["rows"] and all(row["energy_j"] is None and row["source"] == "not measured" for row in cpu["rows"])


def test_what_is_no_comparison_of_boards_says_why(files: dict[str, Path], tmp_path: Path) -> None:
    cpu = documents.load(files["cpu"])
    other, silent = (copy.deepcopy(cpu) for _ in range(2))
    other["bundle"]["checkpoint_digest"] = "cd" * 32
    for row in silent["rows"]:
        row["scenario"] = "adapt"
    for name, made in (("other", other), ("silent", silent)):
        documents.save(made, tmp_path / f"{name}.json")
    path = str(files["cpu"])
    for second, told in ((files["cpu"], "same profile; give it once"), (tmp_path / "other.json", "different bundles")):
        with pytest.raises(UserError, match=told) as raised:
            main(["report", path, str(second)])
        assert path in str(raised.value) and str(second) in str(raised.value)
    with pytest.raises(UserError, match="no answer was timed"):
        compare_boards([(tmp_path / "silent.json", silent)])
    with pytest.raises(UserError, match=r"--output .*ends in \.html"):
        main(["report", path, str(files["agx"]), "--output", str(tmp_path)])
