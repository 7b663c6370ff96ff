"""A graph in half precision."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

FP32_OPERATORS = (
    "AveragePool",
    "Cast",
    "ConstantOfShape",
    "CumSum",
    "Div",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "Max",
    "Min",
    "Pow",
    "Range",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "Softmax",
    "Sqrt",
    "Sub",
)
"""Operators that keep fp32 in an ``fp16`` graph. ``Sub`` and ``Div`` standardise features whose spread may be far
smaller than their mean. ONNX Runtime 1.23 on aarch64 has no kernel for ``AveragePool`` of opset 19 in half precision.
"""

TRANSPARENT = (
    "Clip",
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "GatherND",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
"""Operators that move or bound values without computing: they keep the width in which their first input is."""

HALF_LARGEST = float(np.finfo(np.float16).max)


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half precision, operator by operator: a value is cast where an operator needs it in the other width.

    Converters that mark whole operators as blocked leave round trips through half precision between two operators in
    fp32, and types that strongly typed TensorRT refuses.
    """
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    constants = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    floats |= set(constants)
    width = dict.fromkeys(floats, 32)  # width in which each value is produced
    nodes: list[onnx.NodeProto] = []
    narrow: dict[str, str] = {}
    wide: dict[str, str] = {}
    outputs = {value.name for value in graph.output}

    def half(name: str) -> str:
        if width[name] == 16:
            return name
        if name not in narrow:
            narrow[name] = f"{name}.half"
            if name in constants:
                array = numpy_helper.to_array(constants[name])
                bounded = np.clip(array, -HALF_LARGEST, HALF_LARGEST).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(bounded, narrow[name]))
            else:
                nodes.append(_cast(name, narrow[name], onnx.TensorProto.FLOAT16))
        return narrow[name]

    def single(name: str) -> str:
        if width[name] == 32:
            return name
        if name not in wide:
            wide[name] = f"{name}.single"
            nodes.append(_cast(name, wide[name], onnx.TensorProto.FLOAT))
        return wide[name]

    for node in graph.node:
        in_half = node.op_type not in FP32_OPERATORS
        if node.op_type in TRANSPARENT:
            in_half = node.input[0] in constants or width.get(node.input[0], 32) == 16
        for i, name in enumerate(node.input):
            if name in floats:
                node.input[i] = half(name) if in_half else single(name)
        nodes.append(node)
        for i, name in enumerate(node.output):
            if in_half and name in floats:
                if name in outputs:  # outputs keep their type
                    node.output[i] = f"{name}.half"
                    nodes.append(_cast(node.output[i], name, onnx.TensorProto.FLOAT))
                else:
                    width[name] = 16
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    converted.graph.CopyFrom(graph)
    return converted


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}.cast", to=to)
