"""A device that holds a memory of camera models: what it recognises, what it answers about, how it is learnt."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import lit_mmpg
from lit_mmpg.camera_memory import CameraMemory
from lit_mmpg.cli import main
from lit_mmpg.data.artefacts import Instance, Placement, draw_model
from lit_mmpg.errors import UserError
from lit_mmpg.maps import resized
from lit_mmpg.profiling.benchmarks.services import free_port
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.camera import Camera, CloudMemory, Found, HeldMemory, open_camera
from lit_mmpg.runtime.client import CloudClient
from lit_mmpg.runtime.personal import PersonalDevice
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.video import resize, sample_video
from lit_mmpg.serving.app import create_app
from lit_mmpg.serving.cloud_half import CloudHalf
from lit_mmpg.serving.config import ServeConfig
from lit_mmpg.vision import load_vision_model
from tests.runtime.cloud_server import write_video
from tests.serving.test_connections import Local, running
from tests.test_camera_memory import MODELS, TOLD, H, W, film, world

PLACEMENT = Placement(0.9, 1, -1)


class Noting:
    """Notes with how many frames somebody is asked who recognises cameras."""

    def __init__(self, by: HeldMemory | CloudMemory) -> None:
        self._by, self.asked = by, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._by, name)

    def recognise(self, frames: np.ndarray, device_id: str) -> Found | None:
        self.asked.append(len(frames))
        return self._by.recognise(frames, device_id)


@pytest.fixture(scope="module")
def memory() -> CameraMemory:
    return TOLD.with_gates(world(100, 70))


@pytest.fixture
def bundle(made) -> Bundle:
    return Bundle.open(made("pixels").bundle)


def test_a_known_camera_is_corrected_from_one_clip_and_a_clean_one_is_left_alone(memory: CameraMemory) -> None:
    clean = world(4, 800)
    for model in (0, 3):
        camera = Camera(memory)
        seen = Instance(MODELS[model], PLACEMENT, H, W).film(clean, "b")
        corrected = camera.corrected(seen)
        assert corrected is not None and camera.found is not None and camera.found.model == model
        before, after = (abs(x.astype(float) - clean).mean() for x in (seen, corrected))
        assert after < 0.5 * before
        assert f"model {model + 1} of the 4" in camera.text and "by 1 frame," in camera.text
    left = [Camera(memory).corrected(world(1, 600 + i)) is None for i in range(40)]
    assert sum(left) >= 36, "one in fifty clean cameras is recognised"


def test_an_observed_camera_is_what_its_clips_say_until_it_is_cleared(memory: CameraMemory) -> None:
    camera, clean = Camera(memory, frames=4), world(4, 801)
    for i in range(6):
        camera.observe(film(0, PLACEMENT, 1, 900 + i))
    assert camera.corrected(clean) is not None and "by 4 frames" in camera.text
    camera.clear()
    assert camera.corrected(clean) is None and "not one of the 4 models" in camera.text


def test_a_room_that_hardly_changes_is_one_scene_however_often_it_is_seen(memory: CameraMemory) -> None:
    rng = np.random.default_rng(0)
    by = Noting(HeldMemory(memory))
    camera, room = Camera(by), world(1, 600)[0]
    for _ in range(20):
        moved = room.copy()
        moved[:, 10:30, 10:30] = rng.integers(255)  # somebody walks about
        camera.observe(moved[None])
        camera.corrected(room[None])
    assert set(by.asked) == {1} and camera.found is None
    for number in range(5):
        camera.observe(film(3, PLACEMENT, 1, 900 + number))  # scenes behind one artefact are several
    by.asked.clear()
    for _ in range(20):
        camera.observe(film(3, PLACEMENT, 1, 900))
        camera.corrected(room[None])
    assert set(by.asked) == {6}


def test_answers_are_about_corrected_frames_and_the_context_about_those_that_were_taken(
    bundle: Bundle, memory: CameraMemory
) -> None:
    seen = film(0, PLACEMENT, 3, 802)
    states = [DeviceState.open(bundle, None, "kitchen", "") for _ in range(3)]
    with (
        PersonalDevice(DeviceSession(bundle), states[0]) as plain,
        PersonalDevice(DeviceSession(bundle), states[1], camera=Camera(memory)) as device,
        PersonalDevice(DeviceSession(bundle), states[2], camera=Camera(TOLD.with_gates(world(50, 71)))) as clean,
    ):
        corrected = Camera(memory).corrected(resize(seen, plain.session.picture_size))
        assert corrected is not None
        wanted = plain.answer(corrected, "what is mine").scores
        assert not np.allclose(wanted, plain.answer(seen, "what is mine").scores, atol=1e-5)
        np.testing.assert_allclose(device.answer(seen, "what is mine").scores, wanted, atol=1e-5)
        for each in (plain, device):
            each.observe(seen)
        np.testing.assert_array_equal(states[0].clips[0].anchors, states[1].clips[0].anchors)
        other = world(3, 803)
        assert clean.answer(other, "what is mine").scores == plain.answer(other, "what is mine").scores
        device.reset()
        assert device.camera is not None and device.camera.observed == 0


def test_what_cannot_be_used_is_refused(bundle: Bundle, memory: CameraMemory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no gates"):
        Camera(TOLD)
    with pytest.raises(UserError, match="50, each of another clip"):
        TOLD.with_gates(world(49, 72))
    memory.save(tmp_path / "memory.safetensors")
    assert CameraMemory.load(tmp_path / "memory.safetensors").gates == memory.gates
    assert open_camera(None, bundle) is None
    own = SimpleNamespace(path="b", manifest=SimpleNamespace(own_statistics=object(), preprocessing=object()))
    with pytest.raises(UserError, match="leave --camera-memory out"):
        open_camera("memory.safetensors", own)
    blind = SimpleNamespace(path="b", manifest=SimpleNamespace(own_statistics=None, preprocessing=None))
    with pytest.raises(UserError, match="--frame-encoder"):
        open_camera("memory.safetensors", blind)
    with pytest.raises(UserError, match=r"gone\.safetensors is not a readable camera memory"):
        open_camera(str(tmp_path / "gone.safetensors"), bundle)
    with pytest.raises(UserError, match="--camera-query needs --cloud URL"):
        open_camera(None, bundle, query=True)
    with pytest.raises(UserError, match="leave one out"):
        open_camera("memory.safetensors", bundle, query=True)
    with pytest.raises(UserError, match="leave --camera-query out"):
        open_camera(None, own, query=True)


# -- a memory that the cloud holds -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(made, memory: CameraMemory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """The real service with the memory, in a thread of this process."""
    file = tmp_path_factory.mktemp("memory") / "memory.safetensors"
    memory.save(file)
    half = CloudHalf.load(made("pixels").cloud, device="cpu")
    with running(create_app(half, ServeConfig("", camera_memory=str(file)))) as local:
        yield local


def url_of(local: Local) -> str:
    return f"http://127.0.0.1:{local.port}"


def test_a_cloud_is_asked_seldom_and_corrects_as_a_memory_that_is_held(service: Local, memory: CameraMemory) -> None:
    clean = world(4, 800)
    seen = Instance(MODELS[0], PLACEMENT, H, W).film(clean, "b")
    with CloudClient(url_of(service)) as client:
        by = Noting(CloudMemory(client))
        camera = Camera(by)
        assert camera.corrected(seen) is None and not by.asked, "what was not observed is not sent"
        assert camera.text.startswith("not recognised yet")
        due = []
        for number in range(1, 41):
            camera.observe(film(0, PLACEMENT, 1, 900 + number))
            before = len(by.asked)
            corrected = camera.corrected(seen)
            due += [number] * (len(by.asked) - before)
        assert due == [1, 4, 16, 32] and by.asked == [1, 4, 16, 16]
        assert camera.found is not None and camera.found.model == 0 and corrected is not None
        assert "by 16 frames, as model 1 of the cloud's memory" in camera.text
        assert "(asked 4 times: 1" in camera.text and " down)" in camera.text
        before, after = (abs(x.astype(float) - clean).mean() for x in (seen, corrected))
        assert after < 0.6 * before
        plain = Camera(CloudMemory(client))
        plain.observe(world(1, 600))
        assert plain.corrected(clean) is None and "not one of the models of the cloud's memory" in plain.text
    held = Camera(memory)
    due = []
    for number in range(1, 34):
        held.observe(film(0, PLACEMENT, 1, 900 + number))
        found = held.found
        held.corrected(seen)
        due += [number] if held.found is not found else []
    assert due == [1, 2, 4, 8, 16, 32] and HeldMemory(memory).size == (H, W)


def test_a_device_answers_about_what_the_cloud_corrects(bundle: Bundle, service: Local) -> None:
    seen = film(0, PLACEMENT, 3, 802)
    states = [DeviceState.open(bundle, None, "kitchen", "") for _ in range(2)]
    with CloudClient(url_of(service)) as client:
        camera = Camera(CloudMemory(client))
        with (
            PersonalDevice(DeviceSession(bundle), states[0]) as plain,
            PersonalDevice(DeviceSession(bundle), states[1], camera=camera) as device,
        ):
            assert camera.device_id == "kitchen"
            device.observe(seen)
            answered = device.answer(seen, "what is mine").scores
            corrected = camera.corrected(resize(seen, plain.session.picture_size))
            assert corrected is not None
            np.testing.assert_allclose(answered, plain.answer(corrected, "what is mine").scores, atol=1e-5)
        with lit_mmpg.load(bundle.path).new_device("kitchen", camera_memory=client) as opened:
            opened.observe(seen)
            assert opened.answer(seen, "what is mine").scores == answered
            assert not np.allclose(answered, plain.answer(seen, "what is mine").scores, atol=1e-5)


def test_answers_go_on_while_the_cloud_is_away(made, bundle: Bundle, memory: CameraMemory, tmp_path: Path) -> None:
    memory.save(tmp_path / "memory.safetensors")
    half = CloudHalf.load(made("pixels").cloud, device="cpu")
    seen = film(0, PLACEMENT, 3, 802)
    app = create_app(half, ServeConfig("", camera_memory=str(tmp_path / "memory.safetensors")))
    with running(app) as local:
        client = CloudClient(url_of(local), timeout_s=60)
        by = Noting(CloudMemory(client))
        camera = Camera(by)
        camera.observe(seen)
        assert camera.corrected(seen) is not None and camera.problem is None
    with (
        client,
        PersonalDevice(DeviceSession(bundle), DeviceState.open(bundle, None, "k", ""), camera=camera) as device,
    ):
        for number in range(20):
            device.observe(film(0, PLACEMENT, 1, 900 + number))
            assert device.answer(seen, "what is mine").text
    assert camera.found is not None, "what was known stays"
    assert "by 1 frame, as model 1" in camera.text and "asked in vain: " in camera.text
    assert by.asked == [1, 4, 5, 7, 11, 16], "at the next clip, then ever more seldom"
    # A refusal that lasts is asked for once.
    with running(create_app(half, ServeConfig(""))) as local, CloudClient(url_of(local)) as client:
        by = Noting(CloudMemory(client))
        camera = Camera(by)
        for _ in range(3):
            camera.observe(seen)
            assert camera.corrected(seen) is None
        camera.clear()
        camera.observe(seen)
        assert camera.corrected(seen) is None and by.asked == [1]


def write_film(path: Path, frames: np.ndarray) -> Path:
    """A video of such frames, four times as large."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8, options={"qscale": "2", "flags": "+qscale"})
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 4 * H, 4 * W, "yuv420p", 8_000_000
        for frame in resize(frames, (4 * H, 4 * W)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.transpose(1, 2, 0).copy(), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_commands_ask_the_cloud_about_the_camera_when_they_are_told_to(
    bundle: Bundle, service: Local, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(2):
        write_film(videos / f"{i}.mp4", film(0, PLACEMENT, 5, 950 + i))
    ask = ["answer", str(videos / "0.mp4"), "what is mine", "--bundle", str(bundle.path), "--json"]

    def camera(*options: str) -> str | None:
        assert main([*ask, *options]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["answer"]
        return found["camera"]

    cloud = ["--cloud", url_of(service)]
    assert camera(*cloud) is None, "nothing is asked by itself"
    assert "by 1 frame, as model 1 of the cloud's memory" in str(camera(*cloud, "--camera-query"))
    gone = str(camera("--cloud", f"http://127.0.0.1:{free_port()}", "--camera-query"))
    assert "not recognised yet" in gone and "cannot be reached" in gone
    run = ["device", "--bundle", str(bundle.path), "--clips", str(videos), "--question", "what is mine"]
    assert main([*run, *cloud, "--camera-query"]) == 0
    assert "as model 1 of the cloud's memory" in capsys.readouterr().out
    assert main([*ask, "--camera-query"]) == 2
    assert "--camera-query needs --cloud URL" in capsys.readouterr().err
    assert main([*run, *cloud, "--camera-query", "--camera-memory", "memory.safetensors"]) == 2
    assert "leave one out" in capsys.readouterr().err


def pictures(folder: Path, frames: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame.transpose(1, 2, 0)).save(folder / f"{i:03d}.png")
    return folder


def test_from_the_clips_of_a_fleet_to_an_answer(bundle: Bundle, tmp_path: Path, capsys) -> None:
    clean = pictures(tmp_path / "clean", world(60, 73))
    for model in (0, 3):
        for i in range(3):
            pictures(
                tmp_path / "fleet" / f"m{model}-{i}",
                film(model, Placement(0.7 + 0.1 * i, i - 1, 0), 16, 40 * model + i),
            )
    pictures(tmp_path / "fleet" / "plain", world(16, 74))
    write_video(pictures(tmp_path / "fleet" / "short", world(1, 75)) / "clip.mp4")
    target = tmp_path / "memory.safetensors"
    ask = ["memory", "--fleet", str(tmp_path / "fleet"), "--clean", str(clean), "--output", str(target)]
    ask += ["--height", str(H), "--width", str(W)]
    assert main(ask) == 0
    said = capsys.readouterr().out
    assert "2 camera models" in said and "m0-0, m0-1, m0-2" in said and "m3-0, m3-1, m3-2" in said
    assert "short: fewer than 4 clips" in said and "1 devices are like no others" in said
    assert len(CameraMemory.load(target)) == 2
    # A second fleet adds to it.
    for i in range(3):
        pictures(tmp_path / "later" / f"m1-{i}", film(1, Placement(1.0, i - 1, 0), 16, 200 + i))
    (tmp_path / "later" / "m1-0" / "torn.png").write_bytes(b"no picture")
    ask[2] = str(tmp_path / "later")
    assert main([*ask[:-2], "--width", str(W + 1), "--add", str(target)]) == 2
    assert f"--add holds pictures of {H} x {W} pixels" in capsys.readouterr().err
    assert main([*ask[:-4], "--add", str(target)]) == 1  # one file could not be read
    assert "torn.png" in capsys.readouterr().out and len(CameraMemory.load(target)) == 3
    ask[2] = str(tmp_path / "fleet")  # the same fleet, a month later
    assert main([*ask[:-4], "--add", str(target)]) == 0
    assert "0 camera models, 2 that were known" in capsys.readouterr().out and len(CameraMemory.load(target)) == 3
    video = write_video(tmp_path / "clip.mp4")
    asked = [
        "answer",
        str(video),
        "what is mine",
        "--bundle",
        str(bundle.path),
        "--camera-memory",
        str(target),
        "--json",
    ]
    assert main(asked) == 0
    assert "of the 3 models of the memory" in json.loads(capsys.readouterr().out)["camera"]
    run = ["device", "--bundle", str(bundle.path), "--clips", str(video), "--question", "what is mine"]
    assert main([*run, "--camera-memory", str(target), "--state-dir", str(tmp_path / "state")]) == 0
    assert "camera: " in capsys.readouterr().out
    assert '"camera"' in next((tmp_path / "state").glob("*.jsonl")).read_text()


def test_mistakes_cost_seconds_and_no_memory(tmp_path: Path, capsys) -> None:
    clean = pictures(tmp_path / "clean", world(60, 73))
    pictures(tmp_path / "fleet" / "one", world(8, 76))
    for i in range(3):
        pictures(tmp_path / "apart" / str(i), world(8, 77 + i))
    target = tmp_path / "memory.safetensors"

    def ask(fleet: str, output: Path = target, clean: Path = clean) -> str:
        size = ["--height", str(H), "--width", str(W)]
        assert (
            main(["memory", "--fleet", str(tmp_path / fleet), "--clean", str(clean), "--output", str(output), *size])
            == 2
        )
        return capsys.readouterr().err

    assert "is not a folder" in ask("flet")
    assert "holds no folder with videos or pictures" in ask("clean")
    assert "ends in .safetensors" in ask("fleet", tmp_path / "memory.txt")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in ask("fleet", tmp_path / "file" / "memory.safetensors")
    assert "1 devices have 4 clips or more" in ask("fleet")
    assert "nothing is written" in ask("apart")
    assert "50, each of another clip" in ask("apart", clean=pictures(tmp_path / "few", world(9, 78)))
    for i in range(3):
        pictures(tmp_path / "copies" / str(i), world(8, 79))
    assert "16 clips are left out, as" in (said := ask("copies")) and "shows the same picture as" in said
    assert "1 clean frames cannot show" in ask("apart", clean=pictures(tmp_path / "one", world(1, 80).repeat(50, 0)))
    assert not target.exists()
    for wrong in ("--share=0", "--least=nan", "--fewest=1", "--height=4", "--width=wide"):
        with pytest.raises(SystemExit, match="2"):
            main(["memory", "--fleet", "fleet", "--clean", "clean", "--output", "m.safetensors", wrong])
        assert "is not between" in capsys.readouterr().err


@pytest.mark.soak
def test_real_clips_behind_artefacts_come_nearer_to_what_they_show(made, tmp_path: Path) -> None:
    """A memory that the command learns from real frames; five real videos behind what none of its devices has shown.

    A glass and a translucent overlay, recognised by the device itself and by a real service from one frame.
    """
    root = os.environ.get("LIT_MMPG_DATA")
    if not root:
        pytest.skip("LIT_MMPG_DATA is not set")
    height, width, rng = 72, 96, np.random.default_rng(0)
    with zipfile.ZipFile(f"{root}/msrvtt/frames_96x72.zip") as archive:
        clips: dict[str, list[str]] = {}
        for name in sorted(n for n in archive.namelist() if n.endswith(".jpg")):
            clips.setdefault(name.split("/")[-2], []).append(name)
        names = [clips[clip][len(clips[clip]) // 2] for clip in rng.permutation(sorted(clips)).tolist()]
        frames = iter([np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names[:600]])

    def some(count: int) -> np.ndarray:
        return np.stack([next(frames).transpose(2, 0, 1) for _ in range(count)])

    models = [
        draw_model(family, family, height, width, np.random.default_rng(seed), some(1)[0])
        for family, seed in (("glass", 12), ("overlay", 13))
    ]
    clean = pictures(tmp_path / "clean", some(100))
    for model in models:
        for i in range(6):
            placement = Placement(rng.uniform(0.6, 1.0), *np.rint(rng.uniform(-2, 2, 2)).tolist())
            taken = Instance(model, placement, height, width).film(some(24), "a")
            pictures(tmp_path / "fleet" / f"{model.name}{i}", taken)
    target = tmp_path / "memory.safetensors"
    asked = ["memory", "--fleet", str(tmp_path / "fleet"), "--clean", str(clean), "--output", str(target)]
    assert main(asked) == 0
    memory = CameraMemory.load(target)
    assert len(memory) == 2
    encoder = load_vision_model(f"{root}/../models/mobilenet_v2_1.0_224", 96).module.eval()

    def features(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return encoder(torch.from_numpy(resize(pixels, (96, 96)))).numpy()

    app = create_app(CloudHalf.load(made("pixels").cloud, device="cpu"), ServeConfig("", camera_memory=str(target)))
    with running(app) as local, CloudClient(url_of(local), timeout_s=60) as client:
        for model, most, mean in zip(models, (1.0, 1.2), (0.8, 1.0), strict=True):
            opacity, light = Instance(model, Placement(0.8, 1.5, -1.0), height, width).maps()
            ratios: list[list[float]] = []
            for video in sorted(Path(root, "videos").glob("*.mp4")):
                pixels = sample_video(video, 4, (240, 320)).pixels
                passes, added = (resized(image, pixels.shape[-2:]) for image in (1 - opacity, 255 * light))
                seen = np.clip(passes * pixels + added, 0, 255).astype(np.uint8)
                assert Camera(memory).corrected(pixels) is None
                away = np.linalg.norm(features(seen) - features(pixels))
                ratios.append([])
                for by in (HeldMemory(memory), CloudMemory(client)):
                    camera = Camera(by)
                    camera.observe(seen)
                    corrected = camera.corrected(seen)
                    assert corrected is not None, (model.name, video.name, camera.text)
                    ratios[-1].append(float(np.linalg.norm(features(corrected) - features(pixels)) / away))
            print(model.name, "held / through the service:", ", ".join(f"{a:.2f} / {b:.2f}" for a, b in ratios))
            assert max(map(max, ratios)) < most and np.mean(ratios) < mean
