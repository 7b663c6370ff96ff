"""The path of a board in an environment that holds what a board installs, and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_mmpg.profiling import document as documents
from tests.profiling.bundles import make_bundle
from tests.runtime.cloud_server import write_video

ROOT = Path(__file__).parents[2]
BOARD = ROOT / ".venv-board" / "bin" / "python"

CONFIG = """
name: board
engines: [{engine: onnxruntime}]
scenarios: [answer, adapt, stream]
latency: {warmup: 1, min_count: 5, min_time_s: 0.0}
energy: {min_window_s: 0.2, idle_s: 0.2, max_wait_idle_s: 0.0}
stream: {clips: 4, adapt_every: 2}
"""

ALLOWED = {"numpy", "onnxruntime", "safetensors", "onnx", "httpx", "rich", "PyYAML", "jsonargparse", "nvidia-ml-py"}


@pytest.fixture
def board() -> Path:
    if not BOARD.exists():
        pytest.skip("no .venv-board here; 'make install' makes it")
    return BOARD


def run(board: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    return subprocess.run(
        [str(board), *arguments],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_environment_holds_no_torch_no_lightning_and_no_mlflow(board: Path, tmp_path: Path) -> None:
    code = (
        "import json, sys; from importlib.util import find_spec; print(json.dumps([sys.version_info[:2], "
        "[n for n in ('torch', 'lightning', 'mlflow', 'codecarbon', 'transformers') if find_spec(n)]]))"
    )
    done = run(board, "-c", code, cwd=tmp_path)
    version, heavy = json.loads(done.stdout)
    assert heavy == [], "the board's environment must stay bare"
    assert tuple(version) == (3, 10) or tuple(version) == sys.version_info[:2]


def test_a_board_profiles_a_bundle(board: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", run_id="0" * 32)
    (tmp_path / "board.yaml").write_text(CONFIG)
    arguments = ["profile", "run", "--bundle", str(bundle), "--config", "board.yaml", "--output", "out"]
    done = run(board, "-m", "lit_mmpg", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Not recorded: mlflow is not installed here; import the file later" in done.stdout
    profile = documents.load(tmp_path / "out" / "profile.json")
    assert [row["status"] for row in profile["rows"]] == ["ok"] * 6
    assert not {"torch", "codecarbon"} & set(profile["environment"]["packages"])
    for row in profile["rows"]:
        # No sensor here and no model either: null with the reasons, never 0.
        (energy,) = row["energy"][-1:]
        if energy["source"] == "none":
            assert energy["gross_j_per_unit"] is None and "codecarbon is not installed" in energy["reason"]
        assert row["memory"]["peak_rss_bytes"] > 2**20
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_bad_input_on_a_board_is_one_line(board: Path, tmp_path: Path) -> None:
    done = run(board, "-m", "lit_mmpg", "profile", "run", "--bundle", "x", "--config", "y.yaml", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: configuration file y.yaml does not exist")


def test_a_video_is_answered_with_pyav_alone(board: Path, tmp_path: Path) -> None:
    if run(board, "-c", "import av", cwd=tmp_path).returncode != 0:
        pytest.skip("no PyAV in .venv-board; 'make install' adds it")
    make_bundle(tmp_path / "bundle")
    write_video(tmp_path / "clip.mp4")
    done = run(
        *(board, "-m", "lit_mmpg", "answer", "clip.mp4", "what is the man doing", "--bundle", "bundle"), cwd=tmp_path
    )
    assert done.returncode == 0 and "of clip.mp4" in done.stdout, done.stderr


def test_requirements_come_from_the_package(tmp_path: Path) -> None:
    script = ROOT / "jetson" / "requirements.py"
    names = {
        engine: subprocess.run(
            [sys.executable, str(script), "--engine", engine], capture_output=True, text=True, check=True
        ).stdout.split()
        for engine in ("board-cpu", "none")
    }
    assert any(line.startswith("onnxruntime") for line in names["board-cpu"])
    assert not any("onnxruntime" in line for line in names["none"])
    with_video = subprocess.run([sys.executable, str(script), "--video"], capture_output=True, text=True, check=True)
    assert set(with_video.stdout.split()) - set(names["board-cpu"]) == {"av>=15"}
    for line in names["board-cpu"]:
        assert line.split(">")[0].split("[")[0].lower() in {a.lower() for a in ALLOWED}, f"a board would install {line}"
