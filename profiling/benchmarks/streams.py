"""Streams of clips whose conditions change in the middle, answered with the parameters of every moment.

A stream is the timeline of one unseen device and then that of the next: as if the phone had been given to somebody
else. A clip is answered with parameters that were made from the clips *before* it (never from itself), as many of them
as the context takes; they pass the messages and codecs of the link. Because answers with the parameters of every moment
are computed once, any policy is a walk over a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.cloud.codebooks import resolve
from lit_mmpg.cloud.exchange import Anchors, Exchange, state_digest
from lit_mmpg.data.batches import Query
from lit_mmpg.device.outputs import answer_batch
from lit_mmpg.errors import UserError
from lit_mmpg.methods.costs import single_clip
from lit_mmpg.profiling.benchmarks.trained import Trained, context_anchors
from lit_mmpg.runtime.policies import RECENT, Policy, Situation, drift
from lit_mmpg.tasks import find_task

MOST_AT_ONCE = 64
"""Parameter sets with which one clip is answered at once."""


@dataclass(frozen=True)
class Stream:
    """One stream of S clips.

    Attributes:
        name: The two devices.
        change: Clips before the change.
        means: ``[S, H]`` mean anchor of each clip, as the device has it.
        right: ``[S, S + 1]`` share of the questions about clip t answered rightly with parameters made from the clips
            before clip s; column 0: with none; NaN where s > t.
        confidence: ``[S, S + 1, N]`` confidence of each answer; NaN where there is none.
        context: Clips that a context takes.
    """

    name: str
    change: int
    means: np.ndarray
    right: np.ndarray
    confidence: np.ndarray
    context: int

    def __len__(self) -> int:
        return len(self.right)


@dataclass(frozen=True)
class Walk:
    """What a policy made of a stream.

    Attributes:
        asked: ``[S]`` whether the cloud was asked before clip t.
        right: ``[S]`` share of the questions answered rightly.
    """

    asked: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class _Filmed:
    """A device's timeline, encoded: one batch of one device with all its clips."""

    batch: Batch
    features: Tensor
    anchors: Anchors


def streams(trained: Trained, group: str, told: Callable[[str], None] = lambda text: None) -> list[Stream]:
    """All streams of a group of devices: each device, and then the next one.

    Args:
        trained: The cloud half.
        group: Group of the device table: ``val`` or ``test_unseen``.
        told: Told what is at work.

    Raises:
        UserError: If the task has no single right answers, or the group has fewer than two devices.
    """
    if find_task(trained.data.task).searches:
        raise UserError("streams need questions with right answers; name the checkpoint of a question answering model")
    timelines = _timelines(trained, group)
    if len(timelines) < 2:
        raise UserError(f"group {group} has {len(timelines)} devices with questions; a stream needs two")
    with torch.inference_mode():
        filmed = {}
        for device, clips in timelines.items():
            told(f"{group}: encoding {trained.name(device)}")
            filmed[device] = _film(trained, group, device, clips)
        order, made = list(timelines), []
        for first, second in zip(order, [*order[1:], order[0]], strict=True):
            told(f"{group}: {trained.name(first)}, then {trained.name(second)}")
            made.append(
                _stream(trained, f"{trained.name(first)} then {trained.name(second)}", filmed[first], filmed[second])
            )
    return made


def follow(stream: Stream, policy: Policy) -> Walk:
    """Follow a stream as a device with a policy does."""
    size = len(stream)
    asked, right = np.zeros(size, bool), np.zeros(size)
    current, reference, recent = 0, None, np.zeros(0)
    for t in range(size):
        if t:  # before the first clip there is nothing to send
            window = stream.means[max(0, t - stream.context) : t]
            moved = drift(window, reference) if reference is not None else 0.0
            unsure = 1 - float(recent.mean()) if len(recent) else 0.0
            situation = Situation(reference is not None, len(window), t - current, moved, len(recent), unsure)
            if policy.asks(situation):
                asked[t], current, reference, recent = True, t, window.mean(0), np.zeros(0)
        right[t] = stream.right[t, current]
        fresh = stream.confidence[t, current]
        recent = np.concatenate([recent, fresh[np.isfinite(fresh)]])[-RECENT:]
    return Walk(asked, right)


def static(stream: Stream) -> np.ndarray:
    """``[S]`` share answered rightly without any parameters."""
    return stream.right[:, 0]


def _timelines(trained: Trained, group: str) -> dict[int, list[int]]:
    table, data = trained.data.device_table, trained.data
    split = "val" if group == "val" else "test"
    index = {clip: i for i, clip in enumerate(data.clip_ids)}
    asked = data.items(split).by_clip
    rows = {d: [index[c] for c in clips if index[c] in asked] for d, clips in table.timelines.get(group, {}).items()}
    return {device: clips for device, clips in rows.items() if clips}


def _film(trained: Trained, group: str, device: int, clips: Sequence[int]) -> _Filmed:
    collate = trained.data.eval_batches(group, with_context=False).collate
    batch = collate([Query(device, tuple(clips), ())])
    anchors, _ = trained.module.select(batch.frames)
    return _Filmed(batch, trained.module.network.encode(batch.frames.values), anchors)


def _stream(trained: Trained, name: str, first: _Filmed, second: _Filmed) -> Stream:
    module, context = trained.module, trained.data.batch.context_clips
    anchors = _join(first.anchors, second.anchors)
    size = anchors.features.shape[1]
    groups = [range(max(0, s - context), s) for s in range(1, size)]
    exchange = Exchange(resolve(module.link, module.quantiser), module.network.spec, state_digest(module.network))
    parameters = exchange(context_anchors(anchors, groups, context), [name] * len(groups), module.generate)
    parts = [(first, m) for m in range(first.features.shape[1])] + [
        (second, m) for m in range(second.features.shape[1])
    ]
    most = max(int((f.batch.text_clip[0][f.batch.text_mask[0]] == m).sum()) for f, m in parts)
    right = np.full((size, size + 1), np.nan)
    confidence = np.full((size, size + 1, most), np.nan)
    for t, (filmed, m) in enumerate(parts):
        one, features = _one_clip(filmed, m)
        right[t, :1], confidence[t, :1, : one.text.shape[1]] = _answer(trained, one, features, ())
        for start in range(0, t, MOST_AT_ONCE):
            stop = min(t, start + MOST_AT_ONCE)
            scores = _answer(trained, one, features, tuple(p[start:stop] for p in parameters))
            # Row s - 1 of the parameters was made from the clips before clip s.
            right[t, start + 1 : stop + 1], confidence[t, start + 1 : stop + 1, : one.text.shape[1]] = scores
    masked = anchors.features[0] * anchors.mask[0].unsqueeze(-1)
    means = masked.sum(1) / anchors.mask[0].sum(1, keepdim=True).clamp(min=1)
    return Stream(name, first.features.shape[1], means.numpy(), right, confidence, context)


def _join(first: Anchors, second: Anchors) -> Anchors:
    def both(a: Tensor, b: Tensor) -> Tensor:
        if a.dim() > 2 and a.shape[2] != b.shape[2]:  # all frames as anchors: timelines differ in their longest clip
            longest = max(a.shape[2], b.shape[2])
            a, b = (torch.cat([x, x.new_zeros(*x.shape[:2], longest - x.shape[2], *x.shape[3:])], 2) for x in (a, b))
        return torch.cat([a, b], 1)

    return Anchors(
        both(first.features, second.features),
        both(first.times, second.times),
        both(first.mask, second.mask),
        both(first.num_frames, second.num_frames),
    )


def _one_clip(filmed: _Filmed, m: int) -> tuple[Batch, Tensor]:
    """Clip m alone, with its questions, cut to its frames; and its features."""
    one = single_clip(filmed.batch, m)
    mask = one.frames.mask
    without_values = replace(one, frames=Frames(one.frames.values[:, :, :0], mask))
    return without_values, filmed.features[:, m : m + 1, : mask.shape[2]]


def _answer(
    trained: Trained, one: Batch, features: Tensor, parameters: tuple[Tensor, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Share of right answers ``[G]`` and confidences ``[G, N]`` of one clip with G sets of parameters."""
    count = len(parameters[0]) if parameters else 1

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.expand(count, *tensor.shape[1:])

    batch = replace(
        one,
        frames=Frames(repeat(one.frames.values), repeat(one.frames.mask)),
        text=repeat(one.text),
        text_mask=repeat(one.text_mask),
        text_clip=repeat(one.text_clip),
        device=repeat(one.device),
    )
    outputs = answer_batch(trained.module.network, batch, repeat(features), parameters)
    assert outputs.logits is not None
    best = outputs.logits.softmax(-1).max(-1)
    return (best.indices == one.answer).float().mean(1).numpy(), best.values.numpy()
