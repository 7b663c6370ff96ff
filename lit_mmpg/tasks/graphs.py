"""Graphs that answer, as modules with plain inputs and outputs: what is exported, and what torch engines run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lit_mmpg.parameters import MODEL, ParameterSpec

ABSENT = -1e4
"""Score of an option that is padding."""


class AnswerGraph(nn.Module):
    """Role ``model`` for questions: ``frames, frame_mask, text, parameters -> scores``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor, frame_mask: Tensor, text: Tensor, parameters: tuple[Tensor, ...] = ()) -> Tensor:
        """``[B, T, D], [B, T], [B, O, L] -> [B, A]``, or ``[B, O]`` for multiple choice."""
        own = self.network.placed(parameters, MODEL)
        return self.network.task.masked(self.network(frames, frame_mask, text, own), text)


class VideoGraph(nn.Module):
    """Role ``model`` for retrieval: ``frames, frame_mask, parameters -> embedding``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor, frame_mask: Tensor, parameters: tuple[Tensor, ...] = ()) -> Tensor:
        """``[B, T, D], [B, T] -> [B, H]``, of unit length."""
        own = self.network.placed(parameters, MODEL)
        projected = self.network.project(self.network.encode(frames, own), own)
        return self.network.embed_video(self.network.mix(projected, frame_mask, own), frame_mask, own)


class TextGraph(nn.Module):
    """Role ``text``: ``text -> embedding``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, text: Tensor) -> Tensor:
        """``[B, L] -> [B, H]``, of unit length."""
        return self.network.embed_text(text)


@dataclass(frozen=True)
class GraphSpec:
    """A graph to be exported.

    Attributes:
        role: Its role.
        module: What it computes.
        example: Example inputs by name, without personal parameters, with two rows.
        dims: Input -> names of its varying dimensions.
        output: Name of its output.
        personal: Whether it takes personal parameters, where the specification has any for its role.
    """

    role: str
    module: nn.Module
    example: dict[str, Tensor]
    dims: dict[str, dict[int, str]]
    output: str
    personal: bool = False

    def entries(self, spec: ParameterSpec) -> ParameterSpec:
        """Those of a network's parameters that the graph takes, in order."""
        return spec.of(self.role) if self.personal else ParameterSpec(())
