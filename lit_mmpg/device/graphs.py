"""The graphs of a bundle as modules with plain inputs and outputs: what is exported, and what torch engines run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_mmpg.device.contract import DeviceModel
from lit_mmpg.errors import UserError
from lit_mmpg.parameters import ENCODE
from lit_mmpg.tasks.graphs import GraphSpec


class ProjectGraph(nn.Module):
    """Role ``project``: ``features -> projected``, what a device uploads of a frame; without personal parameters."""

    def __init__(self, network: DeviceModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """``[N, D] -> [N, H]``."""
        return self.network.anchor_features(self.network.encode(features))


class EncodeGraph(nn.Module):
    """Role ``encode`` of a pixel model: ``pixels, parameters -> features``."""

    def __init__(self, network: DeviceModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, parameters: tuple[Tensor, ...] = ()) -> Tensor:
        """``[N, 3, h, w]`` uint8 ``-> [N, D]``."""
        # A type first: uint8 is for inputs only in TensorRT.
        return self.network.encode_values(pixels.to(torch.float32), self.network.placed(parameters, ENCODE))


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
    specs = network.task.graphs(network, clips, clip_dims, words)
    if not any(spec.role == "model" for spec in specs):  # a task of somebody else's
        raise UserError(f"task '{shapes.task}': graphs gives none of the role 'model', so no bundle could answer")
    example = {"features": torch.zeros(2, features)}
    specs.append(GraphSpec("project", ProjectGraph(network), example, {"features": {0: "N"}}, "projected"))
    if shapes.pixels:
        picture = {"pixels": torch.zeros(2, *shapes.frame, dtype=torch.uint8)}
        specs.append(
            GraphSpec(
                "encode", EncodeGraph(network), picture, {"pixels": {0: "N"}}, "features", network.encodes_personally
            )
        )
    return specs
