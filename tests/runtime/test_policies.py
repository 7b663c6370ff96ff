"""When to ask, and what a policy is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.policies import RECENT, Always, Drift, EveryN, Situation, Uncertainty, parse_policy
from lit_mmpg.runtime.questions import read_questions
from lit_mmpg.runtime.state import DeviceState
from tests.runtime.cloud_server import parameters_of

CALM = Situation(personal=True, context=4, clips=1, drift=0.0, answers=0, uncertainty=0.0)


def situation(clips: int = 9, drift: float = 0.0, answers: int = 9, uncertainty: float = 0.0) -> Situation:
    return Situation(True, 4, clips, drift, answers, uncertainty)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("always", Always()),
        ("every:1", EveryN(1)),
        ("every:16", EveryN(16)),
        ("drift:0.25", Drift(0.25)),
        ("drift:2", Drift(2.0)),
        ("uncertainty:0.4", Uncertainty(0.4)),
    ],
)
def test_policies_are_read_as_they_are_written(text: str, policy: object) -> None:
    assert parse_policy(text) == policy and str(policy) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "never",
        "always:1",
        "every",
        "every:0",
        "every:1.5",
        "every:x",
        "drift:0",
        "drift:-1",
        "drift:nan",
        "drift:inf",
        "uncertainty:1",
        "uncertainty:0",
        "uncertainty:",
        "drift",
        "Always",
    ],
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--policy"):
        parse_policy(text)


def test_rules() -> None:
    assert Always().asks(CALM)
    assert [EveryN(3).asks(situation(n, 9.0, 9, 0.9)) for n in (1, 2, 3, 4)] == [False, False, True, True]
    assert [Drift(0.3).asks(situation(9, d, 9, 0.9)) for d in (0.0, 0.29, 0.3, 1.0)] == [False, False, True, True]
    unsure = Uncertainty(0.5, answers=4)
    assert [unsure.asks(situation(9, 9.0, n, 0.6)) for n in (0, 3, 4, 9)] == [False, False, True, True]
    assert not unsure.asks(situation(9, 9.0, 9, 0.49))


def test_without_parameters_all_ask_and_drift_waits_for_a_context() -> None:
    new = [Situation(False, n, n, 0.0, 0, 0.0) for n in (1, 2, 3)]
    for policy in (Always(), EveryN(50), Uncertainty(0.9)):
        assert all(policy.asks(s) for s in new)
    assert [Drift(9.0, first=3).asks(s) for s in new] == [False, False, True]
    short = [Situation(False, 1, n, 0.0, 0, 0.0) for n in (1, 2, 3)]  # a model whose context is one clip asks, too
    assert [Drift(9.0, first=3).asks(s) for s in short] == [False, False, True]


@pytest.fixture
def state(made) -> DeviceState:
    return DeviceState(Bundle.open(made("pixels").bundle))


def test_situation_is_what_happened_since_the_last_adaptation(state: DeviceState, tmp_path: Path) -> None:
    width, most = state.bundle.manifest.frames.width, state.clips.maxlen
    assert most is not None
    rng = np.random.default_rng(0)
    place, elsewhere = np.eye(width, dtype=np.float32)[:2] * 4

    def film(around: np.ndarray) -> None:
        state.see((around + 0.1 * rng.normal(size=(3, width))).astype(np.float32))

    assert state.situation() == Situation(False, 0, 0, 0.0, 0, 0.0)
    for _ in range(most):
        film(place)
    state.adopt(parameters_of(state.bundle, 0))
    for confidence in (0.5, 0.7):
        state.answered(confidence)
    film(place)
    calm = state.situation()
    assert calm.clips == 1 and calm.drift < 0.1 and calm.answers == 2 and calm.uncertainty == pytest.approx(0.4)
    drifts = []
    for _ in range(most):
        film(elsewhere)
        drifts.append(state.situation().drift)
    assert drifts == sorted(drifts) and drifts[-1] == pytest.approx(2**0.5, abs=0.1)
    state.save(tmp_path)
    assert DeviceState.load(state.bundle, tmp_path).situation() == state.situation()
    for _ in range(2 * RECENT):
        state.answered(1.0)
    assert state.situation().uncertainty == 0 and state.situation().answers == RECENT
    state.adopt(parameters_of(state.bundle, 1))
    assert state.situation() == Situation(True, most, 0, 0.0, 0, 0.0)


def test_noise_is_drawn_once_per_clip_and_has_its_size(state: DeviceState) -> None:
    width = state.bundle.manifest.frames.width
    state.noise = 0.5
    state.see(np.full((4, width), 3.0, np.float32))
    (clip,) = state.clips
    assert np.std(clip.anchors[clip.mask] - 3.0) == pytest.approx(1.5, rel=0.6)
    first, second = state.upload("a"), state.upload("a")
    np.testing.assert_array_equal(first.anchors, second.anchors)


def test_questions_of_every_clip_and_of_single_ones(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("what is this?\n\n  who is there? \n")
    everyone = read_questions(str(tmp_path / "q.txt"), ["where?"])
    assert [q.text for q in everyone.about("any")] == ["where?", "what is this?", "who is there?"]
    (tmp_path / "q.csv").write_text("video,question,answer,options\na.mp4,what?,dog,\na,which?,,cat | dog\nb,who?,,\n")
    table = read_questions(str(tmp_path / "q.csv"), [])
    assert [(q.text, q.answer, q.options) for q in table.about("a")] == [
        ("what?", "dog", ()),
        ("which?", None, ("cat", "dog")),
    ]
    assert not table.about("c") and len(table) == 3
    assert table.about("a.MP4") == table.about("a.mov.mp4") == table.about("a")
    (tmp_path / "q.tsv").write_text((tmp_path / "q.csv").read_text().replace(",", "\t"))
    (tmp_path / "q.jsonl").write_text(
        '{"video": "a.mp4", "question": "what?", "answer": "dog"}\n'
        '{"video": "a", "question": "which?", "options": ["cat", "dog"]}\n{"video": "b", "question": "who?"}\n'
    )
    for name in ("q.tsv", "q.jsonl"):  # not asked as they stand
        assert vars(read_questions(str(tmp_path / name), [])) == vars(table)
    (tmp_path / "q.csv").write_text("video,question\nCaf\u00e9.mp4,who?\n3.0,where?\n", encoding="utf-8")
    table = read_questions(str(tmp_path / "q.csv"), [])
    assert [q.text for name in ("Cafe\u0301.mp4", "3.mp4") for q in table.about(name)] == ["who?", "where?"]
    for arguments, message in [((None, [" "]), "nothing is asked"), ((str(tmp_path / "n.txt"), []), "does not exist")]:
        with pytest.raises(UserError, match=message):
            read_questions(*arguments)
    (tmp_path / "bad.csv").write_text("video,answer\na,b\n")
    with pytest.raises(UserError, match="question"):
        read_questions(str(tmp_path / "bad.csv"), [])
