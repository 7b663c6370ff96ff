"""Pretrained frame encoders of transformers and timm (:mod:`lit_mmpg.hub`), with the scaling of the pixels inside."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_mmpg.errors import UserError, first_line
from lit_mmpg.hub import build_model, load_model, load_processor
from lit_mmpg.tasks.graphs import GraphSpec
from lit_mmpg.writing import write_bytes


@dataclass(frozen=True)
class VisionModel:
    """A pretrained frame encoder.

    Attributes:
        module: ``pixels [N, 3, height, width]`` uint8 ``-> features [N, D]``.
        features: Width D.
        height: Height of its pictures, pixels.
        width: Width of its pictures, pixels.
        name: What it is, for people.
        description: Plain data from which :func:`build_vision_model` makes it again, weights aside.
    """

    module: PooledEncoder
    features: int
    height: int
    width: int
    name: str
    description: dict[str, Any]

    def spec(self, any_size: bool = False) -> GraphSpec:
        """Its graph, of role ``encode``.

        Args:
            any_size: Pictures of all sizes, which the graph itself resizes: simulated cameras film such.
        """
        size = (72, 96) if any_size else (self.height, self.width)
        module = Resized(self.module, self.height, self.width) if any_size else self.module
        dims = {0: "N", 2: "H", 3: "W"} if any_size else {0: "N"}
        return GraphSpec(
            "encode", module, {"pixels": torch.zeros(2, 3, *size, dtype=torch.uint8)}, {"pixels": dims}, "features"
        )


class Resized(nn.Module):
    """An encoder with the resizing in front of it.

    Args:
        encoder: The encoder.
        height: Height of its pictures, pixels.
        width: Width of its pictures, pixels.
    """

    def __init__(self, encoder: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.encoder, self.size = encoder, (height, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, H, W]`` uint8 ``-> [N, D]``."""
        x = F.interpolate(pixels.float(), self.size, mode="bilinear", align_corners=False)
        features: Tensor = self.encoder(x)
        return features


class PooledEncoder(nn.Module):
    """Scales pixels as the image processor does and returns the pooled output.

    Args:
        model: A vision model of the transformers library.
        mean: Mean per channel of the model, in units of the uint8 values.
        std: Standard deviation per channel, likewise.
        order: Which of red, green and blue each of its channels is.

    Attributes:
        pools: Whether the model pools; else its last features are averaged over all places.
        size: Height and width to which pictures are resized; ``None``: they come in the right size.
    """

    mean: Tensor
    std: Tensor
    pools = True
    size: tuple[int, int] | None = None

    def __init__(self, model: nn.Module, mean: list[float], std: list[float], order: list[int]) -> None:
        super().__init__()
        self.model, self.order = model, order
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """``[..., 3, h, w]`` pixels, 0 to 255, ``-> [..., D]``."""
        pictures = pixels.reshape(-1, *pixels.shape[-3:]).to(torch.float32)
        if self.size is not None and self.size != tuple(pixels.shape[-2:]):
            pictures = F.interpolate(pictures, self.size, mode="bilinear", align_corners=False)
        if self.order != [0, 1, 2]:
            pictures = pictures[:, self.order]
        output = self.model(pixel_values=(pictures - self.mean) / self.std)
        if self.pools:
            features = output.pooler_output.flatten(1)
        else:
            last = output.last_hidden_state  # [N, D, h, w] of convolutions, [N, places, D] of transformers
            features = last.mean((-2, -1)) if last.dim() == 4 else last.mean(1)
        return features.reshape(*pixels.shape[:-3], features.shape[-1])


def keep_graph(
    source: str, edge: int | None, target: Path, any_size: bool = False, option: str = "--encoder"
) -> VisionModel:
    """Export an encoder, hold it against the original and write its graph in one step, and its digest beside it.

    Args:
        source: Folder, or name on the hub.
        edge: As for :func:`load_vision_model`.
        target: The file.
        any_size: As for :meth:`VisionModel.spec`.
        option: What an error calls the option that named the encoder.

    Raises:
        UserError: If the model gives no features, cannot be loaded, or its graph computes something else.
    """
    import onnxruntime

    from lit_mmpg.onnx_graphs import export_graph

    encoder = load_vision_model(source, edge, option)
    spec = encoder.spec(any_size)
    graph = export_graph(spec).SerializeToString()
    pixels = torch.randint(0, 256, spec.example["pixels"].shape, dtype=torch.uint8, generator=torch.Generator())
    with torch.inference_mode():
        expected = spec.module(pixels).numpy()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"pixels": pixels.numpy()})
    if not np.allclose(got, expected, rtol=1e-2, atol=1e-2 * abs(expected).max()):
        apart = abs(got - expected).max() / abs(expected).max()
        raise UserError(
            f"{option} {source}: its ONNX graph gives other features than the model (by {apart:.2g} of the largest); "
            "name another encoder"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, graph)
    write_bytes(target.with_suffix(".sha256"), hashlib.sha256(graph).hexdigest().encode())
    return encoder


def load_vision_model(source: str, edge: int | None = None, option: str = "--frame-encoder") -> VisionModel:
    """Load an encoder and find out what it wants.

    Args:
        source: Folder, or name on the hub.
        edge: Height and width of the pictures in pixels, where the features were made at another size than the
            encoder's own.
        option: What an error calls the option that named it.

    Raises:
        UserError: If it cannot be loaded, or gives no features of pictures.
    """
    model, config, missing = load_model(source, "vision", option)
    processor = load_processor(source, config, option)
    height, width = (edge, edge) if edge else _size(processor)
    description = {
        "config": config,
        "size": [height, width],
        **_colours(processor, f"{option} {source}"),
        "pools": not missing,
    }
    name = f"{type(model).__name__} ({Path(source).name})"
    return _tried(model, description, f"{option} {source}", name, loaded=True)


def build_vision_model(description: dict[str, Any], option: str) -> VisionModel:
    """The encoder of a description, with weights at random.

    Raises:
        UserError: If this version of transformers does not know it.
    """
    model = build_model(description["config"], option)
    return _tried(model, description, option, type(model).__name__, loaded=False)


def _tried(model: nn.Module, description: dict[str, Any], option: str, name: str, loaded: bool) -> VisionModel:
    height, width = description["size"]
    # eval(): with folded batch normalisation, statistics of a batch would destroy the features.
    order = description.get("order", [0, 1, 2])
    module = PooledEncoder(model, description["mean"], description["std"], order).eval()
    module.requires_grad_(False)
    for pools in (True, False) if description["pools"] else (False,):
        module.pools = pools
        try:
            pictures = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator())
            with torch.inference_mode():
                features = module(pictures)
                alone = module(pictures[1:]) if loaded else features[1:]
            if loaded and not bool(features.isfinite().all()):
                raise ValueError("they are not finite")
        except Exception as error:  # whatever a model says to pictures that it does not take
            reason = first_line(error)
            continue
        if loaded and not torch.allclose(features[1:], alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max())):
            raise UserError(
                f"{option}: the model gives other features of the same picture each time, or mixes the pictures of a "
                'batch; name another one (of a masked autoencoder: "mask_ratio": 0 in its config.json)'
            )
        module.train().eval()  # some keep what they made of weights, and others may be loaded now
        return VisionModel(module, int(features.shape[1]), height, width, name, description | {"pools": pools})
    raise UserError(f"{option}: the model gives no features of pictures of {height} x {width} pixels ({reason})")


def _colours(processor: Any, option: str) -> dict[str, list[Any]]:
    """What an image processor makes of colours, seen from a picture of noise: mean, deviation, order of the channels.

    Raises:
        UserError: If it does anything else to them.
    """
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    off = {step: False for step in ("do_resize", "do_center_crop", "do_pad") if hasattr(processor, step)}
    try:
        made = np.asarray(processor(picture, return_tensors="pt", **off)["pixel_values"], np.float64)
        given, found = picture.reshape(-1, 3), made.reshape(3, -1).T
        table = np.linalg.lstsq(np.c_[given, np.ones(len(given))], found)[0]
        order = np.abs(table[:3]).argmax(0)
        gain = table[order, range(3)]
        mean, std = -table[3] / gain, 1 / gain
        if made.shape != (1, 3, 32, 32) or not np.abs(found * std + mean - given[:, order]).max() < 0.1:
            raise ValueError("it does more than to scale the three channels of a picture")
    except Exception as error:  # of the library: settings that contradict each other, or are none
        raise UserError(
            f"{option}: its image processor (preprocessor_config.json) cannot be repeated on a device "
            f"({first_line(error)}); mend the file, or name an encoder of single pictures in colour"
        ) from error
    return {"mean": mean.tolist(), "std": std.tolist(), "order": order.tolist()}


def _size(processor: Any) -> tuple[int, int]:
    """The picture that the encoder sees, in pixels; the whole frame is resized to it."""
    size, crop = (getattr(processor, name, None) for name in ("size", "crop_size"))
    height, width = _edges(size or crop or {})
    if crop and getattr(processor, "do_center_crop", False):  # a crop that is larger would only pad
        rows, columns = _edges(crop)
        return min(height, rows), min(width, columns)
    return height, width


def _edges(size: Any) -> tuple[int, int]:
    if "height" in size:
        return int(size["height"]), int(size["width"])
    edge = int(size.get("shortest_edge") or size.get("longest_edge") or 224)
    return edge, edge
