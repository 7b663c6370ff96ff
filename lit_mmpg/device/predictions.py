"""Answers of the device model as rows that people can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lit_mmpg.batch import Batch
from lit_mmpg.data.records import Question
from lit_mmpg.device.outputs import Outputs

if TYPE_CHECKING:
    from lit_mmpg.data.batches import Group

TOP = 5
"""Clips listed for a caption."""


def predictions(group: Group, batch: Batch, outputs: Outputs) -> list[dict[str, object]]:
    """Rows for the items of a batch.

    Questions: the answer with its probability. Captions: the best clips among those that the same device was asked
    about in this batch, best first, and the rank of the right one.

    Args:
        group: Whom the batch asks what.
        batch: An evaluation batch.
        outputs: What the device model said about it.
    """
    rows: list[dict[str, object]] = []
    for b in range(len(batch)):
        clips = [group.clips[c] if c >= 0 else "" for c in batch.clip[b].tolist()]
        for n in torch.nonzero(batch.text_mask[b]).flatten().tolist():
            text = group.texts[int(batch.item[b, n])]
            row: dict[str, object] = {"device": group.devices[int(batch.device[b])], "clip": text.clip}
            if isinstance(text, Question):
                assert outputs.logits is not None
                probability = outputs.logits[b, n].softmax(-1)
                best = int(probability.argmax())
                answer = text.options[best] if text.options else group.answers.answers[best]
                row |= {
                    "id": text.id,
                    "question": text.text,
                    "prediction": answer,
                    "probability": round(float(probability[best]), 4),
                    "answer": text.answer,
                    "correct": answer == text.answer if text.options else best == int(batch.answer[b, n]),
                }
            else:
                assert outputs.video is not None and outputs.text is not None
                score = (outputs.video[b] @ outputs.text[b, n]).masked_fill(batch.clip[b] < 0, -2.0)
                order = score.argsort(descending=True, stable=True).tolist()
                ranked = [clips[i] for i in order if clips[i]]
                row |= {"caption": text.text, "ranked": " ".join(ranked[:TOP]), "rank": ranked.index(text.clip) + 1}
            rows.append(row)
    return rows
