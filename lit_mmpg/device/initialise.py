"""Start values of the device model that come from the training data."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from lit_mmpg.data.vocabulary import word_vectors
from lit_mmpg.device.closed_form import caption_initialisation
from lit_mmpg.device.encoders import StandardiseFeatures
from lit_mmpg.errors import UserError

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.model import DeviceNetwork

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialisationConfig:
    """Where the start values come from.

    Attributes:
        projection: ``random``, or ``captions``: the frame projection starts as a reduced-rank ridge regression from
            frame features to the TF-IDF captions of the training clips (features only).
        words: ``random``; ``ppmi``: word vectors from the co-occurrence of words in the training sentences; or
            ``captions``: those that belong to the caption ridge (retrieval then starts from the ridge's ranking).
        ridge_strength: Penalty of the ridge.
    """

    projection: Literal["random", "captions"] = "random"
    words: Literal["random", "ppmi", "captions"] = "random"
    ridge_strength: float = 3e4


def _copy(target: torch.Tensor, values: np.ndarray) -> None:
    target.data.copy_(torch.from_numpy(np.ascontiguousarray(values)).to(target.dtype))


def initialise(model: DeviceNetwork, data: DeviceData, config: InitialisationConfig) -> None:
    """Set feature statistics, frame projection, word vectors and answer prior from the training data.

    Args:
        model: A fresh device model.
        data: The data, set up.
        config: What starts from where.

    Raises:
        UserError: If captions are asked for and there are none, frames are pixels, or the penalty is not above 0.
    """
    width, words = model.config.width, getattr(model.text_encoder, "embedding", None)
    if isinstance(model.encoder, StandardiseFeatures):
        mean, std = data.feature_statistics()
        _copy(model.encoder.mean, mean)
        _copy(model.encoder.std, std)
    if "captions" in (config.projection, config.words):
        if not isinstance(model.encoder, StandardiseFeatures):
            raise UserError("model.initialisation: 'captions' needs frame features, this data has pixels; use 'random'")
        features, captions = data.caption_pairs()
        if not captions:
            raise UserError(
                "model.initialisation: 'captions' needs captions of the training clips (data.captions); use 'random'"
            )
        if config.ridge_strength <= 0:
            raise UserError(f"model.initialisation.ridge_strength is {config.ridge_strength:g}; it must be above 0")
        _log.info("fitting the closed-form start to %d captioned clips", len(captions))
        start = caption_initialisation(
            (features - mean) / std, captions, data.training_sentences(), data.vocabulary, width, config.ridge_strength
        )
        if config.projection == "captions":
            _copy(model.frame_projection.weight, start.weight)
            _copy(model.frame_projection.bias, start.bias)
        if config.words == "captions":
            _copy(words.weight, start.words)  # type: ignore[union-attr]
    if config.words == "ppmi":
        vectors = word_vectors(data.training_sentences(), data.vocabulary, width, seed=0)
        _copy(words.weight, vectors * np.sqrt(width))  # type: ignore[union-attr]
    model.task.initialise(model, data.items("train").answer, len(data.answers))
