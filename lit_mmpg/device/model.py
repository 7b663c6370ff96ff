"""The lightweight multi-modal model of the device (reconstruction of the paper's device half).

    frames -> encoder -> frame_projection (dynamic) -> norm -> temporal -> question-guided attention -> fusion (dynamic)
    -> head (dynamic) -> answer

The projected and normalised frame feature is what the device uploads for its anchor frames. It is always computed with
the static parameters, so the context does not depend on an earlier adaptation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_mmpg.batch import frame_positions
from lit_mmpg.data.vocabulary import word_vectors
from lit_mmpg.device.closed_form import caption_initialisation
from lit_mmpg.device.contract import DeviceModel, DynamicConfig, InitialisationConfig, Shapes
from lit_mmpg.device.encoders import PixelEncoder, StandardiseFeatures, TextEncoder
from lit_mmpg.errors import UserError
from lit_mmpg.settings import MOST, within

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeviceModelConfig:
    """Sizes and regularisation of the device model.

    Attributes:
        width: Width H of the projected frame feature, of the words and of the fusion.
        encoder_features: Width D of the pixel encoder's output; unused where features are given.
        encoder_channels: Channels of the pixel encoder's first stage.
        heads: Attention heads over frames.
        temporal: Mix frames with their time by a small network, so that motion can be told; without it only a linear
            time code is added (features of few frames that hardly differ).
        dropout: Dropout in text and fusion.
        frame_dropout: Dropout on the frame features that enter the projection.
        frame_noise: Standard deviation of noise on them, in training.
        word_dropout: Share of words left out in training.
        blind: Ignore the frames: the question-only (caption-prior) floor.
        correction: Hidden width of a residual network on the frame features in front of the projection, which can undo
            what a camera did to them; 0: none. It starts as the identity. Its first layer may be dynamic.
        context_width: Width of a projection of its own for the frame features that are uploaded; 0 uploads the
            projected frame features. What a correction has removed no longer tells the cloud which camera it was.
    """

    width: int = 64
    encoder_features: int = 128
    encoder_channels: int = 16
    heads: int = 4
    temporal: bool = True
    dropout: float = 0.0
    frame_dropout: float = 0.0
    frame_noise: float = 0.0
    word_dropout: float = 0.0
    blind: bool = False
    correction: int = 0
    context_width: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes of which there is no network."""
        sizes = {"encoder_features": self.encoder_features, "encoder_channels": self.encoder_channels}
        within("model.network.", 1, MOST, width=self.width, heads=self.heads, **sizes)
        within("model.network.", 0, MOST, correction=self.correction, context_width=self.context_width)
        within("model.network.", 0, frame_noise=self.frame_noise)
        shares = {"dropout": self.dropout, "frame_dropout": self.frame_dropout, "word_dropout": self.word_dropout}
        within("model.network.", 0, 1, **shares)
        if self.width % self.heads:
            raise UserError(
                f"model.network.heads is {self.heads}, which does not divide model.network.width, {self.width}; "
                "choose another"
            )

    def __call__(self, shapes: Shapes, dynamic: DynamicConfig | None = None) -> DeviceModel:
        """The network of these sizes."""
        return DeviceNetwork(shapes, self, dynamic)


class DeviceNetwork(DeviceModel):
    """The device model that this package trains.

    Args:
        shapes: What the data decides.
        config: Sizes.
        dynamic: Dynamic layers; ``None`` for a purely static model (stage 1).
        encoder: Encoder of pixels, ``[..., 3, h, w]`` to ``[..., config.encoder_features]``; ``None``: a small one.
        text_encoder: Encoder of words, ``[..., L]`` to ``[..., H]``; ``None``: a small one.

    Raises:
        UserError: If the frame shape fits neither features nor pixels, or a dynamic layer does not exist for the task.
    """

    def __init__(
        self,
        shapes: Shapes,
        config: DeviceModelConfig,
        dynamic: DynamicConfig | None = None,
        encoder: nn.Module | None = None,
        text_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__(shapes, dynamic)
        self.config, self.factory, self.blind = config, config, config.blind
        width = config.width
        if len(shapes.frame) == 3:
            small = partial(PixelEncoder, config.encoder_features, config.encoder_channels)
            self.encoder: nn.Module = encoder if encoder is not None else small()
            features = config.encoder_features
        elif len(shapes.frame) == 1:
            self.encoder = StandardiseFeatures(shapes.frame[0])
            features = shapes.frame[0]
        else:
            raise UserError(f"frames of shape {shapes.frame}: expected features (D,) or pixels (3, H, W)")
        retrieval = self.task.searches
        if config.correction:
            self.correction = self.linear("correction", features, config.correction)
            self.correction_output = nn.Linear(config.correction, features)
            nn.init.zeros_(self.correction_output.weight)
            nn.init.zeros_(self.correction_output.bias)
        if config.context_width:
            self.context_projection = nn.Linear(features, config.context_width)
            self.context_norm = nn.LayerNorm(config.context_width, elementwise_affine=False)
        self.frame_projection = self.linear("frame_projection", features, width)
        self.frame_norm = nn.LayerNorm(width)
        self.time = nn.Linear(4, width, bias=False)
        nn.init.zeros_(self.time.weight)
        self.temporal = _zero_ended(width, 2 * width, width) if config.temporal else None
        self.text_encoder: nn.Module = (
            text_encoder
            if text_encoder is not None
            else TextEncoder(shapes.words, width, shapes.max_words, retrieval, config.dropout, config.word_dropout)
        )
        self.frame_dropout = nn.Dropout(config.frame_dropout)
        self.dropout = nn.Dropout(config.dropout)
        if retrieval:
            self.pool_score = nn.Linear(width, 1)
            nn.init.zeros_(self.pool_score.weight)
            self.expand = nn.Linear(width, width)
            self.head = self.linear("head", width, width)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        else:
            self.query = nn.Linear(width, width)
            self.value = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.value.weight)
            self.question_norm = nn.LayerNorm(width)
            self.fusion = self.linear("fusion", 3 * width, 2 * width)
            self.fusion_output = nn.Linear(2 * width, width)
            self.fusion_norm = nn.LayerNorm(width)
            self.head = self.linear("head", width, self.task.head_width(shapes.answers))
        self.index()

    def context_parameters(self) -> list[nn.Parameter]:
        """Those of the context projection."""
        return list(self.context_projection.parameters()) if self.config.context_width else []

    def start(self, data: DeviceData, settings: InitialisationConfig) -> None:
        """Feature statistics, frame projection, word vectors and answer prior from the training data."""
        initialise(self, data, settings)

    def correction_layers(self) -> list[nn.Module]:
        """Both layers of the correction."""
        return [self.correction, self.correction_output] if self.config.correction else []

    @property
    def feature_width(self) -> int:
        """Width of the pixel encoder's output, or of the given features."""
        return self.config.encoder_features if self.shapes.pixels else self.shapes.frame[0]

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Pixels through the encoder; features standardised."""
        return self.encoder(frames)  # type: ignore[no-any-return]

    def project(self, features: Tensor, parameters: Sequence[Tensor] = (), corrected: bool = True) -> Tensor:
        """Projected, normalised frame features, ``[..., T, D]`` to ``[..., T, H]``; see :meth:`DeviceModel.project`."""
        if self.training and self.config.frame_noise:
            features = features + self.config.frame_noise * torch.randn_like(features)
        features = self.frame_dropout(features)
        if corrected and self.config.correction:
            hidden = F.gelu(self.correction(features, self.own("correction", parameters)))
            features = features + self.correction_output(hidden)
        projected = self.frame_norm(self.frame_projection(features, self.own("frame_projection", parameters)))
        return torch.zeros_like(projected) if self.config.blind else projected

    @property
    def anchor_width(self) -> int:
        """Width of what is uploaded of each anchor frame."""
        return self.config.context_width or self.config.width

    def anchor_features(self, features: Tensor) -> Tensor:
        """By the context projection, where there is one; else the projected features."""
        if self.config.context_width:
            return self.context_norm(self.context_projection(features))
        return self.project(features)

    def contextualise(self, projected: Tensor, mask: Tensor) -> Tensor:
        """Mix each frame with its time, so that motion can be told: ``[..., T, H]`` to ``[..., T, H]``."""
        time = frame_positions(mask).unsqueeze(-1)
        timed = projected + self.time(
            torch.cat([time, time * time, torch.cos(torch.pi * time), torch.cos(2 * torch.pi * time)], -1)
        )
        return timed if self.temporal is None else timed + self.temporal(timed)

    def fuse(self, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Attend to the frames with a question (or a question and an option) and score its answers.

        Args:
            frames: ``[..., T, H]`` from :meth:`contextualise`, one clip per text.
            mask: ``[..., T]``.
            text: ``[..., L]`` word indices.
            parameters: All dynamic parameters, or nothing.

        Returns:
            ``[..., outputs]``: answer scores.
        """
        heads, width = self.config.heads, self.config.width
        question = self.question_norm(self.text_encoder(text))
        split = frames.unflatten(-1, (heads, width // heads))  # [..., T, heads, H / heads]
        query = self.query(question).unflatten(-1, (heads, width // heads)).unsqueeze(-3)
        score = (split * query).sum(-1) * (width // heads) ** -0.5
        weight = score.masked_fill(~mask.unsqueeze(-1), -1e4).softmax(-2)
        seen = self.value((weight.unsqueeze(-1) * split).sum(-3).flatten(-2))
        joint = torch.cat([seen, question, seen * question], -1)
        hidden = self.dropout(F.gelu(self.fusion(joint, self.own("fusion", parameters))))
        fused = self.fusion_norm(question + seen + self.fusion_output(hidden))
        return self.head(self.dropout(fused), self.own("head", parameters))

    def embed_video(self, frames: Tensor, mask: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Unit-length clip embedding ``[..., H]`` from :meth:`contextualise`d frames ``[..., T, H]``."""
        score = self.pool_score(frames).squeeze(-1)
        weight = score.masked_fill(~mask, -1e4).softmax(-1)
        pooled = (weight.unsqueeze(-1) * frames).sum(-2)
        refined = self.head(self.dropout(F.gelu(self.expand(pooled))), self.own("head", parameters))
        return F.normalize(pooled + refined, dim=-1)

    def embed_text(self, text: Tensor) -> Tensor:
        """Unit-length sentence embedding, ``[..., L]`` to ``[..., H]``."""
        return F.normalize(self.text_encoder(text), dim=-1)

    def answer(self, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Scores of the answers to ``text [..., O, L]`` about contextualised frames ``[..., T, H]``."""
        if not self.task.takes_options:
            return self.fuse(frames, mask, text.squeeze(-2), parameters)
        options = text.shape[-2]
        spread = frames.unsqueeze(-3).expand(*frames.shape[:-2], options, *frames.shape[-2:])
        spread_mask = mask.unsqueeze(-2).expand(*mask.shape[:-1], options, mask.shape[-1])
        return self.fuse(spread, spread_mask, text, parameters).squeeze(-1)


def _zero_ended(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A two-layer network that outputs zero at first: a residual that starts as the identity."""
    network = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
    nn.init.zeros_(network[2].weight)  # type: ignore[arg-type]
    nn.init.zeros_(network[2].bias)  # type: ignore[arg-type]
    return network


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
