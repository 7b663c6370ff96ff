"""Profiles in a real MLflow store: children of training runs, standalone runs, and importing twice."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lit_mmpg.errors import UserError
from lit_mmpg.profiling import document as documents
from lit_mmpg.profiling.cli import main
from lit_mmpg.profiling.recording import EXPERIMENT, PARENT_TAG, PROFILE_TAG
from lit_mmpg.tracking.store import open_store
from tests.profiling.bundles import make_bundle

SETTINGS = """
name: board
engines: [{engine: onnxruntime}]
encoder: without
latency: {warmup: 1, min_count: 5, min_time_s: 0.0}
measure_energy: false
measure_memory: false
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, str, str]:
    """A store with one training run: client, address, id of the run."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    client = open_store(uri, "training")
    experiment = client.get_experiment_by_name("training")
    assert experiment is not None
    run = client.create_run(experiment.experiment_id, run_name="trained")
    client.set_terminated(run.info.run_id)
    return client, uri, run.info.run_id


def profile_of(folder: Path, *more: str, **of_bundle: str) -> Path:
    bundle = make_bundle(folder / "bundle", **of_bundle)
    (folder / "board.yaml").write_text(SETTINGS)
    arguments = [
        "run",
        "--bundle",
        str(bundle),
        "--config",
        str(folder / "board.yaml"),
        "--output",
        str(folder / "out"),
    ]
    assert main([*arguments, *more]) == 0
    return folder / "out" / "profile.json"


def test_a_run_is_recorded_as_child_of_the_run_that_trained_the_model(store, tmp_path: Path, capsys) -> None:
    client, uri, trained = store
    file = profile_of(tmp_path, run_id=trained, tracking_uri=uri)
    assert f"child of run {trained}" in capsys.readouterr().out
    profile = documents.load(file)
    experiment = client.get_run(trained).info.experiment_id
    (run,) = client.search_runs([experiment], f"tags.`{PROFILE_TAG}` = '{profile['digest']}'")
    assert run.data.tags[PARENT_TAG] == trained and run.info.status == "FINISHED"
    p50 = profile["rows"][0]["latency"]["wall"]["p50_ms"]
    assert run.data.metrics["onnxruntime/fp32/b1/answer/features/latency_p50_ms"] == p50
    assert run.data.params["profile.name"] == "board"
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"profile.json", "report.html"}
    downloaded = Path(client.download_artifacts(run.info.run_id, "profile.json", str(tmp_path)))
    assert documents.load(downloaded) == profile

    before = len(client.search_runs([experiment]))
    assert main(["import", str(file), str(file)]) == 0
    assert capsys.readouterr().out.count(f"Already recorded: MLflow run {run.info.run_id}") == 2
    assert len(client.search_runs([experiment])) == before


def test_a_board_writes_files_and_the_workstation_imports_them(store, tmp_path: Path, capsys) -> None:
    _, uri, trained = store
    # The board does not reach the store that the manifest names.
    file = profile_of(tmp_path, "--no-record", run_id=trained, tracking_uri="sqlite:////nowhere/mlflow.db")
    assert main(["import", str(file), "--tracking-uri", uri]) == 0
    assert "Recorded: MLflow run" in (told := capsys.readouterr().out) and f"child of run {trained}" in told
    assert main(["import", str(file), "--tracking-uri", uri]) == 0
    assert "Already recorded" in capsys.readouterr().out


def test_a_profile_of_an_unknown_run_stands_alone(store, tmp_path: Path, capsys) -> None:
    client, uri, _ = store
    file = profile_of(tmp_path, "--no-record", run_id="0" * 32, tracking_uri="sqlite:////nowhere/mlflow.db")
    assert main(["import", str(file), "--tracking-uri", uri]) == 0
    assert "standalone" in capsys.readouterr().out
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert PARENT_TAG not in run.data.tags
    assert main(["import", str(file), "--tracking-uri", uri]) == 0
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_one_bad_file_stops_before_any_is_recorded(store, tmp_path: Path) -> None:
    client, uri, _ = store
    file = profile_of(tmp_path, "--no-record")
    edited = copy.deepcopy(documents.load(file)) | {"name": "another"}
    (tmp_path / "edited.json").write_text(json.dumps(edited))
    experiments = [e.experiment_id for e in client.search_experiments()]
    before = len(client.search_runs(experiments))
    with pytest.raises(UserError, match="digest differs"):
        main(["import", str(file), str(tmp_path / "edited.json"), "--tracking-uri", uri])
    assert len(client.search_runs(experiments)) == before


def test_a_store_that_cannot_be_opened_costs_no_result(tmp_path: Path, capsys) -> None:
    file = profile_of(tmp_path, "--tracking-uri", "sqlite:////proc/nowhere/mlflow.db")
    assert "Not recorded" in (told := capsys.readouterr().out) and "profile import" in told
    assert documents.load(file)["state"] == "complete"
