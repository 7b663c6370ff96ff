"""What a graph holds and costs: nodes, multiply-accumulates, inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from lit_mmpg.runtime.manifest import TensorInfo

PRODUCTS = ("MatMul", "Gemm", "Conv")


def tensor_infos(values: object) -> tuple[TensorInfo, ...]:
    """Names, shapes and types of a graph's inputs or outputs."""
    infos = []
    for value in values:  # type: ignore[attr-defined]
        tensor = value.type.tensor_type
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        shape = tuple(d.dim_param if d.HasField("dim_param") else int(d.dim_value) for d in tensor.shape.dim)
        infos.append(TensorInfo(value.name, shape, dtype))
    return tuple(infos)


def zeros(model: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Inputs of a graph, all ones or True so that no row is empty, with the given sizes of the varying dimensions."""
    return {
        info.name: np.ones([sizes[d] if isinstance(d, str) else d for d in info.shape], info.dtype)
        for info in tensor_infos(model.graph.input)
    }


def count_macs(model: onnx.ModelProto, sizes: Mapping[str, int]) -> int:
    """Multiply-accumulates of the matrix products and convolutions.

    The shapes are those of a real run, not inferred.

    Args:
        model: An fp32 graph.
        sizes: Sizes of the varying dimensions.
    """
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    nodes = [node for node in probe.graph.node if node.op_type in PRODUCTS]
    constants = {tensor.name: list(tensor.dims) for tensor in probe.graph.initializer}
    given = zeros(model, sizes)
    wanted = dict.fromkeys(name for node in nodes for name in (node.input[0], node.input[1], node.output[0]))
    asked = [name for name in wanted if name not in constants and name not in given]
    present = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(asked, given) if asked else []
    shapes = constants | {name: list(array.shape) for name, array in given.items()}
    shapes |= {name: list(value.shape) for name, value in zip(asked, values, strict=True)}
    return sum(_macs(node, shapes) for node in nodes)


def _macs(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    left, right, output = shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]]
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(right[1:])  # [out, in / groups, kernel...]
    if node.op_type == "Gemm":
        flipped = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(output) * left[0 if flipped else 1]
    return math.prod(output) * left[-1]
