"""Supports and queries: nobody sees a label that is hidden, and nobody is asked about a clip of the own support."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from lit_mmpg.methods.episodes import Episodes, all_items
from lit_mmpg.tasks import find_task
from tests.methods.conftest import World

TASKS = ["open_ended", "retrieval"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("labelled", [False, True])
def test_labels_are_seen_by_supervised_methods_only(world: World, task: str, labelled: bool) -> None:
    data = world(task).data
    for group in Episodes(data, "test_unseen", labelled):
        support = group.support
        if task == "open_ended":
            known = support.answer[support.text_mask]
            assert bool((known >= 0).all() if labelled else (known == -1).all())
        else:
            assert labelled == bool(support.text_clip.any())
        for batch, _ in group.queries:
            seen = find_task(task).query_view(batch)
            assert bool((seen.answer == -1).all())
            assert task != "retrieval" or not seen.text_clip.any()


def test_searches_come_in_random_order(world: World) -> None:
    data = world("retrieval").data
    labelled = next(iter(Episodes(data, "test_unseen", True))).support
    hidden = next(iter(Episodes(data, "test_unseen"))).support
    assert not torch.equal(labelled.text, hidden.text)

    def words(text: torch.Tensor, mask: torch.Tensor) -> list:
        return sorted(text[mask].flatten(1).tolist())

    for b in range(len(labelled)):
        assert words(labelled.text[b], labelled.text_mask[b]) == words(hidden.text[b], hidden.text_mask[b])


@pytest.mark.parametrize("task", TASKS)
def test_every_item_is_asked_once_and_never_about_the_support(world: World, task: str) -> None:
    data = world(task).data
    plain = list(data.eval_batches("test_unseen"))
    wanted = torch.cat([b.item[b.text_mask] for b in plain]).sort().values
    found = []
    for group in Episodes(data, "test_unseen", at_once=1):
        for batch, index in group.queries:
            found.append(batch.item[batch.text_mask])
            for b, g in enumerate(index.tolist()):
                assert batch.device[b] == group.support.device[g]
                support, asked = set(group.support.clip[g].tolist()), set(batch.clip[b].tolist())
                assert not (support & asked) - {-1}
    assert torch.equal(torch.cat(found).sort().values, wanted)


@pytest.mark.parametrize("task", TASKS)
def test_a_stream_asks_every_item_once_in_an_order_of_its_own(world: World, task: str) -> None:
    """Some clips of every device at a time; the order depends on the seed and the device, not on who is beside it."""
    data = world(task).data

    def streams(at_once: int, seed: int) -> dict[tuple, list[int]]:
        found: dict[tuple, list[int]] = {}
        for group in Episodes(data, "test_unseen", at_once=at_once, seed=seed, stream=2):
            for batch, index in group.queries:
                assert index.tolist() == list(range(len(group.support))) and batch.clip.shape[1] <= 2
                for g, device in enumerate(batch.device.tolist()):
                    assert device == group.support.device[g]
                    assert not (set(group.support.clip[g].tolist()) & set(batch.clip[g].tolist())) - {-1}
                    key = (device, *group.support.clip[g].tolist())
                    found.setdefault(key, []).extend(batch.item[g][batch.text_mask[g]].tolist())
        return found

    plain = torch.cat([b.item[b.text_mask] for b in data.eval_batches("test_unseen")]).sort().values.tolist()
    together, alone, other = streams(32, 0), streams(1, 0), streams(32, 1)
    assert sorted(chain.from_iterable(together.values())) == plain
    assert sorted(alone.values()) == sorted(together.values())
    assert sorted(other.values()) != sorted(together.values())
    assert sorted(map(sorted, other.values())) == sorted(map(sorted, together.values()))


def test_more_labelled_clips_than_the_context_has(world: World) -> None:
    data = world("open_ended").data
    few, many = (Episodes(data, "test_unseen", True, count) for count in (1, 100))
    assert few.clips == (1, 1.0)
    assert many.clips[1] > 3
    support = next(iter(few)).support
    assert bool((support.text_mask.sum(1) == 2).all())  # two questions about the one clip


def test_items_of_all_splits_keep_their_answers(world: World) -> None:
    data = world("open_ended").data
    items = all_items(data)
    for split in ("train", "val", "test"):
        own = data.items(split)
        for clip, indices in own.by_clip.items():
            np.testing.assert_array_equal(items.answer[items.by_clip[clip]], own.answer[indices])
            np.testing.assert_array_equal(items.tokens[items.by_clip[clip]], own.tokens[indices])
