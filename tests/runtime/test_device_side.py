"""The device without torch: same anchors and answers as in training, a state that survives, and a cloud that fails."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.cli import main
from lit_mmpg.device.anchors import select_anchors as torch_anchors
from lit_mmpg.errors import UserError, nearest
from lit_mmpg.runtime.adaptation import adapt, restore
from lit_mmpg.runtime.anchors import select_anchors
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.client import CloudClient, CloudError
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.video import list_videos, sample_video, uniform_indices
from tests.runtime.cloud_server import parameters_of, serving, write_video

RNG = np.random.default_rng(0)


@pytest.fixture
def bundle(made) -> Bundle:
    return Bundle.open(made("pixels").bundle)


# -- anchors, frames, answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["first", "uniform", "k_center"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("frames", [1, 2, 5, 9])
def test_anchors_are_those_of_training(rule: str, count: int, frames: int) -> None:
    features = RNG.normal(size=(frames, 4)).astype(np.float32)
    ours = select_anchors(features, count, rule)
    theirs = torch_anchors(torch.from_numpy(features), torch.ones(frames, dtype=torch.bool), count, rule)  # type: ignore[arg-type]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine[: len(other)], other.numpy(), atol=1e-6)
        assert not mine[len(other) :].any()


def test_frames_are_decoded_in_order_spread_evenly_and_resized(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4")
    frames = sample_video(video, 4, (24, 32)).pixels
    assert frames.shape == (4, 3, 24, 32) and frames.dtype == np.uint8
    wanted = 16 * uniform_indices(12, 4)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), wanted, atol=6)
    assert len(sample_video(video, 99).pixels) == 12
    assert uniform_indices(12, 4).tolist() == [1, 4, 7, 10]


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.mp4").write_bytes(write_video(tmp_path / "clip.mp4").read_bytes()[:400])
    with pytest.raises(UserError, match=r"torn\.mp4: is cut off"):
        sample_video(tmp_path / "torn.mp4", 2)
    with pytest.raises(UserError, match=r"does not exist.*clip\.mp4"):
        sample_video(tmp_path / "clap.mp4", 2)
    with pytest.raises(UserError, match="holds no video files"):
        (tmp_path / "empty").mkdir()
        list_videos(tmp_path / "empty")
    with pytest.raises(UserError, match=r"folder .*clip\.mp4 is a file, a folder is needed"):
        list_videos(tmp_path / "clip.mp4")
    assert nearest(tmp_path / "clip.mp4") == " (it is a file)"  # where a folder is asked for


def test_answers_are_those_of_the_bundles_reference_and_personal_ones_differ(bundle: Bundle) -> None:
    reference = bundle.reference()
    with DeviceSession(bundle) as session:
        samples = reference.roles["model"]
        row = samples.inputs["frame_mask"][0]
        features = samples.inputs["frames"][0][row]
        question = "what is mine"
        plain = session.answer(features, question)
        assert 0 < plain.confidence <= 1 and plain.text in bundle.manifest.answers
        assert [share for _, share in plain.ranking] == sorted((s for _, s in plain.ranking), reverse=True)
        session.swap(parameters_of(bundle, 1))
        assert session.adapted and session.answer(features, question).ranking != plain.ranking
        session.swap(None)
        assert session.answer(features, question) == plain
        with pytest.raises(UserError, match="answers questions"):
            session.embed_text("a dog")
        with pytest.raises(UserError, match="leave options out"):
            session.answer(features, question, ["a", "b"])


# -- state -------------------------------------------------------------------------------------------------------


def filled(bundle: Bundle) -> DeviceState:
    state = DeviceState(bundle)
    for frames in (3, 1, 4):
        state.see(RNG.normal(size=(frames, bundle.manifest.frames.width)).astype(np.float32))
    state.parameters = parameters_of(bundle, 0)
    return state


def test_state_survives_a_restart(bundle: Bundle, tmp_path: Path) -> None:
    state = filled(bundle)
    state.save(tmp_path)
    again = DeviceState.load(bundle, tmp_path)
    assert again.note is None and len(again.clips) == len(state.clips)
    assert again.upload("a") == state.upload("a")
    for old, new in zip(state.clips, again.clips, strict=True):
        np.testing.assert_array_equal(old.anchors, new.anchors)
    assert again.parameters is not None and state.parameters is not None
    assert all(np.array_equal(again.parameters[name], state.parameters[name]) for name in bundle.spec.names)


@pytest.mark.parametrize("fault", ["torn", "flipped", "text"])
def test_damaged_state_is_left_aside(bundle: Bundle, tmp_path: Path, fault: str) -> None:
    filled(bundle).save(tmp_path)
    path = tmp_path / "state.safetensors"
    data = bytearray(path.read_bytes())
    data = {"torn": data[:-40], "flipped": data[:-3] + bytes([data[-3] ^ 4]) + data[-2:], "text": b"no state"}[fault]
    path.write_bytes(data)
    again = DeviceState.load(bundle, tmp_path)
    assert again.parameters is None and "left aside" in str(again.note)


def test_state_of_another_checkpoint_gives_its_name_only(bundle: Bundle, tmp_path: Path) -> None:
    state = filled(bundle)
    state.device_id = "kitchen"
    state.save(tmp_path)
    other = Bundle(bundle.path, dataclasses.replace(bundle.manifest, checkpoint_digest="0" * 64))
    again = DeviceState.load(other, tmp_path)
    assert again.parameters is None and not again.clips and again.device_id == "kitchen"


def test_a_write_that_fails_keeps_the_former_state(bundle: Bundle, tmp_path: Path) -> None:
    state = filled(bundle)
    state.save(tmp_path)
    before = (tmp_path / "state.safetensors").read_bytes()
    (tmp_path / "state.partial").symlink_to("/dev/full")
    state.parameters = None
    with pytest.raises(OSError, match="No space"):
        state.save(tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


# -- the cloud fails ---------------------------------------------------------------------------------------------


@pytest.fixture
def cloud(bundle: Bundle) -> Iterator[tuple[str, dict[str, str]]]:
    with serving(bundle) as served:
        yield served


def test_an_adaptation_loads_what_the_cloud_sent_and_counts_its_bytes(bundle: Bundle, cloud) -> None:
    url, _ = cloud
    state = filled(bundle)
    with DeviceSession(bundle) as session, CloudClient(url) as client:
        assert restore(session, state) == "cached"
        outcome = adapt(session, state, client, "kitchen")
        assert outcome.source == "cloud" and outcome.error is None and outcome.traffic is not None
        sent = {name: array.astype(np.float16).astype(np.float32) for name, array in parameters_of(bundle, 5).items()}
        assert state.parameters is not None
        assert all(np.array_equal(state.parameters[name], sent[name]) for name in bundle.spec.names)
        t = outcome.traffic
        assert t.upload_payload_bytes < t.upload_message_bytes < t.upload_wire_bytes
        assert t.download_payload_bytes < t.download_message_bytes < t.download_wire_bytes


FAULTS = {
    "stall": "timeout",
    "trickle": "timeout",
    "reset": "unreachable",
    "flipped bits": "garbage",
    "another version": "garbage",
    "another request": "garbage",
    "another device": "garbage",
    "truncated": "unreachable",
    "flood": "garbage",
    "page": "garbage",
    "429": "busy",
    "503": "busy",
    "401": "refused",
    "409": "refused",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_the_cloud_does_the_device_keeps_its_parameters_and_answers(bundle: Bundle, cloud, fault: str) -> None:
    url, told = cloud
    state = filled(bundle)
    kept = {name: array.copy() for name, array in (state.parameters or {}).items()}
    features = RNG.normal(size=(3, bundle.manifest.frames.features)).astype(np.float32)
    with DeviceSession(bundle) as session, CloudClient(url, timeout_s=0.4) as client:
        restore(session, state)
        before = session.answer(features, "what is mine")
        told["fault"] = fault
        outcome = adapt(session, state, client, "kitchen")
        assert (outcome.source, outcome.reason) == ("cached", FAULTS[fault])
        assert session.answer(features, "what is mine") == before
        assert state.parameters is not None and all(np.array_equal(state.parameters[n], kept[n]) for n in kept)
        told["fault"] = ""
        assert outcome.lasting == (outcome.reason == "refused")
        assert adapt(session, state, client, "kitchen").source == "cloud"  # and it recovers


def test_a_cloud_that_is_gone_is_said_within_the_timeout(bundle: Bundle) -> None:
    with CloudClient("http://127.0.0.1:9", timeout_s=0.5) as client, pytest.raises(CloudError) as error:
        client.adapt(filled(bundle).upload("kitchen"))
    assert error.value.reason == "unreachable"


def test_a_key_does_not_travel_in_the_clear() -> None:
    CloudClient("http://127.0.0.1:8000", "secret").close()
    CloudClient("https://cloud.example", "secret").close()
    with pytest.raises(UserError, match="unencrypted"):
        CloudClient("http://cloud.example", "secret")
    with pytest.raises(UserError, match="is not a URL"):
        CloudClient("cloud.example:80")


# -- the verb ----------------------------------------------------------------------------------------------------


def test_answer_goes_from_a_video_file_to_an_answer_without_torch(bundle: Bundle, cloud, tmp_path: Path) -> None:
    url, told = cloud
    video = write_video(tmp_path / "clip.mp4")
    code = """
import sys
for name in ("torch", "lightning", "transformers", "mlflow"):
    sys.modules[name] = None
from lit_mmpg.cli import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "answer", str(video), "what is mine?", "--bundle", str(bundle.path)]
    command += ["--cloud", url, "--state", str(tmp_path / "state")]

    def run(*more: str) -> str:
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run()
    assert "just received" in first and "on the wire" in first
    told["fault"] = "503"
    second = run()
    assert "of before" in second and "busy" in second
    found = json.loads(run("--json"))
    assert found["answer"] == found["ranking"][0][0] and found["frames"] > 0 and found["times_ms"]["answer"] > 0
    assert any("busy" in note for note in found["notes"]) and found["bytes"] is None


def test_mistakes_of_answer_are_said_at_once(
    made, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "clip.mp4")

    def error(*arguments: str) -> str:
        assert main(["answer", *arguments]) == 2
        return capsys.readouterr().err

    assert "does not exist" in error(str(tmp_path / "clop.mp4"), "what?", "--bundle", str(bundle.path))
    assert "is not a folder" in error(str(video), "what?", "--bundle", str(tmp_path / "none"))
    assert "question is empty" in error(str(video), " ", "--bundle", str(bundle.path))
    assert "--frame-encoder" in error(str(video), "what?", "--bundle", str(made("features").bundle))
    assert json.dumps(read_checkpoint(made("pixels").cloud)["lit_mmpg"]["half"]) == '"cloud"'
