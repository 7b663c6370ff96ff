"""Supports and queries: what each device has seen before, and what it is asked, with hidden labels hidden."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from lit_mmpg.batch import Batch
from lit_mmpg.data.batches import Collator, Items, Query
from lit_mmpg.records import SPLITS
from lit_mmpg.tasks import find_task

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData


def all_items(data: DeviceData) -> Items:
    """The asked items of all splits in one list: a support may hold clips of another split than the queries.

    Sentences that only teach are left out, so that labelled clips carry the same kind of texts as queries.
    """
    parts = [data.items(split) for split in SPLITS]
    options = max(part.tokens.shape[1] for part in parts)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name)[~part.extra] for part in parts])

    tokens = [np.pad(part.tokens, ((0, 0), (0, options - part.tokens.shape[1]), (0, 0))) for part in parts]
    asked = np.concatenate([kept[~part.extra] for kept, part in zip(tokens, parts, strict=True)])
    return Items(asked, joined("answer"), joined("kind"), joined("extra"), joined("clip"))


@dataclass(frozen=True)
class Group:
    """Some devices, what they have seen before, and their queries.

    Attributes:
        support: ``[G, C, ...]`` earlier clips with the texts about them, as much of it as the method may know; its
            context are the clips from which a cloud half generates parameters.
        queries: Pairs of a true query batch and the index ``[B]`` of its rows among the G devices; as a stream, each
            batch has all G devices and follows on the batch before.
    """

    support: Batch
    queries: list[tuple[Batch, torch.Tensor]]

    @property
    def labelled_items(self) -> float:
        """Mean number of texts about the support clips of a device."""
        return float(self.support.text_mask.sum()) / len(self.support)


class Episodes:
    """The devices of one group of the device table, some at a time.

    Args:
        data: The data, set up.
        group: Group of the device table.
        labelled: Whether the method may know the labels of the support.
        support_clips: Clips of the support; ``None``: as many as the context has.
        at_once: Devices that adapt together.
        seed: Seed of the order in which unlabelled searches are given.
        clean: Whether the support brings the clean twins of its frames, too.
        stream: Clips per device and batch where the queries are a stream: those of a device come in an order that the
            seed, the device and its context decide. 0: in batches as they are evaluated.
    """

    def __init__(
        self,
        data: DeviceData,
        group: str,
        labelled: bool = False,
        support_clips: int | None = None,
        at_once: int = 32,
        seed: int = 0,
        clean: bool = False,
        stream: int = 0,
    ) -> None:
        self.data, self.labelled, self.at_once, self.seed, self.stream = data, labelled, at_once, seed, stream
        self.queries = data.eval_batches(group, with_context=False)
        self.contexts = data.eval_batches(group)
        self.supports = data.eval_batches(group, context_clips=support_clips)
        self._collate = self.queries.collate
        shape = self._collate.shape
        twins = data.clean_frames() if clean else None
        frames, own = self._collate.frames, self._collate.own
        self._supporter = Collator(all_items(data), frames, twins, shape, with_context=False, own=own)
        self._keys: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for i, query in enumerate(self.supports.queries):
            self._keys.setdefault((query.device, query.context), []).append(i)

    @property
    def clips(self) -> tuple[int, float]:
        """Fewest and mean number of support clips of a device."""
        counts = [len(context) for _, context in self._keys]
        return min(counts, default=0), float(np.mean(counts)) if counts else 0.0

    def __len__(self) -> int:
        return -(-len(self._keys) // self.at_once)

    def __iter__(self) -> Iterator[Group]:
        keys = list(self._keys)
        for start in range(0, len(keys), self.at_once):
            yield self._group(keys[start : start + self.at_once])

    def _group(self, keys: list[tuple[int, tuple[int, ...]]]) -> Group:
        support = self._supporter([Query(device, clips, clips) for device, clips in keys])
        if not self.labelled:
            support = find_task(self.data.task).hide_labels(support, self.seed)
        firsts = [self.contexts.queries[self._keys[key][0]] for key in keys]
        context = self.contexts.collate([replace(q, clips=(), foreign=None) for q in firsts]).context
        batches = self._stream_batches(keys) if self.stream else self._query_batches(keys)
        return Group(replace(support, context=context), list(batches))

    def _query_batches(self, keys: list[tuple[int, tuple[int, ...]]]) -> Iterator[tuple[Batch, torch.Tensor]]:
        owned = [(g, i) for g, key in enumerate(keys) for i in self._keys[key]]
        step = self.queries.shape.eval_devices
        for start in range(0, len(owned), step):
            part = owned[start : start + step]
            yield self._collate([self.queries.queries[i] for _, i in part]), torch.tensor([g for g, _ in part])

    def _stream_batches(self, keys: list[tuple[int, tuple[int, ...]]]) -> Iterator[tuple[Batch, torch.Tensor]]:
        owned = [[self.queries.queries[i] for i in self._keys[key]] for key in keys]
        orders = []
        for (device, context), queries in zip(keys, owned, strict=True):
            rng = np.random.default_rng([self.seed, device, *context])
            orders.append(rng.permutation([clip for query in queries for clip in query.clips]).tolist())
        for start in range(0, max(map(len, orders)), self.stream):
            parts = [tuple(order[start : start + self.stream]) for order in orders]
            yield (
                self._collate([replace(queries[0], clips=part) for queries, part in zip(owned, parts, strict=True)]),
                torch.arange(len(keys)),
            )
