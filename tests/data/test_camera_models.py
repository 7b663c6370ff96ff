import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_mmpg.camera_memory import CameraMemory
from lit_mmpg.data import filming
from lit_mmpg.data.camera_clips import CameraPopulation, plan_cameras
from lit_mmpg.data.filming import Shot
from lit_mmpg.data.images import ImageFrames
from lit_mmpg.errors import UserError
from lit_mmpg.maps import undo
from lit_mmpg.records import FrameSource
from tests.data.test_camera_clips import make_clips

MODELS = CameraPopulation(
    pool=24, train=24, seen=1, val=4, test=8, clean=1, clips_per_camera=8, history=6, max_severity=0, clean_every=7,
    models=5,
)  # fmt: skip


def test_cameras_of_one_model_share_an_artefact_and_some_unseen_ones_are_of_new_models():
    plan = plan_cameras(make_clips(train=40, val=20), MODELS)
    models: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    strengths = set()
    for device, shot in plan.shots.items():
        group = plan.table.devices[device].id.rstrip("0123456789")
        if group == "clean" or shot.clean:
            assert shot.artefact is None
            continue
        assert shot.artefact is not None and shot.describe()["camera model"] == shot.artefact.model
        models[group].add(shot.artefact.model)
        strengths.add(shot.artefact.placement.strength)
        assert bool(shot.artefact.scene) == (shot.artefact.family == "glass")
    assert len(models["train"]) == 5 and len(strengths) > 20
    assert len(models["test"] - models["train"]) == 2 and len(models["val"] - models["train"]) == 1
    assert not (models["test"] - models["train"]) & models["val"]
    assert plan.table.recipe["models"] == 5
    assert "models" not in plan_cameras(make_clips(train=40), dataclasses.replace(MODELS, models=0)).table.recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": -1}, "models is -1"),
        ({"corrected_by": 0}, "corrected_by is 0; it must be at least 1"),
        ({"models": 0, "correction": "memory"}, "without camera models"),
    ],
)
def test_settings_that_say_nothing_are_refused(change: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        plan_cameras(make_clips(train=40), dataclasses.replace(MODELS, **change))  # type: ignore[arg-type]


def test_artefacts_need_training_clips():
    with pytest.raises(UserError, match="needs training clips"):
        plan_cameras(make_clips(train=0), MODELS)


def test_a_shared_gallery_deals_each_clip_to_one_camera_of_a_group():
    clips = make_clips(train=40, val=20, test=24)
    every = plan_cameras(clips, MODELS)
    plan = plan_cameras(clips, dataclasses.replace(MODELS, shared_gallery=True))
    asked = {clip.id for clip in clips if clip.split == "test"}
    scenes = [shot.artefact.scene for shot in plan.shots.values() if shot.artefact]
    assert not asked & set(scenes)
    for group in ("test_unseen", "test_clean", "test_seen", "val"):
        rows = plan.table.timelines[group]
        films = [clip for own in rows.values() for clip in own]
        assert all(rows.values()) and sorted(films) == sorted(set(films))
        assert set(films) == {clip for own in every.table.timelines[group].values() for clip in own}
    assert (
        plan.table.histories == every.table.histories
        and plan.table.timelines["train"] == every.table.timelines["train"]
    )
    for device, shot in every.shots.items():
        assert dataclasses.replace(plan.shots[device], clips=()) == dataclasses.replace(shot, clips=())
    with pytest.raises(UserError, match=r"deals 4 clips to 8 cameras; lower data\.cameras\.test"):
        plan_cameras(make_clips(train=40, val=20, test=4), dataclasses.replace(MODELS, shared_gallery=True))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageFrames:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("models")
    with zipfile.ZipFile(folder / "frames.zip", "w") as archive:
        for clip in make_clips(train=40, val=60):
            scene = rng.uniform(40, 210, (3, 4, 3)).repeat(12, 0).repeat(12, 1)
            for t in range(2):
                noisy = np.clip(scene + rng.normal(0, 8, scene.shape), 0, 255)
                Image.fromarray(noisy.astype(np.uint8)).save(folder / "f.png")
                archive.write(folder / "f.png", f"{clip.id}/f{t}.png")
    return ImageFrames(folder / "frames.zip", 2)


@pytest.fixture(scope="module")
def population() -> CameraPopulation:
    return dataclasses.replace(MODELS, pool=32, train=32, clips_per_camera=16, clean_every=0, models=4)


def test_the_memory_that_cameras_upload_corrects_frames_and_an_oracle_does_so_exactly(
    images: ImageFrames, population: CameraPopulation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = plan_cameras(make_clips(train=40, val=60), population)
    training = [shot for d, shot in plan.shots.items() if d in plan.table.timelines["train"]]
    training = [dataclasses.replace(shot, clips=shot.clips[:16]) for shot in training]
    clean = sorted(images.ids())
    path = filming.keep_memory(images, training, clean, tmp_path, "content")
    written = path.stat().st_mtime_ns
    assert filming.keep_memory(images, training, clean, tmp_path, "content") == path
    assert path.stat().st_mtime_ns == written, "what is on the disk is not learnt again"
    memory = CameraMemory.load(path)
    assert len(memory) >= 2 and memory.gate(16) >= 0

    lengths = dict.fromkeys(sorted(images.ids()), 2)
    frames = FrameSource(np.concatenate([images.pixels(clip) for clip in lengths]), lengths)
    monkeypatch.setattr(filming, "_STATE", {"frames": frames, "session": None})
    monkeypatch.setattr(filming, "run_graph", lambda _, filmed: filmed.reshape(len(filmed), -1) / 255)

    def shown(shot: Shot) -> np.ndarray:
        filming._film_one(shot, str(tmp_path / "out.npy"))
        features: np.ndarray = np.load(tmp_path / "out.npy").astype(np.float32) * 255
        return features.reshape(-1, 3, 36, 48)

    errors = []
    for device, history in plan.table.histories["test_unseen"].items():
        shot = dataclasses.replace(plan.shots[device], clips=plan.shots[device].clips[:4])
        assert shot.artefact is not None
        true = np.concatenate([images.pixels(clip) for clip in shot.clips]).astype(np.float32)
        taken = shown(shot)
        scene = images.pixels(shot.artefact.scene)[1] if shot.artefact.scene else None
        instance = shot.artefact.instance(36, 48, shot.seed, scene)
        opacity, light = instance.maps()
        expected = np.concatenate([instance.film(images.pixels(c), c, shot.seed) for c in shot.clips])
        np.testing.assert_allclose(taken, expected, atol=0.5)
        exact = shown(dataclasses.replace(shot, memory=str(path)))
        np.testing.assert_allclose(exact, undo(opacity, 255 * light, memory.scene, 1.0)(expected), atol=0.5)
        told = shown(dataclasses.replace(shot, memory=str(path), history=history))
        errors.append((abs(told - true).mean(), abs(taken - true).mean()))
    with_memory, without = np.array(errors).T
    assert (with_memory < 0.9 * without).any(), "a camera is recognised and its frames come nearer to clean ones"
    assert (with_memory < 1.05 * without).all(), "the others are left as they are"
