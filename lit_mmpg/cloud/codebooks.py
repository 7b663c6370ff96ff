"""The codebooks that quantise anchors: learnt once the halves are trained, kept in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lit_mmpg.cloud.exchange import LinkConfig
from lit_mmpg.errors import UserError
from lit_mmpg.link import register
from lit_mmpg.link.product import PQ, ProductQuantiser, learn


def learn_codebooks(anchors: Iterable[np.ndarray], link: LinkConfig) -> ProductQuantiser | None:
    """Product quantisation of anchors, made known to the link; ``None`` where none is wanted or there are no anchors.

    Args:
        anchors: ``[n, H]`` anchors that training devices would upload.
        link: Says how many codebooks.

    Raises:
        UserError: If an anchor is not finite.
    """
    parts = list(anchors) if link.codebooks else []
    vectors = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
    if not len(vectors):
        return None
    if not np.isfinite(vectors).all():
        raise UserError(
            "the network projects frames of training devices to values that are not finite, of which no codebooks can "
            "be learnt; train it with a lower learning rate, or from a checkpoint of before"
        )
    quantiser = learn(vectors, min(link.codebooks, vectors.shape[1]))
    register(quantiser)
    return quantiser


def from_checkpoint(stored: Mapping[str, Any]) -> ProductQuantiser | None:
    """Codebooks of a checkpoint's own entries, made known to the link; ``None`` where it has none.

    Args:
        stored: ``checkpoint["lit_mmpg"]``.

    Raises:
        UserError: If they are damaged, or those of an older version.
    """
    tensors = stored.get("codebooks")
    if not tensors:
        return None
    if not isinstance(tensors, Mapping):
        raise UserError("the checkpoint's codebooks are those of an older version; train the cloud half again")
    try:
        quantiser = ProductQuantiser.from_tensors({name: tensor.numpy() for name, tensor in tensors.items()})
    except (AttributeError, TypeError, ValueError) as error:
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
