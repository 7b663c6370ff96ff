"""The codebooks that quantise anchors: learnt once the halves are trained, kept in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lit_mmpg.cloud.exchange import LinkConfig
from lit_mmpg.errors import UserError
from lit_mmpg.link import register
from lit_mmpg.link.product import PQ, ProductQuantiser, learn

if TYPE_CHECKING:
    from lit_mmpg.cloud.module import CloudModule


def learn_codebooks(module: CloudModule) -> ProductQuantiser | None:
    """k-means on the anchors that the training devices would upload; ``None`` where no codebooks are wanted.

    The state of the random generators is afterwards what it was before.

    Args:
        module: A cloud module that a trainer holds.
    """
    parts = module.link.codebooks
    if not parts:
        return None
    training = module.training
    module.eval()
    anchors: list[np.ndarray] = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for frames in module.data.training_contexts():
            context = replace(frames, values=frames.values.to(module.device), mask=frames.mask.to(module.device))
            selected, _ = module.select(context)
            anchors.append(selected.features[selected.mask].float().cpu().numpy())
    module.train(training)
    vectors = np.concatenate(anchors) if anchors else np.zeros((0, 1), np.float32)
    if not len(vectors):
        return None
    return learn(vectors, min(parts, vectors.shape[1]))


def to_tensors(quantiser: ProductQuantiser) -> list[torch.Tensor]:
    """Codebooks for a checkpoint."""
    return [torch.from_numpy(book.copy()) for book in quantiser.codebooks]


def from_checkpoint(stored: Mapping[str, Any]) -> ProductQuantiser | None:
    """Codebooks of a checkpoint's own entries, made known to the link; ``None`` where it has none.

    Args:
        stored: ``checkpoint["lit_mmpg"]``.

    Raises:
        UserError: If they are damaged.
    """
    if not stored.get("codebooks"):
        return None
    try:
        quantiser = ProductQuantiser([book.numpy() for book in stored["codebooks"]])
    except (AttributeError, ValueError) as error:
        raise UserError(f"the checkpoint's codebooks are damaged ({error}); train the cloud half again") from error
    register(quantiser)
    return quantiser


def resolve(link: LinkConfig, quantiser: ProductQuantiser | None) -> LinkConfig:
    """The link with the codec names that messages carry.

    Raises:
        UserError: If product quantisation is asked for and the checkpoint has no codebooks.
    """
    if link.upload_codec != PQ:
        return link
    if quantiser is None:
        raise UserError(
            "model.init_args.link.upload_codec is pq, but the checkpoint has no codebooks; train the cloud half with "
            "model.init_args.link.codebooks above 0"
        )
    return replace(link, upload_codec=quantiser.name)
