"""Two gloo processes on the CPU: both stages of both tasks, and the same metrics as one process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_mmpg.cli import main
from tests.integration.conftest import Trained, write_experiment

Train = Callable[[str], Trained]
DDP = ("--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu")


def lit_mmpg(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lit_mmpg", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.mark.parametrize("task", ["open_ended", "retrieval"])
def test_both_stages_train_in_two_processes(task: str, trained: Train, tmp_path: Path) -> None:
    config = write_experiment(tmp_path, trained(task).root, task)
    done = lit_mmpg(tmp_path, "fit", "--config", str(config), *DDP)
    assert "sync_dist" not in done.stderr
    # One of the processes speaks, not both.
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "preparing" in line] == [
        "device half",
        "cloud half",
    ]
    checkpoints = sorted(tmp_path.glob("outputs/*/*/checkpoints/best.ckpt"))
    assert len(checkpoints) == 2  # one run per stage, however many processes
    for path in checkpoints:
        assert torch.load(path, weights_only=True)["global_step"] > 0


@pytest.mark.parametrize(("task", "verb"), [("open_ended", "test"), ("retrieval", "test"), ("retrieval", "validate")])
def test_two_processes_measure_what_one_measures(
    task: str, verb: str, trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(task)
    monkeypatch.chdir(run.folder)
    arguments = [verb, "--ckpt_path", str(run.cloud), "--output"]
    assert main([*arguments, str(tmp_path / "one.json")]) == 0
    lit_mmpg(run.folder, *arguments, str(tmp_path / "two.json"), *DDP)
    rows = [json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("one", "two")]
    one, two = ({(r["method"], r["split"], r["metric"]): r for r in table} for table in rows)
    assert one.keys() == two.keys()
    for key, row in one.items():
        for field in ("value", "low", "high"):
            assert two[key][field] == pytest.approx(row[field], abs=1e-6), key


def test_gradients_with_gathered_negatives_equal_one_process_on_the_whole_batch(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.integration.gloo_gradient", str(port), str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys() and one
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
