"""A pretrained frame encoder as the ``encode`` graph, and pictures to calibrate and check it on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lit_mmpg.data.images import ImageFrames
from lit_mmpg.device.graphs import GraphSpec
from lit_mmpg.errors import UserError
from lit_mmpg.runtime.manifest import Preprocessing
from lit_mmpg.vision import load_vision_model


@dataclass(frozen=True)
class FrameEncoder:
    """A frame encoder.

    Attributes:
        module: ``pixels [N, 3, h, w]`` uint8 ``-> features [N, D]``.
        features: Width D.
        preprocessing: What happens before.
    """

    module: nn.Module
    features: int
    preprocessing: Preprocessing

    def spec(self) -> GraphSpec:
        """The graph."""
        height, width = self.preprocessing.height, self.preprocessing.width
        example = {"pixels": torch.zeros(2, 3, height, width, dtype=torch.uint8)}
        return GraphSpec("encode", self.module, example, {"pixels": {0: "N"}}, "features")


def load_encoder(source: str, edge: int | None = None, option: str = "--frame-encoder") -> FrameEncoder:
    """The encoder of a bundle: a folder or a name on the hub, as :func:`lit_mmpg.vision.load_vision_model` takes it.

    Raises:
        UserError: If it cannot be loaded, or has no pooled output.
    """
    found = load_vision_model(source, edge, option)
    preprocessing = Preprocessing(found.height, found.width, "bilinear", "RGB", found.name)
    return FrameEncoder(found.module, found.features, preprocessing)


def pictures(path: str | None, encoder: FrameEncoder, count: int, seed: int) -> np.ndarray:
    """Pictures to calibrate and check an encoder on, ``[count, 3, h, w]`` uint8.

    Args:
        path: Folder or zip archive with images ``CLIP/FRAME.jpg``; one frame of each of ``count`` clips is taken.
            ``None`` generates pictures: blots of colour at all scales.
        encoder: The encoder.
        count: Number of pictures.
        seed: Which of them: another seed, other pictures.

    Raises:
        UserError: If there are no images, or too few.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    size = (encoder.preprocessing.width, encoder.preprocessing.height)
    if path is not None:
        frames = ImageFrames(path, max_frames=1)
        clips = np.array(sorted(frames.ids()))
        if len(clips) < 2 * count:
            raise UserError(f"--frames {path} holds {len(clips)} clips; at least {2 * count} are needed")
        # One order for all seeds, so that two seeds share no clip.
        order = np.random.default_rng(0).permutation(len(clips))[seed * count : (seed + 1) * count]
        found = [frames.pixels(clip)[0].transpose(1, 2, 0) for clip in clips[order]]
    else:
        found = [_blots(rng, size) for _ in range(count)]
    resized = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BILINEAR)) for p in found]
    return np.ascontiguousarray(np.stack(resized).transpose(0, 3, 1, 2))


def _blots(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    total = np.zeros((size[1], size[0], 3))
    for cells in (2, 4, 8, 16, 32):
        noise = (rng.random((cells, cells, 3)) * 255).astype(np.uint8)
        total += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), np.float64) / cells**0.5
    total -= total.min()
    return (total / total.max() * 255).astype(np.uint8)
