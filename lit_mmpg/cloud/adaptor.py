"""Fast Domain Adaptor (FDA): a hypernetwork from a device's context to the parameters of its dynamic layers.

Reconstruction of the paper's module. The context is the mean and the total standard deviation of the reconstructed
features over the device's recent clips; each dynamic layer has its own encoder and generator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_mmpg.cloud.reasoner import Reconstruction
from lit_mmpg.device.dynamic import ZERO_INITIALISED, DynamicLinear
from lit_mmpg.parameters import ParameterEntry


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

    def __init__(self, layer: DynamicLinear, entries: tuple[ParameterEntry, ...], context: int, hidden: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(context, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        # A ModuleList, not a list: generators outside parameters() would never be trained.
        self.generators = nn.ModuleList(nn.Linear(hidden, entry.size) for entry in entries)
        self.shapes = [entry.shape for entry in entries]
        for generator, entry in zip(self.generators, entries, strict=True):
            part = entry.name.rsplit(".", 1)[-1]
            assert isinstance(generator, nn.Linear)
            if part in ZERO_INITIALISED:
                nn.init.zeros_(generator.weight)
                nn.init.zeros_(generator.bias)
            elif part == "v":
                # At the scale of the layer that it feeds; the context moves it gently around a learned direction.
                nn.init.normal_(generator.bias, std=layer.in_features**-0.5)
                nn.init.normal_(generator.weight, std=0.3 * (layer.in_features * hidden) ** -0.5)
            else:  # full: start from the static layer that the generated one replaces
                static = layer.weight if part == "weight" else layer.bias
                with torch.no_grad():
                    generator.bias.copy_(static.flatten())
                nn.init.zeros_(generator.weight)

    def forward(self, context: Tensor) -> list[Tensor]:
        code = self.encoder(context)
        return [g(code).reshape(-1, *shape) for g, shape in zip(self.generators, self.shapes, strict=True)]


class FastDomainAdaptor(nn.Module):
    """FDA: one forward pass from contexts to personal parameters.

    Untrained it generates parameters with which every dynamic layer computes exactly what it computes without them.

    Args:
        layers: The dynamic layers of the device model by name (:meth:`DeviceModel.dynamic_layers`), already holding the
            static weights.
        context: Width of the context vector.
        hidden: Width of the encoders.
    """

    def __init__(self, layers: dict[str, DynamicLinear], context: int, hidden: int = 128) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(context)
        self.layers = nn.ModuleDict(
            {name: _LayerGenerator(layer, layer.entries(name), context, hidden) for name, layer in layers.items()}
        )

    def forward(self, context: Tensor) -> tuple[Tensor, ...]:
        """Generate parameters.

        Args:
            context: ``[G, context]``, one row per device.

        Returns:
            The tensors of the device model's ParameterSpec, in order, each with a leading dimension G.
        """
        normalised = self.norm(context)
        return tuple(tensor for generator in self.layers.values() for tensor in generator(normalised))
