"""What a memory of camera models is held against: corrections that a device makes alone, and controls.

The corrections need the maps of the device, and of the world no more than how clean frames look on average.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lit_mmpg.camera_memory import CameraMemory
from lit_mmpg.maps import Correction, PixelMaps, Scene, integrate, smooth, undo


def minimum(maps: PixelMaps, scene: Scene, share: float = 1.0) -> Correction:
    """The minimum over the frames is taken for added light.

    Args:
        maps: Of the device.
        scene: How clean frames look.
        share: How much of it is subtracted.
    """
    return undo(np.zeros_like(maps.low), share * maps.low, scene, 0)


def median_gradients(maps: PixelMaps, scene: Scene, share: float = 1.0) -> Correction:
    """The picture of the median gradients is taken for added light (Weiss 2001; added instead of multiplied).

    Args:
        maps: Of the device.
        scene: How clean frames look.
        share: How much of it is subtracted.
    """
    light = integrate(maps.gradient)
    # Gradients leave one constant open: most places are taken for clean.
    light = light - np.median(light, axis=(1, 2), keepdims=True)
    return undo(np.zeros_like(maps.mean), share * light, scene, 0)


def attenuation_scatter(maps: PixelMaps, scene: Scene, prior: float = 16.0, sigma: float = 1.0) -> Correction:
    """Opacity and light from mean and deviation.

    Gu et al., "Removing image artifacts due to dirty camera lenses and thin occluders" (SIGGRAPH Asia 2009).

    Args:
        maps: Of the device.
        scene: How clean frames look.
        prior: Clean frames that are counted in, because C frames say little.
        sigma: Smoothing of the ratio of deviations, pixels.
    """
    trust = maps.count / (maps.count + prior)
    # Both moments of a mixture of the device's frames and of clean ones.
    mean = trust * maps.mean + (1 - trust) * scene.mean
    within = trust * np.square(maps.deviation) + (1 - trust) * np.square(scene.deviation)
    variance = within + trust * (1 - trust) * np.square(maps.mean - scene.mean)
    ratio = smooth(np.sqrt(variance), sigma) / np.maximum(smooth(scene.deviation, sigma), 1)
    opacity = 1 - np.clip(ratio, 0.02, 1)
    return undo(opacity, mean - (1 - opacity) * scene.mean, scene)


def extremes(maps: PixelMaps, scene: Scene, usual: tuple[np.ndarray, np.ndarray], prior: float = 16.0) -> Correction:
    """Opacity and light from minimum and maximum.

    Args:
        maps: Of the device.
        scene: How clean frames look.
        usual: ``[3, H, W]`` mean minimum and maximum of as many clean frames.
        prior: Clean frames that are counted in.
    """
    trust = maps.count / (maps.count + prior)
    low, high = (trust * own + (1 - trust) * clean for own, clean in zip((maps.low, maps.high), usual, strict=True))
    opacity = 1 - np.clip((high - low) / np.maximum(usual[1] - usual[0], 1), 0.02, 1)
    return undo(opacity, low - (1 - opacity) * usual[0], scene)


def mean_model(memory: CameraMemory) -> CameraMemory:
    """A control: one model that is the mean of all."""
    return replace(
        memory, change=memory.change.mean(0)[None], opacity=memory.opacity.mean(0)[None], devices=memory.devices[:1]
    )


def shuffled(memory: CameraMemory, rng: np.random.Generator) -> CameraMemory:
    """A control: each key has the value of another model, as :meth:`CameraMemory.answer` then returns it.

    Raises:
        ValueError: If there are fewer than two models.
    """
    if len(memory) < 2:
        raise ValueError("there is no other model")
    order = rng.permutation(len(memory))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # one cycle: nobody keeps his own
    return replace(memory, change=memory.change[other], opacity=memory.opacity[other], devices=memory.devices[other])
