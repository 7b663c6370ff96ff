"""Both halves as an MLflow model: loaded in process and served by MLflow itself, it answers as the checkpoint does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests

import lit_mmpg
from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.system import System
from lit_mmpg.tracking.address import store_uri
from lit_mmpg.tracking.models import _in_project, log_model
from lit_mmpg.tracking.store import open_store
from tests.integration.tiny import FEATURES
from tests.runtime.cloud_server import write_video

ASKED = "what is mine"
CLIP, SEEN = (np.random.default_rng(seed).standard_normal((4, FEATURES)).round(3).tolist() for seed in (0, 1))


@pytest.fixture(scope="module")
def logged(made: Callable) -> tuple[Path, System]:
    """The model's folder, and the checkpoint that it was made from."""
    trained = made()
    store = f"sqlite:///{trained.folder}/mlruns/mlflow.db"
    uri = log_model(trained.cloud, "answers", store)
    client = open_store(store_uri(store))
    version = client.get_model_version("answers", "1")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    place = urlsplit(client.get_logged_model(uri.removeprefix("models:/")).artifact_location).path
    return trained.folder / place, lit_mmpg.load(trained.cloud)


def expected(system: System, clip: object, context: list) -> tuple[str, float, str]:
    with system.new_device() as device:
        for each in context:
            device.observe(each)
        if context:
            device.personalise()
        answer = device.answer(clip, ASKED)
    return answer.text, pytest.approx(answer.confidence, abs=1e-5), answer.parameters


def test_the_loaded_model_answers_as_the_checkpoint(logged: tuple[Path, System]) -> None:
    folder, system = logged
    model = mlflow.pyfunc.load_model(str(folder))
    rows = [{"clip": CLIP, "question": ASKED}, {"clip": CLIP, "question": ASKED, "context": [SEEN]}]
    found = model.predict(pd.DataFrame(rows))
    static, personal = (tuple(row) for row in found.itertuples(index=False))
    assert static == expected(system, CLIP, [])
    assert personal == expected(system, CLIP, [SEEN])
    assert static[2] == "static" != personal[2]
    assert len(model.predict(model.input_example)) == 1
    with pytest.raises(UserError, match=r"row 0: a clip has shape \[1, 2\]"):
        model.predict(pd.DataFrame([{"clip": [[0.0, 1.0]], "question": ASKED}]))


def test_nothing_in_the_model_is_pickled(logged: tuple[Path, System]) -> None:
    files = [path for path in logged[0].rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {"model.safetensors", "config.json", "model_code.py", "MLmodel"} <= {path.name for path in files}
    assert {path.suffix for path in files} <= {"", ".safetensors", ".json", ".py", ".yaml", ".yml", ".txt"}
    for path in files:  # pickles of any protocol since 2, and the archives that torch.save writes
        assert path.read_bytes()[:2] not in {b"PK", *(bytes([0x80, n]) for n in range(2, 6))}, path


def test_mlflow_serves_it(logged: tuple[Path, System]) -> None:
    folder, system = logged
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        env=os.environ | {"PATH": path},
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None
            try:
                if requests.get(f"{address}/ping", timeout=5).ok:
                    break
            except requests.ConnectionError:
                time.sleep(0.1)
        rows = [{"clip": CLIP, "question": ASKED, "context": [SEEN]}]
        reply = requests.post(f"{address}/invocations", json={"dataframe_records": rows}, timeout=60)
        assert reply.status_code == 200, reply.text
        (answer,) = reply.json()["predictions"]
        assert (answer["text"], answer["confidence"], answer["parameters"]) == expected(system, CLIP, [SEEN])
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def test_a_path_is_a_clip_below_the_folder_that_the_server_names(
    made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clips").mkdir()
    trained, clip = made("pixels"), write_video(tmp_path / "clips" / "c.mp4", 4)
    (tmp_path / "clips" / "out.mp4").symlink_to(write_video(tmp_path / "secret.mp4", 4))
    store = f"sqlite:///{trained.folder}/mlruns/mlflow.db"
    uri = log_model(trained.cloud, None, store)
    with _in_project(store_uri(store)):
        model = mlflow.pyfunc.load_model(uri)
    with pytest.raises(UserError, match="row 0: a clip is a path; set LIT_MMPG_CLIPS"):
        model.predict(pd.DataFrame([{"clip": str(clip), "question": ASKED}]))
    monkeypatch.setenv("LIT_MMPG_CLIPS", str(tmp_path / "clips"))
    found = model.predict(pd.DataFrame([{"clip": each, "question": ASKED} for each in (str(clip), "c.mp4")]))
    for row in found.itertuples(index=False):
        assert tuple(row) == expected(lit_mmpg.load(trained.cloud), str(clip), [])
    for outside in ("../secret.mp4", "out.mp4", "/etc/hostname"):
        with pytest.raises(UserError, match="row 0: a clip lies outside"):
            model.predict(pd.DataFrame([{"clip": outside, "question": ASKED}]))


def test_a_checkpoint_without_its_run(
    made: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["log-model", "--ckpt", str(made().cloud), "--uri", "sqlite:///none.db"]) == 2
    assert "name its store with --uri" in capsys.readouterr().err
