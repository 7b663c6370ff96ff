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

from lit_mmpg.errors import UserError
from lit_mmpg.hub import build_model, load_model, read_settings
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
        mean: Mean per channel, in units of the uint8 values.
        std: Standard deviation per channel, likewise.

    Attributes:
        pools: Whether the model pools; else its last features are averaged over all places.
        size: Height and width to which pictures are resized; ``None``: they come in the right size.
    """

    mean: Tensor
    std: Tensor
    pools = True
    size: tuple[int, int] | None = None

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """``[..., 3, h, w]`` pixels, 0 to 255, ``-> [..., D]``."""
        pictures = pixels.reshape(-1, *pixels.shape[-3:]).to(torch.float32)
        if self.size is not None and self.size != tuple(pixels.shape[-2:]):
            pictures = F.interpolate(pictures, self.size, mode="bilinear", align_corners=False)
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
        UserError: If the model has no pooled output, or cannot be loaded.
        RuntimeError: If the graph computes something else.
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
    if not np.allclose(got, expected, rtol=1e-2, atol=1e-2):
        raise RuntimeError(f"the exported frame encoder differs from the original by {abs(got - expected).max()}")
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
    processor = _processor(source, config, option)
    height, width = (edge, edge) if edge else _size(processor)
    mean, std = ([0.0] * 3, [1.0] * 3)
    if processor.get("do_normalize", True):
        mean = list(processor.get("image_mean") or [0.5] * 3)
        std = list(processor.get("image_std") or [0.5] * 3)
    scale = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    description = {
        "config": config,
        "size": [height, width],
        "mean": (torch.tensor(mean) / scale).tolist(),
        "std": (torch.tensor(std) / scale).tolist(),
        "pools": not missing,
    }
    name = f"{type(model).__name__} ({Path(source).name})"
    return _tried(model, description, f"{option} {source}", name)


def build_vision_model(description: dict[str, Any], option: str) -> VisionModel:
    """The encoder of a description, with weights at random.

    Raises:
        UserError: If this version of transformers does not know it.
    """
    model = build_model(description["config"], option)
    return _tried(model, description, option, type(model).__name__)


def _tried(model: nn.Module, description: dict[str, Any], option: str, name: str) -> VisionModel:
    height, width = description["size"]
    # eval(): with folded batch normalisation, statistics of a batch would destroy the features.
    module = PooledEncoder(model, description["mean"], description["std"])
    module.eval().requires_grad_(False)
    for pools in (True, False) if description["pools"] else (False,):
        module.pools = pools
        try:
            with torch.inference_mode():
                features = module(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        except (AttributeError, TypeError, ValueError) as error:
            reason = error
        else:
            return VisionModel(module, int(features.shape[1]), height, width, name, description | {"pools": pools})
    raise UserError(f"{option}: the model gives no features of pictures of {height} x {width} pixels ({reason})")


def _processor(source: str, config: dict[str, Any], option: str) -> dict[str, Any]:
    """Settings of the image processor: plain data, so the libraries that would run it are not needed."""
    settings = read_settings(source, "preprocessor_config.json")
    timm = config.get("pretrained_cfg")
    if not settings and isinstance(timm, dict) and "input_size" in timm:
        height, width = timm["input_size"][-2:]
        settings = {"size": {"height": height, "width": width}, "image_mean": timm["mean"], "image_std": timm["std"]}
    if not settings:
        raise UserError(f"{option} {source} has no readable preprocessor_config.json")
    return settings


def _size(processor: dict[str, Any]) -> tuple[int, int]:
    """The picture that the encoder sees, in pixels; the whole frame is resized to it."""
    size = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = size or processor.get("size") or processor.get("crop_size") or 224
    if isinstance(size, int):
        return size, size
    if "height" in size:
        return int(size["height"]), int(size["width"])
    edge = int(size.get("shortest_edge", 224))
    return edge, edge
