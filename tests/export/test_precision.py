from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper

from lit_mmpg.export.precision import convert, quantise, static_products
from tests.export.conftest import exported
from tests.export.test_graphs import CHOSEN, random_inputs

CASES = [*CHOSEN, pytest.param("open_ended", "full", marks=pytest.mark.soak)]


def samples(case, role="model", count=8):
    return [
        {**random_inputs(case, role, 4, 5, 6), **(case.parameters(seed) if case.specs[role].personal else {})}
        for seed in range(count)
    ]


def outputs(model: onnx.ModelProto, feeds):
    run = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.stack([run.run(None, feed)[0] for feed in feeds])


@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(-1e3, 1e3, width=32)), st.sampled_from([0, 1]))
def test_quantised_weights_are_within_half_a_step(weights, axis):
    values, scale, _ = quantise(weights, axis)
    assert values.dtype == np.int8 and values.min() >= -127
    shape = (-1, 1) if axis == 0 else (1, -1)
    step = scale.reshape(shape)
    assert np.abs(values * step - weights).max() <= 0.5001 * step.max() + 1e-30
    assert (np.abs(values * step - weights) <= 0.5001 * step + 1e-30).all()


@pytest.mark.parametrize(("precision", "most"), [("fp16", 5e-3), ("int8_weight", 3e-2), ("int8", 8e-2)])
@pytest.mark.parametrize(("task", "form"), CASES)
def test_lower_precision_stays_close(task, form, precision, most):
    case = exported(task, form)
    feeds = samples(case)
    expected = outputs(case.graphs["model"], feeds)
    got = outputs(convert(case.graphs["model"], precision, feeds), feeds)
    error = np.sqrt(np.mean((got - expected) ** 2)) / expected.std()
    assert 0 < error < most


@pytest.mark.parametrize(("task", "form"), CASES)
def test_products_of_personal_parameters_keep_their_precision(task, form):
    case = exported(task, form)
    graph = case.graphs["model"]
    quantised = {node.name for node in static_products(graph)}
    chains = {"low_rank": 3, "full": 1, "core": 4, "basis": 4}[form]
    personal = set(case.network.spec.names)
    touched = set(personal)
    for node in graph.graph.node:  # everything that is computed from personal parameters alone
        if any(n in touched for n in node.input) and not any(n.startswith(("div", "frames")) for n in node.input):
            if node.op_type in ("MatMul", "Gemm") and any(n in personal for n in node.input):
                assert node.name not in quantised
            if node.op_type == "Transpose":
                touched.update(node.output)
    products = [n for n in graph.graph.node if n.op_type in ("MatMul", "Gemm")]
    fixed = [n for n in products if any("fixed" in i for i in n.input)]
    assert all(node.name not in quantised for node in fixed)
    assert quantised and len(products) - len(quantised) >= chains


def test_int8_is_symmetric_with_unquantised_bias():
    case = exported("open_ended", "low_rank")
    graph = convert(case.graphs["model"], "int8", samples(case)).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    pairs = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    assert not any(array.dtype == np.int32 for array in constants.values())
    assert not set(case.network.spec.names) & {name for n in pairs for name in n.input}


def test_half_precision_keeps_types_at_the_border():
    case = exported("open_ended", "low_rank")
    half = convert(case.graphs["model"], "fp16")
    for before, after in (
        (case.graphs["model"].graph.input, half.graph.input),
        (case.graphs["model"].graph.output, half.graph.output),
    ):
        assert [v.type.tensor_type.elem_type for v in before] == [v.type.tensor_type.elem_type for v in after]
    floats = [t for t in half.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert sum(int(np.prod(t.dims)) for t in floats) > 1000
    assert half.ByteSize() < 0.75 * case.graphs["model"].ByteSize()
