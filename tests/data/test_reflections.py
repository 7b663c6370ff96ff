import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_mmpg.data import filming
from lit_mmpg.data.camera_clips import CameraPopulation, plan_cameras
from lit_mmpg.data.cameras import noise_seed
from lit_mmpg.data.images import ImageFrames
from lit_mmpg.data.reflections import STRENGTHS, Reflection, reflect
from lit_mmpg.errors import UserError
from lit_mmpg.records import FrameSource
from tests.data.test_camera_clips import make_clips

GLASS = CameraPopulation(
    pool=8, train=6, seen=1, val=3, test=5, clean=1, clips_per_camera=3, history=2, max_severity=0, reflections=5,
    clean_every=4,
)  # fmt: skip


def test_the_mirrored_scene_is_added_to_every_frame_with_left_and_right_swapped():
    frames = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 5), dtype=np.uint8)
    scene = np.random.default_rng(1).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    seen = reflect(Reflection("other", 0.25), frames, scene)
    for t, c, y, x in np.ndindex(frames.shape):
        expected = 0.75 * int(frames[t, c, y, x]) + 0.25 * int(scene[c, y, 4 - x])
        assert abs(int(seen[t, c, y, x]) - expected) <= 0.5001


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_without_meaning_are_refused(share: float):
    with pytest.raises(UserError, match="above 0 and below 1"):
        Reflection("clip", share)


def test_scenes_of_another_size_are_named():
    with pytest.raises(UserError, match="'other' is"):
        reflect(Reflection("other", 0.5), np.zeros((1, 3, 4, 4), np.uint8), np.zeros((3, 4, 5), np.uint8))


def test_every_device_has_its_own_glass_and_scenes_of_training_are_not_tested():
    plan = plan_cameras(make_clips(train=20), GLASS)
    scenes: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    shares: dict[str, list[float]] = {"train": [], "val": [], "test": []}
    for device, shot in plan.shots.items():
        name = plan.table.devices[device].id
        group = name.rstrip("0123456789")
        if group == "clean" or (group == "train" and int(name.removeprefix("train")) % 4 == 3):
            assert shot.clean and shot.describe() == {"camera": "clean"}
            continue
        assert shot.reflection is not None and not shot.clean and "reflection" in shot.describe()
        scenes[group].add(shot.reflection.clip)
        shares[group].append(shot.reflection.share)
    assert not scenes["train"] & (scenes["val"] | scenes["test"])
    assert all(clip.startswith("train") for group in scenes.values() for clip in group)
    assert sorted(shares["test"]) == sorted(STRENGTHS)


def test_a_population_without_glass_is_described_as_before():
    without = plan_cameras(make_clips(train=20), dataclasses.replace(GLASS, reflections=0, max_severity=3))
    assert "reflections" not in without.table.recipe and all(s.reflection is None for s in without.shots.values())
    assert plan_cameras(make_clips(train=20), GLASS).table.recipe["reflections"] == 5


def test_glass_needs_scenes_and_a_known_severity():
    with pytest.raises(UserError, match="0 to 5"):
        plan_cameras(make_clips(train=20), dataclasses.replace(GLASS, reflections=6))
    with pytest.raises(UserError, match="training clips as scenes"):
        plan_cameras(make_clips(train=0), GLASS)


def test_filming_through_glass_is_reflection_then_camera_then_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "frames.zip", "w") as archive:
        for clip in make_clips(train=20):
            for t in range(3):
                Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(tmp_path / "f.png")
                archive.write(tmp_path / "f.png", f"{clip.id}/f{t}.png")
    images = ImageFrames(tmp_path / "frames.zip", 3)
    population = dataclasses.replace(GLASS, max_severity=2)
    plan = plan_cameras(make_clips(train=20), population)
    shot = next(s for d, s in plan.shots.items() if plan.table.devices[d].id == "test000")
    lengths = dict.fromkeys(sorted(images.ids()), 3)
    frames = FrameSource(np.concatenate([images.pixels(clip) for clip in lengths]), lengths)
    monkeypatch.setattr(filming, "_STATE", {"frames": frames, "session": None})
    monkeypatch.setattr(filming, "run_graph", lambda _, filmed: filmed.reshape(len(filmed), -1) / 255)
    filming._film_one(shot, str(tmp_path / "out.npy"))
    assert shot.reflection is not None
    scene = images.pixels(shot.reflection.clip)[1]
    expected = [
        filming.apply(shot.camera, reflect(shot.reflection, images.pixels(c), scene), noise_seed(shot.seed, c))
        for c in shot.clips
    ]
    wanted = np.concatenate(expected).reshape(-1, 576) / 255
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-3)
