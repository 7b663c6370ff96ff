"""Uncertainties of each device by itself: nothing of one device may leak into another's adaptation."""

from __future__ import annotations

from torch import Tensor

from lit_mmpg.batch import Batch, Outputs, masked_mean
from lit_mmpg.device.contract import DeviceModel


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy of the softmax over the last dimension, in nats."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def entropy(network: DeviceModel, batch: Batch, outputs: Outputs) -> Tensor:
    """Mean entropy of each device's answers, ``[B]``, in nats; 0 for a device without texts.

    Where a text is a search, it is that of its distribution over the clips of its row.
    """
    return masked_mean(entropy_of(network.task.choices(network, batch, outputs)), batch.text_mask)
