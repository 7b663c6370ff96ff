"""Answers of the device model as rows that people can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lit_mmpg.batch import Batch, Outputs
from lit_mmpg.tasks import find_task

if TYPE_CHECKING:
    from lit_mmpg.data.batches import Group


def predictions(group: Group, batch: Batch, outputs: Outputs) -> list[dict[str, object]]:
    """Rows for the items of a batch.

    Questions: the answer with its probability. Captions: the best clips among those that the same device was asked
    about in this batch, best first, and the rank of the right one.

    Args:
        group: Whom the batch asks what.
        batch: An evaluation batch.
        outputs: What the device model said about it.
    """
    task = find_task(group.task)
    rows: list[dict[str, object]] = []
    for b in range(len(batch)):
        clips = [group.clips[c] if c >= 0 else "" for c in batch.clip[b].tolist()]
        for n in torch.nonzero(batch.text_mask[b]).flatten().tolist():
            text = group.texts[int(batch.item[b, n])]
            row: dict[str, object] = {"device": group.devices[int(batch.device[b])], "clip": text.clip}
            row |= task.prediction(text, batch, outputs, (b, n), group.answers.answers, clips)
            rows.append(row)
    return rows
