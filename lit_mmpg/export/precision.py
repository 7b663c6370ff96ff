"""Graphs in lower precision, in the form that strongly typed TensorRT accepts: the precision lives in the graph.

``fp16``         weights and most operators in half precision; normalisations, softmax and the standardisation of the
                 features stay in fp32, as do the inputs and outputs.
``int8_weight``  matrices and convolution kernels as int8 with one scale per output channel, dequantised where they are
                 used; word vectors in half precision. Smaller to ship and to keep; computes in fp32.
``int8``         matrix products and convolutions in int8: symmetric quantisation of activations (one scale, from the
                 calibration devices) and weights (one scale per output channel), biases not quantised; word vectors in
                 half precision.

Products on the path of the personal parameters stay in fp32: a static scale would have to fit every device's generated
values, and these products are the small ones. So do products too thin to gain.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lit_mmpg.export.half import half_precision
from lit_mmpg.export.statistics import PRODUCTS
from lit_mmpg.runtime.bundle import Arrays

_log = logging.getLogger()  # ONNX Runtime's quantisation speaks through the root logger

THINNEST = 16
"""A product with fewer inputs or outputs than this is not quantised."""


def convert(model: onnx.ModelProto, precision: str, calibration: Sequence[Arrays] = ()) -> onnx.ModelProto:
    """A graph in another precision.

    Args:
        model: The fp32 graph.
        precision: One of ``PRECISIONS``.
        calibration: Complete inputs, personal parameters of many devices included (``int8`` only).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # types change
    if precision == "fp16":
        copy = half_precision(copy)
    elif precision == "int8_weight":
        _quantise_weights(copy)
    elif precision == "int8":
        copy = _quantise(copy, calibration)
        _halve_tables(copy.graph)
    onnx.checker.check_model(copy, full_check=True)
    return copy


# -- which products ------------------------------------------------------------------------------------------------


def static_products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Products with constant weights that may be quantised: not on the path of personal parameters, not too thin."""
    constants = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    kept = _personal_products(model)
    chosen = []
    for node in model.graph.node:
        if node.op_type in PRODUCTS and node.name not in kept and node.input[1] in constants:
            shape = constants[node.input[1]]
            ends = (shape[0], int(np.prod(shape[1:]))) if node.op_type == "Conv" else (shape[0], shape[-1])
            if min(ends) >= THINNEST:
                chosen.append(node)
    return chosen


def _personal_products(model: onnx.ModelProto) -> set[str]:
    """Names of the products that act on personal parameters, or only feed or follow one that does."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    # Personal parameters are the inputs without a varying dimension.
    personal = {
        value.name
        for value in graph.input
        if all(not dim.HasField("dim_param") for dim in value.type.tensor_type.shape.dim)
    }
    producer = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        inputs = [name for name in node.input if name]
        if any(n in personal for n in inputs) and all(n in personal or n in constants for n in inputs):
            personal.update(node.output)  # depends on nothing but personal parameters

    def acts(node: onnx.NodeProto | None) -> bool:
        """Whether a node multiplies with personal parameters, whose sum with the static part is no longer small."""
        return node is not None and node.op_type in ("MatMul", "Gemm", "Mul") and any(n in personal for n in node.input)

    found = set()
    for node in graph.node:
        if node.op_type in PRODUCTS:
            feeds = readers.get(node.output[0], [])
            if acts(node) or (feeds and all(map(acts, feeds))) or acts(producer.get(node.input[0])):
                found.add(node.name)
    return found


# -- int8 weights --------------------------------------------------------------------------------------------------


def _quantise_weights(model: onnx.ModelProto) -> None:
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    products = static_products(model)
    done: dict[str, str] = {}
    added: list[onnx.NodeProto] = []
    for node in products:
        name = node.input[1]
        if name not in done:
            done[name] = f"{name}.dequantised"
            values, scale, axis = quantise(numpy_helper.to_array(tensors[name]), _output_axis(node))
            graph.initializer.remove(tensors[name])
            graph.initializer.append(numpy_helper.from_array(values, f"{name}.int8"))
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
            graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}.zero"))
            parts = [f"{name}.int8", f"{name}.scale", f"{name}.zero"]
            added.append(helper.make_node("DequantizeLinear", parts, [done[name]], f"{name}.dequantise", axis=axis))
        node.input[1] = done[name]
    _halve_tables(graph)
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _halve_tables(graph: onnx.GraphProto) -> None:
    """Word vectors in half precision: rows are looked up first and only those are widened."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    used = {name: sum(name in node.input for node in nodes) for name in tensors}
    result = []
    for node in nodes:
        result.append(node)
        name = node.input[0] if node.input else ""
        if node.op_type != "Gather" or name not in tensors or used[name] != 1:
            continue
        array = numpy_helper.to_array(tensors[name])
        if array.dtype != np.float32 or array.ndim != 2:
            continue
        graph.initializer.remove(tensors[name])
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), name))
        output, looked_up = node.output[0], f"{node.output[0]}.half"
        node.output[0] = looked_up
        result.append(helper.make_node("Cast", [looked_up], [output], f"{node.name}.widen", to=onnx.TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(result)


def quantise(weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Symmetric int8 with one scale per index of an axis.

    Args:
        weights: float32.
        axis: The axis of the output channels.

    Returns:
        int8 values from -127 to 127, float32 scales, and the axis.
    """
    others = tuple(a for a in range(weights.ndim) if a != axis)
    largest = np.abs(weights).max(axis=others)
    scale = np.where(largest > 127 * np.finfo(np.float32).tiny, largest / 127, 1.0).astype(np.float32)
    shape = [-1 if a == axis else 1 for a in range(weights.ndim)]
    return np.clip(np.rint(weights / scale.reshape(shape)), -127, 127).astype(np.int8), scale, axis


def _output_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Conv":
        return 0
    flipped = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Gemm" and flipped else 1


# -- int8 ----------------------------------------------------------------------------------------------------------


def _advice(record: logging.LogRecord) -> bool:
    """Leave out the advice to prepare the graph, which comes optimised from its export."""
    return "pre-processing" not in record.getMessage()


class _Reader:
    """Feeds calibration inputs to ONNX Runtime's quantisation."""

    def __init__(self, inputs: Sequence[Arrays]) -> None:
        self._rest: Iterator[Arrays] = iter(inputs)

    def get_next(self) -> Arrays | None:
        return next(self._rest, None)

    def set_range(self, start_index: int, end_index: int) -> None:  # asked for by the calibrator's interface
        raise NotImplementedError


def _quantise(model: onnx.ModelProto, calibration: Sequence[Arrays]) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    chosen = [node.name for node in static_products(model)]
    if not chosen:
        return model
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save_model(model, str(source))
        _log.addFilter(_advice)
        try:
            quantize_static(
                str(source),
                str(target),
                _Reader(calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(PRODUCTS),
                nodes_to_quantize=chosen,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
                },
            )
        finally:
            _log.removeFilter(_advice)
        return onnx.load_model(str(target))
