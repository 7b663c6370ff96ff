"""The door for Python: the same parameters and answers as the commands give, in process and against a service."""

from __future__ import annotations

import dataclasses
import os
import random
import runpy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import lit_mmpg
from lit_mmpg.cli import main
from lit_mmpg.data.vocabulary import Vocabulary
from lit_mmpg.device.graphs import graph_specs
from lit_mmpg.errors import UserError
from lit_mmpg.export.in_process import TorchSession
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.looking import Eye
from lit_mmpg.runtime.loop import Device
from lit_mmpg.runtime.manifest import Frames, Guard, OwnStatistics
from lit_mmpg.runtime.personal import PersonalDevice
from lit_mmpg.runtime.policies import Always
from lit_mmpg.runtime.questions import Question, Questions
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.video import sample_video
from lit_mmpg.serving.app import create_app
from lit_mmpg.serving.cloud_half import CloudHalf
from lit_mmpg.serving.config import ServeConfig
from lit_mmpg.statistics import Moments
from lit_mmpg.system import System
from tests.export.conftest import device_model
from tests.runtime.cloud_server import serving, write_video
from tests.serving.test_connections import running

EXAMPLE = Path(__file__).parents[2] / "examples" / "adapt_a_device.py"
ASKED = "what is mine"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five mp4 files: the real ones where there are any."""
    root = os.environ.get("LIT_MMPG_DATA")
    real = sorted(Path(root, "videos").glob("*.mp4")) if root else []
    if real:
        return real[:5]
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"c{i}.mp4", 4 + 3 * i) for i in range(5)]


@pytest.fixture(scope="module")
def system(made) -> System:
    return lit_mmpg.load(made("pixels").cloud)


@pytest.fixture(scope="module")
def service(made) -> Iterator[str]:
    """The real service, in a thread of this process."""
    half = CloudHalf.load(made("pixels").cloud, device="cpu")
    with running(create_app(half, ServeConfig(""))) as local:
        yield f"http://127.0.0.1:{local.port}"


# -- names ---------------------------------------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    assert set(lit_mmpg.__all__) == set(lit_mmpg._PUBLIC) | {"__version__"}
    assert set(lit_mmpg.__all__) <= set(dir(lit_mmpg))
    for name, module in lit_mmpg._PUBLIC.items():
        assert getattr(lit_mmpg, name).__module__ == module
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        lit_mmpg.laod  # noqa: B018


# -- the same as the commands --------------------------------------------------------------------------------------


def test_the_example_runs_and_its_parameters_are_those_of_the_device_command(
    made, videos: list[Path], service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = made("pixels")
    (tmp_path / "clips").mkdir()
    for video in videos:
        (tmp_path / "clips" / video.name).symlink_to(video)
    (tmp_path / "best.ckpt").symlink_to(pair.cloud)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLOUD", service)
    found = runpy.run_path(str(EXAMPLE))
    assert found["before"].parameters == "static" != found["after"].parameters
    assert found["before"].scores != found["after"].scores
    traffic, remote = found["outcome"].traffic, found["remote"].traffic
    assert traffic.upload_payload_bytes == remote.upload_payload_bytes
    assert traffic.upload_message_bytes <= remote.upload_message_bytes < remote.upload_wire_bytes
    assert (traffic.upload_wire_bytes, traffic.download_wire_bytes) == (0, 0)

    options = ["--bundle", str(pair.bundle), "--cloud", service, "--policy", "always", "--state-dir", "state"]
    assert main(["device", "--clips", "clips", "--question", ASKED, *options]) == 0
    bundle = Bundle.open(pair.bundle)
    parameters = DeviceState.load(bundle, "state").parameters
    assert parameters is not None and bundle.spec.tensors_digest(parameters) == found["outcome"].digest

    device = lit_mmpg.load(pair.bundle).new_device("kitchen")
    for video in videos:
        device.observe(video)
    assert device.personalise(cloud=service).digest == found["outcome"].digest == device.parameters
    after, again = found["after"], device.answer(videos[0], ASKED)
    assert again.text == after.text
    np.testing.assert_allclose(again.scores, after.scores, atol=1e-5)


def test_personal_parameters_travel_as_a_lora_adapter(system: System, videos: list[Path], tmp_path: Path) -> None:
    first, second = system.new_device("kitchen"), system.new_device("hall")
    with pytest.raises(UserError, match=r"no personal parameters; call personalise\(\)"):
        first.save_adapter(tmp_path / "adapter")
    first.observe(videos[0])
    digest = first.personalise().digest
    first.save_adapter(tmp_path / "adapter")
    seen = second.features(videos[0])
    static = second.answer(seen, ASKED)
    second.load_adapter(tmp_path / "adapter")
    personal = second.answer(seen, ASKED)
    assert second.parameters == personal.parameters == digest
    assert personal.scores == first.answer(seen, ASKED).scores != static.scores
    bounds = Guard(8, (1,), 0.5, [], {"head.u": (0.0, 1e-9)}, {})
    second.session.manifest = dataclasses.replace(second.session.manifest, guard=bounds)
    with pytest.raises(UserError, match=r"adapter are refused: 'head.u' has size"):
        second.load_adapter(tmp_path / "adapter")
    second.session.manifest = first.session.manifest
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        second.load_adapter(tmp_path / "adapter")
    assert second.answer(seen, ASKED).scores == personal.scores
    second.observe(videos[0])  # a context that comes later
    assert second.personalise().digest == digest
    second.reset()
    assert second.answer(seen, ASKED).scores == static.scores


@pytest.mark.parametrize("context", ["device", "clip"])
def test_own_statistics_are_those_of_the_device_command(made, videos: list[Path], context: str) -> None:
    """Every clip is answered when it comes; more clips come than a context holds."""
    whole = Bundle.open(made("pixels").bundle)
    rng, width = np.random.default_rng(0), whole.manifest.frames.features
    moments = Moments(rng.normal(size=width).astype(np.float32), rng.uniform(1, 2, width).astype(np.float32))
    own = OwnStatistics(4, 1 if context == "clip" else 2, context)
    bundle = Bundle(whole.path, dataclasses.replace(whole.manifest, own_statistics=own), whole.quantiser, moments)
    with DeviceSession(bundle) as command, DeviceSession(bundle) as session:
        taker = Device(command, Eye(command), Questions([Question(ASKED)]), Always())
        device = PersonalDevice(session, DeviceState.open(bundle, None, "kitchen", ""))
        plain = [device.answer(video, ASKED).confidence for video in videos]
        for video, before in zip(videos, plain, strict=True):
            device.observe(video)
            confidence = device.answer(video, ASKED).confidence
            assert confidence == taker.take(video).replies[0].confidence
            assert confidence != before or len(device.state.clips) == 1 or context == "clip"


def test_all_kinds_of_clips_are_the_same_clip(system: System, videos: list[Path]) -> None:
    device, most, video = system.new_device(), system.bundle.manifest.frames.max_frames, videos[-1]
    frames = sample_video(video, most, device.session.picture_size).pixels
    expected = device.answer(video, ASKED)
    assert device.answer(str(video), ASKED) == expected
    assert device.answer(frames, ASKED) == expected == device.answer(torch.from_numpy(frames), ASKED)
    assert device.answer(device.features(video), ASKED) == expected
    np.testing.assert_array_equal(device.features(video), device.session.encode(frames))
    large = np.repeat(sample_video(video, 10**6).pixels, 2, 0)  # as filmed: the device chooses frames and resizes them
    assert len(large) > most
    np.testing.assert_allclose(device.answer(large, ASKED).scores, expected.scores, atol=0.1)


# -- what a device remembers ---------------------------------------------------------------------------------------


def test_a_device_forgets_when_it_is_reset_and_keeps_its_parameters_when_the_cloud_fails(
    system: System, videos: list[Path], made
) -> None:
    device, other = system.new_device("kitchen"), system.new_device("hall")
    features = device.session.encode(sample_video(videos[0], 4, device.session.picture_size).pixels)
    static = device.answer(features, ASKED)
    device.observe(features)
    own = device.personalise()
    personal = device.answer(features, ASKED)
    assert personal.parameters == own.digest == device.parameters and other.answer(features, ASKED) == static
    with serving(Bundle.open(made("pixels").bundle)) as (url, told):
        told["fault"] = "503"
        with pytest.raises(UserError, match="the cloud is busy"):
            device.personalise(cloud=url)
        assert device.answer(features, ASKED) == personal
        told["fault"] = ""
        assert device.personalise(cloud=url).digest not in (None, own.digest)
        assert device.answer(features, ASKED).scores != personal.scores
    device.reset()
    assert device.answer(features, ASKED) == static
    with pytest.raises(UserError, match="'kitchen' has observed no clip; call observe"):
        device.personalise()
    device.observe(features)
    assert device.personalise().digest == own.digest
    device.close()
    assert device.parameters == "static"


def test_codec_and_noise_are_those_of_the_device_command(system: System) -> None:
    features = np.random.default_rng(0).normal(size=(3, system.bundle.manifest.frames.features))
    plain, fine, noisy = (
        system.new_device(),
        system.new_device(upload_codec="fp32"),
        system.new_device(anchor_noise=1.0),
    )
    for device in (plain, fine, noisy):
        device.observe(features)
    bytes_up = [device.personalise().traffic.upload_payload_bytes for device in (plain, fine, noisy)]  # type: ignore[union-attr]
    assert bytes_up[0] == bytes_up[2] < bytes_up[1]
    assert len({device.parameters for device in (plain, fine, noisy)}) == 3


def test_loading_leaves_the_random_numbers_of_the_process_alone(made) -> None:
    checkpoint = made("features").device
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    expected = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    before = os.environ.get("PL_GLOBAL_SEED")
    assert repr(lit_mmpg.load(checkpoint)).endswith("0 personal parameters>")
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected  # noqa: NPY002
    assert os.environ.get("PL_GLOBAL_SEED") == before


# -- other models --------------------------------------------------------------------------------------------------


def test_a_model_of_features_takes_videos_where_its_frame_encoder_is_named(
    made, encoder_folder: Path, videos: list[Path], tmp_path: Path
) -> None:
    checkpoint = made("features").cloud
    blind, seeing = lit_mmpg.load(checkpoint).new_device(), lit_mmpg.load(checkpoint, encoder_folder).new_device()
    with pytest.raises(UserError, match=r"holds no frame encoder; .*load a checkpoint with frame_encoder="):
        blind.observe(videos[0])
    seeing.observe(videos[0])
    frames = sample_video(videos[0], seeing.session.manifest.frames.max_frames, (40, 40)).pixels
    blind.observe(seeing.session.encode(frames))
    assert seeing.personalise().digest == blind.personalise().digest
    with pytest.raises(UserError, match="is not a folder"):
        lit_mmpg.load(checkpoint, tmp_path / "none")
    with pytest.raises(UserError, match="has an encoder of its own; leave it out"):
        lit_mmpg.load(made("pixels").cloud, encoder_folder)


def test_multiple_choice_takes_options(made) -> None:
    network = device_model("multiple_choice", None)
    manifest = dataclasses.replace(
        Bundle.open(made("pixels").bundle).manifest,
        task="multiple_choice",
        spec=ParameterSpec(()),
        anchors=None,
        link=None,
        frames=Frames(24, 16, 5),
        vocabulary=Vocabulary(("which", "one", "is", "mine"), (1, 1, 1, 1), 1).to_json(),
    )
    bundle = Bundle(Path("best.ckpt"), manifest)
    graphs = {graph.role: graph for graph in graph_specs(network, 5, 3)}
    device = System(bundle, lambda: TorchSession(bundle, graphs)).new_device()
    clip = np.random.default_rng(0).normal(size=(4, 24))
    answer = device.answer(clip, "which one is mine", options=["this", "that", "the other"])
    assert answer.text in ("this", "that", "the other") and len(answer.scores) == len(answer.ranking) == 3
    with pytest.raises(UserError, match="needs options to choose from"):
        device.answer(clip, "which one is mine")
    with pytest.raises(UserError, match=r"options \['this', ''\]: one is empty"):
        device.answer(clip, "which one is mine", options=["this", ""])
    device.observe(clip)  # a static model remembers nothing
    with pytest.raises(UserError, match="holds a static model, which no cloud can adapt"):
        device.personalise()


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_mistakes_are_said_in_one_sentence(
    made, system: System, service: str, videos: list[Path], tmp_path: Path
) -> None:
    def error(function, *arguments, **options) -> str:
        with pytest.raises(UserError) as caught:
            function(*arguments, **options)
        return str(caught.value)

    assert "does not exist; did you mean" in error(lit_mmpg.load, made("pixels").cloud.with_name("bset.ckpt"))
    assert "is a folder without config.json" in error(lit_mmpg.load, tmp_path)
    assert "damaged or not a checkpoint" in error(lit_mmpg.load, videos[0])
    assert "brings its frame encoder" in error(lit_mmpg.load, made("pixels").bundle, frame_encoder=tmp_path)
    assert "name the device otherwise" in error(system.new_device, "two\nlines")
    assert "unknown upload codec 'int-7'" in error(system.new_device, upload_codec="int-7")
    for noise in (-1.0, None, "0.1", [0.1]):
        assert "must be 0 or more" in error(system.new_device, anchor_noise=noise)
    for name in ("a" * 5000, Path("a" * 5000), "o/" + "a" * 5000):
        assert "too long for a path" in error(lit_mmpg.load, name)
    assert "too long for a path" in error(lit_mmpg.load, made("features").cloud, frame_encoder="a" * 5000)

    device, width = system.new_device("kitchen"), system.bundle.manifest.frames.features
    assert "does not exist" in error(device.observe, tmp_path / "none.mp4")
    assert f"or features [T, {width}]" in error(device.observe, np.zeros((3, width + 1)))
    assert "of type uint8" in error(device.observe, np.zeros((3, 3, 24, 24), np.float32))
    assert "give the path of a video" in error(device.observe, np.zeros((0, width)))
    assert "give the path of a video" in error(device.observe, None)
    assert "is a path, frames or features" in error(device.observe, torch.zeros(3, width, requires_grad=True))
    assert "NaN or infinity" in error(device.observe, np.full((3, width), np.nan))
    assert not device.state.clips
    clip = np.zeros((3, width), np.float32)
    assert "the question is empty" in error(device.answer, clip, " ")
    assert "leave options out" in error(device.answer, clip, ASKED, options=["a", "b"])
    assert "options is 'red'; give a list" in error(device.answer, clip, ASKED, options="red")
    assert "options is None; give a list" in error(device.answer, clip, ASKED, options=None)
    assert "clips is one str; give a list" in error(device.search, "a dog", "a.mp4")
    assert "cloud is 3; give the address" in error(lambda: (device.observe(clip), device.personalise(cloud=3)))
    for folder in (None, 5, b"x", ["x"], "a\0b", "a" * 5000):
        assert "path" in error(device.load_adapter, folder)
    assert "leave options out" in error(device.answer, clip, ASKED, options=np.array(["a", "b"]))
    for seconds in (None, "5", [1], 0):
        assert "more than 0" in error(device.personalise, cloud="http://127.0.0.1:9", timeout_s=seconds)
    device.reset()
    assert "source is None; give the path" in error(lit_mmpg.load, None)
    assert "answers questions, it does not search" in error(device.search, "a dog", [clip])
    device.observe(clip)
    assert "is not a URL" in error(device.personalise, cloud="127.0.0.1:80")
    assert "cannot be reached" in error(device.personalise, cloud="http://127.0.0.1:9", timeout_s=0.5)
    assert device.parameters == "static"

    bundled = lit_mmpg.load(made("pixels").bundle).new_device()
    bundled.observe(clip)
    assert "call personalise(cloud=" in error(bundled.personalise)
    stranger = lit_mmpg.load(made("features").cloud).new_device()
    stranger.observe(np.zeros((3, stranger.session.manifest.frames.features)))
    assert "belong to different trainings" in error(stranger.personalise, cloud=service)
