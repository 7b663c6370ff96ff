from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lit_mmpg.data.artefacts import FAMILIES, TEST, Spread
from lit_mmpg.errors import UserError
from lit_mmpg.profiling.benchmarks.memory_fleet import FleetConfig, plan_fleet

CONFIG = FleetConfig(
    models=6, unseen_models=3, devices_per_model=3, clean_devices=2, clips_per_device=5, asked=30, history=8, seed=3
)
TRAIN, HISTORY, ASKED = ([f"{pool}{i}" for i in range(60)] for pool in ("train", "history", "asked"))
FLEET = plan_fleet(CONFIG, TRAIN, HISTORY, ASKED)


def test_clips_are_dealt_once_and_pools_stay_apart():
    asked = [clip for device in FLEET.asked for clip in device.asked]
    assert sorted(asked) == sorted(ASKED)
    assert {len(device.asked) for device in FLEET.asked} == {2}
    for device in FLEET.training:
        clips = [clip for clip, _ in device.history]
        assert len(set(clips)) == 5 and set(clips) <= set(TRAIN) and not device.asked
        assert not set(clips) & set(FLEET.scenes)
    for device in FLEET.asked:
        clips = [clip for clip, _ in device.history]
        assert len(set(clips)) == 8 and set(clips) <= set(HISTORY)


def test_shares_kinds_and_families_are_as_set():
    kinds = Counter(device.kind for device in FLEET.asked)
    assert kinds == {"clean": 6, "unseen": 6, "known": 18}
    assert Counter(device.model for device in FLEET.training) == {**dict.fromkeys(range(6), 3), -1: 2}
    for device in FLEET.asked:
        assert (device.model < 0) == (device.kind == "clean") and (device.model >= 6) == (device.kind == "unseen")
    assert set(FLEET.families[:6]) == set(FAMILIES) and len(set(FLEET.names)) == 9
    assert len({FLEET.cluster(d) for d in FLEET.asked if d.kind == "clean"}) == 6
    shown = FLEET.describe()
    assert shown["asked clips"] == 60 and sum(shown["asked devices"].values()) == 30
    assert {FLEET.group(d) for d in FLEET.asked} <= {*FAMILIES, "clean", "unseen models"}


def test_models_follow_zipfs_law():
    many = plan_fleet(
        replace(CONFIG, asked=3000, clean_share=0, unseen_share=0), TRAIN, HISTORY, list(map(str, range(3000)))
    )
    counts = sorted(Counter(d.model for d in many.asked).values(), reverse=True)
    expected = 3000 / np.arange(1, 7) / (1 / np.arange(1, 7)).sum()
    assert np.square(counts - expected).__truediv__(expected).sum() < 20.5  # chi squared, 5 degrees, one in a thousand
    even = plan_fleet(replace(CONFIG, asked=3000, zipf=0, unseen_share=0), TRAIN, HISTORY, list(map(str, range(3000))))
    assert min(Counter(d.model for d in even.asked if d.model >= 0).values()) > 300


def test_instances_stay_within_their_spread_and_test_draws_exceed_tuning():
    wide = replace(CONFIG, asked=60, clean_share=0)
    fleet = plan_fleet(wide, TRAIN, HISTORY, ASKED)
    tuned = [d.placement for d in fleet.training if d.model >= 0]
    drawn = [d.placement for d in fleet.asked]
    assert all(0.6 <= p.strength <= 1 and abs(p.down) <= 2 and p.down == round(p.down) and p.scale == 1 for p in tuned)
    assert all(0.4 <= p.strength <= 1.1 and abs(p.right) <= 4 and abs(p.scale - 1) <= 0.02 for p in drawn)
    assert any(p.down != round(p.down) for p in drawn) and max(abs(p.right) for p in drawn) > 2
    assert TEST.draw(np.random.default_rng(1)) == TEST.draw(np.random.default_rng(1))


def test_no_clip_is_shared_between_models_where_that_is_the_control():
    fleet = plan_fleet(replace(CONFIG, disjoint=True, clean_devices=0), TRAIN, HISTORY, ASKED)
    owner: dict[str, int] = {}
    for device in fleet.training:
        for clip, _ in device.history:
            assert owner.setdefault(clip, device.model) == device.model
    shared = Counter(clip for device in FLEET.training for clip, _ in device.history)
    assert max(shared.values()) > 3  # without the control they are


def test_a_history_of_few_places_repeats_clips_and_not_frames():
    fleet = plan_fleet(replace(CONFIG, places=2), TRAIN, HISTORY, ASKED)
    for device in fleet.asked:
        assert len(device.history) == len(set(device.history)) == 8
        assert len({clip for clip, _ in device.history}) == 2


def test_the_seed_decides_everything_and_a_device_does_not_depend_on_how_many_there_are():
    assert plan_fleet(CONFIG, TRAIN[::-1], HISTORY, ASKED) == FLEET
    other = plan_fleet(replace(CONFIG, seed=4), TRAIN, HISTORY, ASKED)
    assert other.asked[0].placement != FLEET.asked[-1].placement and other.scenes != FLEET.scenes
    longer = plan_fleet(replace(CONFIG, history=6, devices_per_model=3), TRAIN, HISTORY, ASKED)
    assert [d.placement for d in longer.asked] == [d.placement for d in FLEET.asked]


def test_devices_film_through_the_artefact_of_their_model():
    scene = np.random.default_rng(0).integers(0, 256, (3, 18, 24), dtype=np.uint8)
    cameras = FLEET.draw(18, 24, {clip: scene for clip in FLEET.scenes if clip})
    frames = np.random.default_rng(1).integers(0, 256, (2, 3, 18, 24), dtype=np.uint8)
    for device in (*FLEET.training[:3], *FLEET.asked):
        seen = cameras.film(device, "clip", frames)
        assert (device.kind == "clean") == np.array_equal(seen, frames)
    again = FLEET.draw(18, 24, {clip: scene for clip in FLEET.scenes if clip})
    assert all(np.array_equal(a.veil, b.veil) for a, b in zip(cameras.models, again.models, strict=True))


def test_asked_devices_film_through_what_their_model_has_become():
    scenes = {clip: np.full((3, 24, 32), 90, np.uint8) for clip in FLEET.scenes if clip}
    cameras = plan_fleet(replace(CONFIG, drift=0.5), TRAIN, HISTORY, ASKED).draw(24, 32, scenes)
    same = FLEET.draw(24, 32, scenes)
    assert same.later == same.models
    clip = np.full((1, 3, 24, 32), 120, np.uint8)
    for now, before in zip(cameras.fleet.training, FLEET.training, strict=True):
        assert np.array_equal(cameras.film(now, "a", clip), same.film(before, "a", clip))
    changed = [
        not np.array_equal(cameras.film(now, "a", clip), same.film(before, "a", clip))
        for now, before in zip(cameras.fleet.asked, FLEET.asked, strict=True)
    ]
    known = [device.model >= 0 for device in FLEET.asked]
    assert not any(c for c, k in zip(changed, known, strict=True) if not k)
    assert sum(changed) > 0.8 * sum(known)
    device = next(device for device in cameras.fleet.training if device.model == 0)
    assert not np.array_equal(cameras.instance(device, later=True).maps(), cameras.instance(device).maps())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": 3}, "there is no setting 'fleet.model'; did you mean 'models'"),
        ({"models": "ten"}, "fleet.models must be int, not 'ten'"),
        ({"models": 0}, "1 or more"),
        ({"clean_share": 1.5}, "between 0 and 1"),
        ({"drift": 2.0}, "fleet.drift is 2.0; set it between 0 and 1"),
        ({"families": ["fog"]}, "choose different ones"),
        ({"families": "glass"}, "fleet.families must be a list"),
        ({"unseen_models": 0}, "without unseen models"),
        ({"places": 100}, "more than its history"),
        ({"unseen": {"strong": 1}}, "there is no setting 'fleet.unseen.strong'"),
        ({"unseen": {"weakest": 2, "strongest": 1}}, "must be in order"),
        ({"training": 3}, "fleet.training must be a mapping"),
        ({"camera_severity": 9}, "severity is 9"),
        ({"zipf": True}, "fleet.zipf must be float"),
    ],
)
def test_wrong_settings_are_refused_with_their_names(settings: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        FleetConfig.of(settings)


def test_plain_data_describe_a_fleet():
    config = FleetConfig.of({"models": 3, "families": ["glass"], "unseen": {"scale": 0}, "zipf": 0})
    assert config == FleetConfig(models=3, families=("glass",), unseen=Spread(0.4, 1.1, 4.0, True, 0), zipf=0)


def test_too_few_or_shared_clips_are_named():
    with pytest.raises(UserError, match="share 'train0'"):
        plan_fleet(CONFIG, TRAIN, [*HISTORY, "train0"], ASKED)
    with pytest.raises(UserError, match="twice"):
        plan_fleet(CONFIG, TRAIN, [*HISTORY, "history0"], ASKED)
    with pytest.raises(UserError, match=r"3 clips for asked, 30 are needed; add clips, or lower fleet\.asked"):
        plan_fleet(CONFIG, TRAIN, HISTORY, ASKED[:3])
    with pytest.raises(UserError, match=r"clips for train, 40 are needed"):
        plan_fleet(replace(CONFIG, clips_per_device=40, disjoint=True), TRAIN, HISTORY, ASKED)
