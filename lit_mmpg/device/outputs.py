"""From a batch to scores, and the loss that aligns shifted frames with their clean twins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lit_mmpg.batch import Batch, Outputs
from lit_mmpg.device.contract import DeviceModel
from lit_mmpg.errors import UserError


def answer_batch(
    model: DeviceModel,
    batch: Batch,
    features: Tensor,
    parameters: Sequence[Tensor] = (),
    projected: Tensor | None = None,
) -> Outputs:
    """Run the device model on a batch.

    Args:
        model: The device model.
        batch: The batch.
        features: ``[B, M, T, D]`` encoded query frames.
        parameters: Personal parameters with leading dimension B, or nothing.
        projected: ``[B, M, T, H]``, if :meth:`DeviceModel.project` has been called already.

    Returns:
        Scores (questions) or embeddings (retrieval).
    """
    mask = batch.frames.mask
    if projected is None:
        projected = model.project(features, parameters)
    outputs = model.task.respond(model, batch, model.mix(projected, mask, parameters), parameters)
    # Losses and metrics count in float32, whatever precision the model computes in.
    given = {name: getattr(outputs, name) for name in ("logits", "video", "text")}
    return replace(outputs, **{name: tensor.float() for name, tensor in given.items() if tensor is not None})


def alignment_loss(model: DeviceModel, batch: Batch, projected: Tensor) -> Tensor:
    """Squared distance of projected shifted frames from those of their clean twins, the mean over real frames.

    The twins are projected without correction and without personal parameters, and teach without being taught.

    Args:
        model: The device model.
        batch: The batch, with clean twins.
        projected: ``[B, M, T, H]`` projected query frames.

    Returns:
        Scalar.

    Raises:
        UserError: If the data has no clean twins.
    """
    if batch.clean is None:
        raise UserError("alignment needs clean twins of the frames, and this data has none; set its weight to 0")
    training = model.training
    model.eval()  # the target is not noisy
    with torch.no_grad():
        clean = model.project(model.encode(batch.clean.values), corrected=False)
    model.train(training)
    weight = batch.frames.mask.unsqueeze(-1).to(clean.dtype).expand_as(clean)
    return ((projected - clean).square() * weight).sum() / weight.sum().clamp(min=1)
