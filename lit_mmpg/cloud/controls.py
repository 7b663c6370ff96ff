"""Trained controls of the cloud half: contexts that are no context, and a generator that does not learn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lit_mmpg.cloud.adaptor import FastDomainAdaptor
from lit_mmpg.cloud.reasoner import Reconstruction


class ConstantContext(nn.Module):
    """One learned context for all devices: the generator trains with the same budget, but cannot tell them apart.

    Args:
        width: Width of the context vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.vector = nn.Parameter(torch.randn(width))

    def forward(self, reconstruction: Reconstruction, mask: Tensor) -> Tensor:
        """``[B, width]``, the same in each row."""
        # A copy, no view: in inference mode a view of a parameter still asks for a gradient.
        return self.vector.repeat(len(mask), 1)


class ConditionContext(nn.Module):
    """An oracle's context: the true settings of the device's camera instead of anything that the device sends.

    Args:
        conditions: Numbers K that describe a device.
        width: Width of the context vector.
    """

    def __init__(self, conditions: int, width: int) -> None:
        super().__init__()
        self.width, self.conditions = width, conditions
        self.embed = nn.Sequential(nn.Linear(conditions, width), nn.GELU(), nn.Linear(width, width))

    def of(self, conditions: Tensor) -> Tensor:
        """Contexts ``[B, width]`` of devices with conditions ``[B, K]``."""
        context: Tensor = self.embed(conditions)
        return context

    def forward(self, reconstruction: Reconstruction, mask: Tensor) -> Tensor:
        """Context where the conditions are not known: those of a camera that changes nothing (all zero)."""
        return self.of(torch.zeros(len(mask), self.conditions, device=mask.device))


def freeze_generators(adaptor: FastDomainAdaptor) -> None:
    """Give the generators random weights for good: the ablation ``frozen_random``.

    DUET's public code keeps its generators in a plain list, outside of ``parameters()``, so that they are never
    trained; everything before them is. The parts that would start at zero are drawn at the scale of ``v``, since a
    frozen zero would be the static model.
    """
    with torch.no_grad():
        for layer in adaptor.layers.values():
            for generator, shape in zip(layer.generators, layer.shapes, strict=True):  # type: ignore[arg-type]
                if not bool(generator.weight.any()):
                    hidden = generator.weight.shape[1]
                    nn.init.normal_(generator.weight, std=0.3 * (int(np.max(shape)) * hidden) ** -0.5)
                generator.requires_grad_(False)
