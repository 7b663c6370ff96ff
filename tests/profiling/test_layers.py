"""Layers and the roofline: sums against the whole, ceilings that cannot be passed, words for what bounds a graph."""

from __future__ import annotations

import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.cli import main
from lit_mmpg.profiling.inputs import role_inputs
from lit_mmpg.profiling.scenarios.layers import bytes_per_s, doubts, multiply_adds_per_s, roofline
from lit_mmpg.profiling.trtexec import read_trtexec
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


def test_an_inference_comes_apart(tmp_path) -> None:
    bundle = Bundle.open(make_bundle(tmp_path / "bundle"))
    inputs = role_inputs(bundle, "model", 2)
    with create_engine("onnxruntime", bundle, "model") as engine:
        assert engine.build_s is not None and engine.build_s > 0
        parts = engine.parts_ms(inputs)
        assert list(parts or ()) == ["copy_inputs", "compute", "copy_outputs"] and min((parts or {}).values()) > 0
        scores = engine.infer(inputs)["scores"]
    assert scores.shape == (2, 5)


def test_layers_of_trtexec_are_read(tmp_path, capsys) -> None:
    """Files in the form in which TensorRT's samples write them."""
    profile, info = tmp_path / "profile.json", tmp_path / "layers.json"
    profile.write_text(
        '[\n  { "count" : 200 }\n, { "name" : "/conv", "timeMs" : 30, "averageMs" : 0.15, "percentage" : 75 }\n'
        ', { "name" : "Reformatting CopyNode", "timeMs" : 10, "averageMs" : 0.05, "percentage" : 25 }\n]\n'
    )
    info.write_text(
        '{"Layers": [{"Name": "/conv", "LayerType": "CaskConvolution"}, "Reformatting CopyNode"], "Bindings": []}'
    )
    assert read_trtexec(profile, info) == [
        {"name": "/conv", "operator": "CaskConvolution", "time_ms": 0.15},
        {"name": "Reformatting CopyNode", "operator": "", "time_ms": 0.05},
    ]
    assert main(["layers", str(profile), "--layer-info", str(info)]) == 0
    assert "0.2 ms; slowest of 2 layers: CaskConvolution, 75%" in capsys.readouterr().out
    for file, text, told in (
        (profile, '[{"count": 1}]', "holds no layers"),
        (profile, '[{"name": "x"}]', "a layer lacks 'averageMs'"),
        (profile, "[", "truncated or no JSON"),
        (profile, '[{"name": "x", "averageMs": NaN}]', "holds NaN"),
        (profile, '[{"name": "x", "averageMs": 1e400}]', "layer 'x' is inf"),
        (profile, '[{"name": "x", "averageMs": -3}]', "layer 'x' is -3"),
        (profile, '[{"name": "x", "averageMs": true}]', "lacks 'averageMs'"),
        (profile, '[{"averageMs": 1}]', "lacks 'name'"),
        (profile, "[1]", "lacks 'name'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=told):
            main(["layers", str(file)])
    profile.write_text('\ufeff[{"name": "/conv", "averageMs": 1}, {"name": "/conv", "averageMs": 2}]')
    assert read_trtexec(profile) == [{"name": "/conv", "operator": "", "time_ms": 3}]
    info.write_text("{}")
    with pytest.raises(UserError, match="holds no 'Layers'"):
        main(["layers", str(profile), "--layer-info", str(info)])


def test_kernel_times_leave_the_first_call_out() -> None:
    def event(duration_us: int, name: str = "a_kernel_time", kind: str = "Node") -> dict[str, object]:
        return {"cat": kind, "name": name, "dur": duration_us, "args": {"op_name": "MatMul"}}

    events = [event(9000), event(100), event(300), event(7, "a_fence_before"), event(5, "model_run", "Session")]
    assert kernel_times(events, 2) == [{"name": "a", "operator": "MatMul", "time_ms": 0.2}]


def test_ceilings_that_were_passed_are_doubted() -> None:
    ceilings = {"multiply_adds_per_s": 1e9, "bytes_per_s": 1e9}
    assert doubts("model", 1.0, roofline(1.0, 1.2e6, 1e5, ceilings)) == []
    assert "model was faster than the ceilings" in doubts("model", 1.0, roofline(1.0, 3e6, 1e5, ceilings))[0]


@pytest.mark.parametrize(("time_ms", "bound"), [(1.5, "arithmetic"), (2.5, "overhead"), (0.9, "arithmetic")])
def test_what_bounds_a_graph(time_ms: float, bound: str) -> None:
    found = roofline(time_ms, 1e6, 1e5, {"multiply_adds_per_s": 1e9, "bytes_per_s": 1e9})
    assert (found["arithmetic_ms"], found["memory_ms"], found["bound"]) == (1.0, 0.1, bound)
    assert roofline(1.0, 1e5, 1e6, {"multiply_adds_per_s": 1e9, "bytes_per_s": 1e9})["bound"] == "memory"


def test_ceilings_are_those_of_a_machine() -> None:
    assert 1e8 < multiply_adds_per_s(1, attempts=2) < 1e14
    assert all(1e8 < bytes_per_s(size, attempts=2) < 1e14 for size in (1e3, 1e7))
