"""A device at work: killed, started again, without its cloud, without its disk."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.client import CloudClient
from lit_mmpg.runtime.journal import Journal, Record
from lit_mmpg.runtime.looking import Eye
from lit_mmpg.runtime.loop import Device, StateFolder
from lit_mmpg.runtime.policies import Always, EveryN, Policy
from lit_mmpg.runtime.questions import Question, Questions
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.summary import summarise
from lit_mmpg.runtime.video import list_videos
from tests.runtime.cloud_server import odd_entries, parameters_of, serving, write_video

QUESTIONS = Questions([Question("what is mine"), Question("which one is usual", answer="nothing")])
WITHOUT_TORCH = """
import sys
for name in ("torch", "lightning", "transformers"):
    sys.modules[name] = None
from lit_mmpg.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(10):
        write_video(folder / f"c{i}.mp4", 3 + i)
    return folder


@pytest.fixture
def bundle(made) -> Bundle:
    return Bundle.open(made("pixels").bundle)


class Hands:
    """A device whose clock is turned by hand."""

    def __init__(
        self,
        bundle: Bundle,
        url: str | None,
        policy: Policy,
        folder: Path | None = None,
        codec: str | None = None,
    ) -> None:
        self.now = 0.0
        self.session = DeviceSession(bundle)
        self.client = CloudClient(url, timeout_s=5.0) if url else None
        self.folder = StateFolder(folder) if folder else None
        self.device = Device(
            self.session,
            Eye(self.session),
            QUESTIONS,
            policy,
            self.client,
            "kitchen",
            self.folder,
            codec,
            clock=lambda: self.now,
        )

    def close(self) -> None:
        self.session.close()
        if self.client:
            self.client.close()
        if self.folder:
            self.folder.close()


def test_every_clip_is_answered_and_the_cloud_is_asked_as_the_policy_says(bundle: Bundle, clips: Path) -> None:
    with serving(bundle) as (url, told):
        hands = Hands(bundle, url, EveryN(3))
        records = [hands.device.take(path) for path in list_videos(clips)]
        hands.close()
    assert [r.asked for r in records] == [True, False, False] * 3 + [True]
    assert [r.source for r in records] == ["cloud", "cached", "cached"] * 3 + ["cloud"]
    assert [len(u.num_frames) for u in told["uploads"]] == [1, 2, 2, 2]  # the ring holds two clips
    assert all(len(r.replies) == 2 and r.replies[1].right is False for r in records)
    figures = summarise(records)
    assert (figures["clips"], figures["requests"], figures["adaptations"], figures["accuracy"]) == (10, 4, 4, 0.0)
    assert figures["upload_payload_bytes"] == sum(u.payload_bytes for u in told["uploads"])
    assert figures["total_p95_ms"] >= figures["total_p50_ms"] >= figures["answer_p50_ms"] > 0


def test_a_cloud_that_comes_and_goes_costs_no_answer_and_is_not_asked_in_vain(bundle: Bundle, clips: Path) -> None:
    videos = list_videos(clips)
    with serving(bundle) as (url, _):
        port = int(url.rsplit(":", 1)[1])
        hands = Hands(bundle, url, Always())
        assert hands.device.take(videos[0]).source == "cloud"
    seen = []
    for video in videos[1:6]:  # a clip each 0.4 s: pauses of 0.5 s, 1 s, 2 s
        record = hands.device.take(video)
        assert record.source == "cached" and record.replies
        seen.append((record.asked, record.reason))
        hands.now += 0.4
    assert seen == [(True, "unreachable"), (False, None), (True, "unreachable"), (False, None), (False, None)]
    with serving(bundle, port) as (_, told):
        hands.now += 3.0
        assert [hands.device.take(video).source for video in videos[6:8]] == ["cloud", "cloud"]
        told["fault"] = "flipped bits"
        record = hands.device.take(videos[8])
        assert (record.source, record.reason) == ("cached", "garbage") and "answered with something else" in str(
            record.error
        )
    hands.close()


def test_a_clip_that_cannot_be_read_stops_nothing(
    bundle: Bundle, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path / "clips")
    good, bad = odd_entries(Path(), clips / "c1.mp4")
    arguments = ["device", "--bundle", str(bundle.path), "--state-dir", str(tmp_path / "state"), "--question", "what?"]
    named = ["nothing.mp4", *(str(path) for path in (*good[:3], *bad)), str(clips / "c2.mp4")]
    assert main([*arguments, "--clips", *named]) == 1  # as a shell writes them out
    said = capsys.readouterr().out
    assert all(path.name in said for path in bad) and "4 static" in said and said.count("left out  ") == 2
    assert "left out folder.mp4 holds no video files" in said and said.count("left out video") == len(bad) - 2
    assert main([*arguments, "--clips", "."]) == 1  # two of the bad ones are in the journal by now
    said = capsys.readouterr().out
    assert all(path.name in said for path in bad[:5]) and "\x1b" not in said and "caf\\udce9.mp4" in said
    assert main([*arguments, "--clips", "."]) == 0 and "were answered before" in capsys.readouterr().out


def test_a_journal_of_other_digests_is_no_obstacle(bundle: Bundle, clips: Path, tmp_path: Path) -> None:
    hands = Hands(bundle, None, Always(), tmp_path)
    hands.device.take(clips / "c1.mp4")
    hands.close()
    lines = (tmp_path / "answers.jsonl").read_text().replace(hands.device.journal.records[0].digest, "0" * 24)
    (tmp_path / "answers.jsonl").write_text(lines)
    again = Hands(bundle, None, Always(), tmp_path)
    both = [clips / "c1.mp4", clips / "c2.mp4"]
    assert again.device.waiting(both) == both
    again.device.take(clips / "c1.mp4")
    assert again.device.waiting(both) == both[1:]
    again.close()


def test_a_record_that_only_the_state_knows_is_added_and_a_torn_line_overwritten(tmp_path: Path) -> None:
    first, second = (Record(n, f"c{n}.mp4", "d", "static", times_ms={"total": 1.0}) for n in (1, 2))
    Journal(tmp_path, None).add(first)
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 2, "cl')
    journal = Journal(tmp_path, second.to_json())
    assert journal.records == [first, second] and Journal(tmp_path, second.to_json()).records == [first, second]
    assert path.read_bytes().count(b"\n") == 2 and journal.holds("c2.mp4", "d") and not journal.holds("c2.mp4", "e")
    path.write_bytes(b"not ours\n")
    with pytest.raises(UserError, match="is not a journal"):
        Journal(tmp_path, None)


def command(bundle: Bundle, clips: Path, url: str, state: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-c", WITHOUT_TORCH, "device", "--bundle", str(bundle.path), "--clips", str(clips)),
        *("--cloud", url, "--state-dir", str(state), "--question", "what is mine", "--policy", "every:2", *more),
    ]


def lines(state: Path) -> int:
    path = state / "answers.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_happened(
    bundle: Bundle, clips: Path, tmp_path: Path
) -> None:
    rng = random.Random(1)
    with serving(bundle) as (url, told):
        undisturbed = subprocess.run(
            command(bundle, clips, url, tmp_path / "calm"), capture_output=True, text=True, timeout=600
        )
        assert undisturbed.returncode == 0, undisturbed.stderr
        assert "adapted" in undisturbed.stdout and "summary" in undisturbed.stdout
        calm, told["uploads"] = told["uploads"], []
        for kill in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            process = subprocess.Popen(command(bundle, clips, url, tmp_path / "hard"), stdout=subprocess.PIPE)
            before = lines(tmp_path / "hard")
            while lines(tmp_path / "hard") < before + 2 and process.poll() is None:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(kill)
            process.communicate(timeout=600)
            assert process.returncode in ((130, 0) if kill == signal.SIGTERM else (-9, 0))
        assert 0 < lines(tmp_path / "hard") <= 10
        last = subprocess.run(
            command(bundle, clips, url, tmp_path / "hard"), capture_output=True, text=True, timeout=600
        )
        assert last.returncode == 0 and "were answered before" in last.stdout, last.stderr
        assert {u.device_id for u in calm} == {"device"}
    a, b = (DeviceState.load(bundle, tmp_path / name) for name in ("calm", "hard"))
    assert a.note is None and b.note is None and len(a.clips) == len(b.clips) == a.clips.maxlen
    for mine, other in zip(a.clips, b.clips, strict=True):
        np.testing.assert_array_equal(mine.anchors, other.anchors)
    answers = [
        [(r["number"], r["clip"], r["replies"]) for r in map(json.loads, (tmp_path / n / "answers.jsonl").open())]
        for n in ("calm", "hard")
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 10
    expected = parameters_of(bundle, 5)
    assert b.parameters is not None and all(np.allclose(b.parameters[n], expected[n], atol=1e-2) for n in expected)


def test_runs_are_recorded_under_the_training_run(
    bundle: Bundle, made, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{made('pixels').folder}/mlruns/mlflow.db"
    with serving(bundle) as (url, _):
        arguments = command(bundle, clips, url, tmp_path / "s", "--mlflow", uri)[3:]
        assert main(arguments) == 0
    run_id = capsys.readouterr().out.split("recorded: run ")[1].split()[0]
    run = MlflowClient(uri).get_run(run_id)
    assert run.data.tags["mlflow.parentRunId"] == bundle.manifest.run_id and run.info.status == "FINISHED"
    assert run.data.metrics["summary/clips"] == 10 and run.data.metrics["summary/requests"] == 5
    history = MlflowClient(uri).get_metric_history(run_id, "total_ms")
    assert sorted(metric.step for metric in history) == list(range(1, 11))
    assert [a.path for a in MlflowClient(uri).list_artifacts(run_id)] == ["answers.jsonl"]


def test_a_refusal_that_lasts_is_said_once_with_its_remedy_and_seen_in_the_exit_status(
    bundle: Bundle, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--bundle", str(bundle.path), "--clips", str(clips), "--question", "what is mine", "--policy", "always"]
    with serving(bundle) as (url, told):
        told["fault"] = "409"
        assert main(["device", *options, "--cloud", url]) == 1
        said = capsys.readouterr().out
        assert said.count("export the bundle from that checkpoint") == said.count("cloud refused after") == 1
        assert "told \\x1b[2Jso" in said and "\x1b" not in said
        assert "1 refused; the cloud never helped" in said and len(told["uploads"]) == 1
        told["fault"] = ""
        assert main(["device", *options, "--cloud", url]) == 0
        hands = Hands(bundle, url, Always())
        for fault, pause in (("409", 600.0), ("503", 1.0)):
            told["fault"] = fault
            hands.device.take(clips / "c1.mp4")
            assert hands.device._not_before == hands.now + pause
            hands.now += pause
        hands.close()


def test_mistakes_are_answered_at_once(
    bundle: Bundle, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert main(["device", *arguments]) == 2
        return capsys.readouterr().err

    there = ["--bundle", str(bundle.path), "--clips", str(clips)]
    asked = [*there, "--question", "what?"]
    assert "nothing is asked" in error(*there)
    assert "is unknown; write always" in error(*asked, "--policy", "sometimes")
    assert "does not exist" in error(*asked[:3], str(tmp_path / "none.mp4"), "--question", "what?")
    assert "unknown upload codec" in error(*asked, "--cloud", "http://127.0.0.1:9", "--upload-codec", "int3")
    assert "is not a URL" in error(*asked, "--cloud", "cloud:80")
    (tmp_path / "q.csv").write_text("video,question,options\nc1,what?,a|b\n")
    assert "which the model" in error(*there, "--questions", str(tmp_path / "q.csv"))
    (tmp_path / "q.csv").write_text("video,question\nc11,what?\n")
    assert "none is about the clips" in error(*there, "--questions", str(tmp_path / "q.csv"))
    for field in ('"answer": {"a": 1}', '"options": ["a", null]'):
        (tmp_path / "q.json").write_text(f'[{{"video": "c1", "question": "what?", {field}}}]')
        assert f"entry 1: field {field.split(':')[0]}".replace('"', "'") in error(
            *there, "--questions", str(tmp_path / "q.json")
        )
    assert "has no scheme" in error(*asked, "--mlflow", "somewhere.db")
