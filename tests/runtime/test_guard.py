"""Parameters that are well-formed and bad: refused, rolled back, said and counted."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lit_mmpg.cli import main
from lit_mmpg.device.graphs import graph_specs
from lit_mmpg.export.guard import Life, choose_guard, lives, pick_questions
from lit_mmpg.export.source import open_source
from lit_mmpg.export.write import write_manifest
from lit_mmpg.profiling.benchmarks.guard import markdown, measure
from lit_mmpg.profiling.benchmarks.trained import load
from lit_mmpg.runtime.adaptation import judge
from lit_mmpg.runtime.bundle import MANIFEST, Bundle
from lit_mmpg.runtime.client import CloudClient
from lit_mmpg.runtime.guard import odd_outputs
from lit_mmpg.runtime.journal import Journal
from lit_mmpg.runtime.looking import Eye
from lit_mmpg.runtime.loop import Device, StateFolder
from lit_mmpg.runtime.manifest import Guard, Manifest
from lit_mmpg.runtime.policies import Always
from lit_mmpg.runtime.questions import Question, Questions
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.summary import print_line, summarise
from lit_mmpg.tasks import find_task
from tests.runtime.cloud_server import parameters_of, serving, write_video

ASKED = Questions([Question("what is mine")])


@pytest.fixture(scope="module")
def chosen(made) -> tuple[Guard, list[Life]]:
    """Bounds by ten validation devices, and these devices."""
    source = open_source(made("pixels").cloud, ["--data.clips.val_devices=10"])
    source.data.setup("test")
    spec = graph_specs(source.network, source.data.batch.max_frames, 1)[0]
    guard = choose_guard(source, spec)
    assert guard is not None and guard.devices == 10
    return guard, list(lives(source, "val"))


@pytest.fixture
def bundle(made, chosen: tuple[Guard, list[Life]], tmp_path: Path) -> Bundle:
    """The bundle with these bounds; a folder of its own, whose files are those of the other one."""
    plain = Bundle.open(made("pixels").bundle)
    assert plain.manifest.guard is None  # two validation devices are too few
    folder = tmp_path / "bundle"
    folder.mkdir()
    for file in plain.path.iterdir():
        if file.name != MANIFEST:
            (folder / file.name).symlink_to(file)
    write_manifest(folder, dataclasses.replace(plain.manifest, guard=chosen[0]))
    return Bundle.open(folder)


def test_bounds_travel_with_the_manifest(bundle: Bundle, chosen) -> None:
    guard, devices = chosen
    assert bundle.manifest.guard == guard and set(guard.sizes) == set(bundle.spec.names)
    assert Manifest.from_json(json.loads(json.dumps(bundle.manifest.to_json()))) == bundle.manifest
    assert guard.contexts == (1, 2) and len(devices) == 20 and set(guard.outputs) == {1, 2}
    assert 1 < len(guard.questions) <= 8 and {len(life.clips) for life in devices} == {1, 2}


def test_what_a_broken_generator_sends_is_refused_and_the_last_good_parameters_stay(
    bundle: Bundle, chosen, tmp_path: Path
) -> None:
    good = chosen[1][0].parameters
    bad = {
        "noise": parameters_of(bundle, 5),
        "ten times": {name: 10 * array for name, array in good.items()},
        "zeros": {name: 0 * array for name, array in good.items()},
        "one tensor": good | {"head.u": 9 * good["head.u"]},
    }
    videos = [write_video(tmp_path / f"c{i}.mp4", 4 + i) for i in range(3 + len(bad))]
    now, folder, words = [0.0], StateFolder(tmp_path / "s"), np.ones((1, 1, 1), np.int64)
    with serving(bundle) as (url, told), DeviceSession(bundle) as session, CloudClient(url) as client:
        device = Device(session, Eye(session), ASKED, Always(), client, "kitchen", folder, clock=lambda: now[0])
        told["parameters"] = bad["noise"]
        first = device.take(videos[0])
        assert (first.source, first.reason) == ("static", "guard") and first.replies and not session.adapted
        assert device.state.parameters is None and not device.take(videos[1]).asked  # left alone for a while
        now[0], told["parameters"] = 100.0, good
        fine = device.take(videos[2])
        assert (fine.source, fine.reason) == ("cloud", None) and fine.times_ms["guard"] > 0
        kept = {name: array.copy() for name, array in (device.state.parameters or {}).items()}
        clip = device.state.latest[-1]
        answered = session.outputs(clip, words)
        records = [first, fine]
        for video, (kind, parameters) in zip(videos[3:], bad.items(), strict=True):
            now[0], told["parameters"] = now[0] + 100, parameters
            records.append(device.take(video))
            assert (records[-1].source, records[-1].reason) == ("cached", "guard"), kind
            assert "are refused: " in str(records[-1].error) and records[-1].traffic is not None
            assert all(np.array_equal(device.state.parameters[name], kept[name]) for name in kept)
            np.testing.assert_array_equal(session.outputs(clip, words), answered)
    folder.close()
    stored = DeviceState.load(bundle, tmp_path / "s")
    assert stored.parameters is not None and all(np.array_equal(stored.parameters[n], kept[n]) for n in kept)
    assert [r.reason for r in Journal(tmp_path / "s", None).records].count("guard") == 5
    totals = summarise(records)
    assert totals["faults"] == {"guard": 5} and totals["adaptations"] == 1 and totals["guard_p50_ms"] > 0
    console = Console(width=200, record=True, file=(tmp_path / "log").open("w"))
    print_line(console, records[-1])
    assert "parameters refused" in console.export_text()


def test_answer_refuses_them_as_well(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, state = write_video(tmp_path / "clip.mp4"), tmp_path / "s"
    with serving(bundle) as (url, _):  # sends noise
        arguments = ["answer", str(video), "what is mine", "--bundle", str(bundle.path), "--cloud", url]
        assert main([*arguments, "--state", str(state)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "static model" in said and "the parameters of the cloud are refused: 'frame_projection" in said
    assert DeviceState.load(bundle, state).parameters is None


def test_outputs_that_are_not_finite_are_refused_without_bounds_too(made) -> None:
    bundle, rng = Bundle.open(made("pixels").bundle), np.random.default_rng(0)
    state = DeviceState(bundle)
    state.latest.append(rng.normal(size=(3, bundle.manifest.frames.features)).astype(np.float32))
    sizes = {name: rng.standard_normal(array.shape) for name, array in parameters_of(bundle, 0).items()}
    with DeviceSession(bundle) as session:
        # Any size is fine, as nothing is known of it; one that overflows is not (the link would not let it through).
        for size, expected in ((9.0, None), (1e30, "the outputs are not finite")):
            with np.errstate(invalid="ignore"):
                problem, _ = judge(session, state, {n: (size * a).astype(np.float32) for n, a in sizes.items()})
            assert problem == expected


def test_the_benchmark_of_the_guard_judges_good_and_spoilt_parameters(made) -> None:
    trained = load(str(made("pixels").cloud), ["--data.clips.val_devices=10"])
    result = measure(trained, argparse.Namespace(), lambda text: None)
    refused = {(r["group"], r["parameters"], r["clips"]): r["refused"] for r in result["rows"]}
    for clips in (1, 2):
        assert refused["val", "its own", clips] == 0
        for kind in ("times 10", "zeros", "infinity in one value"):
            assert refused["val", kind, clips] == refused["test_unseen", kind, clips] == 1, kind
    assert "| times 10 | 100% |" in markdown({"checkpoint": "c", **result})


def test_figures_are_what_they_are_called() -> None:
    static = np.array([[2.0, 0.0, -1e4], [0.0, 2.0, -1e4]])
    same = find_task("multiple_choice").output_figures(static, static)
    assert same["agreement"] == 1 and same["divergence"] == 0 and same["confidence"] == pytest.approx(0.8808, abs=1e-4)
    other = find_task("open_ended").output_figures(static, static[::-1])
    assert other["agreement"] == 0 and 0 < other["divergence"] < np.log(2)
    assert find_task("retrieval").output_figures(np.eye(2), np.eye(2)[::-1]) == {"cosine": 0.0}
    guard = Guard(8, (1, 4), 0.5, [], {}, {1: {"cosine": (0.2, 1.0)}, 4: {"cosine": (0.8, 1.0)}})
    half = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]])
    assert odd_outputs(guard, *half, 3, "retrieval") is None and odd_outputs(None, *half, 9, "retrieval") is None
    assert "0.6, expected 0.8 to 1" in str(odd_outputs(guard, *half, 4, "retrieval"))
    assert "not finite" in str(odd_outputs(None, half[0], half[1] * np.nan, 1, "retrieval"))
    asked = pick_questions([np.array([[[3, 4, 0]], [[3, 4, 0]]]), np.array([[[5, 0, 0]]])])
    assert asked.tolist() == [[[3, 4]], [[5, 0]]]
