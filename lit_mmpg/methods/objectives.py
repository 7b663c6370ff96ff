"""Losses and uncertainties of each device by itself: nothing of one device may leak into another's adaptation."""

from __future__ import annotations

from torch import Tensor

from lit_mmpg.batch import Batch, Outputs, masked_mean
from lit_mmpg.device.contract import DeviceModel


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy of the softmax over the last dimension, in nats."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def entropies(network: DeviceModel, batch: Batch, outputs: Outputs) -> Tensor:
    """Entropy of each answer, or of each text's distribution over the clips of its row, in nats: ``[B, N]``."""
    return entropy_of(network.task.choices(network, batch, outputs))


def entropy(network: DeviceModel, batch: Batch, outputs: Outputs) -> Tensor:
    """Mean entropy of each device's answers, ``[B]``; 0 for a device without texts."""
    return masked_mean(entropies(network, batch, outputs), batch.text_mask)


def device_loss(network: DeviceModel, batch: Batch, outputs: Outputs) -> Tensor:
    """Loss of the task for each device by itself, ``[B]``."""
    return network.task.device_loss(network, batch, outputs)
