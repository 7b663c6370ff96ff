import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.benchmarks.memory import COUNTS, OPTIONS, Settings, _names, share_closed
from lit_mmpg.profiling.benchmarks.memory_axes import AXES, MOST_SEEDS, pays_above
from lit_mmpg.profiling.benchmarks.memory_fleet import FleetConfig
from lit_mmpg.profiling.benchmarks.memory_map import SOURCES, digest, draw, shares
from lit_mmpg.profiling.benchmarks.memory_models import (
    Head,
    Movable,
    log_ranks,
    train_answering,
    train_head,
    train_restorer,
)
from lit_mmpg.records import Question
from lit_mmpg.results import load

FOLDER = Path(__file__).parents[2] / "profiling/benchmarks"
SHIPPED = [FOLDER / "memory_pilot.yaml", *sorted(FOLDER.glob("memory_[!p]*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_settings_are_read(path: Path):
    assert Settings.read(path).config(3).seed == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_size: 96\n", "image_size: big\n", "image_size is 'big'"),
        ("asked: val\n", "asked: train\n", "asked is 'train'"),
        ("frames: frames_96x72.zip\n", "", "frames is None"),
        ("history_of_training: 900\n", "", "history_of_training above 0"),
        ("  models: 25\n", "  model: 25\n", "there is no setting 'fleet.model'"),
        ("asked_of_training", "asked_of_train", "asked_of_train is no setting"),
        ("fleet:\n", "fleet: [\n", "no readable YAML"),
    ],
)
def test_wrong_settings_are_refused(old: str, new: str, message: str, tmp_path: Path):
    text = SHIPPED[0].read_text()
    assert old in text
    (tmp_path / "wrong.yaml").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        Settings.read(tmp_path / "wrong.yaml")


def test_settings_of_the_fleet_can_be_named():
    changed = Settings.read(SHIPPED[0]).with_fleet(["models=100", "disjoint=true"])
    assert changed.config(1).models == 100 and changed.config(1).disjoint
    with pytest.raises(UserError, match="is no NAME=VALUE"):
        changed.with_fleet(["models"])
    with pytest.raises(UserError, match="there is no setting 'fleet\\.model'"):
        changed.with_fleet(["model=3"])


@pytest.mark.parametrize("name", AXES)
def test_each_axis_is_a_fleet_and_has_rows(name: str):
    settings = Settings.read(FOLDER / "memory_test.yaml")
    changed = settings.with_fleet([f"{key}={json.dumps(value)}" for key, value in AXES[name].fleet.items()])
    assert changed.config(1) != settings.config(1)
    every = {f"{row} {count}": {} for row in OPTIONS for count in COUNTS}
    assert len(_names(every, changed.config(1), AXES[name].rows)) > 3


def test_only_axes_have_fewer_seeds_or_are_drawn():
    assert set(MOST_SEEDS) <= set(AXES) and set(SOURCES) - {"memory_test"} <= set(AXES)


def test_asking_pays_above_the_power_at_which_what_is_saved_is_the_radio_s_energy():
    told = pays_above({"query": 60.0, "answer": 10.0, "alone": 170.0, "cloud": 0.0}, 3000)
    # Wi-Fi of configs/profile/links.yaml: 24 kbit at 20 and 50 Mbit/s, a round trip of 5 ms, and the tail.
    up, down = 0.024 / 20 * (0.13286 + 0.28317 * 20), 0.024 / 50 * (0.13286 + 0.13701 * 50)
    energy_j = up + down + 0.005 * 0.13286 + 0.11929 * 0.23836
    assert f"{energy_j / 0.1:.3g} W over Wi-Fi" in told and "LTE" in told and "5G" not in told
    assert pays_above({"query": 60.0, "answer": 10.0, "alone": 65.0, "cloud": 0.0}, 3000).startswith("asking saves")


def test_a_share_of_the_gap_has_the_interval_that_a_cluster_bootstrap_finds():
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(40), 12)
    gap = 0.5 + rng.normal(0, 0.3, 40)[cluster] + rng.normal(0, 0.5, 480)
    won = 0.6 * gap + rng.normal(0, 0.1, 40)[cluster] + rng.normal(0, 0.2, 480)
    found = share_closed(won, gap, cluster, np.arange(480))
    assert found.value == pytest.approx(won.mean() / gap.mean()) and found.low < 0.6 < found.high
    sums = np.stack([np.bincount(cluster, x) for x in (won, gap)])
    drawn = sums[:, rng.integers(40, size=(4000, 40))].sum(-1)
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.15)


def test_the_static_model_undoes_what_it_can_and_ranks_are_those_of_a_direct_count():
    rng = np.random.default_rng(1)
    clean = rng.normal(size=(300, 12)).astype(np.float32)
    seen = (clean @ (np.eye(12) + 0.2 * rng.normal(size=(12, 12))) + rng.normal(size=12)).astype(np.float32)
    targets = np.abs(clean @ rng.normal(size=(12, 20)))
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    head, score = train_head(seen, clean, targets, 60, 0, epochs=60)
    plain, _ = train_head(clean, clean, targets, 60, 0)
    assert isinstance(head, Head)
    at = slice(240, 300)
    assert score == pytest.approx(log_ranks(head, seen[at], clean[at], targets[at]).mean())
    assert score < log_ranks(plain, seen[at], clean[at], targets[at]).mean()
    own, others = head.predict(seen[at]), head.predict(clean[at])
    wanted = [
        1 + sum(text @ other > text @ own[i] for j, other in enumerate(others) if j != i)
        for i, text in enumerate(targets[at])
    ]
    np.testing.assert_allclose(log_ranks(head, seen[at], clean[at], targets[at]), np.log(wanted))


def test_a_restoration_network_learns_a_stain_by_heart():
    rng = np.random.default_rng(0)
    clean = np.repeat(np.repeat(rng.integers(30, 200, (640, 3, 6, 8)), 4, 2), 4, 3).astype(np.uint8)
    seen = clean.copy()
    seen[:, :, 8:16, 8:20] += 50
    network = train_restorer(seen, clean, 26, 0)
    before, after = (abs(x.astype(float) - clean).mean() for x in (seen, network.restore(seen)))
    assert after < 0.8 * before


def test_a_device_moves_its_input_layer_towards_what_each_rival_wants():
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(40, 200, (60, 3, 3, 4)), 4, 2), 4, 3).astype(np.uint8)

    def encoder(pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels, 4).flatten(1) / 50

    def forward(pixels: np.ndarray) -> np.ndarray:
        return encoder(torch.from_numpy(pixels).float()).numpy()

    clean = forward(frames)
    texts = abs(clean @ rng.normal(size=(36, 80)))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    head, _ = train_head(clean, clean, texts, 10, 0)
    movable = Movable(encoder, forward, head, torch.from_numpy(texts).float(), torch.from_numpy(clean), 10)
    seen = np.clip(frames[:16].astype(int) + np.array([50, -30, 0])[:, None, None], 0, 255).astype(np.uint8)
    own = torch.from_numpy(texts[:16]).float()
    losses = {"moments": movable.distance, "entropy": movable.entropy, "captions": lambda x: movable.surprise(x, own)}
    errors = {}
    for name, loss in losses.items():
        moved = movable.descend(seen, loss, 0.03)(seen)
        before, after = (loss(torch.from_numpy(forward(x))).item() for x in (seen, moved))
        assert after < before, name
        errors[name] = abs(moved.astype(float) - frames[:16]).mean()
    assert errors["moments"] < 0.7 * abs(seen.astype(float) - frames[:16]).mean()
    found = movable.search(seen, 0.3)(seen)
    values = [
        (movable.entropy(x) + movable.distance(x)).item() for x in map(torch.from_numpy, map(forward, (seen, found)))
    ]
    assert values[1] < values[0]


def test_the_static_model_of_questions_answers_by_words_and_frames():
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(400, 8)).astype(np.float32)
    clips = [f"c{i}" for i in range(400)]
    sides = {"is it left": ("no", "yes"), "is it red": ("blue", "red")}
    questions = {
        clip: [Question(clip, text, named[int(x[at] > 0)], text) for at, (text, named) in enumerate(sides.items())]
        for clip, x in zip(clips, clean, strict=True)
    }
    head, _ = train_head(clean, clean, abs(clean), 50, 0)
    found = train_answering(head, clean, clean, clips[:300], questions, 0, epochs=30)
    assert set(found.answers) == {"no", "yes", "blue", "red"}
    right = found.right(clean[299:], clips[299:], {**questions, clips[350]: []})
    assert np.isnan(right[51]) and np.nanmean(right) > 0.85
    turned = np.concatenate([-clean[299:, :1], clean[299:, 1:]], 1)
    assert 0.4 < np.nanmean(found.right(turned, clips[299:], questions)) < 0.65  # one question of two goes wrong
    assert np.isnan(found.right(clean[:1], ["nobody"], questions)).all()


def test_rows_are_chosen_by_how_their_names_begin():
    options = {"minimum 1": {}, "own_statistics 16": {}}
    every = _names(options, FleetConfig(models=100), ())
    assert "uploads_held_64kib 1" in every and "uploads_held_4096kib 1" not in every and "restoration_4mib 0" in every
    many = FleetConfig(models=1000)
    assert _names(options, many, ("told",))[:3] == ["none 0", "exact 0", "told_mean_map 0"]
    assert {"told_held_4096kib 64", "told_coded 4", "told_shuffled 64"} <= set(_names(options, many, ("told",)))
    few = FleetConfig(models=25)
    assert _names(options, few, ("own",)) == ["none 0", "exact 0", "own_statistics 16"]
    later = replace(few, drift=0.5)
    assert "uploads_added 4" in _names(options, later, ()) and "uploads_added 4" not in _names(options, few, ())
    slow = {**options, "moved_foa 16": {}}
    assert "moved_foa 16" not in _names(slow, few, ()) and "moved_foa 16" in _names(slow, few, ("moved",))


def test_the_map_of_who_wins_where_is_drawn_from_the_results(tmp_path: Path):
    drawn = shares(load(FOLDER.parents[1] / "docs/results"))
    assert set(drawn) == {"1", "4", "16", "64"} and all("asks" in panel["25 models"] for panel in drawn.values())
    kept = (FOLDER.parents[1] / "docs/images/memory_map.svg").read_text()
    assert f"drawn from {digest(drawn)}" in kept, "run python -m lit_mmpg.profiling.benchmarks.memory_map"
    draw(drawn, tmp_path / "map.svg")
    assert f"drawn from {digest(drawn)}" in (tmp_path / "map.svg").read_text()
    changed = {**drawn, "1": {**drawn["1"], "25 models": {"source": "memory_test", "asks": [1.0, 0.0, 2.0]}}}
    assert digest(changed) != digest(drawn)
