"""The scripts for a board: with stand-ins for the two NVIDIA tools, which exist on a Jetson only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NVPMODEL = """#!/bin/bash
# As NVIDIA's developer guide describes nvpmodel: -q prints name and number; -m sets; some modes ask for a restart.
state="$STATE/mode"
case "$1" in
    -q) echo "NV Power Mode: MODE_$(cat "$state")"; cat "$state" ;;
    -m) echo "set $2" >> "$STATE/log"; if [[ "$2" == 7 ]]; then echo "reboot?"; exit 1; fi; echo "$2" > "$state" ;;
esac
"""
CLOCKS = """#!/bin/bash
echo "clocks $1" >> "$STATE/log"
[[ "$1" != --store ]] || echo stored > "$2"
"""


@pytest.fixture
def board(tmp_path: Path):
    tools = tmp_path / "tools"
    tools.mkdir()
    lit_mmpg = '#!/bin/bash\necho "profile in mode $(cat "$STATE/mode"): $*" >> "$STATE/log"\nexit "${FAIL:-0}"\n'
    for name, text in {"nvpmodel": NVPMODEL, "jetson_clocks": CLOCKS, "lit-mmpg": lit_mmpg}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tools / "id").write_text("#!/bin/bash\necho 0\n")
    (tools / "id").chmod(0o755)
    (tmp_path / "mode").write_text("2\n")

    def run(*arguments: str, **more: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "STATE": str(tmp_path)}
        environment |= {"LIT_MMPG": str(tools / "lit-mmpg")} | more
        done = subprocess.run(
            [str(ROOT / "jetson/power_modes.sh"), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        log = tmp_path / "log"
        return done, log.read_text().splitlines() if log.exists() else []

    return run


ASK = ("--settle", "0", "--output", "out", "--", "--bundle", "b", "--config", "c.yaml")


def test_each_mode_is_set_profiled_and_the_former_one_restored(board, tmp_path: Path) -> None:
    done, log = board("--modes", "0 1", *ASK)
    assert done.returncode == 0, done.stderr
    assert log == [
        "set 0",
        "profile in mode 0: profile run --bundle b --config c.yaml --output out/mode-0",
        "set 1",
        "profile in mode 1: profile run --bundle b --config c.yaml --output out/mode-1",
        "set 2",
    ]
    assert (tmp_path / "mode").read_text() == "2\n" and "restored: power mode 2" in done.stdout


def test_clocks_are_fixed_when_asked_and_restored(board) -> None:
    _, log = board("--modes", "0", "--clocks", *ASK)
    assert [line for line in log if line.startswith("clocks")] == [
        "clocks --store",
        "clocks --restore",
        "clocks ",
        "clocks --restore",
    ]


def test_a_mode_that_needs_a_restart_is_left_out(board) -> None:
    done, log = board("--modes", "7 1", *ASK)
    assert done.returncode == 1 and "left out: mode 7" in done.stderr
    assert [line for line in log if line.startswith("profile")] == [
        "profile in mode 1: profile run --bundle b --config c.yaml --output out/mode-1"
    ]


def test_a_failed_profile_still_restores(board, tmp_path: Path) -> None:
    done, _ = board("--modes", "0", *ASK, FAIL="3")
    assert done.returncode == 3 and (tmp_path / "mode").read_text() == "2\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--modes", "fast", *ASK), "one or more numbers"),
        (("--modes", "0", "--settle", "0"), "after --"),
        (("--mode", "0"), "no option --mode"),
    ],
)
def test_mistakes_set_nothing(board, arguments, message) -> None:
    done, log = board(*arguments)
    assert done.returncode == 2 and message in done.stderr and log == []


def test_install_script_names_what_is_wrong(tmp_path: Path) -> None:
    script = str(ROOT / "jetson/install.sh")
    for arguments, message in (
        (["--python", "/nonexistent"], "is not Python 3.10"),
        (["--wheels", str(tmp_path / "none")], "is not a folder"),
        (["--fast"], "no option --fast"),
    ):
        done = subprocess.run([script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_emulation_says_what_it_needs() -> None:
    done = subprocess.run([str(ROOT / "jetson" / "emulate.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "jetson/emulate.sh FOLDER BUNDLE" in done.stdout
