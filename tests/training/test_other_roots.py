"""A checkpoint is measured on roots with test clips alone: what training clips taught comes from the checkpoint."""

from __future__ import annotations

import copy
import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_mmpg.data import filming
from lit_mmpg.data.camera_clips import CameraClipsData
from lit_mmpg.data.datamodule import DeviceData
from lit_mmpg.data.own import main as init_data
from lit_mmpg.errors import UserError
from lit_mmpg.files import shipped_configs
from lit_mmpg.training.config import read_request
from lit_mmpg.training.lightning_cli import CLI
from tests.data.test_camera_clips import ColourEncoder
from tests.integration.tiny import cut_root, write_features, write_rows

CAMERAS = [
    f"--data.cameras.{name}={value}"
    for name, value in {
        "pool": 3,
        "train": 2,
        "seen": 1,
        "val": 2,
        "test": 4,
        "clean": 1,
        "clips_per_camera": 3,
    }.items()
]


def configured(config: str | Path, *flags: str) -> DeviceData:
    return CLI(read_request("fit", ["--config", str(config), *flags])).data()


def elsewhere(data: DeviceData, root: Path) -> DeviceData:
    """The data of a checkpoint that was trained on ``data``, as ``lit-mmpg test --data.root ROOT`` reads them."""
    other = copy.copy(data)
    other.__init__(**{**dict(data_arguments(data)), "root": str(root)})  # type: ignore[misc]
    other.use_meta(data.meta)
    other.setup("test")
    return other


def data_arguments(data: DeviceData) -> dict[str, Any]:
    """What a data module was made with."""
    files = data.files  # type: ignore[attr-defined]
    shared = {name: getattr(data, name) for name in ("task", "batch", "max_answers", "min_count", "max_vocabulary")}
    shared |= {name: getattr(files, name) for name in ("clips", "questions", "captions", "drop_missing")}
    if isinstance(data, CameraClipsData):
        own = {name: getattr(data, name) for name in ("cameras", "image_size", "exclude")}
        return shared | own | {"frames": data.features, "encoder": str(data.encoder), "cache_dir": str(data.cache_dir)}
    return shared | {name: getattr(data, name) for name in ("features", "dealing")}


def assert_same_test(data: DeviceData, root: Path) -> DeviceData:
    """Unseen devices, items and vocabulary are the same on a root of test clips alone; seen devices have no group."""
    other = elsewhere(data, root)
    assert {clip.split for clip in other.corpus.clips} == {"test"}
    assert other.test_groups == ["test_unseen"]
    assert other.vocabulary == data.vocabulary and other.answers == data.answers and other.kinds == data.kinds

    def held(of: DeviceData) -> dict[str, tuple[str, ...]]:
        devices = of.device_table.devices
        return {devices[d].id: clips for d, clips in of.device_table.timelines["test_unseen"].items()}

    assert held(other) == held(data)
    assert other.texts("test") == data.texts("test")
    assert (other.items("test").tokens == data.items("test").tokens).all()
    assert (other.items("test").answer == data.items("test").answer).all()
    return other


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A small root cut from the real clips, under ``msrvtt``, and the names of its test clips."""
    shared = os.environ.get("LIT_MMPG_DATA")
    if not shared:
        pytest.skip("LIT_MMPG_DATA is not set: the folder of the real data")
    source, root = Path(shared) / "msrvtt", tmp_path_factory.mktemp("real") / "msrvtt"
    wanted: dict[str, Sequence[str]] = {}
    for split, count in (("train", 30), ("val", 8), ("test", 12)):
        with (source / "qa" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        wanted[split] = list(dict.fromkeys(row[0] for row in rows))[:count]
        write_rows(root / "qa" / f"{split}.csv", header, [row for row in rows if row[0] in wanted[split]])
    chosen = {f"video{name}" for names in wanted.values() for name in names}
    part = root.parent / "part"
    for name in ("videos.csv", "captions.csv", "frames_mobilenet_v2.h5", "frames_96x72.zip"):
        part.mkdir(exist_ok=True)
        (part / name).symlink_to(source / name)
    cut_root(part, root, chosen)
    with (source / "shot_descriptions.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    write_rows(root / "shot_descriptions.csv", header, [row for row in rows if row[0] in chosen])
    return root, [f"video{name}" for name in wanted["test"]]


@pytest.mark.parametrize("name", ["msrvtt_qa", "msrvtt_retrieval"])
def test_real_features(name: str, real: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, test_clips = real
    config = shipped_configs() / "experiment" / f"{name}.yaml"
    data = configured(config, f"--data.root={root}", "--data.batch.own_statistics=4")
    data.setup("fit")
    other = assert_same_test(data, cut_root(root, tmp_path / "cut", test_clips))
    same, here = (next(iter(of.eval_batches("test_unseen"))) for of in (data, other))
    np.testing.assert_array_equal(same.frames.values.numpy(), here.frames.values.numpy())  # statistics as trained


@pytest.mark.parametrize("name", ["msrvtt_glass", "msrvtt_dmma"])
def test_real_frames_through_cameras(
    name: str, real: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filmed: list[str] = []

    def at_once(jobs: Any, pixels: Any, graph: str, workers: int) -> None:
        filming._begin(pixels, graph, os.getppid())
        for shot, path in jobs:
            filmed.append(path.name)
            filming._film_one(shot, str(path))

    monkeypatch.setattr(filming, "_work", at_once)  # no processes for a few clips
    monkeypatch.setattr("lit_mmpg.data.camera_clips.FrameEncoder", lambda *_: ColourEncoder(tmp_path))
    root, test_clips = real
    flags = [f"--data.root={root}", "--data.encoder=none", f"--data.cache_dir={tmp_path / 'cache'}", *CAMERAS]
    data = configured(shipped_configs() / "experiment" / f"{name}.yaml", *flags)
    data.setup("fit")
    filmed.clear()
    cut = cut_root(root, tmp_path / "cut", test_clips)
    (cut / "shot_descriptions.csv").unlink(missing_ok=True)
    other = elsewhere(data, cut)
    assert other.test_groups == ["test_unseen", "test_clean"]
    assert len(filmed) == 5  # four test cameras, and the clips as they are: nothing for training or validation
    corpus = other.corpus
    for device, clips in corpus.devices.timelines["test_unseen"].items():
        before = next(d for d in data.device_table.devices if d.id == corpus.devices.devices[device].id)
        assert corpus.devices.devices[device].shift == before.shift  # the very camera, but for the mirrored scene
        left = set(test_clips) - data.exclude - set(clips)  # type: ignore[attr-defined]
        assert len(left) == (1 if name == "msrvtt_glass" else 0)  # a clip is not asked behind its own mirror image
    for batch in other.eval_batches("test_unseen"):
        assert batch.context.mask.any((1, 2)).all()  # without validation clips, other test clips are the history
        known = [set(query.context) & set(query.clips) for query in other.eval_batches("test_unseen").queries]
        assert not any(known)


def test_own_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    names = [f"{owner}{i}" for owner in ("ann", "bob", "cid", "dan", "eve") for i in range(6)]
    for name in names:
        (Path("films") / f"{name}.mp4").write_text("not decoded here")
    rows = [(name, "what is it", ("cat", "dog")[i % 2], name[:3]) for i, name in enumerate(names)]
    write_rows(Path("films/table.csv"), ("video", "question", "answer", "owner"), rows)
    assert init_data(["films", "--output", "mine"]) == 0
    rng = np.random.default_rng(0)
    write_features(Path("mine/features.h5"), {name: rng.normal(size=(3, 8)).astype(np.float32) for name in names})
    data = configured("mine/mine.yaml")
    data.setup("fit")
    test_clips = [clip.id for clip in data.corpus.clips if clip.split == "test"]
    other = elsewhere(data, cut_root(Path("mine"), tmp_path / "cut", test_clips))
    owners = {device.id for device in other.device_table.devices}
    assert owners == {name[:3] for name in test_clips} and other.test_groups == ["test_unseen"]


def test_files_of_others_may_stay_and_what_is_asked_must_be_there(real: tuple[Path, list[str]], tmp_path: Path) -> None:
    root, test_clips = real
    data = configured(shipped_configs() / "experiment" / "msrvtt_retrieval.yaml", f"--data.root={root}")
    data.setup("fit")
    cut = cut_root(root, tmp_path / "cut", test_clips)
    for name in ("videos.csv", "captions.csv", "shot_descriptions.csv"):  # lists of all clips beside frames of some
        (cut / name).write_bytes((root / name).read_bytes())
    assert_same_test(data, cut)
    write_features(cut / "frames_mobilenet_v2.h5", {test_clips[0]: np.zeros((2, 1280), np.float32)})
    with pytest.raises(UserError, match=r"11 of 12 videos in the annotations have no features"):
        elsewhere(data, cut)
    (cut / "captions.csv").unlink()
    with pytest.raises(UserError, match=r"split 'test' has no clip with captions"):
        elsewhere(data, cut_root(cut, tmp_path / "silent", test_clips[:1]))
