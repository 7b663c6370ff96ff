from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.tracking.logger import MLflowLogger, flatten
from lit_mmpg.tracking.store import find_run, git_commit, open_store, store_uri


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
        "import sys, time; from pathlib import Path; import mlflow, lit_mmpg.tracking.store as s;"
        "Path(sys.argv[1]).touch()\n"
        "while not Path('go').exists(): time.sleep(0.001)\n"
        "print(s.open_store(s.store_uri(), 'toy').get_experiment_by_name('toy').experiment_id)"
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
    results = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], results
    assert results[0][0] == results[1][0] != ""


def test_unreachable_runs_are_not_found(empty_store: Path) -> None:
    assert find_run(store_uri(), "0" * 32) is None
    assert not Path("mlruns").exists()
    assert find_run(store_uri(f"sqlite:///{empty_store}"), "0" * 32) is None


def test_broken_store_is_one_error(tmp_path: Path) -> None:
    Path("broken.db").write_text("this is no database, " * 100)
    with pytest.raises(UserError, match=r"broken\.db cannot be opened"):
        open_store(store_uri("sqlite:///broken.db"))


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
