"""Layers and the roofline: sums against the whole, ceilings that cannot be passed, words for what bounds a graph."""

from __future__ import annotations

import pytest

from lit_mmpg.profiling.inputs import role_inputs
from lit_mmpg.profiling.scenarios.layers import bytes_per_s, multiply_adds_per_s, roofline
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import create_engine
from lit_mmpg.runtime.engines.onnx_runtime import kernel_times
from tests.profiling.bundles import make_bundle


def test_every_layer_of_a_graph_has_a_time(tmp_path) -> None:
    bundle = Bundle.open(make_bundle(tmp_path / "bundle"))
    for way in ("inputs", "reload"):
        with create_engine("onnxruntime", bundle, "model", personalise=way) as engine:
            layers = engine.layer_times(role_inputs(bundle, "model", 2), 5)
        operators = {layer["operator"] for layer in layers}
        assert {"MatMul", "Tanh"} <= operators and all(layer["time_ms"] >= 0 for layer in layers)


def test_kernel_times_leave_the_first_call_out() -> None:
    def event(duration_us: int, name: str = "a_kernel_time", kind: str = "Node") -> dict[str, object]:
        return {"cat": kind, "name": name, "dur": duration_us, "args": {"op_name": "MatMul"}}

    events = [event(9000), event(100), event(300), event(7, "a_fence_before"), event(5, "model_run", "Session")]
    assert kernel_times(events, 2) == [{"name": "a", "operator": "MatMul", "time_ms": 0.2}]


@pytest.mark.parametrize(("time_ms", "bound"), [(1.5, "arithmetic"), (2.5, "overhead"), (0.9, "arithmetic")])
def test_what_bounds_a_graph(time_ms: float, bound: str) -> None:
    found = roofline(time_ms, 1e6, 1e5, {"multiply_adds_per_s": 1e9, "bytes_per_s": 1e9})
    assert (found["arithmetic_ms"], found["memory_ms"], found["bound"]) == (1.0, 0.1, bound)
    assert roofline(1.0, 1e5, 1e6, {"multiply_adds_per_s": 1e9, "bytes_per_s": 1e9})["bound"] == "memory"


def test_ceilings_are_those_of_a_machine() -> None:
    assert 1e8 < multiply_adds_per_s(1, attempts=2) < 1e14
    assert all(1e8 < bytes_per_s(size, attempts=2) < 1e14 for size in (1e3, 1e7))
