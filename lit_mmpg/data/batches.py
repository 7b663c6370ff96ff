"""Batches of devices x clips: what is asked, in which order, and from which context.

The order of training batches is a pure function of (seed, epoch), and the position within an epoch can be saved, so an
interrupted training goes on exactly where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.data.corpus import Texts
from lit_mmpg.data.statistics import OwnStatistics
from lit_mmpg.data.vocabulary import AnswerList
from lit_mmpg.errors import UserError
from lit_mmpg.records import FilmedFrames, FrameSource, subsample
from lit_mmpg.settings import MOST, within

_log = logging.getLogger(__name__)

ContextRule = Literal["device", "clip"]
ShortContexts = Literal["half", "rising"]

_FILLED = ("devices", "clips", "items_per_clip", "max_words", "eval_devices")
"""Sizes that a batch is filled up to; the others only bound what there is, so that a huge one means all."""


@dataclass(frozen=True)
class BatchShape:
    """Size of batches, contexts and texts.

    Attributes:
        devices: Devices per training batch (B), per process.
        clips: Query clips per device in training (M).
        items_per_clip: Questions or captions drawn per clip and training step.
        context_clips: Recent clips that serve as context (C).
        fewest_context_clips: Train with shorter contexts too: some devices of a step have fewer than C clips, down to
            this number, log-uniformly, so that one generator serves short and long histories. 0: all have C.
            Validation during training then takes 1, 2, 4, ... clips in turn, and so selects a checkpoint for all.
        short_contexts: Share of devices with shorter contexts: ``half``, or ``rising`` from a fifth in the first epoch
            to all of them in the last third of ``trainer.max_epochs``.
        context: ``device``: the device's recent clips, never a query clip. ``clip``: each clip is its own context.
        max_frames: Clips with more frames are subsampled evenly to this many.
        max_words: Longer texts are cut.
        eval_devices: Devices per evaluation batch.
        eval_clips: Query clips per device in an evaluation batch.
        own_statistics: Standardise the features of query frames by the moments of the device's context clips, in
            training and test; the moments of the training data count as this many additional frames. 0: off, the
            default, since validation gains nothing without camera shifts (``docs/results/own_statistics.json``).
            Anchors are not standardised.
    """

    devices: int = 16
    clips: int = 4
    items_per_clip: int = 4
    context_clips: int = 16
    fewest_context_clips: int = 0
    short_contexts: ShortContexts = "half"
    context: ContextRule = "device"
    max_frames: int = 16
    max_words: int = 20
    eval_devices: int = 8
    eval_clips: int = 8
    own_statistics: int = 0

    def lengths(self) -> list[int]:
        """Context clips that training asks for, from the fewest to the most, each twice the one before."""
        found = [self.fewest_context_clips or self.context_clips]
        while found[-1] < self.context_clips:
            found.append(min(2 * found[-1], self.context_clips))
        return found

    def check(self) -> None:
        """Check the sizes.

        Raises:
            UserError: If one is too small, or so large that no memory holds such a batch.
        """
        for entry in fields(self):
            value, least = getattr(self, entry.name), int(entry.name not in ("own_statistics", "fewest_context_clips"))
            if isinstance(value, int):
                most = {"most": MOST} if entry.name in _FILLED else {}
                within("data.batch.", least, **most, **{entry.name: value})
        if self.fewest_context_clips > self.context_clips:
            raise UserError(
                f"data.batch.fewest_context_clips is {self.fewest_context_clips}, above data.batch.context_clips, "
                f"{self.context_clips}; lower it"
            )


@dataclass(frozen=True)
class Items:
    """The text items of one split, ready for batching.

    Attributes:
        tokens: ``[items, O, L]`` int32 word indices.
        answer: ``[items]`` int64.
        kind: ``[items]`` int64.
        extra: ``[items]`` bool, True for sentences that only teach: half of the draws of a clip go to them.
        clip: ``[items]`` index of the clip that each item is about.
    """

    tokens: np.ndarray
    answer: np.ndarray
    kind: np.ndarray
    extra: np.ndarray
    clip: np.ndarray

    @cached_property
    def by_clip(self) -> dict[int, np.ndarray]:
        """Clip index -> indices of its items."""
        order = np.argsort(self.clip, kind="stable")
        clips, starts = np.unique(self.clip[order], return_index=True)
        return dict(zip(clips.tolist(), np.split(order, starts[1:]), strict=False))


@dataclass(frozen=True)
class Query:
    """One device with the clips it is asked about and the clips it has seen before.

    Attributes:
        device: Index of the device.
        clips: Clips it is asked about.
        context: Clips it has seen before, oldest first.
        foreign: Context of another device; ``None`` where nobody wants it.
        foreign_device: Index of that device.
    """

    device: int
    clips: tuple[int, ...]
    context: tuple[int, ...]
    foreign: tuple[int, ...] | None = None
    foreign_device: int = -1


class FrameGatherer:
    """Copies the frames of chosen clips into padded arrays.

    Args:
        source: Where the frames are.
        clip_ids: Id of each clip index.
        max_frames: Clips with more frames are subsampled evenly to this many.
        filmed: What each device sees of a clip, where devices that share clips see different frames.
    """

    def __init__(
        self, source: FrameSource, clip_ids: Sequence[str], max_frames: int, filmed: FilmedFrames | None = None
    ) -> None:
        self.source, self.clip_ids, self.max_frames, self.filmed = source, clip_ids, max_frames, filmed

    def _frames(self, device: int, clip: int) -> np.ndarray:
        if self.filmed is not None:
            return self.filmed.filmed(device, self.clip_ids[clip])
        return self.source.frames(self.clip_ids[clip])

    def __call__(self, groups: Sequence[Sequence[int]], width: int, devices: Sequence[int] | None = None) -> Frames:
        """Gather ``[B][<= width]`` clip indices (-1 or missing: padding) into ``Frames [B, width, T, ...]``.

        Args:
            groups: Clip indices of each row.
            width: Clips per row.
            devices: ``[B]`` indices of the devices that film; needed where ``filmed`` is given.
        """
        arrays: dict[tuple[int, int], np.ndarray] = {}
        for b, clips in enumerate(groups):
            for m, clip in enumerate(clips):
                if clip >= 0:
                    frames = self._frames(-1 if devices is None else devices[b], clip)
                    if len(frames) > self.max_frames:
                        frames = frames[subsample(len(frames), self.max_frames)]
                    arrays[b, m] = frames
        longest = max((len(a) for a in arrays.values()), default=1)
        shape = self.source.frame_shape
        dtype = np.uint8 if len(shape) == 3 else np.float32
        values = np.zeros((len(groups), width, longest, *shape), dtype)
        mask = np.zeros((len(groups), width, longest), bool)
        for (b, m), frames in arrays.items():
            values[b, m, : len(frames)] = frames
            mask[b, m, : len(frames)] = True
        return Frames(torch.from_numpy(values), torch.from_numpy(mask))


class Collator:
    """Turns queries into a :class:`~lit_mmpg.batch.Batch`.

    Args:
        items: What may be asked.
        frames: Where the devices' frames come from.
        clean: Where their clean twins come from; ``None`` where nobody wants them.
        shape: Sizes.
        with_context: Whether batches bring the context.
        own: Standardises the query frames by the context.
        contexts: Where the frames of contexts come from; ``None``: where all come from.
    """

    def __init__(
        self,
        items: Items,
        frames: FrameGatherer,
        clean: FrameGatherer | None,
        shape: BatchShape,
        with_context: bool,
        own: OwnStatistics = OwnStatistics({}),
        contexts: FrameGatherer | None = None,
    ) -> None:
        self.items, self.frames, self.clean, self.shape, self.with_context = items, frames, clean, shape, with_context
        self.own, self.context_frames = own, contexts or frames

    def __call__(
        self,
        queries: Sequence[Query],
        items: Sequence[Sequence[tuple[int, int]]] | None = None,
        least: tuple[int, int] = (1, 1),
    ) -> Batch:
        """Build a batch.

        Args:
            queries: One per device.
            items: For each query, pairs (position of the clip in the query, item index); ``None``: all there are.
            least: Least M and N: tensors that are gathered over processes need the same shape on all of them.
        """
        if items is None:
            known = self.items.by_clip
            items = [[(p, int(i)) for p, clip in enumerate(q.clips) for i in known.get(clip, ())] for q in queries]
        width = max(least[0], *(len(q.clips) for q in queries))
        count = max(least[1], *(len(pairs) for pairs in items))
        options, words = self.items.tokens.shape[1:]
        text = np.zeros((len(queries), count, options, words), np.int64)
        text_mask = np.zeros((len(queries), count), bool)
        text_clip = np.zeros((len(queries), count), np.int64)
        item = np.zeros((len(queries), count), np.int64)
        for b, pairs in enumerate(items):
            if pairs:
                positions, indices = (np.array(column) for column in zip(*pairs, strict=True))
                text[b, : len(pairs)] = self.items.tokens[indices]
                text_mask[b, : len(pairs)] = True
                text_clip[b, : len(pairs)] = positions
                item[b, : len(pairs)] = indices
        used = max(1, int((text != 0).any((0, 1, 2)).sum()))  # trailing columns without any word cost time only
        clip = np.full((len(queries), width), -1, np.int64)
        for b, query in enumerate(queries):
            clip[b, : len(query.clips)] = query.clips
        clips, devices = [q.clips for q in queries], [q.device for q in queries]
        frames = self.frames(clips, width, devices)
        context = Frames(frames.values[:, :0], frames.mask[:, :0])
        if self.with_context or self.own:
            seen = self._contexts([q.context for q in queries], devices)
            frames, context = self.own(frames, seen), seen if self.with_context else context
        others = [q.foreign for q in queries if q.foreign is not None]
        owners = [q.foreign_device for q in queries if q.foreign is not None]
        foreign = self._contexts(others, owners) if self.with_context and others else None
        return Batch(
            frames=frames,
            context=context,
            text=torch.from_numpy(text[..., :used]),
            text_mask=torch.from_numpy(text_mask),
            text_clip=torch.from_numpy(text_clip),
            answer=torch.from_numpy(np.where(text_mask, self.items.answer[item], -1)),
            item=torch.from_numpy(item),
            clip=torch.from_numpy(clip),
            device=torch.tensor([q.device for q in queries]),
            kind=torch.from_numpy(self.items.kind[item]),
            clean=self.clean(clips, width) if self.clean else None,
            foreign=foreign,
        )

    def query_frames(
        self, clips: Sequence[Sequence[int]], width: int, devices: Sequence[int], contexts: Sequence[Sequence[int]]
    ) -> Frames:
        """Frames as the device model gets them: standardised by those of the contexts where the shape says so.

        Args:
            clips: Clip indices of each row.
            width: Clips per row.
            devices: ``[B]`` indices of the devices that film.
            contexts: Clip indices of each row that the device has seen before.
        """
        frames = self.frames(clips, width, devices)
        return self.own(frames, self._contexts(contexts, devices)) if self.own else frames

    def _contexts(self, groups: Sequence[Sequence[int]], devices: Sequence[int]) -> Frames:
        return self.context_frames(groups, max(1, *map(len, groups)), devices)


def _choose_context(
    pool: np.ndarray, queries: np.ndarray, count: int, rng: np.random.Generator | None
) -> tuple[int, ...]:
    """``count`` clips of ``pool`` (oldest first) without the queries: the most recent, or a random draw in training."""
    rest = pool[~np.isin(pool, queries)]
    if rng is not None and len(rest) > count:
        rest = rest[np.sort(rng.choice(len(rest), count, replace=False))]
    return tuple(rest[-count:].tolist())


class TrainBatches:
    """Training batches: every clip that has items comes once per epoch, grouped by device.

    Args:
        timelines: Device index -> indices of its clips, oldest first.
        collate: The collator.
        shape: Batch shape.
        seed: Seed of the order.
        rank: Rank of this process.
        world: Number of processes.
        epochs: Epochs of the training; ``None`` where nobody knows.

    Raises:
        UserError: If nobody knows, and the shape depends on it.
    """

    def __init__(
        self,
        timelines: Mapping[int, np.ndarray],
        collate: Collator,
        shape: BatchShape,
        seed: int,
        rank: int = 0,
        world: int = 1,
        epochs: int | None = None,
    ) -> None:
        if epochs is None and shape.fewest_context_clips and shape.short_contexts == "rising":
            raise UserError(
                "data.batch.short_contexts is 'rising', up to trainer.max_epochs: set that, or choose 'half'"
            )
        self.epochs = epochs
        self.collate, self.shape, self.seed, self.rank, self.world = collate, shape, seed, rank, world
        self.timelines = timelines
        by_clip = collate.items.by_clip
        self.asked = {d: np.array([c for c in clips if c in by_clip], np.int64) for d, clips in timelines.items()}
        alone = shape.context == "clip"
        # A row of the batch is a device with some of its clips, or one clip where each is its own context.
        self._rows = sum(len(clips) if alone else -(-len(clips) // shape.clips) for clips in self.asked.values())
        self._rows_per_process = shape.devices * (shape.clips if alone else 1)
        self.epoch = 0
        self.start = 0
        self._position = 0

    def __len__(self) -> int:
        return -(-self._rows // (self._rows_per_process * self.world))

    @property
    def sampler(self) -> TrainBatches:
        """This loader is its own sampler: Lightning calls ``set_epoch`` on the sampler of a loader."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows (Lightning calls this)."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Position in the epoch, for checkpoints."""
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue an interrupted epoch, or start the next one if it was at its end."""
        finished, self.start = divmod(int(state["position"]), max(1, len(self)))
        self.epoch = int(state["epoch"]) + finished
        self._position = self.start

    def _queries(self, epoch: int) -> list[Query]:
        rng = np.random.default_rng([self.seed, epoch])
        groups: list[tuple[int, np.ndarray]] = []
        for device, clips in self.asked.items():
            order = rng.permutation(clips)
            groups += [(device, order[i : i + self.shape.clips]) for i in range(0, len(order), self.shape.clips)]
        queries: list[Query] = []
        for g in rng.permutation(len(groups)):
            device, clips = groups[g]
            if self.shape.context == "clip":
                queries += [Query(device, (int(c),), (int(c),)) for c in clips]
            else:
                most, fewest = self.shape.context_clips, self.shape.fewest_context_clips
                fewer = fewest > 0 and rng.random() < self._short_share(epoch)
                count = round(fewest * (most / fewest) ** rng.random()) if fewer else most
                context = _choose_context(self.timelines[device], clips, count, rng)
                queries.append(Query(device, tuple(clips.tolist()), context))
        return queries

    def _short_share(self, epoch: int) -> float:
        """Share of the devices whose context is short."""
        if self.shape.short_contexts == "half" or self.epochs is None:
            return 0.5
        return min(1.0, max(0.2, 1.5 * epoch / self.epochs))

    def __iter__(self) -> Iterator[Batch]:
        queries = self._queries(self.epoch)
        step = self._rows_per_process * self.world
        total = len(self)
        # The last batch is filled from the start of the order, so that all processes take the same number of steps.
        order = np.resize(np.arange(len(queries)), total * step)
        clips = 1 if self.shape.context == "clip" else self.shape.clips
        least = (clips, clips * self.shape.items_per_clip)
        start, self.start = self.start, 0
        for i in range(start, total):
            mine = order[i * step + self.rank : (i + 1) * step : self.world]
            chosen = [queries[j] for j in mine]
            self._position = i + 1
            rng = np.random.default_rng([self.seed, self.epoch, i, self.rank])
            yield self.collate(chosen, self._draw_items(chosen, rng), least)
        self._position = total

    def _draw_items(self, queries: Sequence[Query], rng: np.random.Generator) -> list[list[tuple[int, int]]]:
        drawn = []
        for query in queries:
            pairs: list[tuple[int, int]] = []
            for position, clip in enumerate(query.clips):
                items = self.collate.items.by_clip[clip]
                take = min(self.shape.items_per_clip, len(items))
                extra = self.collate.items.extra[items]
                weight = None
                if extra.any() and not extra.all():
                    weight = np.where(extra, 0.5 / extra.sum(), 0.5 / (~extra).sum())
                pairs += [(position, int(i)) for i in rng.choice(items, take, replace=False, p=weight)]
            drawn.append(pairs)
        return drawn


@dataclass(frozen=True)
class Group:
    """What the batches of one loader ask of whom: all that an evaluation needs beside the batches.

    Attributes:
        name: ``val``, or the name of a group of test devices.
        task: Name of the task.
        kinds: Names of the question types.
        item_clip: ``[items]`` index of the clip that each item is about.
        gallery: Where retrieval ranks.
        devices: Id of each device.
        clips: Id of each clip.
        texts: The questions or captions behind the items.
        answers: The answer list (open-ended).
        conditions: ``[devices, K]`` true settings of each device's camera; ``None`` where nobody knows them.
    """

    name: str
    task: str
    kinds: Sequence[str]
    item_clip: np.ndarray
    gallery: Literal["mixed", "device"]
    devices: Sequence[str]
    clips: Sequence[str]
    texts: Texts
    answers: AnswerList
    conditions: np.ndarray | None = None


class EvalBatches:
    """Evaluation batches: every item of a group once, in a fixed order.

    A device's clips are cut into two halves by alternate places in its timeline; each half is answered with the other
    half as context, so context and queries never meet. Devices with a history of their own (seen devices) take it as
    context instead.

    Args:
        timelines: Device index -> indices of the clips to ask about, oldest first.
        history: Device index -> indices of clips that may serve as context; ``None`` cuts the timeline in halves.
        collate: The collator.
        shape: Batch shape.
        with_foreign: Also gather another device's context, for the control.
        rank: Rank of this process.
        world: Number of processes.
        group: What is asked of whom; ``None`` where nobody evaluates the answers.
        context_clips: Clips of one context after the other, in turn; ``None``: ``shape.context_clips`` for all.
    """

    def __init__(
        self,
        timelines: Mapping[int, np.ndarray],
        history: Mapping[int, np.ndarray] | None,
        collate: Collator,
        shape: BatchShape,
        with_foreign: bool = False,
        rank: int = 0,
        world: int = 1,
        group: Group | None = None,
        context_clips: Sequence[int] | None = None,
    ) -> None:
        self.collate, self.shape, self.rank, self.world, self.group = collate, shape, rank, world, group
        lengths = context_clips or (shape.context_clips,)
        contexts: list[tuple[int, tuple[int, ...], np.ndarray]] = []  # device, context, clips to ask
        by_clip = collate.items.by_clip
        for device, clips in timelines.items():
            if shape.context == "clip":
                contexts += [(device, (int(c),), np.array([c])) for c in clips if c in by_clip]
                continue
            if history is not None:
                halves = [(clips, history.get(device, clips[:0]))]
            else:
                halves = (
                    [(clips[0::2], clips[1::2]), (clips[1::2], clips[0::2])] if len(clips) > 1 else [(clips, clips[:0])]
                )
            for asked, pool in halves:
                asked = np.array([c for c in asked if c in by_clip], np.int64)
                if len(asked):
                    count = lengths[len(contexts) % len(lengths)]
                    contexts.append((device, _choose_context(pool, asked, count, None), asked))
        nobody: tuple[tuple[int, ...] | None, int] = (None, -1)
        foreign = self._foreign(contexts) if with_foreign else [nobody] * len(contexts)
        self.queries: list[Query] = []
        for (device, context, asked), other in zip(contexts, foreign, strict=True):
            for start in range(0, len(asked), shape.eval_clips):
                part = asked[start : start + shape.eval_clips]
                self.queries.append(Query(device, tuple(part.tolist()), context, *other))

    def keep_device(self, device: int) -> None:
        """Leave out the queries of all other devices."""
        self.queries = [query for query in self.queries if query.device == device]

    @staticmethod
    def _foreign(
        contexts: Sequence[tuple[int, tuple[int, ...], np.ndarray]],
    ) -> list[tuple[tuple[int, ...] | None, int]]:
        """For each context that of the next other device in the list, cyclically: fixed, so repeatable."""
        count = len(contexts)
        chosen: list[tuple[tuple[int, ...] | None, int]] = []
        for i, (device, own, _) in enumerate(contexts):
            others = (contexts[(i + k) % count] for k in range(1, count))
            chosen.append(next(((c, d) for d, c, _ in others if d != device and c), (own, device)))
        return chosen

    def __len__(self) -> int:
        return -(-len(self.queries) // (self.shape.eval_devices * self.world))

    def __iter__(self) -> Iterator[Batch]:
        per_batch = self.shape.eval_devices
        # Processes must take the same number of steps; repeated queries are recognised by their item index and dropped.
        order = np.resize(np.arange(len(self.queries)), len(self) * per_batch * self.world)
        if self.world == 1:
            order = order[: len(self.queries)]
        mine = order[self.rank :: self.world]
        for start in range(0, len(mine), per_batch):
            yield self.collate([self.queries[j] for j in mine[start : start + per_batch]])
