"""Seeds computed in processes of their own: one that fails costs no other, and none goes on when the first is gone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from lit_mmpg.cli import main
from tests import forked
from tests.integration import tiny
from tests.integration.conftest import write_experiment


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_experiment(tmp_path, tiny.build_root(tmp_path / "data"), "retrieval")
    monkeypatch.chdir(tmp_path)
    runs = {"static": {"config": "device.yaml"}}
    return tiny.write_config(tmp_path / "compare.yaml", seeds=[0, 1], runs=runs, baselines=["ridge"])


@pytest.mark.soak
def test_a_failing_seed_is_named_and_the_other_one_kept(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text() + 'seed_flags: ["--data.batch.devices={seed}"]\n')
    assert main(["compare", "--config", str(config), "--only", "static", "--jobs", "0"]) == 2
    assert "--jobs is 0" in capfd.readouterr().err
    assert main(["compare", "--config", str(config), "--only", "static", "--jobs", "2"]) == 2
    told = capfd.readouterr()
    assert "data.batch.devices" in told.out
    assert "seed 0 stopped" in told.err
    assert Path("outputs/compare/compare/static-seed1.json").is_file()


def test_processes_end_with_the_first(config: Path, tmp_path: Path) -> None:
    command = ["compare", "--config", str(config), "--jobs", "2", "--trainer.max_epochs=100000"]
    with (tmp_path / "log").open("w") as log:
        first = forked.Process(command, cwd=tmp_path, stdout=log, stderr=log)

    def others() -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"--child-of={first.pid}".encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    while len(others()) < 2:
        assert first.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    for _ in range(300):
        if not others():
            break
        time.sleep(0.1)
    assert not others()
