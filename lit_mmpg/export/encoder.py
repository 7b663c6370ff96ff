"""Pictures to calibrate and check a pretrained frame encoder on."""

from __future__ import annotations

import numpy as np

from lit_mmpg.data.images import ImageFrames
from lit_mmpg.errors import UserError
from lit_mmpg.vision import VisionModel


def pictures(path: str | None, encoder: VisionModel, count: int, seed: int) -> np.ndarray:
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
    size = (encoder.width, encoder.height)
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
