"""One process of a gloo group: feeds its shard of the items to the metrics and writes the results as JSON.

Run as ``python gloo_worker.py RANK WORLD RENDEZVOUS_FILE OUTPUT_FILE``.
The test calls :func:`results` itself for one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_mmpg.metrics.accuracy import DeviceAccuracy
from lit_mmpg.metrics.retrieval import RetrievalMetrics

ITEMS, CLIPS, DEVICES = 37, 19, 5


def shard(rank: int, world: int, count: int) -> Tensor:
    """Items of one process as a distributed sampler deals them: round robin, filled up by repeating the first."""
    padded = -(-count // world) * world
    return (torch.arange(padded) % count)[rank::world]


def items() -> dict[str, Tensor]:
    """The data; every process makes the same."""
    generator = torch.Generator().manual_seed(7)
    clip_device = torch.randint(DEVICES, (CLIPS,), generator=generator)
    text_clip = torch.cat(
        [torch.arange(CLIPS - 1), torch.randint(CLIPS - 1, (ITEMS - CLIPS + 1,), generator=generator)]
    )
    return {
        "correct": torch.rand(ITEMS, generator=generator) < 0.6,
        "device": clip_device[text_clip],
        "kind": torch.randint(3, (ITEMS,), generator=generator),
        "clip_device": clip_device,
        "text_clip": text_clip,
        # Whole numbers, so that exact ties occur.
        "text": torch.randint(-1, 2, (ITEMS, 3), generator=generator).float(),
        "video": torch.randint(-1, 2, (CLIPS, 3), generator=generator).float(),
    }


def results(rank: int = 0, world: int = 1) -> dict[str, Any]:
    """All results over the items; with ``world`` processes each feeds its own shard, in batches of different sizes."""
    data = items()
    accuracy, retrieval = DeviceAccuracy(("what", "who", "")), RetrievalMetrics()
    for part in shard(rank, world, ITEMS).split(4 + rank):
        accuracy.update(data["correct"][part], data["device"][part], data["kind"][part], part)
    texts, clips = shard(rank, world, ITEMS).split(7), shard(rank, world, CLIPS).split(4)
    for index in range(max(len(texts), len(clips))):
        text = texts[index] if index < len(texts) else torch.empty(0, dtype=torch.long)
        clip = clips[index] if index < len(clips) else torch.empty(0, dtype=torch.long)
        retrieval.update(
            data["text"][text],
            data["video"][clip],
            data["text_clip"][text],
            clip,
            data["device"][text],
            data["clip_device"][clip],
            text,
        )
    per_query = retrieval.per_query()

    lonely = DeviceAccuracy()
    lonely_retrieval = RetrievalMetrics()
    if rank == 0:
        every, clip = torch.arange(ITEMS), torch.arange(CLIPS)
        lonely.update(data["correct"], data["device"], data["kind"], every)
        lonely_retrieval.update(
            data["text"], data["video"], data["text_clip"], clip, data["device"], data["clip_device"], every
        )
    return {
        "accuracy": scalars(accuracy.compute()),
        "per_device": {str(device): list(row) for device, row in accuracy.per_device().items()},
        "distinct": len(accuracy.items().item),
        "local": len(accuracy.state("item")),
        "retrieval": scalars(retrieval.compute()),
        "ranks": {name: [rows.query.tolist(), rows.rank.tolist()] for name, rows in per_query.items()},
        "only_first_process": {**scalars(lonely.compute()), **scalars(lonely_retrieval.compute())},
    }


def scalars(values: dict[str, Tensor]) -> dict[str, float]:
    """Plain numbers."""
    return {name: float(value) for name, value in values.items()}


def main() -> None:
    """Join the group, compute, write."""
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world)
    Path(sys.argv[4]).write_text(json.dumps(results(rank, world)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
