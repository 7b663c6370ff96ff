"""Export of graphs to ONNX in fp32: those of a bundle, and those that a machine keeps of a frame encoder.

Opset 20 and IR version 10 are what the last ONNX Runtime for Python 3.10 reads. Every example has two rows and every
varying dimension is named, so no size of the example stays in the graph.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import onnx
import torch
from torch.export import Dim

from lit_mmpg.errors import UserError, first_line
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.tasks.graphs import GraphSpec

OPSET = 20
IR_VERSION = 10
_OUTPUT = "lit_mmpg.output"


class Personal(Protocol):
    """A model that takes generated parameters."""

    spec: ParameterSpec


def export_graph(spec: GraphSpec, network: Personal | None = None) -> onnx.ModelProto:
    """Export one graph.

    Args:
        spec: The graph.
        network: The model whose personal parameters the graph takes, for ``personal`` graphs.

    Raises:
        UserError: If the exporter cannot write some of what the module does.
    """
    named = {name: Dim(name) for dims in spec.dims.values() for name in dims.values()}
    shapes: dict[str, Any] = {
        name: {axis: named[dim] for axis, dim in spec.dims[name].items()} for name in spec.example
    }
    arguments: dict[str, Any] = dict(spec.example)
    names = list(spec.example)
    if network is not None and len(own := spec.entries(network.spec)):
        arguments["parameters"] = tuple(torch.zeros(entry.shape) for entry in own)
        shapes["parameters"] = tuple({} for _ in own)
        names += own.names
    try:
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
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"graph '{spec.role}' cannot be written as ONNX ({first_line(error.__cause__ or error)}); devices answer "
            "by graphs: change the model so that torch.onnx.export takes it, or choose other encoders"
        ) from error
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
