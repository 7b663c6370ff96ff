"""The verbs for real, on toy modules: stages, MLflow, checkpoints, resuming, two processes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from lit_mmpg.cli import main
from lit_mmpg.tracking.store import open_store, store_uri

ROOT = Path(__file__).parents[2]
FILES: dict[str, Any] = {
    "data.yaml": {"class_path": "tests.training.toy.ToyData", "init_args": {"root": "${TOY_ROOT}"}},
    "trainer.yaml": {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "log_every_n_steps": 4},
    "device.yaml": {"model": {"class_path": "tests.training.toy.ToyDevice"}},
    "toy.yaml": {
        "device_stage": "device.yaml",
        "model": {"class_path": "tests.training.toy.ToyCloud"},
        "data": "data.yaml",
        "trainer": "trainer.yaml",
        "save_every_n_steps": 3,
    },
}


def prepare(folder: Path) -> None:
    for name in ("root", "other"):
        (folder / name).mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(yaml.safe_dump(content))


def launch(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOY_ROOT": "root", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_mmpg", *argv]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def runs(folder: Path, experiment: str = "toy") -> tuple[MlflowClient, list[Run]]:
    """All runs of an experiment, oldest first."""
    client = open_store(store_uri(f"sqlite:///{folder}/mlruns/mlflow.db"))
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client, list(client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))


def best(folder: Path, run: Run) -> Path:
    return folder / "outputs/toy" / run.info.run_id / "checkpoints/best.ckpt"


def weights(folder: Path, run: Run, name: str = "best") -> dict[str, torch.Tensor]:
    return torch.load(best(folder, run).with_name(f"{name}.ckpt"), weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder in which both halves were trained, uninterrupted."""
    folder = tmp_path_factory.mktemp("trained")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TOY_ROOT", "root")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert main(["fit", "--config", "toy.yaml"]) == 0
        yield folder


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(list(argv)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_both_stages_are_recorded(trained: Path) -> None:
    client, (device, cloud) = runs(trained)[0], runs(trained)[1][:2]
    assert [run.info.status for run in (device, cloud)] == ["FINISHED", "FINISHED"]
    assert [run.data.tags["half"] for run in (device, cloud)] == ["device", "cloud"]
    assert cloud.data.tags["lit_mmpg.device_run_id"] == device.info.run_id
    assert cloud.data.tags["task"] == "toy"
    assert len(cloud.data.tags["lit_mmpg.data_fingerprint"]) == 64
    assert cloud.data.params["data.root"] == "root"
    assert cloud.data.params["model.device_ckpt"] == str(best(trained, device))
    assert "val/loss" in cloud.data.metrics
    names = {file.path for file in client.list_artifacts(cloud.info.run_id)}
    assert names == {"config.yaml", "devices.json", "checkpoints", "figures"}
    assert [file.path for file in client.list_artifacts(cloud.info.run_id, "checkpoints")] == ["checkpoints/best.ckpt"]
    assert [file.path for file in client.list_artifacts(cloud.info.run_id, "figures")] == ["figures/line.png"]


def test_test_takes_everything_from_the_checkpoint(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TOY_ROOT")
    cloud = runs(trained)[1][1]
    argv = ["--ckpt_path", str(best(trained, cloud)), "--data.root", "other", "--output", "out/rows.json"]
    assert main(["test", *argv]) == 0
    rows = json.loads(Path("out/rows.json").read_text())["rows"]
    assert [(r["method"], r["split"], r["download_bytes"]) for r in rows] == [("cloud", "test", 13312)]
    assert "13.0 KiB" in capsys.readouterr().out
    client, every = runs(trained)
    child = every[-1]
    assert child.data.tags["mlflow.parentRunId"] == cloud.info.run_id
    assert child.data.tags["lit_mmpg.data_fingerprint"] != cloud.data.tags["lit_mmpg.data_fingerprint"]
    assert child.data.metrics["test/loss/cloud"] == pytest.approx(rows[0]["value"])
    assert {"rows.json", "figures"} <= {file.path for file in client.list_artifacts(child.info.run_id)}


def test_a_checkpoint_alone_is_enough(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "moved.ckpt"
    checkpoint.write_bytes(best(trained, runs(trained)[1][1]).read_bytes())
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    store = f"sqlite:///{tmp_path}/elsewhere.db"
    argv = ["--ckpt_path", "moved.ckpt", "--data.root", "here", "--tracking.uri", store]
    assert main(["validate", *argv]) == 0
    client = open_store(store)
    (run,) = client.search_runs([client.get_experiment_by_name("validate").experiment_id])
    assert "was not found" in run.data.tags["lit_mmpg.note"]
    assert main(["predict", *argv, "--output", "answers.csv", "--trainer.logger=false"]) == 0
    lines = Path("answers.csv").read_text().splitlines()
    assert lines[0] == "item,answer"
    assert len(lines) == 65


def test_mistakes_are_one_clear_error(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    checkpoint = str(best(trained, runs(trained)[1][1]))
    assert "best.ckpt?" in fails(capsys, "test", "--ckpt_path", checkpoint.replace("best", "bets"))
    assert "--ckpt_path" in fails(capsys, "test")
    assert "--model.gain is 2.0" in fails(capsys, "test", "--ckpt_path", checkpoint, "--model.gain=2")
    assert "holds a tests.training.toy.ToyCloud" in fails(
        capsys, "test", "--ckpt_path", checkpoint, "--model=tests.training.toy.ToyDevice"
    )
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(Path(checkpoint).read_bytes()[:2000])
    assert "torn.ckpt" in fails(capsys, "test", "--ckpt_path", str(torn))
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert "foreign.ckpt" in fails(capsys, "test", "--ckpt_path", str(tmp_path / "foreign.ckpt"))
    torch.save({"lit_mmpg": ROOT}, tmp_path / "pickled.ckpt")
    assert "pickled.ckpt" in fails(capsys, "test", "--ckpt_path", str(tmp_path / "pickled.ckpt"))
    assert "data.root nowhere does not exist" in fails(
        capsys, "test", "--ckpt_path", checkpoint, "--data.root", "nowhere"
    )
    assert "invalid strategy name" in fails(capsys, "test", "--ckpt_path", checkpoint, "--trainer.strategy=foo")
    assert "max_epochs" in fails(capsys, "fit", "--config", "toy.yaml", "--trainer.max_epochs=many")
    short = ("--tracking.experiment=short", "--trainer.max_steps=1")
    assert "without a validation" in fails(capsys, "fit", "--config", "toy.yaml", *short)
    # Before the device half trains, not after it.
    assert "width" in fails(capsys, "fit", "--config", "toy.yaml", "--model.width=3")
    assert "already finished" in fails(capsys, "fit", "--config", "toy.yaml", "--ckpt_path", "last")
    assert "no interrupted run" in fails(
        capsys, "fit", "--config", "device.yaml", "--data=data.yaml", "--ckpt_path", "last"
    )
    assert not [run for run in runs(trained)[1] if run.info.status == "RUNNING"]


def test_tracking_can_be_off(trained: Path) -> None:
    before = len(runs(trained)[1])
    argv = [
        "--config",
        "toy.yaml",
        "--trainer.logger=false",
        "--trainer.default_root_dir=quiet",
        "--trainer.max_epochs=1",
    ]
    assert main(["fit", *argv]) == 0
    assert len(list(Path("quiet").rglob("best*.ckpt"))) >= 1
    assert len(runs(trained)[1]) == before


@pytest.mark.parametrize("half", ["device", "cloud"])
def test_a_killed_run_resumes_to_the_same_weights(
    half: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path)
    # 16 steps make an epoch, and every third is saved: step 23 is in mid-epoch, step 21 is the last that was saved.
    (tmp_path / "kill").write_text(f"{half} 23")
    killed = launch(tmp_path, "fit", "--config", "toy.yaml")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    interrupted = runs(tmp_path)[1][-1]
    assert interrupted.info.status == "RUNNING"
    assert interrupted.data.tags["half"] == half

    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["fit", "--config", "toy.yaml", "--ckpt_path", "last"]) == 0
    assert "resumed at step 21" in capsys.readouterr().out
    after = runs(tmp_path)[1]
    assert len(after) == 2, "a stage was trained anew"
    assert {run.info.status for run in after} == {"FINISHED"}
    (resumed,) = [run for run in after if run.data.tags["half"] == half]
    assert resumed.info.run_id == interrupted.info.run_id
    assert resumed.data.tags["lit_mmpg.resumed_at_step"] == "21"
    for run, reference in zip(after, runs(trained)[1], strict=False):
        for name in ("best", "last"):
            expected, got = weights(trained, reference, name), weights(tmp_path, run, name)
            assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_two_processes_train_both_stages(trained: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    # Two processes with half the batch take the same steps as one: same data per step, same number of steps.
    argv = ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.batch_size=2"]
    done = launch(tmp_path, "fit", "--config", "toy.yaml", *argv)
    assert done.returncode == 0, done.stderr
    device, cloud = runs(tmp_path)[1]
    assert cloud.data.tags["lit_mmpg.device_run_id"] == device.info.run_id
    assert {run.info.status for run in (device, cloud)} == {"FINISHED"}
    assert done.stdout.count("best checkpoint:") == 2
    assert torch.load(best(tmp_path, cloud).with_name("last.ckpt"), weights_only=True)["global_step"] == 30


def test_a_terminal_shows_a_bar_and_no_noise(tmp_path: Path) -> None:
    prepare(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOY_ROOT": "root", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lit_mmpg", "fit", "--config", "toy.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 65536):
            parts.append(part)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=120) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(parts).decode())
    assert "\u2501" in text
    for said in ("device half: preparing the data", "cloud half: epoch 2/2  step 32", "best checkpoint: outputs/toy/"):
        assert said in text
    for noise in ("FLOPs", "v_num", "weights_only", "Warning", "TPU", "litlogger"):
        assert noise not in text


def test_a_pipe_gets_one_line_per_epoch(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "toy.yaml", "--tracking.experiment=pipe", "--trainer.max_epochs=2"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split("  ")[:2] for line in lines if "epoch 1/" in line or "epoch 2/" in line] == [
        [f"{half} half: epoch {epoch}/2", f"step {16 * epoch}"] for half in ("device", "cloud") for epoch in (1, 2)
    ]
    assert len(lines) == 10
    assert printed.err == ""
