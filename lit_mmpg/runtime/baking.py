"""Baked graphs: personal parameters as constants, under their ParameterSpec names.

The derived graph is what ways to personalise are compared on that change values inside an engine (rebind, refit,
reload) instead of feeding them.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import numpy_helper

from lit_mmpg.runtime.bundle import Arrays

EXTERNAL = "personal-parameters"
"""Name of the place outside the graph; nothing is ever read from a file of this name."""


def bake(graph: Path | onnx.ModelProto, parameters: Arrays, external: bool = False) -> bytes:
    """A graph whose personal inputs are constants.

    Args:
        graph: The graph with personal parameters as inputs; it is not changed.
        parameters: Their values by name.
        external: Leave the values out and say that they come from outside, when the graph is loaded.

    Returns:
        The serialised graph.
    """
    model = onnx.ModelProto()
    model.CopyFrom(onnx.load_model(str(graph)) if isinstance(graph, Path) else graph)
    kept = [value for value in model.graph.input if value.name not in parameters]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for name, array in parameters.items():
        constant = numpy_helper.from_array(array, name)
        if external:
            constant.ClearField("raw_data")
            constant.data_location = onnx.TensorProto.EXTERNAL
            entries = {"location": EXTERNAL, "offset": "0", "length": str(array.nbytes)}
            constant.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in entries.items())
        model.graph.initializer.append(constant)
    data: bytes = model.SerializeToString()
    return data
