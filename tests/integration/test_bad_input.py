"""Each mistake gets one clear error, before training starts, that names the file, the field and the remedy."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lit_mmpg.cli import main
from tests.integration import tiny
from tests.integration.conftest import Trained, write_experiment


@pytest.fixture(scope="module")
def run(trained: Callable[[str], Trained]) -> Trained:
    return trained("open_ended")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny.build_root(tmp_path / "data")


def one_error(capsys: pytest.CaptureFixture[str], *said: str) -> None:
    """One error (a report of several problems has a line for each) that says these things; no step was taken."""
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert len(starts) == 1 and "Traceback" not in captured.err, captured.err
    report = "\n".join(lines[starts[0] :])
    assert all(part in report for part in said), report
    assert "epoch 1" not in captured.out


def fit(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, *flags: str, **data: Any) -> int:
    config = tiny.write_config(
        folder / "run.yaml",
        data=tiny.data_config(root, **data),
        model=tiny.device_config(),
        trainer=tiny.trainer_config(logger=False),
    )
    monkeypatch.chdir(folder)
    return main(["fit", "--config", str(config), *flags])


def change_features(root: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(root / "features.h5", "r+") as file:
        change(file)


def overwrite(file: h5py.File, name: str, values: np.ndarray) -> None:
    del file[name]
    file[name] = values


def spoil_one(file: h5py.File, value: float) -> None:
    values = file["clip003"][:]
    values[1, 2] = value
    overwrite(file, "clip003", values)


def without_column(path: Path, column: str) -> None:
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k != column} for row in csv.DictReader(file)]
    tiny.write_rows(path, list(rows[0]), [list(row.values()) for row in rows])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nothing(root: Path) -> None:
    """The configuration is at fault, not the files."""


def empty_split(root: Path, split: str, other: str) -> None:
    text = (root / "clips.csv").read_text().replace(f",{split},", f",{other},")
    (root / "clips.csv").write_text(text)


def unlist_one(root: Path) -> None:
    lines = (root / "clips.csv").read_text().splitlines(keepends=True)
    (root / "clips.csv").write_text("".join(lines[:1] + lines[2:]))


def rare_answers(root: Path) -> None:
    path = root / "qa" / "train.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        row["answer"] = f"answer number {i}"
    tiny.write_rows(path, list(rows[0]), [list(row.values()) for row in rows])


MISTAKES: dict[str, tuple[Callable[[Path], None], dict[str, Any], list[str]]] = {
    "features are missing": (lambda r: (r / "features.h5").unlink(), {}, ["features.h5 does not exist"]),
    "features are misspelt": (nothing, {"features": "featurs.h5"}, ["data/featurs.h5", "did you mean", "features.h5?"]),
    "the clip list is misspelt": (nothing, {"clips": "clip.csv"}, ["data/clip.csv", "did you mean", "clips.csv?"]),
    "questions are missing": (lambda r: shutil.rmtree(r / "qa"), {}, ["data/qa does not exist"]),
    "videos have no features": (
        lambda r: change_features(r, lambda f: [f.pop(f"clip{i:03d}") for i in range(7)] and None),
        {},
        ["features.h5", "7 of 40", "first clip000, clip001, clip002, clip003, clip004;", "--data.drop_missing true"],
    ),
    "a video is not listed": (unlist_one, {}, ["clips.csv", "1 videos", "clip000", "--data.drop_missing true"]),
    "features hold NaN": (
        lambda r: change_features(r, lambda f: spoil_one(f, np.nan)),
        {},
        ["features.h5", "clip003", "NaN", "extract them again"],
    ),
    "features hold infinity": (
        lambda r: change_features(r, lambda f: spoil_one(f, -np.inf)),
        {},
        ["features.h5", "clip003", "infinite", "extract them again"],
    ),
    "features are truncated": (
        lambda r: truncate(r / "features.h5"),
        {},
        ["features.h5", "not a complete HDF5 file", "copy or extract it again"],
    ),
    "a dimension differs": (
        lambda r: change_features(r, lambda f: overwrite(f, "clip001", np.zeros((3, 9), np.float32))),
        {},
        ["features.h5", "clip001", "same encoder"],
    ),
    "no clip is for training": (
        lambda r: empty_split(r, "train", "test"),
        {},
        ["data.root", "split 'train' has no clip with open-ended questions", "clip list"],
    ),
    "no clip is for validation": (
        lambda r: empty_split(r, "val", "train"),
        {},
        ["data.root", "split 'val' has no clip with open-ended questions", "clip list"],
    ),
    "no question is multiple-choice": (
        nothing,
        {"task": "multiple_choice"},
        ["data.root", "split 'train' has no clip with multiple-choice questions"],
    ),
    "a column is missing": (
        lambda r: without_column(r / "qa" / "train.csv", "answer"),
        {},
        ["train.csv", "column 'answer' is missing", "found: video, question, qid, type"],
    ),
    "captions lack a column": (
        lambda r: without_column(r / "captions.csv", "caption"),
        {},
        ["captions.csv", "column 'caption' is missing"],
    ),
    "the clip list lacks a column": (
        lambda r: without_column(r / "clips.csv", "split"),
        {},
        ["clips.csv", "column 'split' is missing"],
    ),
    "a layout is unknown": (
        nothing,
        {"questions": [{"layout": "qa_cvs", "path": "qa"}]},
        ["qa_cvs", "did you mean 'qa_csv'"],
    ),
    "the answer list is too short": (
        rare_answers,
        {"max_answers": 5},
        ["5 answers", "10.4% of the training answers", "at least 50%", "data.max_answers"],
    ),
    "the dealing column does not exist": (
        nothing,
        {"dealing": {"kind": "dirichlet", "column": "catgory"}},
        ["data.dealing.column", "catgory", "category"],
    ),
    "a group has no device": (
        nothing,
        {"dealing": {"column": "category", "val_devices": 0}},
        ["data.dealing.val_devices is 0"],
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_in_the_data_is_answered_before_training(
    mistake: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, data, said = MISTAKES[mistake]
    spoil(root)
    assert fit(tmp_path, root, monkeypatch, **data) == 2
    one_error(capsys, *said)
    assert not list(tmp_path.glob("outputs/**/*.ckpt"))


def test_a_missing_root_names_the_nearest(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, root, monkeypatch, f"--data.root={root}x") == 2
    one_error(capsys, "data.root", f"{root}x does not exist", f"did you mean {root}?")


def test_clips_without_features_can_be_dropped(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_features(root, lambda f: f.pop("clip000") and None)
    assert fit(tmp_path, root, monkeypatch, "--data.drop_missing=true") == 0
    assert list(tmp_path.glob("outputs/**/best.ckpt"))


def test_a_key_that_is_given_twice_is_refused_wherever_yaml_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    twice = tmp_path / "twice.yaml"
    twice.write_text("trainer: {max_epochs: 1}\nbase: &b {x: 1}\nmerged: {<<: *b, x: 2}\ntrainer:\n  max_epochs: 2\n")
    (tmp_path / "over.yaml").write_text("data: twice.yaml\n")
    for argv in (
        ["fit", "--config", "twice.yaml"],
        ["fit", "--config", "over.yaml"],
        ["compare", "--config", "twice.yaml"],
        ["profile", "run", "--bundle", "x", "--config", "twice.yaml"],
    ):
        assert main(argv) == 2
        one_error(capsys, "twice.yaml, line 4: key 'trainer' is given a second time, after line 1")
    for text, told in (
        ("data: &d\n  class_path: VideoData\n  init_args: *d\n", "line 3: '*d' stands inside what it repeats"),
        ("trainer: {max_epochs: 1}  # \x1b[0m\n", "is not valid YAML: unacceptable character #x001b"),
    ):
        twice.write_text(text)
        assert main(["fit", "--config", "twice.yaml"]) == 2
        one_error(capsys, f"twice.yaml, {told}" if told.startswith("line") else f"twice.yaml {told}")
    twice.write_text("trainer: {max_epochs: 1}\n")
    assert main(["fit", "--config", "twice.yaml", "--data.batch", "{clips: 2, clips: 3}"]) == 2
    one_error(capsys, "--data.batch, line 1: key 'clips' is given a second time")


def test_the_home_folder_is_found_wherever_a_path_is_taken(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data = tiny.data_config("~/data", features="~/data/gone.h5")
    tiny.write_config(tmp_path / "run.yaml", data="~/data.yaml", model=tiny.device_config(), trainer={})
    tiny.write_config(tmp_path / "data.yaml", **data)
    for argv in (["fit", "--config", "~/run.yaml"], ["fit", "--config=~/run.yaml", "--data.features=~/data/gone.h5"]):
        assert main(argv) == 2
        one_error(capsys, f"{tmp_path}/data/gone.h5 does not exist")
    for argv in (["test", "--ckpt_path=~/no.ckpt"], ["export", "--ckpt", "~/no.ckpt", "--output=~/b"]):
        assert main(argv) == 2
        one_error(capsys, f"{tmp_path}/no.ckpt does not exist")


def test_an_unset_variable_is_one_clear_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LIT_MMPG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in (["msrvtt_qa.yaml"], ["msvd.yaml#retrieval"], ["msrvtt_qa.yaml", "--stage", "device"]):
        assert main(["fit", "--config", f"configs/experiment/{name[0]}", *name[1:]]) == 2
        one_error(capsys, "'data.root'", "LIT_MMPG_DATA is not set", "--data.root")


def test_other_features_than_the_checkpoint_was_trained_on(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.build_root(tmp_path / "wide", dim=tiny.FEATURES + 4)
    monkeypatch.chdir(tmp_path)
    for argv in (["test"], ["predict", "--output", "answers.csv"], ["validate"]):
        assert main([*argv, "--ckpt_path", str(run.cloud), f"--data.root={other}"]) == 2
        one_error(capsys, str(other), f"({tiny.FEATURES + 4},)", f"({tiny.FEATURES},)", "data.features")
    config = write_experiment(tmp_path, other, "open_ended")
    assert main(["fit", "--config", str(config), f"--model.device_ckpt={run.device}"]) == 2
    one_error(capsys, f"({tiny.FEATURES + 4},)", f"({tiny.FEATURES},)", "data.features")


def test_unknown_answers_of_other_data_count_as_wrong_and_are_announced(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.build_root(tmp_path / "other")
    path = other / "qa" / "test.csv"
    with path.open(newline="") as file:
        rows = [row | {"answer": "unheard of"} for row in csv.DictReader(file)]
    tiny.write_rows(path, list(rows[0]), [list(row.values()) for row in rows])
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"covers 0.0% of these answers; answers outside the list count as wrong"):
        assert main(["test", "--ckpt_path", str(run.cloud), f"--data.root={other}", "--output", "rows.json"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["value"] for row in rows if row["metric"] == "accuracy"} == {0.0}


@pytest.mark.parametrize("way", ["device_ckpt", "ckpt_path"])
def test_a_checkpoint_of_the_other_half(
    way: str, run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if way == "device_ckpt":
        config = write_experiment(tmp_path, run.root, "open_ended")
        flags = [f"--model.device_ckpt={run.cloud}"]
    else:
        config = run.folder / "device.yaml"
        flags = ["--ckpt_path", str(run.cloud)]
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(config), *flags]) == 2
    one_error(capsys, "cloud half", "device half")


def test_a_model_that_the_checkpoint_does_not_hold(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--config", str(run.folder / "device.yaml"), "--ckpt_path", str(run.cloud)]) == 2
    one_error(capsys, str(run.cloud), "CloudModule", "DeviceModule", "leave --model out")
    assert main(["test", "--ckpt_path", str(run.device), "--model.network=null"]) == 2
    one_error(capsys, "--model.network.width is 64", str(run.device), "trained with 16")


def test_a_test_split_without_questions(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.build_root(tmp_path / "other", {"train": 24, "val": 8})
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--ckpt_path", str(run.cloud), f"--data.root={other}"]) == 2
    one_error(capsys, str(other), "split 'test' has no clip with open-ended questions")


def test_texts_longer_than_the_checkpoint_knows(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--ckpt_path", str(run.cloud), "--data.batch.max_words=12"]) == 2
    one_error(capsys, "data.batch.max_words is 12", "trained with 8")


def test_another_vocabulary_in_stage_two(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.build_root(tmp_path / "other")
    path = other / "qa" / "train.csv"
    path.write_text(path.read_text().replace("which paint covers", "which lacquer hides"))
    config = write_experiment(tmp_path, other, "open_ended")
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(config), f"--model.device_ckpt={run.device}"]) == 2
    one_error(capsys, "the vocabulary of the checkpoint", "train the device half again")


def test_another_length_of_texts_in_stage_two(
    trained: Callable[[str], Trained],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = trained("open_ended")
    monkeypatch.chdir(tmp_path)
    arguments = ["fit", "--config", str(run.config), f"--model.device_ckpt={run.device}"]
    assert main([*arguments, "--data.batch.max_words=5"]) == 2
    assert "max_words" in capsys.readouterr().err


def test_a_device_that_the_table_does_not_know(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["predict", "--ckpt_path", str(run.cloud), "--output", "a.csv", "--device", "test00"]
    assert main(arguments) == 2
    one_error(capsys, "--device test00", "did you mean 'test00")
    assert not Path("a.csv").exists()


SAID = {"missing": "does not exist", "torn": "damaged", "pickled": "more than tensors", "foreign": "not written by"}


@pytest.mark.parametrize("kind", SAID)
def test_a_checkpoint_that_is_none(
    kind: str, run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.ckpt"
    if kind == "torn":
        path.write_bytes(run.cloud.read_bytes()[:5000])
    elif kind == "pickled":
        torch.save({"lit_mmpg": Path("x")}, path)
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--ckpt_path", str(path)]) == 2
    one_error(capsys, "some.ckpt", SAID[kind])


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--model.dynamic.rank=0", "model.dynamic.rank is 0; it must be at least 1"),
        ("--model.anchors.count=-1", "model.anchors.count is -1; it must be at least 0"),
        ("--model.optimiser.learning_rate=.nan", "model.optimiser.learning_rate is nan; it must be a number"),
        ("--model.losses.kl=-1", "model.losses.kl is -1.0; it must be at least 0"),
        ("--model.cloud.adaptor_hidden=0", "model.cloud.adaptor_hidden is 0; it must be between 1 and"),
        ("--save_every_n_steps=0", "save_every_n_steps is 0; it must be at least 1"),
        ("--seed_everything=-1", "seed_everything is -1; it must be between 0 and 4294967295"),
        ("--model.optimiser.learning_rate=1e300", "model.optimiser.learning_rate is 1e+300; it must be between"),
        ("--model.cloud.latent=1000000000000", "model.cloud.latent is 1000000000000; it must be between 0 and 65536"),
        ("--model.link.codebooks=-1", "model.link.codebooks is -1; it must be at least 0"),
        ("--model.link.upload_codec=int9", "model.link.upload_codec is 'int9'; did you mean 'int"),
        ("--trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches is 0; it must be at least 1"),
        ("--trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch is 0; it must be at least 1"),
        ("--trainer.val_check_interval=0", "trainer.val_check_interval is 0; give a share of an epoch"),
        ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val is -1"),
    ],
)
def test_numbers_out_of_range_are_named_before_the_device_half_trains(
    flag: str,
    said: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_experiment(tmp_path, root, "open_ended")
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(config), flag]) == 2
    one_error(capsys, said)
    assert not Path("outputs").exists()


def test_layers_that_the_cloud_half_lacks_are_named_before_the_device_half_trains(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_experiment(tmp_path, root, "open_ended")
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(config), "--model.dynamic.layers=[heads]"]) == 2
    one_error(capsys, "model.dynamic.layers: ['heads'] do not exist for task 'open_ended' in DeviceNetwork; remove")
    assert not list(Path("outputs").rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--data.batch.devices=1000000000000", "data.batch.devices is 1000000000000; it must be between 1 and 65536"),
        ("--data.batch.eval_devices=1000000000000", "data.batch.eval_devices is 1000000000000; it must be between"),
        ("--data.batch.max_words=1000000000000", "data.batch.max_words is 1000000000000; it must be between"),
        ("--data.dealing.train_devices=1000000000000", "data.dealing.train_devices is 1000000000000; it must be"),
        ("--data.dealing.seed=-1", "data.dealing.seed is -1; it must be at least 0"),
        ("--data.max_answers=-3", "data.max_answers is -3; it must be at least 1"),
        ("--model.network.width=1000000000000", "model.network.width is 1000000000000; it must be between"),
        ("--model.network.width=65536", "there is not enough memory (DefaultCPUAllocator"),
    ],
)
def test_sizes_beyond_all_memory_are_one_error(
    flag: str,
    said: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*sizes: Any, **options: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 48000000000000 bytes.")

    monkeypatch.setattr("torch.nn.Linear.__init__", full)  # a machine that has the memory would take its time
    assert fit(tmp_path, root, monkeypatch, flag) == 2
    one_error(capsys, said)


def test_parameters_that_fit_in_no_download_are_named_before_they_are_learnt(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny.write_config(
        tmp_path / "run.yaml",
        data=tiny.data_config(run.root),
        model=tiny.cloud_config(run.device, dynamic={"layers": ["head"], "form": "low_rank", "rank": 10**12}),
        trainer=tiny.trainer_config(logger=False),
    )
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(config)]) == 2
    one_error(capsys, "model.dynamic: the parameters of a device take", "at most 4,194,240; lower model.dynamic.rank")


def test_heads_that_do_not_divide_the_width_are_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, root, monkeypatch, "--model.network.width=7", "--model.network.heads=3") == 2
    one_error(capsys, "model.network.heads is 3, which does not divide model.network.width, 7")
