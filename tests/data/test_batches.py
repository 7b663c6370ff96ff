"""Batches: what is asked, in which order, from which context; in one process and in several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_mmpg.batch import Batch
from lit_mmpg.data.batches import (
    BatchShape,
    Collator,
    EvalBatches,
    FrameGatherer,
    Items,
    TrainBatches,
)
from lit_mmpg.errors import UserError
from lit_mmpg.records import FrameSource, subsample

D = 3
SHAPE = BatchShape(
    devices=2, clips=3, items_per_clip=2, context_clips=2, max_frames=4, max_words=5, eval_devices=2, eval_clips=2
)
TIMELINES = {0: np.arange(7), 3: np.arange(7, 9), 4: np.array([9]), 8: np.arange(10, 22)}
CLIPS = 22


def make_source(clips: int = CLIPS) -> FrameSource:
    """Clip c has 1 + c % 6 frames; frame t of it is filled with c + t / 100."""
    lengths = 1 + np.arange(clips) % 6
    values = np.concatenate([np.repeat(c + np.arange(n) / 100, D).reshape(n, D) for c, n in enumerate(lengths)])
    return FrameSource(values.astype(np.float32), {f"c{i}": int(n) for i, n in enumerate(lengths)})


def make_items(asked: Iterable[int], per_clip: int = 3, extra_per_clip: int = 0, options: int = 1) -> Items:
    """Item i has the word 2 + i, once for an even i and twice for an odd one."""
    clips: list[int] = []
    extra: list[bool] = []
    for clip in asked:
        clips += [clip] * (per_clip + extra_per_clip)
        extra += [False] * per_clip + [True] * extra_per_clip
    tokens = np.zeros((len(extra), options, SHAPE.max_words), np.int32)
    tokens[:, :, 0] = 2 + np.arange(len(extra))[:, None]
    tokens[1::2, :, 1] = 2 + np.arange(1, len(extra), 2)[:, None]
    number = np.arange(len(extra))
    return Items(tokens, (number + 1) % 5 - 1, number % 3, np.array(extra, bool), np.array(clips, np.int64))


def make_collator(items: Items, shape: BatchShape = SHAPE, with_context: bool = True) -> Collator:
    gather = FrameGatherer(make_source(), [f"c{i}" for i in range(CLIPS)], shape.max_frames)
    return Collator(items, gather, None, shape, with_context)


def make_train(
    shape: BatchShape = SHAPE,
    items: Items | None = None,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    epochs: int | None = None,
) -> TrainBatches:
    items = make_items(range(CLIPS)) if items is None else items
    return TrainBatches(TIMELINES, make_collator(items, shape), shape, seed, rank, world, epochs)


def make_eval(
    shape: BatchShape = SHAPE,
    items: Items | None = None,
    history: dict[int, np.ndarray] | None = None,
    timelines: dict[int, np.ndarray] | None = None,
    **options: object,
) -> EvalBatches:
    items = make_items(range(CLIPS)) if items is None else items
    timelines = TIMELINES if timelines is None else timelines
    return EvalBatches(timelines, history, make_collator(items, shape), shape, **options)  # type: ignore[arg-type]


def asked_clips(batches: Iterable[Batch]) -> list[int]:
    return [c for batch in batches for c in batch.clip.flatten().tolist() if c >= 0]


def seen_clips(values: torch.Tensor, mask: torch.Tensor) -> list[list[list[int]]]:
    """For each row of a batch the clips whose frames it holds, read from the frames themselves."""
    return [
        [int(values[b, c, 0, 0]) for c in range(mask.shape[1]) if mask[b, c].any()]
        for b in range(mask.shape[0])  # type: ignore[misc]
    ]


def contents(batch: Batch) -> list[np.ndarray]:
    tensors = [batch.frames.values, batch.frames.mask, batch.context.values, batch.context.mask]
    tensors += [batch.text, batch.text_mask, batch.text_clip, batch.answer, batch.item, batch.clip, batch.device]
    return [tensor.numpy() for tensor in tensors]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        all(np.array_equal(x, y) for x, y in zip(contents(a), contents(b), strict=True))
        for a, b in zip(first, second, strict=True)
    )


# -- frames ------------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 200), most=st.integers(1, 40))
def test_subsampling_is_even_and_keeps_the_ends(count: int, most: int) -> None:
    index = subsample(count, most)
    assert len(index) == min(count, most) and index[0] == 0
    if most > 1:
        assert index[-1] == count - 1
        steps = np.diff(index)
        assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)


def test_frames_are_padded_and_masked() -> None:
    source = make_source()
    frames = FrameGatherer(source, [f"c{i}" for i in range(CLIPS)], 4)([[5, 0], [-1]], 3)
    assert frames.values.shape == (2, 3, 4, D) and frames.values.dtype == torch.float32
    np.testing.assert_array_equal(frames.mask.sum(-1), [[4, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(frames.values[0, 0, :, 0], 5 + np.array([0, 2, 3, 5]) / 100, rtol=1e-6)
    assert not frames.values[~frames.mask].any()


def test_pixels_stay_bytes() -> None:
    source = FrameSource(np.full((2, 3, 2, 2), 200, np.uint8), {"a": 2})
    frames = FrameGatherer(source, ["a"], 4)([[0]], 1)
    assert frames.values.dtype == torch.uint8 and frames.values.shape == (1, 1, 2, 3, 2, 2)
    assert (frames.values == 200).all()


def test_frames_encoded_once_are_those_of_their_clips() -> None:
    source = make_source()
    calls: list[int] = []

    def encode(frames: np.ndarray) -> np.ndarray:
        calls.append(len(frames))
        return np.concatenate([2 * frames, frames], 1)

    encoded = source.encoded(encode, at_once=7)
    assert encoded.frame_shape == (2 * D,) and encoded.ids() == source.ids()
    for clip in source.ids():
        np.testing.assert_array_equal(encoded.frames(clip)[:, :D], 2 * source.frames(clip))
        assert encoded.num_frames(clip) == source.num_frames(clip)
    assert sum(calls) == len(source.values) and len(calls) > 2


# -- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["device", "clip"])
def test_an_epoch_covers_every_clip_that_has_items(context: str) -> None:
    asked = [c for c in range(CLIPS) if c % 4 != 1]
    shape = replace(SHAPE, context=context)  # type: ignore[arg-type]
    loader = make_train(shape, make_items(asked))
    batches = list(loader)
    assert len(batches) == len(loader)
    counts = Counter(asked_clips(batches))
    assert set(counts) == set(asked)
    # Only the last batch repeats what the first ones held.
    assert Counter(asked_clips(batches[:-1])).most_common(1)[0][1] == 1
    rows = sum(len(batch) for batch in batches)
    needed = len(asked) if context == "clip" else 2 + 1 + 3  # groups of at most 3 clips: of 5, of 2 and of 9
    assert 0 <= rows - needed < len(batches[0])


def test_clips_go_to_their_own_device_and_items_to_their_own_clip() -> None:
    items = make_items(range(CLIPS))
    clip_of = {int(i): c for c, own in items.by_clip.items() for i in own}
    for batch in make_train(items=items):
        for b in range(len(batch)):
            clips = [c for c in batch.clip[b].tolist() if c >= 0]
            assert set(clips) <= set(TIMELINES[int(batch.device[b])].tolist())
            for n in range(batch.text_mask.shape[1]):
                if not batch.text_mask[b, n]:
                    assert batch.answer[b, n] == -1 and not batch.text[b, n].any()
                    continue
                item = int(batch.item[b, n])
                assert clip_of[item] == clips[batch.text_clip[b, n]]
                assert batch.text[b, n, 0, 0] == 2 + item
                assert batch.answer[b, n] == items.answer[item] and batch.kind[b, n] == items.kind[item]
        assert seen_clips(batch.frames.values, batch.frames.mask) == [
            [c for c in row if c >= 0] for row in batch.clip.tolist()
        ]
        assert batch.text.shape[-1] == 2  # five words are allowed, none has more than two


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    loader = make_train()
    first = list(loader)
    loader.set_epoch(1)
    second = list(loader)
    loader.set_epoch(0)
    assert same(list(loader), first)
    assert not same(first, second)
    other = make_train()
    other.set_epoch(1)
    assert same(list(other), second)
    assert not same(list(make_train(seed=1)), first)


def test_training_context_never_holds_a_query() -> None:
    loader = make_train()
    drawn: set[tuple[int, ...]] = set()
    for epoch in range(4):
        loader.set_epoch(epoch)
        for batch in loader:
            contexts = seen_clips(batch.context.values, batch.context.mask)
            for b, context in enumerate(contexts):
                timeline = TIMELINES[int(batch.device[b])].tolist()
                queries = [c for c in batch.clip[b].tolist() if c >= 0]
                assert not set(context) & set(queries)
                assert set(context) <= set(timeline) and sorted(context) == context
                assert len(context) == min(SHAPE.context_clips, len(timeline) - len(queries))
                if batch.device[b] == 8:
                    drawn.add(tuple(context))
    assert len(drawn) > 4  # not always the same recent clips


def test_half_of_the_training_contexts_are_short_where_that_is_asked_for() -> None:
    shape = replace(SHAPE, clips=1, context_clips=8, fewest_context_clips=1)
    lengths: Counter[int] = Counter()
    loader = make_train(shape)
    for epoch in range(40):
        loader.set_epoch(epoch)
        for batch in loader:
            contexts = seen_clips(batch.context.values, batch.context.mask)
            lengths.update(len(own) for own, device in zip(contexts, batch.device, strict=True) if device == 8)
    assert set(lengths) == set(range(1, 9))
    assert 0.5 < lengths[8] / sum(lengths.values()) < 0.65
    assert lengths[1] > lengths[7], "short ones are as frequent in their logarithm"
    context = [len(own) for batch in make_eval(shape) for own in seen_clips(batch.context.values, batch.context.mask)]
    assert max(context) == 6, "an evaluation takes all clips that there are"


def test_short_contexts_rise_from_a_fifth_to_all() -> None:
    shape = replace(SHAPE, clips=1, context_clips=8, fewest_context_clips=1, short_contexts="rising")
    long = []
    loader = make_train(shape, epochs=60)
    for epochs in (range(8), range(40, 60)):
        lengths: Counter[int] = Counter()
        for epoch in epochs:
            loader.set_epoch(epoch)
            for batch in loader:
                contexts = seen_clips(batch.context.values, batch.context.mask)
                lengths.update(len(own) for own, device in zip(contexts, batch.device, strict=True) if device == 8)
        long.append(lengths[8] / sum(lengths.values()))
    assert long[0] > 0.7 and 0 < long[1] < 0.15
    with pytest.raises(UserError, match=r"trainer\.max_epochs: set that"):
        make_train(shape)


def test_a_validation_takes_the_lengths_of_training_in_turn() -> None:
    shape = replace(SHAPE, context_clips=6, fewest_context_clips=1)
    assert shape.lengths() == [1, 2, 4, 6] and SHAPE.lengths() == [SHAPE.context_clips]
    whole = [query.context for query in make_eval(shape).queries]
    queries = make_eval(shape, context_clips=shape.lengths()).queries
    taken = [context for (_, context), _ in groupby((query.device, query.context) for query in queries)]
    for context, length in zip(taken, [1, 2, 4, 6] * len(taken), strict=False):
        assert len(context) <= length
        assert any(own[len(own) - len(context) :] == context for own in whole), "the latest clips"
    assert {len(context) for context in taken} >= {1, 2, 4}


@pytest.mark.parametrize("loader", [make_train, make_eval])
def test_the_context_of_a_clip_is_the_clip(loader) -> None:  # type: ignore[no-untyped-def]
    for batch in loader(replace(SHAPE, context="clip")):
        assert batch.clip.shape[1] == 1
        assert torch.equal(batch.context.values, batch.frames.values)
        assert torch.equal(batch.context.mask, batch.frames.mask)


def test_without_context_none_is_gathered() -> None:
    items = make_items(range(CLIPS))
    loader = TrainBatches(TIMELINES, make_collator(items, with_context=False), SHAPE, 0)
    assert all(batch.context.values.shape[1] == 0 and batch.foreign is None for batch in loader)


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_an_interrupted_epoch_goes_on_with_the_same_batches(stop: int) -> None:
    loader = make_train(replace(SHAPE, devices=1))
    loader.set_epoch(5)
    whole = list(loader)
    assert len(whole) > 4
    iterator = iter(loader)
    for _ in range(stop):
        next(iterator)
    state = loader.state_dict() if stop else {"epoch": 5, "position": 0}
    resumed = make_train(replace(SHAPE, devices=1))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert same(list(resumed), whole[stop:])
    assert same(list(resumed), whole)  # only the interrupted pass is short


def test_a_state_saved_at_the_end_of_an_epoch_starts_the_next() -> None:
    loader = make_train()
    list(loader)
    resumed = make_train()
    resumed.load_state_dict(loader.state_dict())
    loader.set_epoch(1)
    assert same(list(resumed), list(loader))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("context", ["device", "clip"])
def test_processes_share_a_global_batch(world: int, context: str) -> None:
    shape = replace(SHAPE, context=context, devices=1)  # type: ignore[arg-type]
    loaders = [list(make_train(shape, rank=rank, world=world)) for rank in range(world)]
    assert len({len(batches) for batches in loaders}) == 1
    counts: Counter[int] = Counter()
    for step, parts in enumerate(zip(*loaders, strict=True)):
        # What is gathered over processes: embeddings of all clips and of all texts.
        assert len({(tuple(p.clip.shape), tuple(p.text_mask.shape)) for p in parts}) == 1
        clips = asked_clips(parts)
        if step < len(loaders[0]) - 1:
            assert len(set(clips)) == len(clips)
            assert not set(clips) & set(counts)
        counts.update(clips)
    assert set(counts) == set(range(CLIPS))
    # The same rows as one process sees them, dealt in turn.
    alone = make_train(replace(shape, devices=world))
    for batch, parts in zip(alone, zip(*loaders, strict=True), strict=True):
        together = [p.clip[b].tolist() for b in range(len(parts[0])) for p in parts]
        assert together == batch.clip.tolist()


def test_sentences_that_only_teach_get_half_of_the_draws() -> None:
    items = make_items(range(CLIPS), per_clip=2, extra_per_clip=8)
    loader = make_train(replace(SHAPE, items_per_clip=1), items)
    drawn: list[bool] = []
    for epoch in range(60):
        loader.set_epoch(epoch)
        drawn += [bool(items.extra[i]) for batch in loader for i in batch.item[batch.text_mask].tolist()]
    assert len(drawn) > 1000
    # Four standard deviations around one half; drawn evenly it would be 0.8.
    assert abs(np.mean(drawn) - 0.5) < 4 * 0.5 / np.sqrt(len(drawn))


def test_no_item_is_drawn_twice_for_a_clip_in_one_step() -> None:
    for batch in make_train(replace(SHAPE, items_per_clip=5)):
        for b in range(len(batch)):
            items = batch.item[b][batch.text_mask[b]].tolist()
            assert len(set(items)) == len(items) == 3 * sum(c >= 0 for c in batch.clip[b].tolist())


# -- evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["device", "clip"])
def test_evaluation_asks_each_item_once(context: str) -> None:
    asked = [c for c in range(CLIPS) if c % 5 != 2]
    items = make_items(asked)
    loader = make_eval(replace(SHAPE, context=context), items)  # type: ignore[arg-type]
    batches = list(loader)
    assert len(batches) == len(loader)
    counts = Counter(i for batch in batches for i in batch.item[batch.text_mask].tolist())
    assert counts == Counter(range(len(items.answer)))
    assert Counter(asked_clips(batches)) == Counter(asked)
    assert same(batches, list(loader))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_evaluation(world: int) -> None:
    items = make_items(range(CLIPS))
    parts = [list(make_eval(items=items, rank=rank, world=world)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    counts = Counter(i for part in parts for batch in part for i in batch.item[batch.text_mask].tolist())
    assert set(counts) == set(range(len(items.answer)))
    alone = len(make_eval(items=items).queries)
    rows = sum(len(batch) for part in parts for batch in part)
    assert alone <= rows < alone + world * SHAPE.eval_devices


def test_evaluation_context_is_recent_and_never_holds_a_query() -> None:
    # Clips that nobody asks about are context all the same.
    loader = make_eval(items=make_items([c for c in range(CLIPS) if c != 11]), with_foreign=True)
    for batch in loader:
        for b, context in enumerate(seen_clips(batch.context.values, batch.context.mask)):
            timeline = TIMELINES[int(batch.device[b])].tolist()
            queries = [c for c in batch.clip[b].tolist() if c >= 0]
            half = timeline[1::2] if queries[0] in timeline[0::2] else timeline[0::2]
            assert context == (half[-SHAPE.context_clips :] if len(timeline) > 1 else [])
            assert not set(context) & set(queries)
            assert batch.context.mask.shape[1] >= 1


def test_seen_devices_bring_their_history() -> None:
    timelines = {0: np.arange(0, 3), 3: np.array([5])}
    history = {0: np.arange(10, 20)}
    loader = make_eval(history=history, timelines=timelines)
    contexts = {
        int(batch.device[b]): context
        for batch in loader
        for b, context in enumerate(seen_clips(batch.context.values, batch.context.mask))
    }
    assert contexts == {0: [18, 19], 3: []}
    assert sorted(asked_clips(loader)) == [0, 1, 2, 5]


@pytest.mark.parametrize("context", ["device", "clip"])
def test_the_foreign_context_is_that_of_another_device_and_fixed(context: str) -> None:
    owner = {c: d for d, clips in TIMELINES.items() for c in clips.tolist()}
    loader = make_eval(replace(SHAPE, context=context), with_foreign=True)  # type: ignore[arg-type]

    def chosen() -> list[tuple[int, list[int]]]:
        pairs = []
        for batch in loader:
            assert batch.foreign is not None
            foreign = seen_clips(batch.foreign.values, batch.foreign.mask)
            pairs += [(int(batch.device[b]), clips) for b, clips in enumerate(foreign)]
        return pairs

    first = chosen()
    assert first == chosen()
    for device, clips in first:
        assert clips and all(owner[c] != device for c in clips)
        assert len({owner[c] for c in clips}) == 1
    assert all(batch.foreign is None for batch in make_eval())


def test_devices_without_any_history_still_have_a_shape() -> None:
    loader = make_eval(timelines={0: np.array([1]), 3: np.array([2])}, with_foreign=True)
    (batch,) = loader
    assert batch.foreign is not None
    for frames in (batch.context, batch.foreign):
        assert frames.mask.shape[:2] == (2, 1) and not frames.mask.any()


def test_a_device_that_is_alone_gets_its_own_context_as_foreign() -> None:
    loader = make_eval(timelines={0: np.arange(4)}, with_foreign=True)
    for batch in loader:
        assert batch.foreign is not None
        assert torch.equal(batch.foreign.values, batch.context.values)


def test_one_device_can_be_picked() -> None:
    loader = make_eval()
    loader.keep_device(3)
    assert sorted(asked_clips(loader)) == [7, 8]
    assert len(list(loader)) == len(loader)


def test_nothing_to_ask_is_no_batch() -> None:
    for world in (1, 2):
        loader = make_eval(items=make_items([]), world=world)
        assert len(loader) == 0 and list(loader) == []


def test_a_least_context_above_the_context() -> None:
    with pytest.raises(UserError, match="fewest_context_clips is 9, above"):
        replace(SHAPE, fewest_context_clips=9).check()


@pytest.mark.parametrize("name", ["devices", "context_clips", "max_frames", "eval_clips"])
def test_sizes_below_one(name: str) -> None:
    with pytest.raises(UserError, match=f"data.batch.{name} is 0"):
        replace(SHAPE, **{name: 0}).check()
