"""Pretrained frame encoders of the transformers library, with the scaling of the pixels inside.

Any vision model whose pooled output is the feature: a folder on disk, or a name on the hub. Only safetensors weights
are loaded and no code of a repository is run.
"""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_mmpg.errors import UserError, install_hint, nearest
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
    """

    module: nn.Module
    features: int
    height: int
    width: int
    name: str

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
        x = functional.interpolate(pixels.float(), self.size, mode="bilinear", align_corners=False)
        features: Tensor = self.encoder(x)
        return features


class PooledEncoder(nn.Module):
    """Scales pixels as the image processor does and returns the pooled output.

    Args:
        model: A vision model of the transformers library.
        scale: Factor on the uint8 values.
        mean: Mean per channel, after the factor.
        std: Standard deviation per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, scale: float, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1) / scale)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1) / scale)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, h, w]`` uint8 ``-> [N, D]``."""
        output = self.model(pixel_values=(pixels.to(torch.float32) - self.mean) / self.std)
        return output.pooler_output.flatten(1)


def keep_graph(
    source: str, edge: int | None, target: Path, any_size: bool = False, option: str = "--encoder"
) -> VisionModel:
    """Export an encoder, hold it against the original and write its graph in one step.

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
    return encoder


def load_vision_model(source: str, edge: int | None = None, option: str = "--frame-encoder") -> VisionModel:
    """Load an encoder and find out what it wants.

    Args:
        source: Folder, or name on the hub.
        edge: Height and width of the pictures in pixels, where the features were made at another size than the
            encoder's own.
        option: What an error calls the option that named it.

    Raises:
        UserError: If it cannot be loaded, or has no pooled output.
    """
    if not Path(source).is_dir() and (source.startswith((".", "/", "~")) or Path(source).parent.is_dir()):
        raise UserError(f"{option} {source} is not a folder{nearest(Path(source))}")
    try:
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging as progress
    except ImportError as error:
        raise UserError(f"{option} needs transformers; {install_hint('video')}") from error
    noisy = logging.getLogger("transformers")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    progress.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            config = getattr(config, "vision_config", config)
            model = AutoModel.from_pretrained(source, config=config, use_safetensors=True, trust_remote_code=False)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{option} {source} cannot be loaded ({reason})") from error
    finally:
        noisy.setLevel(level)
        progress.enable_progress_bar()
    processor = _processor(source, option)
    height, width = (edge, edge) if edge else _size(processor)
    mean, std = ([0.0] * 3, [1.0] * 3)
    if processor.get("do_normalize", True):
        mean = list(processor.get("image_mean") or [0.5] * 3)
        std = list(processor.get("image_std") or [0.5] * 3)
    scale = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    # eval(): with folded batch normalisation, statistics of a batch would destroy the features.
    module = PooledEncoder(model.float(), scale, mean, std).eval().requires_grad_(False)
    try:
        with torch.inference_mode():
            features = module(torch.zeros(1, 3, height, width, dtype=torch.uint8))
    except (AttributeError, TypeError) as error:
        raise UserError(f"{option} {source}: the model has no pooled output of pictures ({error})") from error
    return VisionModel(module, int(features.shape[1]), height, width, f"{type(model).__name__} ({Path(source).name})")


def _processor(source: str, option: str) -> dict[str, Any]:
    """Settings of the image processor: plain data, so the libraries that would run it are not needed."""
    file = Path(source) / "preprocessor_config.json"
    if not Path(source).is_dir():
        from transformers.utils import cached_file

        found = cached_file(source, file.name)
        file = Path(str(found))
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {source} has no readable preprocessor_config.json") from error
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
