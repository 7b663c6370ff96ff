"""TensorRT's family. Building is real, by TensorRT-RTX; how answers of the API are taken is tested on a fake one."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.config import EngineSelection, ProfileConfig
from lit_mmpg.profiling.plan import make_plan
from lit_mmpg.runtime import cudart
from lit_mmpg.runtime.baking import bake
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import create_engine, engine_class, tensorrt
from lit_mmpg.runtime.engines.cache import EngineCache, board
from lit_mmpg.runtime.engines.onnx_runtime import profile_sizes
from lit_mmpg.runtime.engines.tensorrt import Library, build_engine
from lit_mmpg.runtime.verify import verify
from tests.profiling.bundles import make_bundle
from tests.runtime.fake_tensorrt import WORKSPACE, FakeCuda, fake_tensorrt

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
    assert files == {".engine", ".sha256", ".json"}


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
        assert EngineCache(tmp_path).read(engine.key()) is None
    assert EngineCache(tmp_path).read(engine.key()) is not None


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
        build_engine(Library(trt), model.SerializeToString(), {"N": 2})


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


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Bundle:
    return Bundle.open(make_bundle(tmp_path_factory.mktemp("small") / "bundle"))


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cudart, "load_library", lambda: fake)
    return fake


@pytest.fixture
def library(monkeypatch, cuda):
    fake = fake_tensorrt(cuda=cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


def engine_of(bundle: Bundle, folder: Path, **options):
    return create_engine("tensorrt", bundle, "model", cache=str(folder), **options)


def test_buffers_and_identity(cuda):
    device = cudart.Cuda()
    assert cudart.gpu_identity() == "Orin sm87 x16"
    values = np.arange(6, dtype=np.float32)
    pointer = device.allocate(values.nbytes)
    device.upload(pointer, values)
    back = np.zeros_like(values)
    device.download(back, pointer)
    device.synchronise()
    np.testing.assert_array_equal(back, values)
    device.free(pointer)
    assert not cuda.memory
    assert cuda.calls.index("cudaSetDevice") < cuda.calls.index("cudaStreamCreate")
    device.allocate(8), device.event()
    cuda.status = {"cudaEventDestroy": 1}
    with pytest.raises(UserError, match="cudaEventDestroy failed: CUDA error 1"):
        device.close()
    assert not cuda.memory and not cuda.owned["Stream"], "one that CUDA refuses keeps no other"
    cuda.status = {"cudaMalloc": 2}
    with pytest.raises(UserError, match=r"99 bytes of GPU memory: cudaMalloc failed: out of memory.*smaller batch"):
        cudart.Cuda().allocate(99)


@pytest.mark.parametrize("way", ["inputs", "refit", "reload"])
def test_an_engine_by_the_documented_api_is_right_and_leaves_nothing(small, library, cuda, tmp_path, way):
    with engine_of(small, tmp_path, personalise=way) as engine:
        assert engine.gpu_ms is None and engine.workspace_bytes == WORKSPACE
        verdict = verify(engine)
        assert verdict.ok, verdict.problems
        assert engine.gpu_ms == 0.0
    assert not cuda.leaked
    flags, marked = library.built[0]
    assert (flags, marked) == ((["REFIT_INDIVIDUAL"], list(small.spec.names)) if way == "refit" else ([], []))


REFUSALS = [
    ("create_network", "makes no network"),
    ("create_builder_config", "makes no builder config"),
    ("create_optimization_profile", "makes no optimisation profile"),
    (
        "add_optimization_profile",
        r"takes no range of shapes with 'frames' from \(1, 1, 12\) to \(32, 6, 12\).*max_batch",
    ),
    ("create_timing_cache", "takes no timing cache; empty the folder"),
    ("set_timing_cache", "takes no timing cache; empty the folder"),
    ("build_serialized_network", "cannot build the graph; it was to take B up to 32"),
    ("deserialize_cuda_engine", "refuses the engine that was built for .*; is it this GPU's"),
    ("create_execution_context", "makes no execution context, for which it needs 4096 bytes of the GPU; free memory"),
    ("set_input_shape", r"takes no shape \(12, 2\) for 'projection.u'"),
    ("set_tensor_address", "takes no memory for 'projection.u'"),
]


@pytest.mark.parametrize(("call", "words"), REFUSALS)
def test_every_refusal_ends_the_activation_and_leaves_nothing(small, library, cuda, tmp_path, call, words):
    engine = engine_of(small, tmp_path)
    library.refuse = {call}
    with pytest.raises(UserError, match=f"tensorrt 10.3.0 {words}"):
        engine.activate()
    assert not engine.active and not cuda.leaked
    library.refuse = set()
    with engine:
        assert verify(engine).ok, "and the next activation starts anew"
    assert not cuda.leaked


@pytest.mark.parametrize("call", ["cudaStreamCreate", "cudaEventCreate", "cudaMalloc", "cudaMemcpyAsync"])
def test_every_failure_of_cuda_ends_the_activation_and_leaves_nothing(small, library, cuda, tmp_path, call):
    cuda.status = {call: 2}
    with pytest.raises(UserError, match=f"{call} failed: out of memory"):
        engine_of(small, tmp_path).activate()
    assert not cuda.leaked


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("get_tensor_shape", r"cannot tell the shape of 'scores' .*\(-1, 5\), unspecified: frames"),
        ("execute_async_v3", r"could not run .* with frames \(4, 6, 12\)"),
    ],
)
def test_refusals_of_an_inference_name_its_shapes(small, library, tmp_path, call, words):
    with engine_of(small, tmp_path) as engine:
        library.refuse = {call}
        with pytest.raises(UserError, match=words):
            engine.infer(small.reference().roles["model"].inputs)


@pytest.mark.parametrize("call", ["get_all_weights", "set_named_weights", "refit_cuda_engine"])
def test_a_refit_that_fails_keeps_the_former_parameters_or_ends_the_engine(small, library, cuda, tmp_path, call):
    reference = small.reference()
    samples, own = reference.roles["model"], reference.parameters
    with engine_of(small, tmp_path, personalise="refit") as engine:
        engine.load_parameters(own["device0"])
        library.refuse, library.once = {call}, {call}
        with pytest.raises(UserError, match="use personalise=inputs"):
            engine.load_parameters(own["device1"])
        if call == "refit_cuda_engine":  # it was refused once, so the former ones could be put back
            scores = engine.infer(samples.inputs)["scores"]
            np.testing.assert_allclose(scores, samples.outputs["device0"]["scores"], atol=1e-4)
        assert engine.active == (call == "refit_cuda_engine")
    assert not cuda.leaked


def test_a_shape_outside_the_range_is_refused_with_limit_and_remedy(small, library, tmp_path):
    inputs = small.reference().roles["model"].inputs
    with engine_of(small, tmp_path, max_batch=3) as engine:
        words = (
            r"no shape \(4, 6, 12\) for 'frames'.*built for \(1, 1, 12\) to \(3, 6, 12\); B is 4: .*max_batch above 3"
        )
        with pytest.raises(UserError, match=words):
            engine.infer(inputs)
        longer = {
            "frames": np.zeros((1, 7, 12), np.float32),
            "frame_mask": np.ones((1, 7), bool),
            "text": inputs["text"],
        }
        with pytest.raises(UserError, match="T is 7, it must be 1 to 6"):
            engine.infer(longer | {"text": inputs["text"][:1]})
        assert len(engine.infer({name: array[:3] for name, array in inputs.items()})["scores"]) == 3
    with pytest.raises(UserError, match="max_options is 0"):
        engine_of(small, tmp_path, max_options=0)


def test_more_options_than_the_export_had_are_within_the_range(small):
    engine = create_engine("tensorrt", small, "model")
    engine.info = dataclasses.replace(engine.info, macs_at={"B": 1, "T": 6, "O": 5})
    assert profile_sizes(engine, 8, 16)[2] == {"B": 8, "T": 6, "O": 16}
    assert profile_sizes(engine, 8, 2)[2]["O"] == 5, "never fewer than the bundle was exported with"
    engine.info = dataclasses.replace(engine.info, macs_at={"N": 1})
    assert profile_sizes(engine, 8) == ({"N": 1}, {"N": 6}, {"N": 48})


def test_an_engine_whose_types_differ_from_the_graph_is_refused(small, library, tmp_path):
    library.types = {"text": onnx.TensorProto.INT32}
    with pytest.raises(UserError, match=r"'text' of .* is int32, not int64"):
        engine_of(small, tmp_path).activate()


def test_what_is_built_ahead_is_what_activation_takes(small, library, cuda, tmp_path, monkeypatch):
    assert engine_of(small, tmp_path).build()
    with engine_of(small, tmp_path) as engine:
        assert engine.describe()["cached"]
    monkeypatch.setattr(tensorrt, "board", lambda: {"module": "Orin NX", "power_mode": "0"})
    assert engine_of(small, tmp_path).compile().build_s is not None, "another module builds its own"
    library.refuse = library.once = {"deserialize_cuda_engine"}
    with engine_of(small, tmp_path) as engine:
        assert not engine.describe()["cached"], "what is kept and does not load is built again"
    for timings in tmp_path.glob("*.timings"):
        timings.write_bytes(b"another machine")
        timings.with_suffix(".timings.sha256").write_text(hashlib.sha256(b"another machine").hexdigest())
    assert engine_of(small, tmp_path).compile(fresh=True).build_s is not None


def test_an_engine_that_does_not_fit_says_why(small, library, tmp_path, monkeypatch):
    def reason(**options: object) -> str | None:
        engine = engine_of(small, tmp_path, **options)
        return engine.cache.why_not(engine.key(), engine.suffix, engine.label)

    mode = {"module": "Orin NX", "power_mode": "15W (2)"}
    monkeypatch.setattr(tensorrt, "board", lambda: mode)
    assert reason() == "none was built"
    engine_of(small, tmp_path).build()
    assert reason() is None
    (kept,) = EngineCache(tmp_path).entries()
    assert kept.label == {"engine": "tensorrt", "bundle": "bundle", "role": "model", "precision": "fp32"}
    assert kept.size_bytes == kept.path.stat().st_size and kept.key["machine"]["driver"] == "CUDA 12.6"
    mode["power_mode"] = "MAXN (0)"
    assert reason() == "built for power mode 15W (2), this is MAXN (0)"
    engine_of(small, tmp_path).build()
    assert reason() is None and len(EngineCache(tmp_path).entries()) == 2, "one for each power mode"
    library.__version__ = "10.7.0"
    assert reason() == "built by version 10.3.0, this is 10.7.0"
    library.__version__ = "10.3.0"
    assert reason(workspace_mib=8) == "built with workspace mib 0, asked for 8"
    assert engine_of(small, tmp_path, personalise="reload").key() is None
    for entry in tmp_path.glob("*.engine"):
        entry.write_bytes(b"damaged")
    assert "its digest differs" in str(reason())


def test_a_cuda_graph_is_replayed_for_the_same_shapes_alone(small, library, cuda, tmp_path):
    samples, own = small.reference().roles["model"], small.reference().parameters

    def launches() -> int:
        return cuda.calls.count("cudaGraphLaunch")

    with engine_of(small, tmp_path, cuda_graph=True) as engine:
        assert verify(engine).ok
        before = launches()
        for case in ("device0", "device1", "device0"):  # a graph reads the parameters of now
            engine.load_parameters(own[case])
            np.testing.assert_allclose(
                engine.infer(samples.inputs)["scores"], samples.outputs[case]["scores"], atol=1e-4
            )
        assert launches() == before + 2, "all but the first call with these shapes"
        fewer = {name: array[:2] for name, array in samples.inputs.items()}
        for _ in range(2):
            scores = engine.infer(fewer)["scores"]
            np.testing.assert_allclose(scores, samples.outputs["device0"]["scores"][:2], atol=1e-4)
        assert launches() == before + 3 and len(cuda.owned["GraphExec"]) == 1
        library.refuse = {"execute_async_v3"}
        with pytest.raises(UserError, match="leave cuda_graph out"):
            engine.infer(samples.inputs)
    assert not cuda.leaked and engine.key() == engine_of(small, tmp_path).key(), (
        "the same engine, with graphs or without"
    )


def test_layers_come_from_the_profiler_with_their_kinds_from_the_inspector(small, library, cuda, tmp_path):
    inputs = small.reference().roles["model"].inputs
    with engine_of(small, tmp_path, cuda_graph=True) as engine:
        engine.infer(inputs)
        layers = engine.layer_times(inputs, 4)
        assert {layer["time_ms"] for layer in layers} == {0.25} and len(layers) == small.info("model").nodes
        assert (layers[0]["name"], layers[0]["operator"]) == ("static", "kind of MatMul")
        assert verify(engine).ok
        assert engine.parts_ms(inputs) == {"copy_inputs": 0.0, "compute": 0.0, "copy_outputs": 0.0}
    assert not cuda.leaked


def test_the_real_bindings_take_the_profiler_and_know_the_names():
    profiler = tensorrt._profiler(trt)
    assert isinstance(profiler, trt.IProfiler)
    for name, ms in (("a", 0.5), ("b", 1.0), ("a", 0.25)):
        profiler.report_layer_time(name, ms)
    assert profiler.times_ms == {"a": 0.75, "b": 1.0}
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE and trt.LayerInformationFormat.JSON
    for name in ("create_engine_inspector", "create_runtime_config", "create_execution_context"):
        assert hasattr(trt.ICudaEngine, name)
    assert hasattr(trt.IRuntimeConfig, "cuda_graph_strategy") and hasattr(trt.IExecutionContext, "profiler")


def test_the_key_of_a_portable_engine_asks_for_no_machine(small, library, monkeypatch):
    def keys(engine: str) -> list[object]:
        made = create_engine(engine, small, "model")
        found = []
        for gpu in ("Orin sm87 x16", "Orin sm87 x8"):
            monkeypatch.setattr(tensorrt, "gpu_identity", lambda gpu=gpu: gpu)
            found.append(made.key())
        return found

    ahead, fixed = keys("tensorrt_rtx"), keys("tensorrt")
    assert ahead[0] == ahead[1] and fixed[0] != fixed[1]


def test_boards_whose_gpus_look_alike_are_told_apart(tmp_path):
    def tree(name: str, model: str, mode: str) -> dict[str, str | None]:
        for file, text in (("proc/device-tree/model", model), ("var/lib/nvpmodel/status", mode)):
            (tmp_path / name / file).parent.mkdir(parents=True)
            (tmp_path / name / file).write_bytes(text.encode())
        return board(tmp_path / name)

    nano = tree("nano", "NVIDIA Jetson Orin Nano Developer Kit\0", "pmode:0002 fmode:quiet")
    assert nano == {"module": "NVIDIA Jetson Orin Nano Developer Kit", "power_mode": "2"}
    assert tree("nx", "NVIDIA Jetson Orin NX Developer Kit\0", "pmode:0002 fmode:quiet") != nano
    assert tree("slow", "NVIDIA Jetson Orin Nano Developer Kit\0", "pmode:0001 fmode:quiet") != nano
    assert board(tmp_path / "pc") == {"module": None, "power_mode": None}


def test_refit_without_a_gpu_is_refused_before_it_is_tried(small, tmp_path):
    if cudart.why_no_gpu() is None:
        pytest.skip("there is a GPU")
    words = "for refit on a machine with a GPU only .*personalise=inputs"
    engine = create_engine("tensorrt_rtx", small, "model", personalise="refit", cache=str(tmp_path))
    with pytest.raises(UserError, match=words):
        engine.compile()
    with pytest.raises(UserError, match=words):
        build_engine(Library(trt), small.graph("model").read_bytes(), {"B": 2, "T": 6}, refit=True)
    selection = EngineSelection("tensorrt_rtx", options={"personalise": "refit"}, compile_only=True)
    (cell,) = make_plan(ProfileConfig("x", (selection,), encoder="without"), small)
    assert cell.absent and "for refit" in cell.absent


def test_the_real_builder_says_why_it_refuses_a_range(small):
    graph = small.graph("model").read_bytes()
    with pytest.raises(
        UserError, match=r"no range of shapes with 'frames' from \(1, 1, 12\) to \(2, 6, 12\); .*MIN<=OPT<=MAX"
    ):
        build_engine(Library(trt), graph, {"B": 2, "T": 6}, {"B": 4, "T": 6})
    with pytest.raises(UserError, match="'frames' varies in T, for which no size is given"):
        build_engine(Library(trt), graph, {"B": 2})
