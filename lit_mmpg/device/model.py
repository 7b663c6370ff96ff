"""The lightweight multi-modal model of the device (reconstruction of the paper's device half).

    frames -> encoder -> frame_projection (dynamic) -> norm -> temporal -> question-guided attention -> fusion (dynamic)
    -> head (dynamic) -> answer

The projected and normalised frame feature is what the device uploads for its anchor frames. It is always computed with
the static parameters, so the context does not depend on an earlier adaptation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_mmpg.batch import frame_positions
from lit_mmpg.device.dynamic import DynamicLinear
from lit_mmpg.device.encoders import PixelEncoder, StandardiseFeatures, TextEncoder
from lit_mmpg.errors import UserError
from lit_mmpg.parameters import ParameterSpec

Task = Literal["open_ended", "multiple_choice", "retrieval"]
DynamicLayer = Literal["correction", "frame_projection", "fusion", "head"]
DYNAMIC_ORDER: tuple[DynamicLayer, ...] = ("correction", "frame_projection", "fusion", "head")


@dataclass(frozen=True)
class DynamicConfig:
    """Which layers take generated parameters, and in which form.

    Attributes:
        layers: Names of the dynamic layers.
        form: Name of the form of their parameters (see :mod:`lit_mmpg.forms`).
        rank: Rank of the forms that have one.
    """

    layers: tuple[DynamicLayer, ...] = ("frame_projection", "head")
    form: str = "low_rank"
    rank: int = 8


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


@dataclass(frozen=True)
class Shapes:
    """What the data decides about the model.

    Attributes:
        task: ``open_ended``, ``multiple_choice`` or ``retrieval``.
        frame: Shape of one frame: ``(D,)`` features or ``(3, H, W)`` pixels.
        words: Size of the vocabulary.
        answers: Size of the answer list (open-ended only).
        max_words: Longest text in words.
    """

    task: Task
    frame: tuple[int, ...]
    words: int
    answers: int = 0
    max_words: int = 20


class DeviceModel(nn.Module):
    """Device half: static layers plus dynamic layers whose parameters are arguments.

    Args:
        shapes: What the data decides.
        config: Sizes.
        dynamic: Dynamic layers; ``None`` for a purely static model (stage 1).

    Raises:
        UserError: If the frame shape fits neither features nor pixels, or a dynamic layer does not exist for the task.
    """

    def __init__(self, shapes: Shapes, config: DeviceModelConfig, dynamic: DynamicConfig | None = None) -> None:
        super().__init__()
        self.shapes, self.config = shapes, config
        width = config.width
        if len(shapes.frame) == 3:
            self.encoder: nn.Module = PixelEncoder(config.encoder_features, config.encoder_channels)
            features = config.encoder_features
        elif len(shapes.frame) == 1:
            self.encoder = StandardiseFeatures(shapes.frame[0])
            features = shapes.frame[0]
        else:
            raise UserError(f"frames of shape {shapes.frame}: expected features (D,) or pixels (3, H, W)")
        chosen = dynamic.layers if dynamic else ()

        def layer(name: str, inputs: int, outputs: int) -> DynamicLinear:
            if dynamic and name in dynamic.layers:
                return DynamicLinear(inputs, outputs, dynamic.form, dynamic.rank)
            return DynamicLinear(inputs, outputs)

        retrieval = shapes.task == "retrieval"
        if config.correction:
            self.correction = layer("correction", features, config.correction)
            self.correction_output = nn.Linear(config.correction, features)
            nn.init.zeros_(self.correction_output.weight)
            nn.init.zeros_(self.correction_output.bias)
        if config.context_width:
            self.context_projection = nn.Linear(features, config.context_width)
            self.context_norm = nn.LayerNorm(config.context_width, elementwise_affine=False)
        self.frame_projection = layer("frame_projection", features, width)
        self.frame_norm = nn.LayerNorm(width)
        self.time = nn.Linear(4, width, bias=False)
        nn.init.zeros_(self.time.weight)
        self.temporal = _zero_ended(width, 2 * width, width) if config.temporal else None
        self.text_encoder = TextEncoder(
            shapes.words, width, shapes.max_words, retrieval, config.dropout, config.word_dropout
        )
        self.frame_dropout = nn.Dropout(config.frame_dropout)
        self.dropout = nn.Dropout(config.dropout)
        if retrieval:
            self.pool_score = nn.Linear(width, 1)
            nn.init.zeros_(self.pool_score.weight)
            self.expand = nn.Linear(width, width)
            self.head = layer("head", width, width)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            self.log_temperature = nn.Parameter(torch.tensor(10.0).log())
        else:
            self.query = nn.Linear(width, width)
            self.value = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.value.weight)
            self.question_norm = nn.LayerNorm(width)
            self.fusion = layer("fusion", 3 * width, 2 * width)
            self.fusion_output = nn.Linear(2 * width, width)
            self.fusion_norm = nn.LayerNorm(width)
            self.head = layer("head", width, shapes.answers if shapes.task == "open_ended" else 1)
        missing = [name for name in chosen if not hasattr(self, name)]
        if missing:
            raise UserError(f"model.dynamic.layers: {missing} do not exist for task '{shapes.task}'; remove them")
        self._parts = {name: getattr(self, name).entries(name) for name in DYNAMIC_ORDER if name in chosen}
        self.spec = ParameterSpec(tuple(entry for entries in self._parts.values() for entry in entries))

    def dynamic_layers(self) -> dict[str, DynamicLinear]:
        """The dynamic layers by name, in the order of the specification."""
        return {name: getattr(self, name) for name in self._parts}

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Static tensors that only the exchange needs: those of the dynamic forms and of the context projection.

        They are trained with the cloud half and shipped with the device.
        """
        own = list(self.context_projection.parameters()) if self.config.context_width else []
        return [p for layer in self.dynamic_layers().values() for p in layer.adapter_parameters()] + own

    def _own(self, name: str, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """The slice of ``parameters`` that belongs to one layer."""
        if not parameters or name not in self._parts:
            return ()
        start = 0
        for layer, entries in self._parts.items():
            if layer == name:
                return parameters[start : start + len(entries)]
            start += len(entries)
        return ()

    def encode(self, frames: Tensor) -> Tensor:
        """Raw features of frames, ``[..., T, D]``.

        Args:
            frames: ``[..., T, 3, H, W]`` uint8 pixels, or ``[..., T, D]`` features. Features given to a model of pixels
                are taken as already encoded by it.
        """
        if len(self.shapes.frame) == 3 and frames.is_floating_point():
            return frames
        return self.encoder(frames)

    def project(self, features: Tensor, parameters: Sequence[Tensor] = (), corrected: bool = True) -> Tensor:
        """Projected, normalised frame features, ``[..., T, D]`` to ``[..., T, H]``.

        Args:
            features: Raw features.
            parameters: All dynamic parameters, or nothing.
            corrected: ``False`` leaves the correction out: what frames without any shift should be projected to.
        """
        if self.training and self.config.frame_noise:
            features = features + self.config.frame_noise * torch.randn_like(features)
        features = self.frame_dropout(features)
        if corrected and self.config.correction:
            hidden = F.gelu(self.correction(features, self._own("correction", parameters)))
            features = features + self.correction_output(hidden)
        projected = self.frame_norm(self.frame_projection(features, self._own("frame_projection", parameters)))
        return torch.zeros_like(projected) if self.config.blind else projected

    @property
    def anchor_width(self) -> int:
        """Width of what is uploaded of each anchor frame."""
        return self.config.context_width or self.config.width

    def anchor_features(self, features: Tensor) -> Tensor:
        """What the cloud may see of each frame, ``[..., T, D]`` to ``[..., T, anchor_width]``.

        Computed without personal parameters, so that it does not depend on an earlier adaptation.
        """
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
        hidden = self.dropout(F.gelu(self.fusion(joint, self._own("fusion", parameters))))
        fused = self.fusion_norm(question + seen + self.fusion_output(hidden))
        return self.head(self.dropout(fused), self._own("head", parameters))

    def embed_video(self, frames: Tensor, mask: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Unit-length clip embedding ``[..., H]`` from :meth:`contextualise`d frames ``[..., T, H]``."""
        score = self.pool_score(frames).squeeze(-1)
        weight = score.masked_fill(~mask, -1e4).softmax(-1)
        pooled = (weight.unsqueeze(-1) * frames).sum(-2)
        refined = self.head(self.dropout(F.gelu(self.expand(pooled))), self._own("head", parameters))
        return F.normalize(pooled + refined, dim=-1)

    def embed_text(self, text: Tensor) -> Tensor:
        """Unit-length sentence embedding, ``[..., L]`` to ``[..., H]``."""
        return F.normalize(self.text_encoder(text), dim=-1)

    def forward(self, frames: Tensor, frame_mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Answer one text per clip.

        Args:
            frames: ``[..., T, D]`` features or ``[..., T, 3, H, W]`` uint8 pixels.
            frame_mask: ``[..., T]`` bool.
            text: ``[..., O, L]`` word indices: O = 1 for a question or a caption, else one row per option.
            parameters: Flat tuple in the order of ``spec``: empty for the static model, unbatched for one device, or
                with a leading dimension G, in which case all inputs have it too.

        Returns:
            Open-ended: ``[..., A]`` logits. Multiple choice: ``[..., O]`` logits. Retrieval: ``[...]`` cosine.
        """
        x = self.contextualise(self.project(self.encode(frames), parameters), frame_mask)
        if self.shapes.task == "retrieval":
            return (self.embed_video(x, frame_mask, parameters) * self.embed_text(text.squeeze(-2))).sum(-1)
        return self.answer(x, frame_mask, text, parameters)

    def answer(self, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Scores of the answers to ``text [..., O, L]`` about contextualised frames ``[..., T, H]``."""
        if self.shapes.task == "open_ended":
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
