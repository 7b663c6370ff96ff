from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import requests
import urllib3
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url

from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.methods.comparison.cells import CellStore
from lit_mmpg.methods.comparison.tracking import ComparisonRun
from lit_mmpg.texts import masked
from lit_mmpg.tracking.address import PROBE_S, address, git_commit, kept_uri, reason, store_uri
from lit_mmpg.tracking.client import SteadyClient, StoreClient
from lit_mmpg.tracking.logger import MLflowLogger, flatten
from lit_mmpg.tracking.store import find_run, open_store


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that MLflow's many migrations have gone through once."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(store_uri(f"sqlite:///{file}"))
    return file


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> Path:
    file = tmp_path / "mlruns/mlflow.db"
    file.parent.mkdir()
    return Path(shutil.copy(empty_store, file))


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_uri() == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert store_uri("sqlite:///a/b.db") == f"sqlite:///{tmp_path}/a/b.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert store_uri() == "http://host:5000"
    with pytest.raises(UserError, match=r"tracking\.uri 'runs' has no scheme"):
        store_uri("runs")
    # As MLflow's migrations and SQLAlchemy see it, the folder may have any name.
    odd = tmp_path / "a?b%41#c \U0001f600"
    assert make_url(address(store_uri("sqlite:///x.db"))).database == str(tmp_path / "x.db")
    url = make_url(address(f"sqlite:///{odd}/x.db"))
    assert url.database == (f"file:{quote(str(odd / 'x.db'), safe='')}" if url.query else str(odd / "x.db"))


@pytest.mark.parametrize("word", ["hidden", "hid/den", "hid@den", "h:idden", "hid?d#en", "hid den"])
def test_passwords_are_never_part_of_an_address(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    assert store_uri(f"https://me:{quote(word, safe='')}@host:5000/path") == "https://host:5000/path"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", word)
    try:  # written without escapes it is understood, or refused without being said
        assert word not in store_uri(f"http://me:{word}@host:5000")
    except UserError as error:
        assert word not in str(error)
    for text in (
        f"postgresql://me:{quote(word, safe='')}@host/runs",
        f"cannot open 'mysql://h/db?password={word[:3]}'",
    ):
        assert "hid" not in masked(text) and "h:i" not in masked(text) and "host" in masked(text) + "host"
    assert kept_uri(f"postgresql://me:{quote(word, safe='')}@host/runs") == "postgresql://***@host/runs"
    plain = "https://host:80/a@b sqlite:///a:b@c.db s3://bucket/key {root: /data/x@y}"
    assert masked(plain) == plain


def test_a_store_that_fails_costs_a_line_and_gets_its_records_later(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = MLflowLogger("toy", folder=tmp_path / "out")
    run_id, client = str(logger.run_id), logger.experiment
    store.chmod(0o000)
    moved = store.rename(tmp_path / "away.db")
    store.mkdir()  # so that nothing can be opened there
    client._tracking_client.store.engine.dispose()
    with caplog.at_level("INFO", "lit_mmpg"):
        for step in range(3):
            logger.log_metrics({"loss": float(step)}, step)
        client.log_text(run_id, "hello", "note.txt")
        logger.finalize("success")
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "the training goes on" in caplog.messages[0] and "5 of 5 records were not sent" in caplog.messages[1]
    kept = (tmp_path / "out/toy" / run_id / "unsent.jsonl").read_text().splitlines()
    assert [json.loads(line)["call"] for line in kept] == ["log_batch"] * 3 + ["log_text", "set_terminated"]
    assert json.loads(kept[2])["with"][-1]["metrics"][0] | {"timestamp": 0} == {
        "key": "loss", "value": 2.0, "timestamp": 0, "step": 2, "model_id": None, "dataset_name": None,
        "dataset_digest": None, "run_id": None,
    }  # fmt: skip
    store.rmdir()
    moved.rename(store)
    store.chmod(0o644)
    client.finish()
    assert not (tmp_path / "out/toy" / run_id / "unsent.jsonl").exists()
    run = client.get_run(run_id)
    assert (run.info.status, len(client.get_metric_history(run_id, "loss"))) == ("FINISHED", 3)
    assert [file.path for file in client.list_artifacts(run_id)] == ["note.txt"]


def test_a_server_that_has_failed_is_asked_briefly_before_it_is_sent_anything(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, waits, sent = SteadyClient(store_uri()), [], []
    client._waiting = [("log_batch", lambda: sent.append("log_batch"))]

    def hanging(**how: Any) -> None:
        waits.append(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])
        raise MlflowException("Max retries exceeded (Caused by ResponseError('too many 503 error responses'))")

    with monkeypatch.context() as patched:
        patched.setattr(client, "search_experiments", hanging)
        client.finish()
    assert (waits, sent) == ([str(PROBE_S)], [])
    assert "still fails (it answers with error 503); 1 of 1 records were not sent: lost" in caplog.messages[-1]
    client.finish()
    assert sent == ["log_batch"] and not client._waiting


def test_a_comparison_ends_with_its_own_mistake_when_its_store_has_failed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("title: x")
    comparison: Any = SimpleNamespace(name="c", path=path)
    run = ComparisonRun(comparison, "c", store_uri(), CellStore(tmp_path / "cells"))

    def gone(*what: Any, **more: Any) -> None:
        raise MlflowException("too many 500 error responses")

    with monkeypatch.context() as patched:
        patched.setattr(run.client._tracking_client.store, "update_run_info", gone)
        run.fail()
    assert "has failed (it answers with error 500)" in caplog.text
    assert "set_terminated" in (tmp_path / f"cells/unsent-{os.getpid()}.jsonl").read_text()
    run.finish([], {}, [path])
    assert run.client.get_run(run.run_id).info.status == "FINISHED"
    assert not (tmp_path / f"cells/unsent-{os.getpid()}.jsonl").exists()


def test_a_store_of_absolute_places_is_set_right_when_it_was_moved(store: Path, tmp_path: Path) -> None:
    logger = MLflowLogger("toy")
    logger.experiment.log_text(str(logger.run_id), "x", "note.txt")
    with closing(sqlite3.connect(store)) as connection, connection:  # as earlier versions and MLflow itself write them
        connection.execute("UPDATE runs SET artifact_uri = 'file:///old/place/' || artifact_uri")
        connection.execute("UPDATE experiments SET artifact_location = '/old/place/mlruns/artifacts'")
    client = open_store(store_uri())
    assert [file.path for file in client.list_artifacts(str(logger.run_id))] == ["note.txt"]
    assert {e.artifact_location for e in client.search_experiments()} == {"mlruns/artifacts"}


def test_runs_share_an_experiment_and_artifacts_stay_beside_the_store(tmp_path: Path, store: Path) -> None:
    first, second = MLflowLogger("toy", tags={"a": "b"}), MLflowLogger("toy")
    assert first.run_id != second.run_id
    assert first.experiment_id == second.experiment_id
    assert (first.name, first.version) == ("toy", first.run_id)
    first.experiment.log_text(first.run_id, "x", "note.txt")
    assert (tmp_path / "mlruns/artifacts" / str(first.run_id) / "artifacts/note.txt").is_file()
    # Deleted in the web page, an experiment comes back when it is used again.
    first.experiment.delete_experiment(first.experiment_id)
    assert MLflowLogger("toy").run_id is not None


def test_a_resumed_run_is_running_again_and_keeps_its_parameters(store: Path) -> None:
    first = MLflowLogger("toy")
    first.log_config({"model": {"class_path": "A", "init_args": {"width": 8}}, "text": "y" * 9000})
    first.finalize("failed")
    again = MLflowLogger("toy", run_id=first.run_id)
    again.log_config({"model": {"class_path": "A", "init_args": {"width": 9}}})
    run = again.experiment.get_run(first.run_id)
    assert run.info.status == "RUNNING"
    assert run.data.params["model.width"] == "8"
    assert run.data.params["text"].endswith("yyy...")


def test_flatten() -> None:
    nested = {"model": {"class_path": "A", "init_args": {"x": {"y": 1}}}, "empty": {}, "none": None}
    assert flatten(nested) == {"model.class_path": "A", "model.x.y": "1", "empty": "{}", "none": "None"}


def test_two_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; import mlflow;"
        "import lit_mmpg.tracking.address as a, lit_mmpg.tracking.store as s;"
        "Path(sys.argv[1]).touch()\n"
        "while not Path('go').exists(): time.sleep(0.001)\n"
        "print(s.open_store(a.store_uri(), 'toy').get_experiment_by_name('toy').experiment_id)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    started = [
        subprocess.Popen([sys.executable, "-c", code, name], env=environment, stdout=-1, stderr=-1, text=True)
        for name in ("one", "two")
    ]
    deadline = time.monotonic() + 120
    while not (Path("one").exists() and Path("two").exists()) and time.monotonic() < deadline:
        time.sleep(0.01)
    Path("go").touch()
    results = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], results
    assert results[0][0] == results[1][0] != ""


def test_the_same_data_is_recorded_by_several_processes_at_once(store: Path) -> None:
    loggers = [MLflowLogger("race", uri=f"sqlite:///{store}") for _ in range(6)]
    runs = [logger.run_id for logger in loggers]
    together, failed = threading.Barrier(len(loggers)), []

    def record(logger: MLflowLogger) -> None:
        for number in range(8):
            together.wait()
            try:
                logger.log_dataset("lit_mmpg.data.VideoData", f"digest{number}", "data", {"devices": 8}, "training")
            except MlflowException as error:
                failed.append(error)

    threads = [threading.Thread(target=record, args=[logger]) for logger in loggers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    client = StoreClient(f"sqlite:///{store}")
    for run in runs:
        assert len(client.get_run(run).inputs.dataset_inputs) == 8


@pytest.mark.parametrize("experiment", ["../../above", "/at/the/top", "..", "ä" * 300, "plain/one"])
def test_runs_of_every_experiment_lie_in_the_folder_of_all_runs(tmp_path: Path, store: Path, experiment: str) -> None:
    logger = MLflowLogger(experiment, uri=f"sqlite:///{store}", folder=tmp_path / "outputs")
    assert logger.experiment.get_experiment_by_name(experiment) is not None
    folder = tmp_path / "outputs" / logger.name / str(logger.run_id)
    folder.mkdir(parents=True)  # no part of it is too long, either
    assert (tmp_path / "outputs") in folder.resolve().parents
    assert logger.name == "plain/one" or experiment != "plain/one"


def test_an_experiment_that_another_process_makes_in_between_is_taken(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = MLflowLogger("same", uri=f"sqlite:///{store}").experiment_id
    found, asked = StoreClient.get_experiment_by_name, []

    def late(client: StoreClient, name: str) -> Any:
        asked.append(name)
        return None if len(asked) == 1 else found(client, name)  # the first question comes before it is made

    monkeypatch.setattr(StoreClient, "get_experiment_by_name", late)
    assert MLflowLogger("same", uri=f"sqlite:///{store}").experiment_id == first


def test_unreachable_runs_are_not_found(empty_store: Path) -> None:
    assert find_run(store_uri(), "0" * 32) is None
    assert not Path("mlruns").exists()
    assert find_run(store_uri(f"sqlite:///{empty_store}"), "0" * 32) is None


def test_broken_store_is_one_error(tmp_path: Path) -> None:
    Path("broken.db").write_text("this is no database, " * 100)
    with pytest.raises(UserError, match=r"broken\.db cannot be opened: .*; mend it or name another store"):
        open_store(store_uri("sqlite:///broken.db"))


def test_a_store_that_found_no_room_is_made_anew(tmp_path: Path) -> None:
    opened = f"from lit_mmpg.tracking.store import open_store; open_store('sqlite:///{tmp_path}/small.db', 'tried')"
    small = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "  # amid MLflow's tables
    for limit in (small, ""):
        found = subprocess.run([sys.executable, "-c", limit + opened], cwd=tmp_path, capture_output=True, text=True)
        assert ("small.db cannot be opened" in found.stderr) == bool(limit)
        assert found.returncode == bool(limit), found.stderr


def test_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    Path("file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert git_commit(tmp_path) == commit
    Path("file").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_ui_says_what_is_wrong(empty_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui"]) == 2
    assert "nothing is recorded" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["ui", "--port", str(port), "--uri", f"sqlite:///{empty_store}"]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["ui", "--uri", "http://host:1"]) == 2


def test_a_failure_is_said_in_the_words_of_the_system_however_it_is_wrapped() -> None:
    aborted = requests.exceptions.ConnectionError(("Connection aborted.", ConnectionResetError(104, "reset by peer")))
    inner = urllib3.exceptions.ProtocolError("Connection aborted.", ConnectionResetError(104, "reset by peer"))
    pool = urllib3.HTTPConnectionPool("h", 1)
    for error in (
        requests.exceptions.ConnectionError(inner),
        requests.exceptions.ConnectionError(urllib3.exceptions.MaxRetryError(pool, "/", inner)),
    ):
        assert reason(error) == "reset by peer"
    assert "Connection aborted" in reason(aborted)
    assert reason(ValueError("two\nlines of http://me:word@host")) == "two"
