"""The graphs of a bundle as modules with plain inputs and outputs, and their export to ONNX in fp32.

Opset 20 and IR version 10 are what the last ONNX Runtime for Python 3.10 reads. Every example has two rows and every
varying dimension is named, so no size of the example stays in the graph.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from lit_mmpg.device.model import DeviceModel

OPSET = 20
IR_VERSION = 10
ABSENT = -1e4
"""Score of an option that is padding."""
_OUTPUT = "lit_mmpg.output"


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
    """Role ``project``: ``features -> projected``, always with the static parameters."""

    def __init__(self, network: DeviceModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """``[N, D] -> [N, H]``."""
        return self.network.project(self.network.encode(features))


class EncodeGraph(nn.Module):
    """Role ``encode`` of a pixel model: ``pixels -> features``."""

    def __init__(self, network: DeviceModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, h, w]`` uint8 ``-> [N, D]``."""
        return self.network.encoder(pixels.to(torch.float32))  # a type first: uint8 is for inputs only in TensorRT


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
    pixels = len(shapes.frame) == 3
    features = network.config.encoder_features if pixels else shapes.frame[0]
    frames = max(2, max_frames)
    clips = {"frames": torch.zeros(2, frames, features), "frame_mask": torch.ones(2, frames, dtype=torch.bool)}
    clip_dims = {"frames": {0: "B", 1: "T"}, "frame_mask": {0: "B", 1: "T"}}
    words = torch.ones(2, max(2, options), max(2, shapes.max_words), dtype=torch.long)
    specs = []
    if shapes.task == "retrieval":
        specs.append(GraphSpec("model", VideoGraph(network), clips, clip_dims, "embedding", True))
        specs.append(
            GraphSpec("text", TextGraph(network), {"text": words[:, 0]}, {"text": {0: "B", 1: "L"}}, "embedding")
        )
    elif shapes.task == "multiple_choice":
        dims = clip_dims | {"text": {0: "B", 1: "O", 2: "L"}}
        specs.append(GraphSpec("model", AnswerGraph(network), clips | {"text": words}, dims, "scores", True))
    else:
        dims = clip_dims | {"text": {0: "B", 2: "L"}}
        specs.append(GraphSpec("model", AnswerGraph(network), clips | {"text": words[:, :1]}, dims, "scores", True))
    example = {"features": torch.zeros(2, features)}
    specs.append(GraphSpec("project", ProjectGraph(network), example, {"features": {0: "N"}}, "projected"))
    if pixels:
        picture = {"pixels": torch.zeros(2, *shapes.frame, dtype=torch.uint8)}
        specs.append(GraphSpec("encode", EncodeGraph(network), picture, {"pixels": {0: "N"}}, "features"))
    return specs


def export_graph(spec: GraphSpec, network: DeviceModel | None = None) -> onnx.ModelProto:
    """Export one graph.

    Args:
        spec: The graph.
        network: The device model whose personal parameters the graph takes, for ``personal`` graphs.
    """
    named = {name: Dim(name) for dims in spec.dims.values() for name in dims.values()}
    shapes: dict[str, Any] = {
        name: {axis: named[dim] for axis, dim in spec.dims[name].items()} for name in spec.example
    }
    arguments: dict[str, Any] = dict(spec.example)
    names = list(spec.example)
    if spec.personal and network is not None and len(network.spec):
        arguments["parameters"] = tuple(torch.zeros(entry.shape) for entry in network.spec)
        shapes["parameters"] = tuple({} for _ in network.spec)
        names += network.spec.names
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            spec.module.eval(),
            kwargs=arguments,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=names,
            output_names=[_OUTPUT],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _name_output(model, spec.output)
    _tidy(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _name_output(model: onnx.ModelProto, name: str) -> None:
    """Give the output its name; the exporter may have given the same one to a value within (``embedding``)."""
    names = {name: f"{name}.within", _OUTPUT: name}
    for node in model.graph.node:
        for values in (node.input, node.output):
            for i, value in enumerate(values):
                values[i] = names.get(value, value)
    model.graph.output[0].name = name


def _tidy(model: onnx.ModelProto) -> None:
    """Leave out what only its authors read: traces of the source and the names of intermediate shapes."""
    if model.ir_version > IR_VERSION:
        model.ir_version = IR_VERSION
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own code and on packages that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
