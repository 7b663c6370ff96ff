"""The ideal observers against brute-force enumeration of the generative model."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from lit_mmpg.data.observer import accuracy_on, favourite_posterior, room
from lit_mmpg.data.personal_clips import COLOURS, OPEN_TYPES, ROOMS, PersonalClipsConfig, draw_latents
from lit_mmpg.errors import UserError

SAMPLES = 20_000


def likelihood(favourite: int, shown: tuple[int, ...], values: int, share: float) -> float:
    return math.prod(share if value == favourite else (1 - share) / (values - 1) for value in shown)


def enumerated_accuracy(values: int, share: float, history: int) -> float:
    """Accuracy of the best answer to "is the last clip's value the favourite one", summed over all that may be seen."""
    total = 0.0
    for shown in itertools.product(range(values), repeat=history + 1):
        joint = [likelihood(favourite, shown, values, share) / values for favourite in range(values)]
        yes = joint[shown[-1]]
        total += max(yes, sum(joint) - yes)
    return total


@pytest.mark.parametrize(("values", "share"), [(2, 0.7), (3, 0.5), (4, 0.2), (6, 0.5)])
def test_posterior_is_bayes_rule_for_every_sequence(values: int, share: float) -> None:
    for clips in (1, 3):
        sequences = list(itertools.product(range(values), repeat=clips))
        posterior = favourite_posterior(np.array(sequences), values, share)
        for shown, row in zip(sequences, posterior, strict=True):
            joint = np.array([likelihood(favourite, shown, values, share) for favourite in range(values)])
            np.testing.assert_allclose(row, joint / joint.sum(), rtol=1e-12)


def test_posterior_without_clips_is_the_prior_and_long_histories_stay_finite() -> None:
    np.testing.assert_allclose(favourite_posterior(np.zeros((2, 0), int), 5, 0.5), 0.2)
    row = favourite_posterior(np.full((1, 50_000), 3), 6, 0.9)[0]
    np.testing.assert_allclose(row, np.eye(6)[3], atol=1e-300)


def test_posterior_is_calibrated_on_the_generator_whatever_else_a_clip_shows() -> None:
    """What the posterior ignores (shape, direction, course) must indeed say nothing about the owner's colour."""
    config = PersonalClipsConfig(mixture_concentration=0.3)
    truth = draw_latents(config, np.random.default_rng(5), 60_000, 3)
    posterior = favourite_posterior(truth.colour, 6, config.mine_share)
    asked = truth.colour[:, -1]
    yes = posterior[np.arange(len(asked)), asked]
    right = truth.mine == asked
    checked = 0
    for told in (truth.shape[:, -1], truth.direction[:, -1], truth.course[:, -1], truth.room[:, -1]):
        for value in np.unique(told):
            for level in np.unique(yes.round(9)):
                chosen = (told == value) & (yes.round(9) == level)
                error = math.sqrt(level * (1 - level) / max(chosen.sum(), 1))
                if chosen.sum() > 300:
                    assert abs(right[chosen].mean() - level) < 4.5 * error
                    checked += 1
    assert checked > 20


@pytest.mark.parametrize("config", [PersonalClipsConfig(), PersonalClipsConfig(mine_share=0.35, usual_share=0.6)])
def test_room_agrees_with_enumeration(config: PersonalClipsConfig) -> None:
    result = room(config, SAMPLES, seed=1, histories=(1, 4))
    for observer, history in (("blind", 0), ("history_1", 1), ("history_4", 4)):
        accuracy = result["accuracy"][observer]
        expected = {
            "mine": enumerated_accuracy(6, config.mine_share, history),
            "usual_room": enumerated_accuracy(4, config.usual_share, history),
        }
        for kind, value in expected.items():
            assert accuracy[kind] == pytest.approx(value, abs=4.5 * math.sqrt(0.25 / SAMPLES))
        assert all(accuracy[kind] == 1 for kind in OPEN_TYPES if kind not in expected)
        assert accuracy["overall"] == pytest.approx(np.mean([accuracy[kind] for kind in OPEN_TYPES]))
    blind = (4 + enumerated_accuracy(6, config.mine_share, 0) + enumerated_accuracy(4, config.usual_share, 0)) / 6
    error = result["room_se_points"]["overall"]
    assert abs(result["room_points"]["overall"] - 100 * (1 - blind)) < 4.5 * error + 1e-9


def test_default_room_is_10_to_30_points_and_history_recovers_it() -> None:
    result = room(PersonalClipsConfig(), SAMPLES, seed=0)
    accuracy = result["accuracy"]
    points = result["room_points"]["overall"]
    assert 10 <= points <= 30 and points == pytest.approx(80 / 6, abs=0.5)
    assert result["room_se_points"]["overall"] < 0.2
    order = [
        accuracy[name]["overall"] for name in ("blind", "history_1", "history_4", "history_8", "history_16", "knows")
    ]
    assert order == sorted(order) and order[-1] == 1
    assert 100 * (accuracy["history_16"]["overall"] - order[0]) > 0.9 * points


@pytest.mark.parametrize("history", [0, 1, 3])
def test_accuracy_on_given_clips_is_that_of_the_enumerated_posterior(history: int) -> None:
    config, rng = PersonalClipsConfig(mine_share=0.55), np.random.default_rng(history)
    truth = draw_latents(config, rng, 40, history + 2)
    kinds = [
        ("colour", list(COLOURS), truth.colour, truth.mine, config.mine_share, "mine"),
        ("room", list(ROOMS), truth.room, truth.usual_room, config.usual_share, "usual_room"),
    ]
    clips: dict[str, dict[str, str]] = {}
    queries, scores = [], []
    for d in range(40):
        ids = [f"{d} {c}" for c in range(history + 2)]
        for column, values, shown, favourite, share, asked in kinds:
            for c, clip in enumerate(ids):
                told = "yes" if shown[d, c] == favourite[d] else "no"
                clips.setdefault(clip, {}).update({column: values[shown[d, c]], asked: told})
            for c in (history, history + 1):
                seen = (*shown[d, :history].tolist(), int(shown[d, c]))
                joint = [likelihood(value, seen, len(values), share) for value in range(len(values))]
                yes = joint[seen[-1]] / sum(joint)
                tie = math.isclose(yes, 0.5)
                scores.append(0.5 if tie else float((yes > 0.5) == (clips[ids[c]][asked] == "yes")))
        queries.append((ids[:history], ids[history:]))
    expected = (4 + sum(scores) / 80) / 6  # four questions that a clip answers alone; 80 clips are asked about
    assert accuracy_on(config, clips, queries) == pytest.approx(expected, abs=1e-12)


def test_docstring_states_the_computed_figures() -> None:
    result = room(PersonalClipsConfig())
    stated = re.findall(r"(\w.*?) +([\d.]+) (?:%|points)\n", PersonalClipsConfig.__doc__ or "")
    computed = [result["accuracy"][name]["overall"] for name in ("knows", "history_16", "history_8", "history_4")]
    computed += [result["accuracy"][name]["overall"] for name in ("history_1", "blind")]
    assert [float(value) for _, value in stated] == [
        *(round(100 * accuracy, 1) for accuracy in computed),
        round(result["room_points"]["overall"], 1),
    ]


def test_standard_error_is_the_spread_over_samples() -> None:
    config = PersonalClipsConfig(mine_share=0.35, usual_share=0.6)
    results = [room(config, 500, seed=seed, histories=(1,)) for seed in range(80)]
    spread = np.std([r["room_points"]["overall"] for r in results], ddof=1)
    assert np.mean([r["room_se_points"]["overall"] for r in results]) == pytest.approx(spread, rel=0.3)


def test_room_is_deterministic_and_refuses_nonsense() -> None:
    config = PersonalClipsConfig()
    assert room(config, 200, 3) == room(config, 200, 3)
    assert room(config, 200, 3)["accuracy"] != room(config, 200, 4)["accuracy"]
    with pytest.raises(UserError, match="samples is 1"):
        room(config, 1)
    with pytest.raises(UserError, match="histories"):
        room(config, 10, histories=(-1,))
