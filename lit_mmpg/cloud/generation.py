"""Parameters from anchors, such that a device's bits do not depend on the company in which it is served.

A matrix product on few rows takes another path through the BLAS than one on many, and the end of an array may be
computed by scalar code where its middle is computed by vector code, so the last bits of a plain forward pass depend on
the batch size, on the padding and on the place in the batch. A service that batches whoever happens to ask, and an
evaluation that batches the same devices otherwise, would then disagree. Here every device gets the same bits whoever
else is in the batch, by construction:

- clips and frames of all devices are laid out one after the other, without padding;
- every matrix product is a batch of products of one fixed shape (``FRAME_ROWS`` or ``DEVICE_ROWS`` rows);
- sums over anchors and over the frames of a device run one by one, in the device's own order;
- element-wise functions see whole blocks whose size is a multiple of every vector width.

What construction cannot promise (that the BLAS treats all rows of one shape alike) :func:`is_invariant` measures with
the real weights on the machine at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_mmpg.cloud.adaptor import ContextPool, FastDomainAdaptor
from lit_mmpg.cloud.exchange import Anchors
from lit_mmpg.cloud.reasoner import AnchorFrameDistributionReasoner

FRAME_ROWS = 64
"""Rows of one matrix product over frames or anchors."""
DEVICE_ROWS = 8
"""Rows of one matrix product over devices: what a single device pays for, and a full batch pays for in parts."""

_GRAIN = 32768  # torch gives pieces of at least this many elements to a thread
_LANES = 64  # a multiple of every vector width


@dataclass(frozen=True, slots=True)
class _Frames:
    """All frames of all clips in a row: what is known of them, and to whom they belong."""

    mean: Tensor  # [R, H]
    variance: Tensor  # [R, H]
    weight: Tensor  # [R, 1] share of the frame in its device's averages
    device: Tensor  # [R]
    lengths: Tensor  # [B] frames of each device


def generate(
    reasoner: AnchorFrameDistributionReasoner | None,
    pool: ContextPool,
    adaptor: FastDomainAdaptor,
    anchors: Anchors,
) -> tuple[Tensor, ...]:
    """Personal parameters, one set per device, for inference.

    Computes what ``adaptor(pool(reasoner(anchors)))`` computes, up to rounding; and a device's result has the same bits
    in every batch, at every place, with any padding of its clips and anchors.

    Args:
        reasoner: The reasoner, or ``None`` where the anchors are all that is known.
        pool: Pools frames into contexts.
        adaptor: Generates parameters from contexts.
        anchors: Anchors of B devices.

    Returns:
        The tensors of the device model's ParameterSpec, in order, each with a leading dimension B.
    """
    frames = _known(anchors) if reasoner is None else _reconstruct(reasoner, anchors)
    context = _blocks(_pool(pool, frames), DEVICE_ROWS)
    context = adaptor.norm(context)  # row by row
    generated = []
    for layer in adaptor.layers.values():
        code = _run(layer.encoder, context)  # type: ignore[arg-type, union-attr]
        for generator, shape in zip(layer.generators, layer.shapes, strict=True):  # type: ignore[union-attr, arg-type]
            values = _linear(generator, code).flatten(0, 1)[: len(anchors.features)]
            generated.append(values.reshape(-1, *shape))
    return tuple(generated)


def is_invariant(compute: Callable[[Anchors], tuple[Tensor, ...]], width: int, device: torch.device) -> bool:
    """Whether this machine gives devices the same bits alone and in company.

    Sixteen random devices with 1 to 9 clips of 1 to 40 frames and 1 to 4 anchors, each alone without padding, against
    all together, in reverse, and in two halves.

    Args:
        compute: Parameters from anchors.
        width: Width H of the anchors.
        device: Where to compute.
    """
    anchors = _random_anchors(16, width).to(device)
    together = compute(anchors)
    count = len(anchors.features)

    def same(rows: list[int], trim: bool = False) -> bool:
        part = anchors.rows(rows)
        found = compute(part.trimmed() if trim else part)
        return all(torch.equal(new, whole[rows]) for new, whole in zip(found, together, strict=True))

    backwards = list(reversed(range(count)))
    halves = [list(range(0, count, 2)), list(range(1, count, 2))]
    return all(same([row], trim=True) for row in range(count)) and all(same(rows) for rows in [backwards, *halves])


def _random_anchors(count: int, width: int) -> Anchors:
    """Contexts of many sizes, the same on every call."""
    random = torch.Generator().manual_seed(0)
    clips, most = torch.randint(1, 10, (count, 1), generator=random), torch.randint(1, 5, (count, 1), generator=random)
    frames = torch.randint(1, 41, (count, 9), generator=random) * (torch.arange(9) < clips)
    mask = torch.arange(4) < torch.minimum(most, frames).unsqueeze(-1)
    features = torch.randn(count, 9, 4, width, generator=random) * mask.unsqueeze(-1)
    return Anchors(features, torch.rand(count, 9, 4, generator=random) * mask, mask, frames)


# -- layout ------------------------------------------------------------------------------------------------------------


def _known(anchors: Anchors) -> _Frames:
    """Without a reasoner: the anchors are the frames, and they are certain."""
    mean = anchors.features[anchors.mask]
    return _frames(mean, torch.zeros_like(mean), anchors.mask.sum(-1))


def _frames(mean: Tensor, variance: Tensor, per_clip: Tensor) -> _Frames:
    """Weigh frames; ``per_clip [B, C]`` says how many each clip has, in order."""
    lengths = per_clip.sum(-1)
    clips = (per_clip > 0).sum(-1, keepdim=True).clamp(min=1)
    share = (1.0 / per_clip.clamp(min=1)) / clips
    weight = share.flatten().repeat_interleave(per_clip.flatten()).unsqueeze(-1)
    device = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    return _Frames(mean, variance, weight, device, lengths)


def _reconstruct(reasoner: AnchorFrameDistributionReasoner, anchors: Anchors) -> _Frames:
    """The reasoner's forward pass on rows: one per frame, in the order of devices, clips and time."""
    real = anchors.num_frames > 0
    features, times, mask = anchors.features[real], anchors.times[real], anchors.mask[real]
    count = anchors.num_frames[real]
    clip = torch.arange(len(count), device=count.device).repeat_interleave(count)  # [R]
    step = torch.arange(len(clip), device=count.device) - (count.cumsum(0) - count)[clip]
    time = (step / (count - 1).clamp(min=1)[clip]).clamp(max=1.0)

    # Interpolation of the anchors, and their mean.
    gap = (time.unsqueeze(-1) - times[clip]).abs()
    valid = mask[clip]
    score = torch.where(valid, -reasoner.log_sharpness.exp() * gap, -torch.inf)
    top = score.amax(-1, keepdim=True).clamp(min=-1e4)
    power = _elementwise(torch.exp, _blocks((score - top).clamp(min=-1e4), FRAME_ROWS)).flatten(0, 1)[: len(clip)]
    power = torch.where(valid, power, 0.0)
    total, base = torch.zeros_like(time).unsqueeze(-1), features.new_zeros(len(clip), features.shape[-1])
    weight = mask.unsqueeze(-1).to(features.dtype)
    centre, known = torch.zeros_like(features[:, 0]), torch.zeros_like(weight[:, 0])
    for k in range(features.shape[1]):
        total = total + power[:, k : k + 1]
        base = base + power[:, k : k + 1] * features[clip, k]
        centre = centre + features[:, k] * weight[:, k]
        known = known + weight[:, k]
    base = base / total.clamp(min=1e-30)
    centre = centre / known.clamp(min=1)
    nearest = gap.masked_fill(~valid, 1.0).amin(-1, keepdim=True)
    moment = time.unsqueeze(-1)
    parts = [base, centre[clip], moment, moment * moment, nearest]

    if reasoner.latent:
        rows = torch.cat([features, times.unsqueeze(-1)], -1)
        encoded = _rows(reasoner.prior.frame, rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
        pooled = torch.zeros_like(encoded[:, 0])
        for k in range(encoded.shape[1]):
            pooled = pooled + encoded[:, k] * weight[:, k]
        latent = _rows(reasoner.prior.output, pooled / known.clamp(min=1))[:, : reasoner.latent]
        parts.append(latent[clip])
    hidden = _blocks(torch.cat(parts, -1), FRAME_ROWS)
    hidden = _run(reasoner.decoder, hidden)
    mean = base + _linear(reasoner.correction, hidden).flatten(0, 1)[: len(clip)]
    spread = _linear(reasoner.log_variance, hidden).clamp(-8, 4)
    variance = _elementwise(torch.exp, spread).flatten(0, 1)[: len(clip)]
    return _frames(mean, variance, anchors.num_frames)


def _pool(pool: ContextPool, frames: _Frames) -> Tensor:
    """Contexts ``[B, width]``."""

    def average(values: Tensor) -> Tensor:
        return torch.segment_reduce(values * frames.weight, "sum", lengths=frames.lengths, unsafe=True)

    mean = average(frames.mean)
    spread = average((frames.mean - mean[frames.device]).square() + frames.variance)
    pooled = [mean, (spread + 1e-6).sqrt()]
    if pool.embed is not None:
        pooled.append(average(_rows(pool.embed, frames.mean)))
    return torch.cat(pooled, -1)


# -- arithmetic on blocks ----------------------------------------------------------------------------------------------


def _blocks(rows: Tensor, size: int) -> Tensor:
    """``[R, F]`` as ``[blocks, size, F]``, the last block filled up with zeros."""
    count = -(-len(rows) // size)
    return F.pad(rows, (0, 0, 0, count * size - len(rows))).reshape(count, size, rows.shape[-1])


def _rows(network: nn.Module, rows: Tensor) -> Tensor:
    return _run(network, _blocks(rows, FRAME_ROWS)).flatten(0, 1)[: len(rows)]


def _run(network: nn.Module, blocks: Tensor) -> Tensor:
    """A stack of linear layers and element-wise functions."""
    for layer in network.children():
        blocks = _linear(layer, blocks) if isinstance(layer, nn.Linear) else _elementwise(layer, blocks)
    return blocks


def _linear(layer: nn.Module, blocks: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.t().expand(len(blocks), -1, -1)  # not copied: every block reads the same matrix
    return torch.baddbmm(layer.bias, blocks, weight)


def _elementwise(function: Callable[[Tensor], Tensor], blocks: Tensor) -> Tensor:
    """Apply a function of single values so that none of them falls into a scalar tail."""
    values = blocks.contiguous()
    if values.numel() % _LANES:  # a width so odd that even whole blocks end within a vector
        padded = F.pad(values.flatten(), (0, -values.numel() % _LANES))
        return function(padded)[: values.numel()].view_as(values)
    if values.device.type == "cpu" and torch.get_num_threads() > 1 and values.numel() > _GRAIN:
        return torch.cat([function(block) for block in values.split(max(1, _GRAIN // values[0].numel()))])
    return function(values)
