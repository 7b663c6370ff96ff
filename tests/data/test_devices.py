"""Dealing: nothing lost, nothing twice, nothing random."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_mmpg.data.corpus import DeviceTable
from lit_mmpg.data.devices import Dealing, cluster_centres, cluster_values, deal, device_name
from lit_mmpg.errors import UserError
from lit_mmpg.records import Clip

SMALL = Dealing(train_devices=5, val_devices=2, test_devices=3)
SPLIT_OF = {"train": "train", "val": "val", "test_seen": "test", "test_unseen": "test"}


def make_clips(counts: dict[str, int], values: int = 6, blank_every: int = 0) -> list[Clip]:
    clips = []
    for split, count in counts.items():
        for i in range(count):
            value = "" if blank_every and i % blank_every == 0 else f"value{i % values}"
            clips.append(Clip(f"{split}{i}", split, {"topic": value}))
    return clips


def no_features() -> np.ndarray:
    raise AssertionError("features are needed for clusters only")


def dealt(table: DeviceTable, group: str) -> Counter[str]:
    return Counter(clip for clips in table.timelines[group].values() for clip in clips)


@settings(max_examples=40, deadline=None)
@given(
    train=st.integers(1, 40),
    val=st.integers(1, 15),
    test=st.integers(1, 15),
    values=st.integers(1, 8),
    blank_every=st.sampled_from([0, 1, 3]),
    concentration=st.sampled_from([1e-3, 0.3, 100.0]),
    seed=st.integers(0, 5),
)
def test_mixtures_deal_every_clip_of_a_split_once_in_each_group(
    train: int, val: int, test: int, values: int, blank_every: int, concentration: float, seed: int
) -> None:
    clips = make_clips({"train": train, "val": val, "test": test}, values, blank_every)
    dealing = replace(SMALL, column="topic", concentration=concentration, seed=seed)
    table = deal(clips, dealing, no_features)
    assert set(table.timelines) == set(SPLIT_OF)
    for group, split in SPLIT_OF.items():
        assert dealt(table, group) == Counter(clip.id for clip in clips if clip.split == split)
    owners = {group: set(rows) for group, rows in table.timelines.items()}
    training_devices = set(range(dealing.train_devices))
    assert owners["train"] | owners["test_seen"] <= training_devices
    assert not owners["val"] & training_devices
    assert not owners["test_unseen"] & (training_devices | owners["val"])


def test_the_same_clips_and_recipe_give_the_same_table() -> None:
    clips = make_clips({"train": 60, "val": 20, "test": 20})
    dealing = replace(SMALL, column="topic")
    first, second = deal(clips, dealing, no_features), deal(list(clips), dealing, no_features)
    assert first == second and first.digest() == second.digest()
    assert deal(clips, replace(dealing, seed=1), no_features).timelines != first.timelines
    assert Dealing(**first.recipe) == dealing
    assert DeviceTable.from_json(first.to_json()) == first


def test_the_number_of_training_devices_does_not_change_the_unseen_ones() -> None:
    clips = make_clips({"train": 60, "val": 20, "test": 20})

    def unseen(devices: int) -> dict[str, tuple[str, ...]]:
        table = deal(clips, replace(SMALL, column="topic", train_devices=devices), no_features)
        return {table.devices[d].id: row for d, row in table.timelines["test_unseen"].items()}

    assert unseen(5) == unseen(17)


def test_small_concentrations_make_devices_one_sided() -> None:
    clips = make_clips({"train": 3000}, values=6)
    topic = {clip.id: clip.columns["topic"] for clip in clips}

    def largest_share(concentration: float) -> float:
        dealing = replace(SMALL, column="topic", train_devices=8, concentration=concentration)
        rows = deal(clips, dealing, no_features).timelines["train"].values()
        return float(np.mean([max(Counter(topic[c] for c in row).values()) / len(row) for row in rows]))

    # Six values: an even device has a sixth of each.
    assert largest_share(100.0) < 0.25 < 0.5 < largest_share(0.05)


def test_timelines_do_not_follow_the_clip_list() -> None:
    clips = make_clips({"train": 200})
    place = {clip.id: i for i, clip in enumerate(clips)}
    rows = deal(clips, replace(SMALL, column="topic", train_devices=1), no_features).timelines["train"]
    (row,) = rows.values()
    assert abs(np.corrcoef([place[c] for c in row], np.arange(len(row)))[0, 1]) < 0.3


def test_one_device_per_value_holds_values_out() -> None:
    clips = make_clips({"train": 50, "val": 30, "test": 30}, values=10, blank_every=7)
    table = deal(clips, Dealing(kind="column", column="topic", unseen_share=0.2), no_features)
    topic = {clip.id: clip.columns["topic"] for clip in clips}
    owners = {group: {table.devices[d].id for d in rows} for group, rows in table.timelines.items()}
    assert len(owners["val"]) == 2 and len(owners["test_unseen"]) == 2 and len(owners["train"]) == 6
    assert owners["test_seen"] <= owners["train"]
    assert not owners["train"] & (owners["val"] | owners["test_unseen"]) and not owners["val"] & owners["test_unseen"]
    for group, rows in table.timelines.items():
        for d, row in rows.items():
            assert {topic[c] for c in row} <= {table.devices[d].id, ""}
        # Exactly the clips of the split that show a value of the group's devices, and all without a value.
        belonging = [
            c.id
            for c in clips
            if c.split == SPLIT_OF[group]
            and (c.columns["topic"] in {table.devices[d].id for d in rows} or not c.columns["topic"])
        ]
        assert dealt(table, group) == Counter(belonging)


def table_of(**owners: str) -> tuple[list[Clip], DeviceTable]:
    """Clips of owners, whose splits are given by their first letters: ``ann="tvx"`` is train, val, test."""
    splits = {"t": "train", "v": "val", "x": "test"}
    clips = [Clip(f"{o}{i}", splits[s], {"owner": o}) for o, word in owners.items() for i, s in enumerate(word)]
    return clips, deal(clips, Dealing(kind="column", column="owner", unseen_share=0.2), no_features)


def owners_of(table: DeviceTable, group: str) -> dict[str, int]:
    return {table.devices[d].id: len(row) for d, row in table.timelines.get(group, {}).items()}


def test_splits_of_whole_owners_stay(caplog: pytest.LogCaptureFixture) -> None:
    _, table = table_of(ann="ttx", bob="tt", cem="vv", dee="xxx", eve="vx")
    assert owners_of(table, "train") == {"ann": 2, "bob": 2} and owners_of(table, "test_seen") == {"ann": 1}
    assert owners_of(table, "val") == {"cem": 2, "eve": 1} and owners_of(table, "test_unseen") == {"dee": 3, "eve": 1}
    assert not caplog.records and not table.histories


def test_without_unseen_owners_for_validation_new_clips_of_the_training_do() -> None:
    _, table = table_of(ann="ttv", bob="ttv", cem="xx")
    assert owners_of(table, "val") == {"ann": 1, "bob": 1} and owners_of(table, "test_unseen") == {"cem": 2}
    assert table.histories["val"] == table.timelines["train"]
    assert DeviceTable.from_json(table.to_json()) == table
    _, table = table_of(ann="tt", bob="tv", cem="vv")  # what belongs to no group is named below
    assert owners_of(table, "val") == {"cem": 2}


def test_an_owner_that_loses_its_training_clips_is_named(caplog: pytest.LogCaptureFixture) -> None:
    clips, table = table_of(**{f"o{i}": "ttvx" for i in range(5)})
    held = {*owners_of(table, "val"), *owners_of(table, "test_unseen")}
    said = [record.getMessage() for record in caplog.records]
    assert len(held) == 2 and all(
        any(f"'{o}' is held out" in m and "2 training clips" in m for m in said) for o in held
    )
    assert any("4 clips of split 'train' belong to no device" in m for m in said)
    none = deal(clips, Dealing(kind="column", column="owner", unseen_share=0), no_features)
    assert set(owners_of(none, "train")) == {f"o{i}" for i in range(5)} == set(owners_of(none, "val"))


def test_any_owner_has_an_id_of_its_own_that_messages_carry() -> None:
    names = ["ann", "\u200b", "\u200c", "a\nb", "人" * 100, "人" * 99 + "物", "a_b"]
    ids = [device_name(name) for name in names]
    assert (
        len(set(ids)) == len(ids) and ids[0] == "ann" and all(i.isprintable() and len(i.encode()) <= 128 for i in ids)
    )


def test_data_with_a_test_split_only_makes_every_value_an_unseen_device() -> None:
    table = deal(
        make_clips({"test": 12}, values=4), Dealing(kind="column", column="topic", unseen_share=0.2), no_features
    )
    assert set(table.timelines) == {"test_unseen"} and len(table.timelines["test_unseen"]) == 4
    mixed = deal(make_clips({"test": 12}), replace(SMALL, column="topic"), no_features)
    assert set(mixed.timelines) == {"test_unseen"}


def test_clips_are_named_by_the_nearest_centre() -> None:
    rng = np.random.default_rng(0)
    centre = 20 * np.eye(4)[np.arange(60) % 4]
    features = centre + rng.standard_normal((60, 4))
    centres = cluster_centres(features[:40], 4, seed=0)
    names = cluster_values(features, centres)
    assert len(set(names)) == 4
    for k in range(4):
        assert len(set(names[k::4])) == 1
    distance = np.linalg.norm(features[:, None] - centres[None], axis=2)
    assert names == [f"cluster{k:02d}" for k in distance.argmin(1)]
    assert len(cluster_centres(features[:2], 4, 0)) == 2


def test_clusters_are_found_on_training_clips_only_and_kept_for_other_data() -> None:
    clips = make_clips({"train": 40, "val": 10, "test": 10})
    features = np.random.default_rng(1).standard_normal((60, 5))
    far = features + np.where(np.arange(60) < 40, 0.0, 1e3)[:, None]
    dealing = replace(SMALL, column="clusters")
    table = deal(clips, dealing, lambda: features)
    assert deal(clips, dealing, lambda: far).learnt["centres"] == table.learnt["centres"]
    test = [i for i, clip in enumerate(clips) if clip.split == "test"]
    alone = deal([clips[i] for i in test], dealing, lambda: features[test], table.learnt)

    def unseen(of: DeviceTable) -> list[tuple[str, ...]]:
        return [*of.timelines["test_unseen"].values()]

    assert unseen(alone) == unseen(table)
    assert unseen(deal([clips[i] for i in test], dealing, lambda: features[test])) != unseen(table)
    with pytest.raises(UserError, match="features have dimension 3, the checkpoint was trained on 5"):
        deal(clips, dealing, lambda: features[:, :3], table.learnt)
    with pytest.raises(UserError, match=r"no column 'topik'.*add it: the checkpoint deals by it"):
        deal(clips, replace(SMALL, column="topik"), no_features, table.learnt)


@pytest.mark.parametrize("dealing", [Dealing(kind="clusters", clusters=10), replace(SMALL, column="clusters")])
def test_dealing_by_clusters(dealing: Dealing) -> None:
    clips = make_clips({"train": 40, "val": 20, "test": 20})
    features = np.random.default_rng(1).standard_normal((80, 5))
    table = deal(clips, dealing, lambda: features)
    assert table == deal(clips, dealing, lambda: features)
    assert set(table.timelines) == set(SPLIT_OF)
    for group in table.timelines:
        assert max(dealt(table, group).values()) == 1


@pytest.mark.parametrize(
    ("dealing", "message"),
    [
        (Dealing(column="topik"), "data.dealing.column.*'topik'.*topic"),
        (Dealing(kind="column", column="topic", unseen_share=0.4), "2 values of 'topic' are too few"),
        (Dealing(kind="clusters", clusters=2), "2 values of 'clusters' are too few"),
        (Dealing(column="topic", train_devices=0), "train_devices is 0"),
        (Dealing(column="topic", concentration=0.0), "concentration is 0.0"),
        (Dealing(kind="column", column="topic", unseen_share=0.5), "unseen_share is 0.5"),
    ],
)
def test_recipes_that_cannot_be_followed(dealing: Dealing, message: str) -> None:
    clips = make_clips({"train": 8, "val": 4, "test": 4}, values=2)
    with pytest.raises(UserError, match=message):
        deal(clips, dealing, lambda: np.random.default_rng(0).standard_normal((16, 3)))
