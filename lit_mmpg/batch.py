"""The typed batch that every module takes.

Letters used in shapes throughout the package:

    B  devices in the batch (one context and one parameter set each)
    M  query clips per device          C  context clips per device
    T  frames per clip, padded         N  text items (questions or captions) per device
    O  options of a multiple-choice question (1 otherwise)
    L  words per text item, padded     D  raw features of one frame
    H  width of the projected features
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of several clips of several devices.

    Attributes:
        values: ``[B, M, T, D]`` float32 features, or ``[B, M, T, 3, H, W]`` uint8 pixels.
        mask: ``[B, M, T]`` bool, True where a frame is real. A padded clip has no True at all.
    """

    values: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Devices x clips, with the text items that are asked about the clips.

    Attributes:
        frames: Query clips, ``[B, M, T, ...]``.
        context: Recent clips of the same devices, from which the parameters are generated,
            ``[B, C, T', ...]``; equal to the query clip where the context is the clip itself.
        text: ``[B, N, O, L]`` int64 word indices, 0 is padding. Question; question and option; or caption.
        text_mask: ``[B, N]`` bool, True where an item is real.
        text_clip: ``[B, N]`` int64, index into M of the clip that the item is about.
        answer: ``[B, N]`` int64. Open-ended: index of the answer, -1 when it is not in the answer list.
            Multiple choice: index of the correct option. Retrieval: unused (zeros).
        item: ``[B, N]`` int64, index of the item in the split's item list (for predictions).
        clip: ``[B, M]`` int64, index of the clip in the data set, -1 for padding.
        device: ``[B]`` int64, index of the device in the device table.
        kind: ``[B, N]`` int64, index of the question type.
        clean: Query clips before the simulated camera, where such twins exist.
        foreign: Context of another device of the same group, for the control that loads its parameters.
    """

    frames: Frames
    context: Frames
    text: Tensor
    text_mask: Tensor
    text_clip: Tensor
    answer: Tensor
    item: Tensor
    clip: Tensor
    device: Tensor
    kind: Tensor
    clean: Frames | None = None
    foreign: Frames | None = None

    def __len__(self) -> int:
        return int(self.device.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy of the batch on another torch device (called by Lightning)."""

        def move(value):  # type: ignore[no-untyped-def]
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, Frames):
                return Frames(*(move(getattr(value, f.name)) for f in fields(Frames)))
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the device model says about a batch.

    Attributes:
        logits: ``[B, N, A]`` or ``[B, N, O]``; empty for retrieval.
        video: ``[B, M, H]`` unit-length clip embeddings; ``None`` for questions.
        text: ``[B, N, H]`` unit-length text embeddings; ``None`` for questions.
    """

    logits: Tensor | None = None
    video: Tensor | None = None
    text: Tensor | None = None


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last dimension where the mask is True, ``[..., n]`` to ``[...]``; 0 where it is nowhere."""
    weight = mask.to(values.dtype)
    return (values * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def frame_positions(mask: Tensor) -> Tensor:
    """Time of each frame in its clip, from 0 (first) to 1 (last real frame).

    Args:
        mask: ``[..., T]`` bool; the real frames come first.

    Returns:
        ``[..., T]`` float32; padded frames are clamped to 1, a single frame is at 0.
    """
    steps = torch.arange(mask.shape[-1], device=mask.device, dtype=torch.float32)
    last = (mask.sum(-1, keepdim=True) - 1).clamp(min=1)
    return (steps / last).clamp(max=1.0)
