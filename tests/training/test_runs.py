"""The verbs for real, on toy modules: stages, MLflow, checkpoints, resuming, two processes."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from lit_mmpg import trust
from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.cli import main
from lit_mmpg.runtime.folder import StateFolder
from lit_mmpg.tracking.address import store_uri
from lit_mmpg.tracking.store import open_store
from lit_mmpg.training.callbacks import WholeFiles
from lit_mmpg.training.config import read_request
from lit_mmpg.training.lightning_cli import CLI
from tests import forked

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


CALLBACK = "--trainer.callbacks=[{{class_path: {}, init_args: {{monitor: {}}}}}]"
WRONG = {
    "--trainer.max_epoch=1": ("--trainer.max_epoch=1", "did you mean '--trainer.max_epochs'?"),
    "--trianer.max_epochs=1": ("did you mean '--trainer.max_epochs'?",),
    "--trainer.callbacks=EarlyStoping": ("did you mean 'EarlyStopping'?",),
    CALLBACK.format("EarlyStopping", "val/los"): ("monitors 'val/los'", "did you mean 'val/loss'?"),
    CALLBACK.format("ModelCheckpoint", "val/los"): ("monitors 'val/los'", "did you mean 'val/loss'?"),
    CALLBACK.format("EarlyStopping", "train/los"): ("train/los", "did you mean 'train/loss'?"),
    "--trainer.logger=WandbLogger": ("wandb", "pip install"),
    "--trainer.logger=TensorBoardLogger --trainer.logger.save_dir=x": ("tensorboard", "pip install"),
    "--trainer.val_check_interval=100": ("val_check_interval",),
    "--trainer.log_every_n_steps=${oc.env:STEPS,3}": ("only ${NAME}",),
    "--tracking.uri=http://host:port:9/": ("tracking.uri", "no valid host"),
    "--model=own.Plain": ("lacks half_name, monitor, figures", "AnsweringModule"),
    "--model=own.Plane": ("did you mean 'Plain'?",),
}
"""A wrong flag, and what its one line says."""
OWN = """
from tests.training.toy import ToyDevice
from lightning.pytorch import LightningModule

class Plain(LightningModule):
    pass

class Own(ToyDevice):
    pass
"""


def prepare(folder: Path) -> None:
    for name in ("root", "other"):
        (folder / name).mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(yaml.safe_dump(content))
    (folder / "own.py").write_text(OWN)


def launch(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOY_ROOT": "root", "OMP_NUM_THREADS": "1"}
    return forked.run(argv, cwd=folder, env=environment)


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
    assert cloud.data.params["model.device_ckpt"] == str(best(trained, device).relative_to(trained))
    assert [run.info.run_name for run in (device, cloud)] == ["toy device seed 0", "toy cloud seed 0"]
    (data,) = cloud.inputs.dataset_inputs
    assert (data.dataset.name, json.loads(data.dataset.source)["uri"]) == ("ToyData", "root")
    assert data.dataset.digest == cloud.data.tags["lit_mmpg.data_fingerprint"][:36]
    assert [tag.value for tag in data.tags] == ["training"]
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
    assert main(["test", *argv[:-2], "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"] == rows
    assert "13.0 KiB" in said.err
    client, every = runs(trained)
    child = every[-1]
    assert child.info.run_name == "test toy cloud seed 0"
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
    for name, value in {"max_epochs": 0, "limit_train_batches": 0, "enable_checkpointing": "false"}.items():
        assert f"trainer.{name} is" in fails(capsys, "fit", "--config", "toy.yaml", f"--trainer.{name}={value}")
    for argument, words in WRONG.items():
        message = fails(
            capsys, "fit", "--config", "toy.yaml", *re.split(" (?=--)", argument), "--tracking.experiment=wrong"
        )
        assert all(word in message for word in words), message
    assert "did you mean" not in fails(capsys, "fit", "--config", "toy.yaml", "--data.imaginary=1")
    unwritable = ("--trainer.default_root_dir=/proc/gone", "--tracking.experiment=nowhere")
    assert "name another with --trainer" in fails(capsys, "fit", "--config", "device.yaml", *DATA, *unwritable)
    # Before the device half trains, not after it.
    assert "width" in fails(capsys, "fit", "--config", "toy.yaml", "--model.width=3")
    assert "already finished" in fails(capsys, "fit", "--config", "toy.yaml", "--ckpt_path", "last")
    assert "no interrupted run" in fails(capsys, "fit", "--config", "device.yaml", *DATA, "--ckpt_path", "last")
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
    # The cloud half, too, is kept beside the device half instead of written over it.
    assert sorted(path.name for path in Path("quiet").rglob("best*.ckpt")) == ["best-v1.ckpt", "best.ckpt"]
    halves = {read_checkpoint(path)["lit_mmpg"]["half"] for path in Path("quiet").rglob("best*.ckpt")}
    assert halves == {"device", "cloud"}
    assert len(runs(trained)[1]) == before


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))  # another disk, or none
    path, io = tmp_path / "checkpoints/last.ckpt", WholeFiles()
    io.save_checkpoint({"step": 1}, path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match=r"last\.ckpt"):
            io.save_checkpoint({"step": 2, "weights": torch.zeros(4096)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert torch.load(path)["step"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.soak  # tests/integration/test_resume.py kills and resumes both halves of a real network
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


@pytest.mark.soak
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
    assert process.wait(timeout=600) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(parts).decode())
    assert "\u2501" in text
    for said in ("device half: preparing the data", "cloud half: epoch 2/2  step 32", "best checkpoint: outputs/toy/"):
        assert said in text
    for noise in ("FLOPs", "v_num", "weights_only", "Warning", "TPU", "litlogger"):
        assert noise not in text


def test_a_pipe_gets_one_line_per_epoch(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "_named", set())  # what other tests named in this process
    assert main(["fit", "--config", "toy.yaml", "--tracking.experiment=pipe", "--trainer.max_epochs=2"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split("  ")[:2] for line in lines if "epoch 1/" in line or "epoch 2/" in line] == [
        [f"{half} half: epoch {epoch}/2", f"step {16 * epoch}"] for half in ("device", "cloud") for epoch in (1, 2)
    ]
    assert len(lines) == 13
    number = runs(trained, "pipe")[1][0].info.experiment_id
    assert f"/#/experiments/{number}/runs?workflowType=machine_learning" in lines[-3]
    own = "LIT_MMPG_TRUST=tests.training.toy lit-mmpg"
    assert lines[-2].startswith(f"next: {own} test --ckpt_path ") and f"{own} export --ckpt " in lines[-1]
    assert printed.err == ""


DATA = ("--data=tests.training.toy.ToyData", "--data.root=root", "--trainer.max_epochs=2")
"""For the device half alone."""


def fit(*argv: str, config: str = "toy.yaml") -> int:
    return main(["fit", "--config", config, "--tracking.experiment=more", *argv])


@pytest.mark.parametrize(
    "setting",
    ["max_epochs=1", "max_steps=3", "limit_val_batches=0", "check_val_every_n_epoch=5", "overfit_batches=1"],
)
def test_every_training_leaves_a_checkpoint_and_names_it(
    setting: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert fit(f"--trainer.{setting}", "--trainer.num_sanity_val_steps=0") == 0
    printed = capsys.readouterr()
    named = re.findall(r"(best|last) checkpoint: (\S+)", printed.out)
    validated = setting in ("max_epochs=1", "overfit_batches=1")
    assert [kind for kind, _ in named] == ["best" if validated else "last"] * 2
    assert printed.err == "" and ("no validation ran" in printed.out) is not validated
    assert torch.load(named[0][1], weights_only=True)["global_step"] > 0
    assert main(["test", "--ckpt_path", named[1][1]]) == 0
    client, every = runs(trained, "more")
    kept = [file.path for file in client.list_artifacts(every[-2].info.run_id, "checkpoints")]
    assert kept == [f"checkpoints/{Path(named[1][1]).name}"]


def test_a_try_of_one_batch_hands_the_weights_on_and_keeps_nothing(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(trained.rglob("*"))
    assert fit("--trainer.fast_dev_run=true") == 0
    assert "cloud half has trained; nothing is kept" in capsys.readouterr().out
    assert set(trained.rglob("*")) == before


def test_what_callbacks_and_profilers_say_is_heard(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopping = "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val/loss, verbose: true}}]"
    assert fit(stopping, "--trainer.profiler=simple", "--trainer.max_epochs=1", config="device.yaml") == 2
    assert "required: data" in capsys.readouterr().err
    argv = [*DATA, "--model=own.Own", stopping, "--trainer.profiler=simple", "--trainer.max_epochs=1"]
    assert fit(*argv, config="device.yaml") == 0  # a class of the user's own, from the current folder
    said = capsys.readouterr()
    assert "Metric val/loss improved" in said.out and "run_training_epoch" in said.out
    assert said.err == ""


def test_a_loss_that_is_not_finite_ends_the_run_and_no_checkpoint_is_named(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    argv = [*DATA, "--model.nan_at=20", "--save_every_n_steps=1", "--tracking.experiment=nan"]
    assert fit(*argv, config="device.yaml") == 2  # in the second epoch: the first one has left a best checkpoint
    said = capsys.readouterr()
    assert "the training loss is not finite by step 21" in said.err and "learning_rate" in said.err
    assert "checkpoint:" not in said.out
    (run,) = runs(trained, "nan")[1]
    assert run.info.status == "FAILED"
    (last,) = Path("outputs/nan").rglob("last.ckpt")
    state = torch.load(last, weights_only=True)
    assert state["global_step"] == 20
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


def test_ctrl_c_says_how_to_go_on(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*DATA, "--tracking.experiment=stopped"]
    for step, words in ((0, "nothing was saved yet"), (5, "--ckpt_path last goes on")):
        Path("interrupt").write_text(str(step))
        capsys.readouterr()
        assert fit(*argv, "--save_every_n_steps=3", config="device.yaml") == 130
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("interrupted; ") and words in line
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    (last,) = Path("outputs/stopped").rglob("last.ckpt")
    running = StateFolder(last.parents[1])  # as while it trains
    assert fit(*argv, "--save_every_n_steps=3", "--ckpt_path=last", config="device.yaml") == 2
    assert "another process trains the run in outputs/stopped/" in capsys.readouterr().err
    running.close()
    assert fit(*argv, "--save_every_n_steps=3", "--ckpt_path=last", config="device.yaml") == 0
    assert "resumed at step 3" in capsys.readouterr().out


def test_a_moved_project_works_whatever_its_name(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(trained / "mlruns/mlflow.db")) as store:
        assert str(trained) not in "\n".join(store.iterdump())
    cloud = runs(trained)[1][1]
    moved = tmp_path / "a b%20c?d=e#f\U0001f600"
    shutil.copytree(trained, moved)
    before = len(runs(trained)[1])
    monkeypatch.chdir("/")
    argv = ["--ckpt_path", str(best(moved, cloud)), f"--data.root={moved / 'other'}"]
    assert main(["test", *argv]) == 0
    client, every = runs(moved)
    assert len(every) == before + 1 and len(runs(trained)[1]) == before
    child = every[-1]
    assert child.data.tags["mlflow.parentRunId"] == cloud.info.run_id
    assert child.data.tags["lit_mmpg.checkpoint"] == str(best(moved, cloud).relative_to(moved))
    assert "rows.json" in {file.path for file in client.list_artifacts(child.info.run_id)}
    stored = client.download_artifacts(cloud.info.run_id, "checkpoints/best.ckpt", str(tmp_path))
    assert Path(stored).read_bytes() == best(moved, cloud).read_bytes()
    monkeypatch.chdir(moved)
    assert "already finished" in fails(capsys, "fit", "--config", "toy.yaml", "--ckpt_path", "last")
    # MLflow's own commands find the artifacts where they run in the folder.
    plain = MlflowClient("sqlite:///mlruns/mlflow.db")
    assert plain.search_runs([child.info.experiment_id], max_results=1)[0].info.artifact_uri.startswith("mlruns/")
    assert sorted(tmp_path.iterdir()) == sorted([moved, Path(stored)])


def test_system_metrics_are_recorded_on_request(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [*DATA, "--tracking.experiment=system"]
    assert fit(*argv, "--tracking.system_metrics=true", config="device.yaml") == 0
    (run,) = runs(trained, "system")[1]
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0
    monkeypatch.setattr("lit_mmpg.tracking.logger.find_spec", lambda name: None)
    assert fit(*argv, "--tracking.system_metrics=true", config="device.yaml") == 2


def test_a_printed_configuration_holds_no_password(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit("--tracking.uri=http://me:hidden-word@localhost:1", "--print_config", config="device.yaml")
    printed = capsys.readouterr().out
    assert "uri: http://***@localhost:1" in printed and "hidden-word" not in printed


def test_passwords_stay_out_of_what_is_recorded(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"class_path": "MLFlowLogger", "init_args": {"tracking_uri": "http://me:hidden-word@localhost:1"}}
    flags = ["--tracking.uri=postgresql://me:hidden-word@localhost/runs", f"--trainer.logger={json.dumps(own)}"]
    cli = CLI(read_request("fit", ["--config", "toy.yaml", *flags]))
    assert cli.tracking.uri is not None and "hidden-word" in cli.tracking.uri
    assert "localhost" in str(cli.record) and "hidden-word" not in str(cli.record)


def test_a_server_that_is_away_or_dies(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        port = silent.getsockname()[1]
        monkeypatch.setattr("lit_mmpg.tracking.address.PROBE_S", 1)
        message = fails(capsys, "fit", "--config", "toy.yaml", f"--tracking.uri=http://me:hidden-word@127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port} does not answer" in message and "no answer in time" in message
    message = fails(capsys, "fit", "--config", "toy.yaml", f"--tracking.uri=http://127.0.0.1:{port}")
    assert "Connection refused" in message and "--trainer.logger=false" in message
    monkeypatch.setattr("lit_mmpg.tracking.address.PROBE_S", 60)

    store = f"sqlite:///{shutil.copy(trained / 'mlruns/mlflow.db', tmp_path)}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers=1", "--backend-store-uri", store],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while server.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=600):
                break
            time.sleep(0.2)
        stop = {"class_path": "tests.training.toy.StopServer", "init_args": {"pid": server.pid, "step": 9}}
        argv = [*DATA, f"--tracking.uri=http://me:hidden-word@127.0.0.1:{port}"]
        capsys.readouterr()
        assert fit(*argv, f"--trainer.callbacks=[{json.dumps(stop)}]", config="device.yaml") == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    said = capsys.readouterr()
    assert "hidden-word" not in said.out + said.err
    first, last = said.err.splitlines()
    # Whether the server's last connection is reset or a new one refused is a matter of moments.
    assert re.search(r"has failed \(Connection (refused|reset by peer)\); the training goes on", first)
    assert "were not sent" in last
    (unsent,) = Path("outputs/more").rglob("unsent.jsonl")
    assert str(unsent) in first and str(unsent) in last
    kept = [json.loads(line) for line in unsent.read_text().splitlines()]
    steps = [metric["step"] for line in kept if line["call"] == "log_batch" for metric in line["with"][-1]["metrics"]]
    assert 31 in steps and min(steps) >= 9
    product = re.findall(r"best checkpoint: (\S+)", said.out)[0]
    assert torch.load(product, weights_only=True)["lit_mmpg"]["tracking_uri"] == f"http://127.0.0.1:{port}"
