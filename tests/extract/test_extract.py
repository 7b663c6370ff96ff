"""From a folder of videos to a file that a training reads; and what bad files, kills and crashes cost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import h5py
import numpy as np
import pytest
import torch

from lit_mmpg.cli import main
from lit_mmpg.data.features import FeatureFile
from lit_mmpg.data.vision import open_graph, run_graph
from lit_mmpg.errors import UserError
from lit_mmpg.extract.encoder import prepare_graph
from lit_mmpg.extract.store import Settings, Store
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.video import sample_video
from tests.integration import tiny
from tests.integration.conftest import best_checkpoint
from tests.runtime.cloud_server import odd_entries

transformers = pytest.importorskip("transformers")
SIZE = 40
PAINT = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 180, 20))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet with random weights and 12 pooled features."""
    target = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(target)
    size = {"height": SIZE, "width": SIZE}
    transformers.MobileNetV2ImageProcessor(size=size, do_center_crop=False).save_pretrained(target)
    return target


def write_clip(path: Path, colour: int, frames: int = 12) -> Path:
    rng = np.random.default_rng(len(path.name) + colour)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(frames):
            picture = np.clip(np.array(PAINT[colour]) + rng.integers(-20, 20, (48, 64, 1)), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video for each clip of the tiny data; its colour is the clip's."""
    folder = tmp_path_factory.mktemp("videos")
    for clip in tiny.tiny_clips():
        write_clip(folder / f"{clip.id}.mp4", clip.colour)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs start in a folder of their own; the exported encoder is made once."""
    monkeypatch.chdir(tmp_path)
    cache = tmp_path_factory.getbasetemp() / "graphs"
    cache.mkdir(exist_ok=True)
    (tmp_path / "outputs/cache").mkdir(parents=True)
    (tmp_path / "outputs/cache/encoders").symlink_to(cache)


def arguments(videos: Path, encoder: Path, *more: str) -> list[str]:
    return ["extract", "--videos", str(videos), "--encoder", str(encoder), "--output", "f.h5", "--frames", "4", *more]


def test_a_training_runs_on_extracted_features(videos: Path, encoder: Path, tmp_path: Path) -> None:
    assert main(arguments(videos, encoder)) == 0
    root = tiny.build_root(tmp_path / "data")
    shutil.move("f.h5", root / "features.h5")
    store = FeatureFile(root / "features.h5").load()
    assert (store.frame_shape, len(store.ids()), store.num_frames("clip000")) == ((12,), 40, 4)
    config = tiny.write_config(
        tmp_path / "c.yaml",
        data=tiny.data_config(root),
        model=tiny.device_config(),
        trainer=tiny.trainer_config(),
    )
    assert main(["fit", "--config", str(config)]) == 0
    assert best_checkpoint(tmp_path, "device").is_file()


def test_from_videos_and_one_table_to_a_result(
    videos: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What docs/your_data.md tells, as a stranger types it: each command takes what the one before wrote."""
    (tmp_path / "trip").mkdir()
    for i in range(8):
        shutil.copy(videos / f"clip{i:03d}.mp4", tmp_path / f"trip/clip{i:03d}.MP4")
    rows = [f"clip{i:03d}.mp4,what colour is it,{('red', 'green')[i % 2]},{'abcd'[i // 2]},颜色" for i in range(8)]
    (tmp_path / "trip/questions.csv").write_text("\n".join(["video,question,answer,owner,type", *rows]))
    assert main(["init-data", "trip"]) == 0
    said = capsys.readouterr().out
    commands = [line.split() for line in said.splitlines() if line.startswith("  lit-mmpg ")]
    assert [command[1] for command in commands] == ["extract", "fit", "test"]
    extract = [{"ENCODER": str(encoder)}.get(word, word) for word in commands[0][1:]]
    assert main([*extract, "--workers", "1", "--size", "48"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"next: {' '.join(commands[1])}"
    short = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--trainer.accelerator=cpu"]
    assert main([*commands[1][1:], *short]) == 0
    said = capsys.readouterr().out
    test = next(line for line in said.splitlines() if line.startswith("next: ")).split()[2:]
    assert main([*test, "--output", "rows.json"]) == 0
    rows = json.loads(Path("rows.json").read_text())["rows"]
    own = [row for row in rows if row.get("kind") == "颜色" and row["method"] == "cdc_mmpg"]
    assert {row["split"] for row in own} == {"test_unseen"} and own[0]["metric"].startswith("accuracy_kind/type-")
    # A device looks with that encoder, at pictures of that size, and with no other one of the same width.
    export = ["export", "--ckpt", test[test.index("--ckpt_path") + 1], "--output", "bundle", "--frame-encoder"]
    shutil.copytree(encoder, tmp_path / "other")
    (tmp_path / "other/preprocessor_config.json").write_text(
        '{"size": 40, "image_processor_type": "ViTImageProcessor"}'
    )
    assert main([*export, str(tmp_path / "other")]) == 2
    assert "is not the encoder that made the features" in capsys.readouterr().err
    assert main([*export, str(encoder)]) == 0
    assert Bundle.open(Path("bundle")).manifest.preprocessing.height == 48
    # Nor does a test take features of pictures of another size.
    (tmp_path / "trip-data/features.h5").unlink()
    assert main([*extract, "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(test) == 2
    assert "features of another encoder, or of pictures of another size" in capsys.readouterr().err


def test_bad_files_are_named_and_the_rest_is_there(
    videos: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name in ("clip000", "clip001"):
        shutil.copy(videos / f"{name}.mp4", folder)
    data = (videos / "clip002.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(data[: len(data) // 2])
    good, bad = odd_entries(folder, videos / "clip003.mp4")
    ids = [path.name[:-4] for path in good[1:-1]]  # HDF5 has no "." and no names that are not UTF-8
    assert main(arguments(folder, encoder)) == 1
    said = capsys.readouterr().out
    assert "torn.mp4: is cut off" in said and "empty.mp4: cannot be decoded" in said and "10 left out" in said
    assert "clip001 is the same video as clip000" not in said and said.count("is the same video as") == 5
    assert all(f"{path.name}" in said for path in bad) and "caf\\udce9.mp4: its name is not UTF-8" in said
    assert "..mp4: '.' is no possible name" in said and "\x1b" not in said
    assert sorted(FeatureFile("f.h5").load().ids()) == sorted(["clip000", "clip001", *ids])
    for path in (*good, *bad[1:]):
        path.unlink()
    bad[0].rmdir()
    # What they hold is what the graph makes of the frames that a device would look at.
    graph = next(Path("outputs/cache/encoders").glob("*.onnx"))
    expected = run_graph(open_graph(graph), sample_video(folder / "clip000.mp4", 4, (SIZE, SIZE)).pixels)
    np.testing.assert_array_equal(FeatureFile("f.h5").load().frames("clip000"), expected.astype(np.float16))

    # A mended file and a new one are added; what was there stays as it is.
    shutil.copy(videos / "clip002.mp4", folder / "torn.mp4")
    assert main(arguments(folder, encoder)) == 0
    assert "2 of 3 clips are there already" in capsys.readouterr().out
    assert sorted(FeatureFile("f.h5").load().ids()) == sorted(["clip000", "clip001", "torn", *ids])
    np.testing.assert_array_equal(FeatureFile("f.h5").load().frames("clip000"), expected.astype(np.float16))
    assert main(arguments(folder, encoder, "--sampling", "shots")) == 2
    assert "made with another sampling" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.parts"))


def start(videos: Path, encoder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lit_mmpg", *arguments(videos, encoder, *more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_parts(count: int) -> list[Path]:
    for _ in range(6000):
        parts = list(Path("f.h5.parts").glob("*.npy"))
        if len(parts) >= count:
            return parts
        time.sleep(0.005)
    raise AssertionError("no clip was finished")


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (entry / "stat").read_text(), (entry / "cmdline").read_text()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid and "spawn_main" in command:
            found.append(int(entry.name))
    return found


def test_a_graph_that_was_damaged_is_exported_again(encoder: Path, tmp_path: Path) -> None:
    made = graph, _ = prepare_graph(encoder, "name", None, tmp_path)
    whole, written = graph.read_bytes(), graph.stat().st_mtime_ns
    assert prepare_graph(encoder, "name", None, tmp_path) == made and graph.stat().st_mtime_ns == written
    graph.write_bytes(whole[:99])
    graph.with_suffix(".json").write_text("[4")
    assert prepare_graph(encoder, "name", None, tmp_path) == made and graph.read_bytes() == whole


def test_a_killed_run_goes_on_where_it_was(videos: Path, encoder: Path) -> None:
    process = start(videos, encoder, "--workers", "1")
    wait_for_parts(5)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(400):  # its workers end by themselves
        if not any(Path(f"/proc/{pid}").exists() for pid in workers):
            break
        time.sleep(0.01)
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not Path("f.h5").exists()
    kept = {path: path.stat().st_mtime_ns for path in wait_for_parts(5)}
    for path in kept:
        assert np.load(path).shape == (4, 12)
    again = start(videos, encoder)
    said, _ = again.communicate(timeout=600)
    assert again.returncode == 0 and f"{len(kept)} of 40 clips are there already" in said, said
    assert len(FeatureFile("f.h5").load().ids()) == 40


def test_one_process_at_a_time_adds_to_a_file(tmp_path: Path) -> None:
    settings = Settings("encoder", 4, 4, 2, "uniform", "float16")
    with Store(tmp_path / "f.h5", settings) as store:
        np.save(store.part("a", "0"), np.zeros((2, 3), np.float16))
        with pytest.raises(UserError, match=r"another process extracts into .*f\.h5; wait"):
            Store(tmp_path / "f.h5", settings)
    with Store(tmp_path / "f.h5", settings) as store:
        assert store.has("a", "0") and store.finish({"a": "0"}, {}) == 1
    with Store(tmp_path / "f.h5", settings) as store:
        assert store.has("a", "0")
    assert [path.name for path in tmp_path.glob("f.h5*")] == ["f.h5"]
    (tmp_path / "link.h5").symlink_to("f.h5")
    with Store(tmp_path / "link.h5", settings) as store:  # adds to the file behind it
        np.save(store.part("b", "0"), np.zeros((2, 3), np.float16))
        with pytest.raises(UserError, match=r"another process extracts into .*f\.h5; wait"):
            Store(tmp_path / "f.h5", settings)
        assert store.finish({"a": "0", "b": "0"}, {}) == 2
    with Store(tmp_path / "f.h5", settings) as store:
        assert (tmp_path / "link.h5").is_symlink() and store.has("b", "0")


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_worker_that_dies_costs_nothing(videos: Path, encoder: Path) -> None:
    process = start(videos, encoder, "--workers", "2")
    wait_for_parts(3)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    with h5py.File("f.h5") as file:
        assert len(file) == 40


def test_mistakes_are_answered_at_once(
    videos: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*argv: str) -> str:
        assert main(list(argv)) == 2
        return capsys.readouterr().err

    assert "does not exist" in error(*arguments(tmp_path / "none", encoder))
    assert "is a file, a folder is needed" in error(*arguments(next(videos.glob("*.mp4")), encoder))
    assert "is not a folder" in error(*arguments(videos, tmp_path / "none"))
    assert "lacks config.json" in error(*arguments(videos, videos))
    assert "ends in .h5" in error(*arguments(videos, encoder)[:-4], "--output", "features.npy")
    (tmp_path / "f.h5").write_bytes(b"no features")
    assert "not a complete HDF5 file" in error(*arguments(videos, encoder))
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a.mp4", "a.mkv"):
        write_clip(twice / name, 0, 2)
    assert "would both be clip 'a'" in error(*arguments(twice, encoder))
    (twice / "a.mkv").unlink()
    (twice / "a.mp4").rename(twice / "ids.mp4")
    (tmp_path / "f.h5").unlink()
    assert "none of the 1 videos" in error(*arguments(twice, encoder))
