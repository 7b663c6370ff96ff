"""Words in, clips out: without torch, with the cloud or without it, and a page with the pictures in it."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lit_mmpg
from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.looking import Eye
from lit_mmpg.runtime.personal import PersonalDevice
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.video import sample_video
from tests.integration import tiny
from tests.integration.conftest import PIXEL_NETWORK, best_checkpoint, pixel_data
from tests.runtime.cloud_server import odd_entries, parameters_of, serving, write_video
from tests.runtime.test_camera import PLACEMENT, memory, service, write_film
from tests.serving.test_connections import Local
from tests.test_camera_memory import film

__all__ = ["memory", "service"]

QUERY = "the thing is red"
WITHOUT_TORCH = """
import sys
for name in ("torch", "lightning", "transformers", "mlflow"):
    sys.modules[name] = None
from lit_mmpg.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A retrieval model that takes pixels."""
    folder = tmp_path_factory.mktemp("retrieval")
    parts = {"data": pixel_data("retrieval"), "trainer": tiny.trainer_config()}
    tiny.write_config(folder / "device.yaml", model=tiny.device_config(network=PIXEL_NETWORK), **parts)
    config = tiny.write_config(folder / "c.yaml", model=tiny.cloud_config(), device_stage="device.yaml", **parts)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", "--config", str(config)]) == 0
        assert main(["export", "--ckpt", str(best_checkpoint(folder, "cloud")), "--output", "bundle"]) == 0
    finally:
        os.chdir(before)
    return Bundle.open(folder / "bundle")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for frames in (3, 6, 12):
        write_video(folder / f"long <{frames}>.mp4", frames)
    (folder / "torn.mp4").write_bytes(b"no video")
    return folder


def test_scores_are_cosines_of_the_embeddings_and_order_the_clips(bundle: Bundle, clips: Path, tmp_path: Path) -> None:
    with DeviceSession(bundle) as session:
        eye = Eye(session, memory=tmp_path)
        looks = [eye.look(path) for path in sorted(clips.glob("long*"))]
        device = PersonalDevice(session, DeviceState.open(bundle, None, "kitchen", ""))
        features = [look.features for look in looks]
        found = device.search(QUERY, features)
        text = session.embed_text(QUERY)
        for hit in found:
            video = session.embed_video(features[hit.number])
            assert hit.score == pytest.approx(
                float(video @ text / np.linalg.norm(video) / np.linalg.norm(text)), abs=1e-5
            )
            alone = [float(session.embed_video(frame[None]) @ text) for frame in features[hit.number]]
            assert hit.frame == int(np.argmax(alone))
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
        again = [eye.look(path) for path in sorted(clips.glob("long*"))]
        assert all(look.known for look in again) and not any(look.known for look in looks)
        known = [look.features for look in again]
        assert device.search(QUERY, known) == found
        session.swap(parameters_of(bundle, 3))
        assert [h.score for h in device.search(QUERY, known)] != [h.score for h in found]


def test_a_program_searches_what_its_device_observed(bundle: Bundle, clips: Path) -> None:
    """The same from a checkpoint, in process, as from its bundle."""
    checkpoint, paths = best_checkpoint(bundle.path.parent, "cloud"), sorted(clips.glob("long*"))
    found = {}
    for source in (checkpoint, bundle.path):
        device = lit_mmpg.load(source).new_device("kitchen")
        with pytest.raises(UserError, match="there is no clip to search in"):
            device.search(QUERY)
        frames = sample_video(paths[2], 99).pixels
        for clip in (paths[0], str(paths[1]), frames):
            device.observe(clip)
        named = {(match.number, match.clip) for match in device.search(QUERY)}
        assert named == {(0, paths[0]), (1, str(paths[1])), (2, None)}
        assert [(match.number, match.clip) for match in device.search(QUERY, [frames])] == [(0, None)]
        with pytest.raises(UserError, match="finds clips, it answers no questions"):
            device.answer(paths[0], QUERY)
        with pytest.raises(UserError, match="the query is empty"):
            device.search("")
        found[source] = device.search(QUERY)
        assert [match.score for match in found[source]] == sorted((m.score for m in found[source]), reverse=True)
        assert all(0 <= match.frame < 12 and match.parameters == "static" for match in found[source])
    assert [match.number for match in found[checkpoint]] == [match.number for match in found[bundle.path]]
    scores = [[match.score for match in each] for each in found.values()]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_damaged_memory_is_looked_at_again(bundle: Bundle, clips: Path, tmp_path: Path) -> None:
    video = clips / "long <6>.mp4"
    with DeviceSession(bundle) as session:
        eye = Eye(session, memory=tmp_path)
        first = eye.look(video)
        (entry,) = tmp_path.iterdir()
        data = entry.read_bytes()
        for damaged in (data[:-20], b"", data[:200] + bytes([data[200] ^ 1]) + data[201:]):
            entry.write_bytes(damaged)
            again = eye.look(video)
            np.testing.assert_array_equal(again.features, first.features)


def test_search_runs_without_torch_and_writes_a_page_with_its_pictures(
    bundle: Bundle, clips: Path, tmp_path: Path
) -> None:
    with serving(bundle) as (url, told):
        command = [sys.executable, "-c", WITHOUT_TORCH, "search", QUERY, "--bundle", str(bundle.path)]
        command += ["--clips", str(clips), "--html", str(tmp_path / "page.html"), "--cloud", url]
        command += ["--state", str(tmp_path / "state")]

        def run() -> str:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            assert done.returncode == 1, done.stderr  # one of the files is no video
            return done.stdout

        first = run()
        assert "just received" in first and "on the wire" in first and "left out: " in first and "torn.mp4" in first
        told["fault"] = "503"
        second = run()
        assert "of before" in second and "busy" in second and "3 known from before" in second
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (
        "long &lt;12&gt;.mp4" in page
        and page.count("<script") == 1
        and not re.search(r"""(src|href)=["']?http""", page)
    )
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(pictures) == 3
    for data in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (320, 240)


def test_entries_that_are_no_clips_cost_the_others_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path / "clips")  # names that begin with ~ or - stand alone
    good, bad = odd_entries(Path(), write_video(tmp_path / "v.mp4", 4))
    command = ["search", QUERY, "--bundle", str(bundle.path), "--clips", ".", "--state", str(tmp_path / "s")]
    for known in (len(good) - 1, len(good)):  # they all hold the same video
        assert main([*command, "--html", str(tmp_path / "page.html")]) == 1
        said = capsys.readouterr().out
        assert all(path.name in said for path in bad) and said.count("left out: ") == len(bad) and "\x1b" not in said
        assert f"{known} known from before" in said and "caf\\udce9.mp4" in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == len(good) and "12:30.mp4" in page and "café 🎥.MP4" in page


def test_mistakes_are_answered_at_once(
    bundle: Bundle, made, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert main(["search", *arguments]) == 2
        return capsys.readouterr().err

    there = ["--bundle", str(bundle.path), "--clips", str(clips)]
    assert "query is empty" in error(" ", *there)
    assert "does not exist" in error("a dog", *there[:3], str(tmp_path / "none"))
    assert "answers questions" in error("a dog", "--bundle", str(made("pixels").bundle), *there[2:])
    assert "ends in .html" in error("a dog", *there, "--html", "page.pdf")
    (tmp_path / "folder.html").mkdir()
    for place in (tmp_path / "folder.html", bundle.path / "manifest.json" / "page.html", "/proc/none/page.html"):
        assert "cannot be written" in error("a dog", *there, "--html", str(place))
    (tmp_path / "only.mp4").write_bytes(b"")
    assert "none of the 1 videos" in error("a dog", *there[:3], str(tmp_path))


def test_a_search_asks_the_cloud_about_the_camera_once(
    bundle: Bundle, service: Local, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        write_film(tmp_path / f"{i}.mp4", film(0, PLACEMENT, 5, 950 + i))
    asked = ["search", QUERY, "--bundle", str(bundle.path), "--clips", str(tmp_path)]
    assert main([*asked, "--cloud", f"http://127.0.0.1:{service.port}", "--camera-query"]) == 0
    # The service has another checkpoint, which keeps it from nothing but parameters.
    said = " ".join(capsys.readouterr().out.split())
    assert "recognised by 3 frames, as model 1 of the cloud's memory" in said and "refused (409)" in said
