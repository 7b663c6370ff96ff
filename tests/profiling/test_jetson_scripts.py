"""The scripts for a board: with stand-ins for the two NVIDIA tools, which exist on a Jetson only."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from lit_mmpg.invoker import handed_over, invoker
from lit_mmpg.runtime.engines.cache import cache_folder

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
# As jetson_clocks does: it asks before it overwrites a file, and waits for the answer.
echo "clocks $1" >> "$STATE/log"
if [[ "$1" == --store ]]; then
    if [[ -e "$2" ]]; then read -r -p "File $2 already exists. Can I overwrite it? Y/N: " answer || exit 1; fi
    echo stored > "$2"
    echo "$2" > "$STATE/stored"
    exit "${STORE:-0}"
elif [[ "$1" == --restore ]]; then
    [[ "$(cat "$2")" == stored ]] || exit 1
fi
"""
LIT_MMPG = """#!/bin/bash
echo "profile in mode $(cat "$STATE/mode"): $*" >> "$STATE/log"
echo "$XDG_CACHE_HOME" > "$STATE/cache"
if [[ -n "${SLOW:-}" ]]; then
    trap 'echo "profile was told to stop" >> "$STATE/log"; exit 130' TERM
    echo > "$STATE/running"
    while :; do sleep 0.05; done
fi
exit "${FAIL:-0}"
"""


def _hear_signals() -> None:
    """A shell cannot trap what was ignored when it began, as under nohup or in a background job."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def board(tmp_path: Path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {"nvpmodel": NVPMODEL, "jetson_clocks": CLOCKS, "lit-mmpg": LIT_MMPG}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tools / "id").write_text("#!/bin/bash\necho 0\n")
    (tools / "id").chmod(0o755)
    (tmp_path / "mode").write_text("2\n")

    def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "STATE": str(tmp_path)}
        environment |= {"LIT_MMPG": str(tools / "lit-mmpg"), "TMPDIR": str(tmp_path)} | more
        return subprocess.Popen(
            [str(ROOT / "jetson/power_modes.sh"), *arguments],
            env=environment,
            stdin=subprocess.PIPE,  # open and silent: whoever asks waits for ever
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hear_signals,
        )

    def finish(process: subprocess.Popen[str]) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        process.wait(timeout=600)
        assert process.stdout and process.stderr
        done = subprocess.CompletedProcess(
            process.args, process.returncode, process.stdout.read(), process.stderr.read()
        )
        log = tmp_path / "log"
        return done, log.read_text().splitlines() if log.exists() else []

    def run(*arguments: str, **more: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        return finish(start(*arguments, **more))

    run.start, run.finish = start, finish  # type: ignore[attr-defined]
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


def test_engines_are_built_for_each_mode(board) -> None:
    done, log = board("--modes", "0 1", "--build", *ASK)
    assert done.returncode == 0, done.stderr
    assert [line for line in log if "profile in" in line] == [
        f"profile in mode {mode}: profile engines build --bundle b --config c.yaml" for mode in (0, 1)
    ]


def test_clocks_are_fixed_when_asked_and_restored(board, tmp_path: Path) -> None:
    done, log = board("--modes", "0", "--clocks", *ASK)
    assert done.returncode == 0, done.stderr
    assert not Path((tmp_path / "stored").read_text().strip()).parent.exists()  # nothing is left behind
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


def test_clocks_that_cannot_be_stored_change_nothing(board, tmp_path: Path) -> None:
    done, log = board("--modes", "0", "--clocks", *ASK, STORE="1")
    assert done.returncode == 2 and "--store failed" in done.stderr and log == ["clocks --store"]
    assert not list(tmp_path.glob("tmp.*"))


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=["TERM", "INT", "HUP"],
)
def test_a_signal_stops_the_profile_and_restores(board, tmp_path: Path, number, status) -> None:
    process = board.start("--modes", "0 1", "--clocks", *ASK, SLOW="1")
    end = time.monotonic() + 120
    while not (tmp_path / "running").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)
    done, log = board.finish(process)
    assert done.returncode == status and (tmp_path / "mode").read_text() == "2\n"
    assert log[-3:] == ["profile was told to stop", "clocks --restore", "set 2"]


def test_sudo_keeps_the_cache_of_who_called_it(board, tmp_path: Path) -> None:
    user = next(u for u in pwd.getpwall() if u.pw_uid != 0)
    board("--modes", "0", *ASK, SUDO_USER=user.pw_name, XDG_CACHE_HOME="")
    assert (tmp_path / "cache").read_text().strip() == f"{user.pw_dir}/.cache"
    board("--modes", "0", *ASK, SUDO_USER=user.pw_name, XDG_CACHE_HOME="/elsewhere")
    assert (tmp_path / "cache").read_text().strip() == "/elsewhere"


def test_a_folder_as_root_under_sudo_belongs_to_who_called_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    user = next(u for u in pwd.getpwall() if u.pw_uid != 0)
    monkeypatch.setenv("SUDO_USER", user.pw_name)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path(user.pw_dir) / ".cache" / "lit-mmpg"
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "old").write_text("root's own")
    os.utime(kept / "old")
    before = (kept / "old").stat().st_ctime
    monkeypatch.setattr("lit_mmpg.invoker.time.time", lambda: before + 10)
    with handed_over(kept):
        pass
    assert (kept / "old").stat().st_uid == 0  # what was there before stays
    monkeypatch.undo()
    monkeypatch.setenv("SUDO_USER", user.pw_name)
    new = tmp_path / "outputs" / "profile" / "nano"
    with handed_over(new):
        new.mkdir(parents=True)
        (new / "profile.json").write_text("{}")
        (new / "link").symlink_to(kept / "old")
        os.link(kept / "old", new / "second name")
    made = [tmp_path / "outputs", new, new / "profile.json", new / "link"]
    assert {p.lstat().st_uid for p in made} == {user.pw_uid} and {p.lstat().st_gid for p in made} == {user.pw_gid}
    assert tmp_path.stat().st_uid == 0 and (kept / "old").stat().st_uid == 0
    monkeypatch.setenv("SUDO_USER", "nobody-of-that-name")
    assert invoker() is None
    monkeypatch.setenv("SUDO_USER", "root")
    assert invoker() is None


def wheel(folder: Path, text: str) -> None:
    """A wheel of this package's name whose version never changes: a module, and the command that the script calls."""
    folder.mkdir(exist_ok=True)
    info = "lit_mmpg-0.0.1.dist-info"
    files = {
        "lit_mmpg.py": f"def main():\n    print({text!r})\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: lit-mmpg\nVersion: 0.0.1\nProvides-Extra: board-cpu\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nlit-mmpg = lit_mmpg:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / "lit_mmpg-0.0.1-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_a_second_installation_without_a_network_installs_the_new_build(tmp_path: Path) -> None:
    script, wheels = str(ROOT / "jetson/install.sh"), tmp_path / "wheels"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    # The environment borrows this one's pip: to install another takes seconds and is not what is tested.
    (tmp_path / "borrowed").mkdir()
    # Not imported here: on Python 3.10 and 3.11 that would give this process another distutils than setuptools needs.
    where = "import pip; print(pip.__file__)"
    pip = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, check=True).stdout
    (tmp_path / "borrowed" / "pip").symlink_to(Path(pip.strip()).parent)
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": str(tmp_path / "borrowed"), "SUDO_UID": "65534"}
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\n[[ "$1 $2" == "-m venv" ]] && set -- -m venv --without-pip "${@:3}"\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    for text in ("the first build", "the second build"):
        wheel(wheels, text)
        done = subprocess.run(
            [script, "--venv", str(tmp_path / "venv"), "--wheels", str(wheels), "--cpu", "--python", str(python)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert text in done.stdout
    if os.geteuid() == 0:
        assert {path.lstat().st_uid for path in (tmp_path / "venv").rglob("*")} == {int(environment["SUDO_UID"])}


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
        done = subprocess.run([script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_emulation_says_what_it_needs() -> None:
    done = subprocess.run([str(ROOT / "jetson" / "emulate.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "jetson/emulate.sh FOLDER BUNDLE" in done.stdout
