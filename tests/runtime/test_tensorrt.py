"""TensorRT's family. Building is real, by TensorRT-RTX; what needs a GPU skips with the reason."""

from __future__ import annotations

import ctypes

import numpy as np
import onnx
import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.runtime import cudart
from lit_mmpg.runtime.baking import bake
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import create_engine, engine_class
from lit_mmpg.runtime.engines.cache import EngineCache
from lit_mmpg.runtime.engines.tensorrt import build_engine
from lit_mmpg.runtime.verify import verify

trt = pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("kind", ["features", "pixels"])
def test_every_graph_of_a_bundle_is_compiled(made, kind, tmp_path):
    bundle = Bundle.open(made(kind).bundle)
    seen = set()  # of a graph that is too thin to quantise, int8 equals fp32
    for graph in bundle.manifest.graphs:
        engine = create_engine("tensorrt_rtx", bundle, graph.role, graph.precision, cache=str(tmp_path))
        compiled = engine.compile()
        assert len(compiled.data) > 10_000
        assert (compiled.build_s is None) == (graph.sha256 in seen)
        seen.add(graph.sha256)
    files = {path.suffix for path in tmp_path.iterdir()}
    assert files == {".engine", ".sha256"}


def test_built_engines_are_kept_until_something_changes(made, tmp_path):
    bundle = Bundle.open(made("features").bundle)

    def built(**options: object) -> bool:
        return (
            create_engine("tensorrt_rtx", bundle, "project", cache=str(tmp_path), **options).compile().build_s
            is not None
        )

    assert built() and not built()
    assert built(max_batch=8) and not built()
    for entry in tmp_path.glob("*.engine"):
        entry.write_bytes(entry.read_bytes()[:-10])
    assert built(), "a damaged entry is built again"


def test_another_version_never_takes_the_cache(made, tmp_path, monkeypatch):
    bundle = Bundle.open(made("features").bundle)
    engine = create_engine("tensorrt_rtx", bundle, "project", cache=str(tmp_path))
    engine.compile()
    with monkeypatch.context() as patch:
        patch.setattr(trt, "__version__", "1.0.0")
        assert EngineCache(tmp_path).read(engine._key(trt, None)) is None
        assert EngineCache(tmp_path).read(engine._key(trt, "Orin sm87 x16")) is None
    assert EngineCache(tmp_path).read(engine._key(trt, None)) is not None


def test_baked_graph_is_compiled_and_refit_says_what_it_needs(made, tmp_path):
    bundle = Bundle.open(made("features").bundle)
    reload = create_engine("tensorrt_rtx", bundle, "model", personalise="reload", cache=str(tmp_path))
    assert len(reload.compile().data) > 10_000
    assert not list(tmp_path.glob("*.engine")), "what holds one device's parameters is not kept"
    baked = onnx.load_model_from_string(bake(bundle.graph("model"), bundle.reference().parameters["device0"]))
    assert {value.name for value in baked.graph.input} == {"frames", "frame_mask", "text"}
    assert set(bundle.spec.names) <= {tensor.name for tensor in baked.graph.initializer}


def test_graph_that_the_parser_refuses_is_answered_with_its_reason():
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("StringNormalizer", ["x"], ["y"])
    inputs, outputs = ([value(n, onnx.TensorProto.STRING, ["N"])] for n in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", inputs, outputs))
    with pytest.raises(UserError, match=r"tensorrt_rtx .* cannot parse the graph: .+"):
        build_engine(trt, model.SerializeToString(), {"N": 2})


def test_options_that_cannot_work_are_refused(made):
    bundle = Bundle.open(made("features").bundle)
    for options, words in (({"max_batch": 0}, "max_batch is 0"), ({"personalise": "rebind"}, "not by 'rebind'")):
        with pytest.raises(UserError, match=words):
            create_engine("tensorrt", bundle, "model", **options)


def test_without_a_gpu_running_is_refused_with_the_reason(made):
    if cudart.why_no_gpu() is None:
        pytest.skip("there is a GPU")
    engine = create_engine("tensorrt_rtx", Bundle.open(made("features").bundle), "model")
    assert engine.compile_requirements() is None
    with pytest.raises(UserError, match=r"cannot run here: (the CUDA runtime|there is no)"):
        engine.activate()


@pytest.mark.hardware
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_tensorrt"])
def test_engines_of_the_gpu_compute_the_reference(made, tmp_path, name):
    if (reason := engine_class(name).requirements()) is not None:
        pytest.skip(reason)
    bundle = Bundle.open(made("features").bundle)
    for graph in bundle.manifest.graphs:
        for way in engine_class(name).ways if graph.role == "model" else ("inputs",):
            options = {} if name == "onnxruntime_cuda" else {"cache": str(tmp_path)}
            with create_engine(name, bundle, graph.role, graph.precision, personalise=way, **options) as engine:
                verdict = verify(engine)
            assert verdict.ok, (graph.role, graph.precision, way, verdict.problems)


class FakeCuda:
    """A CUDA runtime in host memory: checks the order and the arguments of the calls, not the GPU."""

    def __init__(self) -> None:
        self.memory: dict[int, ctypes.Array] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        def call(*arguments):
            self.calls.append(name)
            if name == "cudaGetDeviceCount":
                arguments[0]._obj.value = 1
            elif name == "cudaMalloc":
                block = ctypes.create_string_buffer(arguments[1].value)
                arguments[0]._obj.value = ctypes.addressof(block)
                self.memory[ctypes.addressof(block)] = block
            elif name == "cudaFree":
                del self.memory[arguments[0].value]
            elif name == "cudaMemcpyAsync":
                ctypes.memmove(arguments[0], arguments[1], arguments[2].value)
            elif name == "cudaDeviceGetAttribute":
                arguments[0]._obj.value = {16: 16, 75: 8, 76: 7}[arguments[1]]
            elif name.startswith("cudaGetDeviceProperties"):
                ctypes.memmove(arguments[0], b"Orin\0", 5)
            return 0

        return call


def test_buffers_and_identity(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(cudart, "load_library", lambda: fake)
    cuda = cudart.Cuda()
    assert cuda.identity() == "Orin sm87 x16"
    values = np.arange(6, dtype=np.float32)
    pointer = cuda.allocate(values.nbytes)
    cuda.upload(pointer, values)
    back = np.zeros_like(values)
    cuda.download(back, pointer)
    cuda.synchronise()
    np.testing.assert_array_equal(back, values)
    cuda.free(pointer)
    assert not fake.memory
    assert fake.calls.index("cudaSetDevice") < fake.calls.index("cudaStreamCreate")
