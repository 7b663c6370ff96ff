"""The graphs of a bundle as modules with plain inputs and outputs: what is exported, and what torch engines run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_mmpg.device.contract import DeviceModel

ABSENT = -1e4
"""Score of an option that is padding."""


class AnswerGraph(nn.Module):
    """Role ``model`` for questions: ``frames, frame_mask, text, parameters -> scores``."""

    def __init__(self, network: DeviceModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor, frame_mask: Tensor, text: Tensor, parameters: tuple[Tensor, ...] = ()) -> Tensor:
        """``[B, T, D], [B, T], [B, O, L] -> [B, A]``, or ``[B, O]`` for multiple choice."""
        scores = self.network(frames, frame_mask, text, parameters)
        if self.network.shapes.task == "multiple_choice":
            scores = scores.masked_fill((text == 0).all(-1), ABSENT)
        return scores


class VideoGraph(nn.Module):
    """Role ``model`` for retrieval: ``frames, frame_mask, parameters -> embedding``."""

    def __init__(self, network: DeviceModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor, frame_mask: Tensor, parameters: tuple[Tensor, ...] = ()) -> Tensor:
        """``[B, T, D], [B, T] -> [B, H]``, of unit length."""
        projected = self.network.project(self.network.encode(frames), parameters)
        return self.network.embed_video(self.network.contextualise(projected, frame_mask), frame_mask, parameters)


class TextGraph(nn.Module):
    """Role ``text``: ``text -> embedding``."""

    def __init__(self, network: DeviceModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, text: Tensor) -> Tensor:
        """``[B, L] -> [B, H]``, of unit length."""
        return self.network.embed_text(text)


class ProjectGraph(nn.Module):
    """Role ``project``: ``features -> projected``, what a device uploads of a frame; without personal parameters."""

    def __init__(self, network: DeviceModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """``[N, D] -> [N, H]``."""
        return self.network.anchor_features(self.network.encode(features))


class EncodeGraph(nn.Module):
    """Role ``encode`` of a pixel model: ``pixels -> features``."""

    def __init__(self, network: DeviceModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, h, w]`` uint8 ``-> [N, D]``."""
        # A type first: uint8 is for inputs only in TensorRT.
        return self.network.encode_frames(pixels.to(torch.float32))


@dataclass(frozen=True)
class GraphSpec:
    """A graph to be exported.

    Attributes:
        role: Its role.
        module: What it computes.
        example: Example inputs by name, without personal parameters, with two rows.
        dims: Input -> names of its varying dimensions.
        output: Name of its output.
        personal: Whether it takes personal parameters.
    """

    role: str
    module: nn.Module
    example: dict[str, Tensor]
    dims: dict[str, dict[int, str]]
    output: str
    personal: bool = False


def graph_specs(network: DeviceModel, max_frames: int, options: int) -> list[GraphSpec]:
    """All graphs of a device model.

    Args:
        network: The device model.
        max_frames: Frames of a clip in the example.
        options: Options of a question in the example (multiple choice).
    """
    shapes = network.shapes
    features = network.feature_width
    frames = max(2, max_frames)
    clips = {"frames": torch.zeros(2, frames, features), "frame_mask": torch.ones(2, frames, dtype=torch.bool)}
    clip_dims = {"frames": {0: "B", 1: "T"}, "frame_mask": {0: "B", 1: "T"}}
    # Contiguous examples: ahead-of-time compilation keeps their strides.
    words = torch.ones(2, max(2, options), max(2, shapes.max_words), dtype=torch.long)
    specs = []
    if shapes.task == "retrieval":
        specs.append(GraphSpec("model", VideoGraph(network), clips, clip_dims, "embedding", True))
        specs.append(
            GraphSpec(
                "text", TextGraph(network), {"text": words[:, 0].contiguous()}, {"text": {0: "B", 1: "L"}}, "embedding"
            )
        )
    elif shapes.task == "multiple_choice":
        dims = clip_dims | {"text": {0: "B", 1: "O", 2: "L"}}
        specs.append(GraphSpec("model", AnswerGraph(network), clips | {"text": words}, dims, "scores", True))
    else:
        dims = clip_dims | {"text": {0: "B", 2: "L"}}
        specs.append(
            GraphSpec("model", AnswerGraph(network), clips | {"text": words[:, :1].contiguous()}, dims, "scores", True)
        )
    example = {"features": torch.zeros(2, features)}
    specs.append(GraphSpec("project", ProjectGraph(network), example, {"features": {0: "N"}}, "projected"))
    if shapes.pixels:
        picture = {"pixels": torch.zeros(2, *shapes.frame, dtype=torch.uint8)}
        specs.append(GraphSpec("encode", EncodeGraph(network), picture, {"pixels": {0: "N"}}, "features"))
    return specs
