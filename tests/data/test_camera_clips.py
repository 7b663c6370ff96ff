import csv
import io
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_mmpg.data import camera_clips, filming
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.camera_clips import CLEAN, CameraClipsData, CameraPopulation, plan_cameras
from lit_mmpg.data.cameras import apply, noise_seed
from lit_mmpg.data.datamodule import Annotation
from lit_mmpg.data.images import ImageFrames
from lit_mmpg.errors import UserError
from lit_mmpg.records import Clip, FilmedFrames

SMALL = CameraPopulation(
    pool=6, train=4, seen=2, val=2, test=5, clean=1, clips_per_camera=3, history=2, held_out="compression"
)


def make_clips(train: int = 8, val: int = 4, test: int = 3) -> list[Clip]:
    counts = {"train": train, "val": val, "test": test}
    return [Clip(f"{split}{i}", split) for split, count in counts.items() for i in range(count)]


def test_every_camera_group_asks_and_knows_what_it_should():
    plan = plan_cameras(make_clips(), SMALL)
    table = plan.table
    tests = {f"test{i}" for i in range(3)}
    assert [len(table.timelines[g]) for g in ("train", "val", "test_unseen", "test_seen", "test_clean")] == [
        4,
        2,
        5,
        2,
        1,
    ]
    for group in ("test_unseen", "test_seen", "test_clean"):
        assert all(set(clips) == tests for clips in table.timelines[group].values())
    for device, asked in table.timelines["val"].items():
        assert not set(asked) & set(table.histories["val"][device])
    for group in ("test_unseen", "test_clean"):
        assert all(c.startswith("val") for rows in table.histories[group].values() for c in rows)
    for group, rows in table.timelines.items():
        for device, clips in rows.items():
            filmed = set(plan.shots[device].clips)
            assert set(clips) <= filmed
            assert set(table.histories.get(group, {}).get(device, ())) <= filmed
    assert all(plan.shots[d].camera == CLEAN for d in table.timelines["test_clean"])
    assert all(plan.shots[d].camera != CLEAN for d in table.timelines["test_unseen"])


def test_the_held_out_family_stays_out_of_training_and_is_tested():
    population = CameraPopulation(clean_every=0)
    train = [population.camera("train", i) for i in range(300)]
    test = [population.camera("test", i) for i in range(40)]
    assert not any(camera.jpeg_quality for camera in [*train, *(population.camera("val", i) for i in range(16))])
    assert sum(camera.jpeg_quality > 0 for camera in test) == 10
    assert len(set(train)) == 300


def test_draws_change_the_training_cameras_and_nothing_else():
    first, second = (plan_cameras(make_clips(), SMALL.__class__(**{**SMALL.__dict__, "draw": d})) for d in (0, 1))
    names = [{d.id for d in p.table.devices if d.id.startswith("train")} for p in (first, second)]
    assert names[0] != names[1] and all({"train0000", "train0001"} <= n for n in names)
    for group in ("val", "test_unseen", "test_clean"):
        shots = [[p.shots[d] for d in p.table.timelines[group]] for p in (first, second)]
        assert shots[0] == shots[1]


def test_clean_training_leaves_the_test_devices_as_they_are():
    clean = plan_cameras(make_clips(), SMALL.__class__(**{**SMALL.__dict__, "shifted_training": False}))
    shifted = plan_cameras(make_clips(), SMALL)
    assert all(clean.shots[d].camera == CLEAN for d in clean.table.timelines["train"])
    assert "test_seen" not in clean.table.timelines
    for group in ("val", "test_unseen"):
        shots = [[p.shots[d] for d in p.table.timelines[group]] for p in (clean, shifted)]
        assert shots[0] == shots[1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pool", 2, "must not fall"),
        ("held_out", "rust", "choose one of"),
        ("max_families", 6, "at most 5"),
        ("max_severity", 9, "0 to 5"),
        ("clips_per_camera", 99, "lower data.cameras.clips_per_camera"),
        ("val", 0, "at least 1"),
    ],
)
def test_impossible_populations_are_refused(field: str, value: object, message: str):
    with pytest.raises(UserError, match=message):
        plan_cameras(make_clips(), SMALL.__class__(**{**SMALL.__dict__, field: value}))


class ColourEncoder:
    """Stands for a pretrained encoder where none may be assumed: mean and spread of the channels, as a real graph."""

    digest = "colours"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "colours.onnx"

    def prepare(self) -> Path:
        if not self.path.is_file():

            class Colours(torch.nn.Module):
                def forward(self, pixels: torch.Tensor) -> torch.Tensor:
                    x = pixels.float() / 255
                    return torch.cat([x.mean((2, 3)), x.square().mean((2, 3))], 1)

            example = torch.zeros(2, 3, 12, 16, dtype=torch.uint8)
            axes = ({i: torch.export.Dim(name, min=1, max=128) for i, name in ((0, "n"), (2, "h"), (3, "w"))},)
            torch.onnx.export(
                Colours().eval(), (example,), str(self.path), input_names=["pixels"], dynamic_shapes=axes, verbose=False
            )
        return self.path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "frames.zip", "w") as archive:
        for clip in make_clips():
            for t in range(int(rng.integers(1, 5))):
                with io.BytesIO() as file:
                    Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(file, "PNG")
                    archive.writestr(f"{clip.id}/f{t:03d}.png", file.getvalue())
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("video", "split"), *((c.id, c.split) for c in make_clips())])
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("video", "caption"), *((c.id, f"a clip called {c.id}") for c in make_clips())])
    return folder


def test_filming_equals_camera_then_encoder_and_is_done_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images, encoder = ImageFrames(root / "frames.zip", 3), ColourEncoder(tmp_path)
    plan = plan_cameras(make_clips(), SMALL)
    paths = filming.film(images, encoder, plan.shots, tmp_path / "cache", "content", workers=2)  # type: ignore[arg-type]
    lengths = {clip: images.num_frames(clip) for clip in images.ids()}
    films = {i: partial(camera_clips._load, path, plan.shots[i], lengths, "r") for i, path in paths.items()}
    filmed = FilmedFrames(films, clean=None)  # type: ignore[arg-type]
    for device in (0, len(plan.shots) - 2):
        shot = plan.shots[device]
        for clip in shot.clips:
            pixels = apply(shot.camera, images.pixels(clip), noise_seed(shot.seed, clip)) / 255
            expected = np.concatenate([pixels.mean((2, 3)), np.square(pixels).mean((2, 3))], 1)
            np.testing.assert_allclose(filmed.filmed(device, clip), expected, atol=1e-3)
    # What was cut short on the disk is made again, and nothing else.
    (pixels_file,) = (tmp_path / "cache").glob("pixels-*.npy")
    decoded, features = pixels_file.read_bytes(), paths[0].read_bytes()
    pixels_file.write_bytes(decoded[:-9])
    paths[0].write_bytes(b"")
    again: list[Path] = []
    monkeypatch.setattr(filming, "_work", lambda jobs, *_: again.extend(path for _, path in jobs))
    filming.film(images, encoder, plan.shots, tmp_path / "cache", "content")  # type: ignore[arg-type]
    assert again == [paths[0]] and pixels_file.read_bytes() == decoded
    paths[0].write_bytes(features)
    monkeypatch.setattr(filming, "_work", lambda *_: pytest.fail("encoded again"))
    filming.film(images, encoder, plan.shots, tmp_path / "cache", "content")  # type: ignore[arg-type]
    with pytest.raises(pytest.fail.Exception):
        filming.film(images, encoder, plan.shots, tmp_path / "cache", "other content")  # type: ignore[arg-type]


FILM = """
import pickle, signal, sys
from pathlib import Path
from lit_mmpg.data import filming

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shot, pixels, graph, jobs = pickle.loads(Path("asked").read_bytes())
    filming._work([(shot, Path(f"{i}.npy")) for i in range(jobs)], pixels, graph, 1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_filming_that_is_ended_films_no_further_camera_and_leaves_no_process(
    root: Path, tmp_path: Path, number: int
) -> None:
    images, jobs = ImageFrames(root / "frames.zip", 3), 50_000
    pixels = filming._unpack(images, images.ids(), tmp_path, "content")
    shot, graph = plan_cameras(make_clips(), SMALL).shots[0], str(ColourEncoder(tmp_path).prepare())
    (tmp_path / "asked").write_bytes(pickle.dumps((shot, pixels, graph, jobs)))
    (tmp_path / "film.py").write_text(FILM)
    process = subprocess.Popen(
        [sys.executable, "film.py"], cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while not (tmp_path / "0.npy").is_file():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        process.wait(60)
        deadline = time.monotonic() + 30
        while (left := session_of(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert not left
    assert len(list(tmp_path.glob("*.npy"))) < jobs


def session_of(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):
            if os.getsid(int(folder.name)) == leader:
                found.append(int(folder.name))
    return found


def test_clips_of_two_sizes_are_refused_and_leave_nothing(tmp_path: Path):
    for clip, size in (("a", (4, 6)), ("b", (6, 4))):
        (tmp_path / "frames" / clip).mkdir(parents=True)
        Image.new("RGB", size).save(tmp_path / "frames" / clip / "0.png")
    (tmp_path / "cache").mkdir()
    with pytest.raises(UserError, match="frames of 'b' have another size"):
        filming._unpack(ImageFrames(tmp_path / "frames", 1), ["a", "b"], tmp_path / "cache", "content")
    assert not list((tmp_path / "cache").iterdir())


def test_batches_show_each_device_through_its_own_camera(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lit_mmpg.data.camera_clips.FrameEncoder", lambda *_: ColourEncoder(tmp_path))
    shape = BatchShape(devices=2, clips=2, items_per_clip=1, context_clips=2, eval_devices=2, eval_clips=9)
    data = CameraClipsData(
        root=str(root),
        frames="frames.zip",
        encoder="encoder",
        cameras=SMALL,
        clips="clips.csv",
        captions=[Annotation("captions_csv", "captions.csv")],
        batch=shape,
        min_count=1,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup("fit")
    assert data.corpus.filmed is not None and data.corpus.clean is not None
    batch = next(iter(data.eval_batches("test_unseen", with_foreign=True)))
    for b, device in enumerate(batch.device.tolist()):
        for m, clip in enumerate(batch.clip[b].tolist()):
            expected = data.corpus.filmed.filmed(device, data.clip_ids[clip])
            np.testing.assert_array_equal(batch.frames.values[b, m][batch.frames.mask[b, m]].numpy(), expected)
        history = data.device_table.histories["test_unseen"][device]
        expected = np.concatenate([data.corpus.filmed.filmed(device, c) for c in history])
        np.testing.assert_array_equal(batch.context.values[b][batch.context.mask[b]].numpy(), expected)
    other = batch.device.tolist()[1]
    assert batch.foreign is not None
    expected = np.concatenate(
        [data.corpus.filmed.filmed(other, c) for c in data.device_table.histories["test_unseen"][other]]
    )
    np.testing.assert_array_equal(batch.foreign.values[0][batch.foreign.mask[0]].numpy(), expected)
    assert data.test_groups == ["test_unseen", "test_seen", "test_clean"]
    assert json.dumps(data.meta)  # a checkpoint can hold it


def test_images_that_cannot_be_read_are_named(root: Path, tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        ImageFrames(root / "frames.zap", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images named"):
        ImageFrames(tmp_path / "empty", 3)
    (tmp_path / "broken" / "clip").mkdir(parents=True)
    (tmp_path / "broken" / "clip" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.jpg cannot be read"):
        ImageFrames(tmp_path / "broken", 3).pixels("clip")
    (tmp_path / "torn.zip").write_bytes((root / "frames.zip").read_bytes()[:-30])
    with pytest.raises(UserError, match="not a complete zip"):
        ImageFrames(tmp_path / "torn.zip", 3)


def test_frames_are_in_the_order_of_their_numbers_and_upright(tmp_path: Path) -> None:
    (tmp_path / "frames/a").mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (4, 6), (20 * i,) * 3).save(tmp_path / f"frames/a/frame_{i}.png")
    images = ImageFrames(tmp_path / "frames", 12)
    assert [int(frame[0, 0, 0]) // 20 for frame in images.pixels("a")] == list(range(12))
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, 8:] = 255
    turn = Image.Exif()
    turn[0x0112] = 6  # as a phone that was held upright stores it: to be turned by 90 degrees
    (tmp_path / "phone/a").mkdir(parents=True)
    Image.fromarray(np.rot90(upright)).save(tmp_path / "phone/a/0.jpg", exif=turn, quality=95)
    (seen,) = ImageFrames(tmp_path / "phone", 1).pixels("a")
    assert seen.shape == (3, 8, 16) and seen[..., :6].max() < 20 and seen[..., 10:].min() > 235


def test_frames_of_thermal_cameras_keep_their_grey(tmp_path: Path) -> None:
    (tmp_path / "frames/a").mkdir(parents=True)
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "frames/a/0.png")
    (seen,) = ImageFrames(tmp_path / "frames", 1).pixels("a")
    np.testing.assert_array_equal(seen, np.broadcast_to(np.arange(256).reshape(16, 16), (3, 16, 16)))


def test_frames_lie_among_other_files(tmp_path: Path):
    for name in ("a/._0.png", ".Trash/0.png", "@eaDir/0.png", "__MACOSX/._a.png", "a/Thumbs.db"):
        (tmp_path / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "frames" / name).write_bytes(b"x")
    for i in range(3):
        Image.new("RGB", (4, 6), (i, i, i)).save(tmp_path / f"frames/a/{i}.png")
    with zipfile.ZipFile(tmp_path / "frames.zip", "w") as archive:
        for path in (tmp_path / "frames").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "frames"))
    for name in ("frames", "frames.zip"):
        images = ImageFrames(tmp_path / name, 9)
        assert images.ids() == ["a"] and [frame[0, 0, 0] for frame in images.pixels("a")] == [0, 1, 2]
    data = bytearray((tmp_path / "frames.zip").read_bytes())
    data[data.index(b"IHDR")] ^= 1
    (tmp_path / "frames.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"image a/0\.png cannot be read \(Bad CRC-32"):
        ImageFrames(tmp_path / "frames.zip", 9).pixels("a")
    (tmp_path / "frames/a/0.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"image a/0\.png cannot be read \(no image of a known kind\)"):
        ImageFrames(tmp_path / "frames", 9).pixels("a")
    (tmp_path / "frames/a/0.png").unlink()
    os.mknod(tmp_path / "frames/a/0.png", stat.S_IFSOCK | 0o600)
    with pytest.raises(UserError, match=r"image a/0\.png cannot be read \(it is no file\)"):
        ImageFrames(tmp_path / "frames", 9).pixels("a")
