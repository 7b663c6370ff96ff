"""Static encoders of the device model: frames to features, words to features. Both export without unrolled loops."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PixelEncoder(nn.Module):
    """A small convolutional frame encoder for raw pixels.

    Args:
        features: Width D of the feature of one frame.
        channels: Channels of the first stage; each further stage doubles them.
    """

    def __init__(self, features: int, channels: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in (channels, 2 * channels, 4 * channels):
            # GroupNorm, not BatchNorm: statistics of a batch of mixed devices would leak between devices.
            layers += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.GELU()]
            inputs = width
        self.stages = nn.Sequential(*layers)
        self.grid = nn.AdaptiveAvgPool2d(4)
        self.output = nn.Linear(inputs * 16, features)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames.

        Args:
            pixels: ``[..., 3, H, W]`` uint8.

        Returns:
            ``[..., D]`` float32.
        """
        lead = pixels.shape[:-3]
        x = pixels.reshape(-1, *pixels.shape[-3:]).to(torch.float32) / 127.5 - 1.0
        x = self.grid(self.stages(x)).flatten(1)
        return self.output(x).reshape(*lead, -1)


class StandardiseFeatures(nn.Module):
    """Shift and scale given frame features by the statistics of the training clips, which travel in the checkpoint."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]``."""
        return (features - self.mean) / self.std


class TextEncoder(nn.Module):
    """Words to one vector: a weighted bag of words, plus what a small convolution adds to it (no recurrence).

    The weight of a word has a part of its own (as IDF has) and a part that depends on its neighbours.

    Args:
        words: Size of the vocabulary; index 0 is padding.
        width: Width H of the word vectors and of the output.
        max_words: Longest text.
        bag_only: Start as a pure mean of word vectors: for an initialisation that gives the vectors a meaning.
        dropout: Dropout on the word vectors.
        word_dropout: Share of whole words that are left out in training.
    """

    def __init__(
        self,
        words: int,
        width: int,
        max_words: int,
        bag_only: bool = False,
        dropout: float = 0.0,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.position = nn.Parameter(torch.zeros(max_words, width))
        self.window = nn.Parameter(0.5 * torch.randn(3, width))
        self.mix = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        self.log_weight = nn.Parameter(torch.zeros(words))
        self.residual = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width))
        nn.init.zeros_(self.score.weight)
        for layer in (self.mix, self.residual[3]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.0 if bag_only else 0.5 * width**-0.5)
            nn.init.zeros_(layer.bias)
        self.dropout = nn.Dropout(dropout)
        self.word_dropout = word_dropout

    def forward(self, text: Tensor) -> Tensor:
        """Encode texts.

        Args:
            text: ``[..., L]`` int64 word indices, 0 is padding.

        Returns:
            ``[..., H]``; finite for a text of padding only.
        """
        lead, length = text.shape[:-1], text.shape[-1]
        words = text.reshape(-1, length)
        mask = words != 0
        if self.training and self.word_dropout:
            kept = mask & (torch.rand(words.shape, device=words.device) > self.word_dropout)
            mask = torch.where(kept.any(1, keepdim=True), kept, mask)
        x = self.dropout(self.embedding(words))
        shown = (x + self.position[:length]) * mask.unsqueeze(-1)
        padded = F.pad(shown, (0, 0, 1, 1))
        near = padded[:, :-2] * self.window[0] + padded[:, 1:-1] * self.window[1] + padded[:, 2:] * self.window[2]
        x = x + self.mix(F.gelu(near))
        score = self.log_weight[words] + self.score(x).squeeze(-1)
        # A large finite number, not -inf: a text of padding only must stay finite.
        weight = score.masked_fill(~mask, -1e4).softmax(-1)
        bag = (weight.unsqueeze(-1) * x).sum(1)
        return (bag + self.residual(bag)).reshape(*lead, -1)
