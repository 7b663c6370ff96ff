"""Each mistake gets one clear error, before training starts, that names the file, the field and the remedy."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lit_mmpg.cli import main
from tests.integration import tiny
from tests.integration.conftest import Trained, write_experiment

Train = Callable[[str], Trained]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny.build_root(tmp_path / "data")


def fit(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, *flags: str, **data: Any) -> int:
    config = tiny.write_config(
        folder / "run.yaml",
        data=tiny.data_config(root, **data),
        model=tiny.device_config(),
        trainer=tiny.trainer_config(),
    )
    monkeypatch.chdir(folder)
    return main(["fit", "--config", str(config), *flags])


def change_features(root: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(root / "features.h5", "r+") as file:
        change(file)


def overwrite(file: h5py.File, name: str, values: np.ndarray) -> None:
    del file[name]
    file[name] = values


def nan_in_one(file: h5py.File) -> None:
    values = file["clip003"][:]
    values[1, 2] = np.nan
    overwrite(file, "clip003", values)


def without_column(path: Path, column: str) -> None:
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k != column} for row in csv.DictReader(file)]
    tiny.write_rows(path, list(rows[0]), [list(row.values()) for row in rows])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_validation(root: Path) -> None:
    text = (root / "clips.csv").read_text().replace(",val,", ",train,")
    (root / "clips.csv").write_text(text)


def rare_answers(root: Path) -> None:
    path = root / "qa" / "train.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        row["answer"] = f"answer number {i}"
    tiny.write_rows(path, list(rows[0]), [list(row.values()) for row in rows])


MISTAKES: dict[str, tuple[Callable[[Path], None], dict[str, Any], list[str]]] = {
    "features are missing": (lambda r: (r / "features.h5").unlink(), {}, ["features.h5"]),
    "features are misspelt": (lambda r: None, {"features": "featurs.h5"}, ["featurs.h5", "features.h5"]),
    "videos have no features": (
        lambda r: change_features(r, lambda f: [f.pop(f"clip{i:03d}") for i in range(7)] and None),
        {},
        ["7 of 40", "clip000, clip001, clip002, clip003, clip004", "drop_missing"],
    ),
    "features hold NaN": (lambda r: change_features(r, nan_in_one), {}, ["features.h5", "clip003", "NaN"]),
    "features are truncated": (lambda r: truncate(r / "features.h5"), {}, ["features.h5"]),
    "a dimension differs": (
        lambda r: change_features(r, lambda f: overwrite(f, "clip001", np.zeros((3, 9), np.float32))),
        {},
        ["features.h5", "clip001"],
    ),
    "a split is empty": (no_validation, {}, ["'val'"]),
    "a column is missing": (lambda r: without_column(r / "qa" / "train.csv", "answer"), {}, ["train.csv", "answer"]),
    "the clip list lacks a column": (lambda r: without_column(r / "clips.csv", "split"), {}, ["clips.csv", "split"]),
    "a layout is unknown": (
        lambda r: None,
        {"questions": [{"layout": "qa_cvs", "path": "qa"}]},
        ["qa_cvs", "did you mean 'qa_csv'"],
    ),
    "the answer list is too short": (rare_answers, {"max_answers": 5}, ["answers", "%"]),
    "the dealing column does not exist": (
        lambda r: None,
        {"dealing": {"kind": "dirichlet", "column": "catgory"}},
        ["catgory", "category"],
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_in_the_data_is_answered_before_training(
    mistake: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, data, said = MISTAKES[mistake]
    spoil(root)
    assert fit(tmp_path, root, monkeypatch, **data) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in captured.err
    assert all(part in lines[0] for part in said), lines[0]
    assert not list(tmp_path.glob("outputs/*/*/checkpoints/*"))


def test_a_missing_root_names_the_nearest(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, root, monkeypatch, f"--data.root={root}x") == 2
    assert str(root) in capsys.readouterr().err


def test_clips_without_features_can_be_dropped(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_features(root, lambda f: f.pop("clip000") and None)
    assert fit(tmp_path, root, monkeypatch, "--data.drop_missing=true") == 0


def test_an_unset_variable_is_one_clear_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LIT_MMPG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "configs/experiment/msrvtt_qa.yaml"]) == 2
    message = capsys.readouterr().err
    assert "LIT_MMPG_DATA" in message and "--data.root" in message


def test_other_features_than_the_checkpoint_was_trained_on(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("open_ended")
    other = tiny.build_root(tmp_path / "wide", dim=tiny.FEATURES + 4)
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--ckpt_path", str(run.cloud), f"--data.root={other}"]) == 2
    message = capsys.readouterr().err
    assert f"({tiny.FEATURES + 4},)" in message and f"({tiny.FEATURES},)" in message


def test_unknown_answers_of_other_data_count_as_wrong_and_are_announced(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("open_ended")
    other = tiny.build_root(tmp_path / "other")
    path = other / "qa" / "test.csv"
    with path.open(newline="") as file:
        rows = [row | {"answer": "unheard of"} for row in csv.DictReader(file)]
    tiny.write_rows(path, list(rows[0]), [list(row.values()) for row in rows])
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"answers"):
        assert main(["test", "--ckpt_path", str(run.cloud), f"--data.root={other}", "--output", "rows.json"]) == 0
    import json

    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["value"] for row in rows if row["metric"] == "accuracy"} == {0.0}


@pytest.mark.parametrize("way", ["device_ckpt", "ckpt_path"])
def test_a_checkpoint_of_the_other_half(
    way: str, trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("open_ended")
    if way == "device_ckpt":
        config = write_experiment(tmp_path, run.root, "open_ended")
        flags = [f"--model.device_ckpt={run.cloud}"]
    else:
        config = run.folder / "device.yaml"
        flags = ["--ckpt_path", str(run.cloud)]
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(config), *flags]) == 2
    message = capsys.readouterr().err
    assert "cloud half" in message and "device half" in message


def test_another_vocabulary_in_stage_two(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("open_ended")
    other = tiny.build_root(tmp_path / "other")
    path = other / "qa" / "train.csv"
    path.write_text(path.read_text().replace("which paint covers", "which lacquer hides"))
    config = write_experiment(tmp_path, other, "open_ended")
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(config), f"--model.device_ckpt={run.device}"]) == 2
    assert "vocabulary" in capsys.readouterr().err


def test_a_device_that_the_table_does_not_know(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("open_ended")
    monkeypatch.chdir(tmp_path)
    arguments = ["predict", "--ckpt_path", str(run.cloud), "--output", "a.csv", "--device", "test00"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "test00" in message and "did you mean" in message


@pytest.mark.parametrize("kind", ["missing", "torn", "pickled"])
def test_a_checkpoint_that_is_none(
    kind: str, trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    path = tmp_path / "some.ckpt"
    if kind == "torn":
        path.write_bytes(trained("open_ended").cloud.read_bytes()[:5000])
    elif kind == "pickled":
        torch.save({"lit_mmpg": Path("x")}, path)
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--ckpt_path", str(path)]) == 2
    assert "some.ckpt" in capsys.readouterr().err
