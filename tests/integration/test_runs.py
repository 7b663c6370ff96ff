"""The verbs on real, tiny data: both halves are trained, tested on their own and on other data, and tracked."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.cli import main
from lit_mmpg.tracking.address import git_commit
from lit_mmpg.tracking.store import open_store
from tests.integration import tiny
from tests.integration.conftest import PIXEL_NETWORK, Trained, pixel_data, write_experiment

Train = Callable[[str], Trained]
PRIMARY = {"open_ended": "accuracy", "retrieval": "t2v/mean_log_rank"}


def rows_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


def client_of(trained: Trained) -> MlflowClient:
    return MlflowClient(f"sqlite:///{trained.folder / 'mlruns' / 'mlflow.db'}")


@pytest.mark.parametrize("task", list(PRIMARY))
def test_a_checkpoint_is_tested_without_naming_a_config(
    task: str, trained: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(task)
    monkeypatch.chdir(run.folder)
    assert main(["test", "--ckpt_path", str(run.cloud), "--output", "rows.json"]) == 0
    rows = rows_of(run.folder / "rows.json")
    assert {row["method"] for row in rows} == {"cdc_mmpg", "static", "shuffled_device"}
    assert {row["split"] for row in rows} == {"test_unseen", "test_seen"}
    keys = {"method", "split", "metric", "value", "low", "high", "clusters", "seeds"} | {
        "upload_bytes",
        "download_bytes",
    }
    assert all(set(row) == keys for row in rows)
    own = [row for row in rows if row["method"] == "cdc_mmpg" and row["metric"] == PRIMARY[task]]
    assert len(own) == 2 and all(row["upload_bytes"] > 100 and row["download_bytes"] > 100 for row in own)
    assert all(row["upload_bytes"] == row["download_bytes"] == 0 for row in rows if row["method"] == "static")
    assert "cdc_mmpg" in capsys.readouterr().out


def test_other_data_is_tested_with_vocabulary_and_answers_as_trained(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("open_ended")
    other = tiny.build_root(tmp_path / "other", seed=5, first=500)
    monkeypatch.chdir(run.folder)
    assert main(["test", "--ckpt_path", str(run.cloud), f"--data.root={other}", "--output", "other.json"]) == 0
    rows = rows_of(run.folder / "other.json")
    assert {row["split"] for row in rows} == {"test_unseen"}  # all of its devices are new
    checkpoint = read_checkpoint(run.cloud)["lit_mmpg"]
    client = client_of(run)
    parent = client.get_run(checkpoint["run_id"])
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{checkpoint['run_id']}'")
    prints = {child.data.tags.get("lit_mmpg.data_fingerprint") for child in children}
    # A test that was refused leaves a failed child without a fingerprint.
    assert prints - {None, parent.data.tags["lit_mmpg.data_fingerprint"]}


def test_test_clips_alone_are_tested_as_in_the_data_that_they_come_from(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("retrieval")
    clips = [clip.id for clip in tiny.tiny_clips() if clip.split == "test"]
    cut = tiny.cut_root(run.root, tmp_path / "cut", clips)
    assert not (cut / "shots.csv").exists() and [p.name for p in (cut / "qa").iterdir()] == ["test.csv"]
    monkeypatch.chdir(tmp_path)
    argv = ["test", "--ckpt_path", str(run.cloud), "--trainer.logger=false", "--output"]
    assert main([*argv, "all.json"]) == 0
    capsys.readouterr()
    assert main([*argv, "cut.json", f"--data.root={cut}"]) == 0
    assert "shots.csv does not exist: measured without it" in capsys.readouterr().err
    keys = ("method", "metric", "value", "low", "high", "clusters")
    whole, alone = (
        [[row[key] for key in keys] for row in rows_of(Path(name)) if row["split"] == "test_unseen"]
        for name in ("all.json", "cut.json")
    )
    assert alone == whole and alone and len(alone) == len(rows_of(Path("cut.json")))


def test_words_and_answers_that_training_never_saw_change_no_index(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("open_ended")
    other = tiny.build_root(tmp_path / "other", seed=5, first=500)
    monkeypatch.chdir(run.folder)
    argv = ["predict", "--ckpt_path", str(run.cloud), f"--data.root={other}", "--output"]
    assert main([*argv, "plain.jsonl"]) == 0
    for split in ("train", "val", "test"):  # alphabetically first: a vocabulary built anew would shift
        file = other / "qa" / f"{split}.csv"
        lines = file.read_text().splitlines()
        clip = lines[1].split(",")[0]
        extra = [f"{clip},aa ab ac which aardvark,aaa {n},{split}-{n},paint" for n in range(9)]
        file.write_text("\n".join([*lines, *extra]) + "\n")
    assert main([*argv, "more.jsonl"]) == 0
    plain, more = (
        {row["id"]: row for row in map(json.loads, (run.folder / name).read_text().splitlines())}
        for name in ("plain.jsonl", "more.jsonl")
    )
    new = [row for key, row in more.items() if key not in plain]
    assert len(new) == 9 and not any(row["correct"] for row in new)
    assert all(more[key] == row for key, row in plain.items())
    assert {row["prediction"] for row in more.values()} <= set(tiny.COLOURS) | set(tiny.SHAPES)


def test_a_contradicting_model_flag_is_an_error(
    trained: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("open_ended")
    monkeypatch.chdir(run.folder)
    assert main(["test", "--ckpt_path", str(run.cloud), "--model.anchors.count=1"]) == 2
    assert "anchors" in capsys.readouterr().err


def test_validate_prints_the_own_method(trained: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("open_ended")
    monkeypatch.chdir(run.folder)
    assert main(["validate", "--ckpt_path", str(run.cloud), "--output", "val.json"]) == 0
    assert {row["method"] for row in rows_of(run.folder / "val.json")} == {"cdc_mmpg"}


def test_devices_are_listed_for_scripts(
    trained: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("open_ended")
    monkeypatch.chdir(run.folder)
    capsys.readouterr()
    assert main(["devices", "--config", str(run.config), "--json"]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)["rows"]
    assert len({row["device"] for row in rows}) == 8 and "8 clips" in said.err


def test_devices_take_flags_of_the_embedded_data_and_say_what_earlier_clips_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fewer = [f"--data.clips.{group}_devices=2" for group in ("train", "val", "test")]
    assert main(["devices", *fewer]) == 0
    said = capsys.readouterr().out
    assert "20,000 sampled devices" in said and "On the 2 unseen test devices: " in said
    assert main(["devices", *fewer, "--data.batch.context=clip"]) == 0  # no earlier clips are seen
    assert "unseen test devices: " not in capsys.readouterr().out


@pytest.mark.parametrize("task", list(PRIMARY))
def test_predict_writes_every_answer_once(task: str, trained: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(task)
    monkeypatch.chdir(run.folder)
    assert main(["predict", "--ckpt_path", str(run.cloud), "--output", "answers.csv"]) == 0
    with (run.folder / "answers.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    key = "question" if task == "open_ended" else "caption"
    asked = [(row["clip"], row[key]) for row in answers]
    assert len(asked) == len(set(asked)) == 2 * tiny.COUNTS["test"]
    device = answers[0]["device"]
    assert main(["predict", "--ckpt_path", str(run.cloud), "--output", "one.jsonl", "--device", device]) == 0
    one = [json.loads(line) for line in (run.folder / "one.jsonl").read_text().splitlines()]
    assert len(one) == sum(row["device"] == device for row in answers) > 0
    assert {row["device"] for row in one} == {device}


def test_multiple_choice_on_the_embedded_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pixel_data("multiple_choice")
    trainer = tiny.trainer_config()
    tiny.write_config(
        tmp_path / "device.yaml", data=data, model=tiny.device_config(network=PIXEL_NETWORK), trainer=trainer
    )
    losses = {"alignment": 0.1}  # the embedded data has clean twins
    model = tiny.cloud_config(losses=losses, freeze_static=False)
    config = tiny.write_config(
        tmp_path / "both.yaml", data=data, model=model, trainer=trainer, device_stage="device.yaml"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(config)]) == 0
    cloud = next(p for p in tmp_path.glob("outputs/*/*/checkpoints/best.ckpt") if is_cloud(p))
    assert main(["test", "--ckpt_path", str(cloud), "--output", "rows.json"]) == 0
    # Trained jointly, the static layers alone are no method of their own.
    assert {row["method"] for row in rows_of(tmp_path / "rows.json")} == {"cdc_mmpg", "shuffled_device"}


def is_cloud(path: Path) -> bool:
    return read_checkpoint(path)["lit_mmpg"]["half"] == "cloud"


def test_an_adaptor_that_learnt_nothing_answers_as_the_static_model(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = trained("open_ended").device
    config = write_experiment(
        tmp_path, trained("open_ended").root, "open_ended", optimiser={"learning_rate": 0.0, "weight_decay": 0.0}
    )
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(config), f"--model.device_ckpt={device}"]) == 0
    cloud = next(p for p in tmp_path.glob("outputs/*/*/checkpoints/best.ckpt"))
    assert main(["test", "--ckpt_path", str(cloud), "--output", "rows.json"]) == 0
    rows = rows_of(tmp_path / "rows.json")
    values = {(r["method"], r["split"], r["metric"]): r["value"] for r in rows if "_minus_" not in r["metric"]}
    for (method, split, metric), value in values.items():
        assert value == values["static", split, metric], (method, split, metric)
    for name, checkpoint in (("cloud", cloud), ("device", device)):
        assert main(["predict", "--ckpt_path", str(checkpoint), "--output", f"{name}.csv"]) == 0
    assert Path("cloud.csv").read_text() == Path("device.csv").read_text()


def test_a_run_is_recorded_whole(trained: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("open_ended")
    monkeypatch.chdir(run.folder)
    assert main(["test", "--ckpt_path", str(run.cloud)]) == 0
    client = client_of(run)
    run_id = read_checkpoint(run.cloud)["lit_mmpg"]["run_id"]
    recorded = client.get_run(run_id)
    artifacts = {a.path for a in client.list_artifacts(run_id)}
    assert {"config.yaml", "devices.json", "checkpoints"} <= artifacts
    assert recorded.info.status == "FINISHED"
    texts = {}
    for name in ("config.yaml", "devices.json"):
        texts[name] = yaml.safe_load(Path(client.download_artifacts(run_id, name)).read_text())
    assert texts["config.yaml"]["data"]["init_args"]["root"] == str(run.root)
    assert len(texts["devices.json"]["devices"]) == 8
    stored = read_checkpoint(client.download_artifacts(run_id, "checkpoints/best.ckpt"))["lit_mmpg"]
    assert (stored["run_id"], stored["half"]) == (run_id, "cloud")
    # Only its form: the checkout may have changed since the training.
    commit = recorded.data.tags.get("mlflow.source.git.commit")
    assert commit is None if git_commit() is None else re.fullmatch(r"[0-9a-f]{40}(-dirty)?", str(commit))
    assert recorded.data.params["model.dynamic.form"] == "low_rank"
    assert recorded.data.tags["half"] == "cloud" and recorded.data.tags["task"] == "open_ended"
    assert len(recorded.data.tags["lit_mmpg.data_fingerprint"]) == 64
    assert recorded.data.tags["lit_mmpg.device_run_id"] == read_checkpoint(run.device)["lit_mmpg"]["run_id"]
    assert {"val/accuracy", "val/upload_bytes", "val/download_bytes"} <= set(recorded.data.metrics)
    children = client.search_runs([recorded.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    figures = {a.path for child in children for a in client.list_artifacts(child.info.run_id, "figures")}
    assert {"figures/reconstruction.png", "figures/per_device_test_unseen.png"} <= figures
    child = next(c for c in children if client.list_artifacts(c.info.run_id, "figures"))
    png = Path(client.download_artifacts(child.info.run_id, "figures/per_device_test_unseen.png"))
    assert png.read_bytes().startswith(b"\x89PNG")


def get(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


def test_the_web_page_shows_runs_and_artifacts_and_ends_with_the_verb(trained: Train, tmp_path: Path) -> None:
    run = trained("open_ended")
    run_id = read_checkpoint(run.cloud)["lit_mmpg"]["run_id"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # From another folder: the store names its artifacts relative to its own.
    store = f"sqlite:///{run.folder / 'mlruns/mlflow.db'}"
    command = [sys.executable, "-m", "lit_mmpg", "ui", "--port", str(port), "--uri", store]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    page = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-2, text=True)
    address, text, deadline = f"http://127.0.0.1:{port}", "", time.monotonic() + 300
    try:
        while not text and time.monotonic() < deadline and page.poll() is None:
            try:
                text = get(f"{address}/")
            except OSError:
                time.sleep(0.2)
        assert page.poll() is None, page.communicate()[0]
        assert "mlflow" in text.lower()
        listed = json.loads(get(f"{address}/ajax-api/2.0/mlflow/artifacts/list?run_id={run_id}"))
        assert {"config.yaml", "checkpoints"} <= {file["path"] for file in listed["files"]}
        assert "class_path" in get(f"{address}/get-artifact?path=config.yaml&run_uuid={run_id}")
    finally:
        page.send_signal(signal.SIGTERM)
        output, _ = page.communicate(timeout=600)  # ends only when no child holds the pipe any more
    assert page.returncode == 128 + signal.SIGTERM
    experiment = client_of(run).get_run(run_id).info.experiment_id
    assert output.startswith(f"MLflow: {address}/#/experiments/{experiment}/runs?workflowType=machine_learning")


def test_a_try_of_one_batch_of_both_halves_keeps_nothing(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(trained("open_ended").config), "--trainer.fast_dev_run=true"]) == 0
    assert not list(tmp_path.iterdir())


def test_a_moved_project_is_tested_and_exported(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("open_ended")
    shutil.copytree(run.folder, tmp_path / "away")
    moved = (tmp_path / "away").rename(tmp_path / "moved 100% #1?")
    cloud = moved / run.cloud.relative_to(run.folder)
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--ckpt_path", str(cloud), f"--data.root={moved / 'data'}"]) == 0
    assert main(["export", "--ckpt", str(cloud), "--output", "bundle", "--precisions", "fp32"]) == 0
    run_id = read_checkpoint(cloud)["lit_mmpg"]["run_id"]
    client = open_store(f"sqlite:///{moved / 'mlruns/mlflow.db'}")
    experiment = client.get_run(run_id).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    newest = max(children, key=lambda child: child.info.start_time)
    assert newest.data.tags["lit_mmpg.checkpoint"] == str(cloud.relative_to(moved))
    assert "rows.json" in {file.path for file in client.list_artifacts(newest.info.run_id)}
    assert json.loads(Path("bundle/manifest.json").read_text())["tracking_uri"] == "sqlite:///mlruns/mlflow.db"
