"""Fast Domain Adaptor (FDA): a hypernetwork from a device's context to the parameters of its dynamic layers.

Reconstruction of the paper's module. The context is the mean and the total standard deviation of the reconstructed
features over the device's recent clips; each dynamic layer has its own encoder and generator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lit_mmpg.cloud.reasoner import Reconstruction
from lit_mmpg.forms.base import Part
from lit_mmpg.forms.injection import by_name


class Generated(Protocol):
    """A layer for which parameters are generated."""

    def parts(self) -> Sequence[Part]:
        """What is generated, in order."""


class ContextPool(nn.Module):
    """Pool a device's reconstructed clips into one context vector.

    Moments are exact for the Gaussian mixture that the reconstruction describes: the total variance is the mean of the
    variances plus the variance of the means. An embedding of each frame before pooling (a deep set) lets the context
    hold more than moments, for example how often each kind of thing is seen.

    Args:
        width: Width H of the features.
        embedding: Width of the per-frame embedding; 0 pools moments only.
    """

    def __init__(self, width: int, embedding: int = 64) -> None:
        super().__init__()
        self.embed = (
            nn.Sequential(nn.Linear(width, 2 * embedding), nn.GELU(), nn.Linear(2 * embedding, embedding), nn.GELU())
            if embedding
            else None
        )
        self.width = 2 * width + embedding

    def forward(self, reconstruction: Reconstruction, mask: Tensor) -> Tensor:
        """Pool ``[B, C, T, H]`` with mask ``[B, C, T]`` to ``[B, width]``; every clip weighs the same."""
        frames = mask.unsqueeze(-1).to(reconstruction.mean.dtype)
        clips = mask.any(-1, keepdim=True).to(frames.dtype)
        per_frame = (
            frames / frames.sum(-2, keepdim=True).clamp(min=1) / clips.sum(1, keepdim=True).clamp(min=1).unsqueeze(-1)
        )

        def average(values: Tensor) -> Tensor:
            return (values * per_frame).sum((1, 2))

        mean = average(reconstruction.mean)
        spread = average((reconstruction.mean - mean[:, None, None]).square() + reconstruction.variance)
        pooled = [mean, (spread + 1e-6).sqrt()]
        if self.embed is not None:
            pooled.append(average(self.embed(reconstruction.mean)))
        return torch.cat(pooled, -1)


class _LayerGenerator(nn.Module):
    """Encoder and generators of one dynamic layer."""

    def __init__(self, parts: Sequence[Part], context: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(context, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.shapes = [part.shape for part in parts]
        # A ModuleList, not a list: generators outside parameters() would never be trained.
        generators = [nn.Linear(hidden, math.prod(shape)) for shape in self.shapes]
        self.generators = nn.ModuleList(generators)
        for generator, part in zip(generators, parts, strict=True):
            part.start.begin(generator)

    def forward(self, context: Tensor) -> list[Tensor]:
        code = self.encoder(context)
        return [g(code).reshape(-1, *shape) for g, shape in zip(self.generators, self.shapes, strict=True)]


class FastDomainAdaptor(nn.Module):
    """FDA: one forward pass from contexts to personal parameters.

    Untrained it generates parameters with which every dynamic layer computes exactly what it computes without them.

    Args:
        layers: The dynamic layers by name, already holding the static weights: ``DeviceModel.dynamic_layers()``, or
            ``layers`` of what :func:`lit_mmpg.adaptable` returns.
        context: Width of the context vector.
        hidden: Width of the encoders.
    """

    def __init__(self, layers: Mapping[str, Generated], context: int, hidden: int = 128) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(context)
        self.layers = by_name({name: _LayerGenerator(layer.parts(), context, hidden) for name, layer in layers.items()})

    def forward(self, context: Tensor) -> tuple[Tensor, ...]:
        """Generate parameters.

        Args:
            context: ``[G, context]``, one row per device.

        Returns:
            The tensors of the device model's ParameterSpec, in order, each with a leading dimension G.
        """
        normalised = self.norm(context)
        return tuple(tensor for generator in self.layers.values() for tensor in generator(normalised))
