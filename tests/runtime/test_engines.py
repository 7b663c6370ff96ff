from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import ENGINES, create_engine, engine_class, engine_table, onnx_runtime
from lit_mmpg.runtime.engines.onnx_runtime import OnnxRuntimeEngine, OnnxRuntimeTensorRTEngine, assigned_nodes
from lit_mmpg.runtime.verify import LIMITS, Figures, compare, pool, verify
from tests.profiling.bundles import make_bundle


@pytest.fixture
def bundle(made) -> Bundle:
    return Bundle.open(made("features").bundle)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Bundle:
    return Bundle.open(make_bundle(tmp_path_factory.mktemp("small") / "bundle"))


def test_table_lists_every_engine_with_a_reason_where_it_cannot_run():
    rows = {row.name: row for row in engine_table()}
    assert list(rows) == list(ENGINES)
    assert rows["onnxruntime"].reason is None
    for row in rows.values():
        assert row.help and (row.reason is None or len(row.reason) > 10)


def test_unknown_engines_options_and_graphs_are_refused(bundle):
    with pytest.raises(UserError, match="did you mean 'onnxruntime'"):
        engine_class("onxruntime")
    with pytest.raises(UserError, match="no option colour"):
        create_engine("onnxruntime", bundle, "model", colour=1)
    with pytest.raises(UserError, match="threads is -1"):
        create_engine("onnxruntime", bundle, "model", threads=-1)
    with pytest.raises(UserError, match="not by 'magic'"):
        create_engine("onnxruntime", bundle, "model", personalise="magic")
    with pytest.raises(UserError, match="no graph for 'text'"):
        create_engine("onnxruntime", bundle, "text")


def test_parameters_swap_and_go_back(bundle):
    reference = bundle.reference()
    samples = reference.roles["model"]
    with create_engine("onnxruntime", bundle, "model") as engine:
        for case in ("static", "device0", "probe", "device0"):
            engine.load_parameters(None if case == "static" else reference.parameters[case])
            np.testing.assert_allclose(
                engine.infer(samples.inputs)["scores"], samples.outputs[case]["scores"], atol=1e-4
            )
        bad = dict(reference.parameters["probe"])
        bad["head.c"] = np.full_like(bad["head.c"], np.nan)
        with pytest.raises(ValueError, match="NaN"):
            engine.load_parameters(bad)
        kept = engine.infer(samples.inputs)["scores"]
        np.testing.assert_allclose(kept, samples.outputs["device0"]["scores"], atol=1e-4)
    with (
        create_engine("onnxruntime", bundle, "project") as project,
        pytest.raises(UserError, match="takes no personal"),
    ):
        project.load_parameters(reference.parameters["device0"])


class Wrong(OnnxRuntimeEngine):
    """Computes something else; a test plants it."""

    fault = ""

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        scores = super()._infer(inputs)["scores"].copy()
        if self.fault == "swapped":
            scores[:, [0, 1]] = scores[:, [1, 0]]
        elif self.fault == "batch":
            scores[1:] = scores[:1]
        elif self.fault == "nan":
            scores[0, 0] = np.nan
        elif self.fault == "shape":
            scores = scores[:, 1:]
        elif self.fault == "noise":
            scores += np.random.default_rng(0).normal(0, 0.02 * scores.std(), scores.shape)
        return {"scores": scores}

    def _load_parameters(self, parameters: dict[str, np.ndarray]) -> None:
        if self.fault == "ignores" and self._values:
            return
        if self.fault == "drops_bias":
            parameters = {n: np.zeros_like(a) if n.endswith(".c") else a for n, a in parameters.items()}
        super()._load_parameters(parameters)


@pytest.mark.parametrize("fault", ["swapped", "batch", "nan", "shape", "noise", "ignores", "drops_bias"])
def test_planted_wrong_engine_is_refused(bundle, monkeypatch, fault):
    monkeypatch.setattr(Wrong, "fault", fault)
    with Wrong(bundle, "model") as engine:
        verdict = verify(engine)
    assert not verdict.ok and verdict.problems


@pytest.mark.parametrize("fault", ["swapped", "ignores", "drops_bias"])
def test_tolerance_of_int8_still_refuses_a_wrong_engine(bundle, monkeypatch, fault):
    monkeypatch.setattr(Wrong, "fault", fault)
    with Wrong(bundle, "model", "int8") as engine:
        assert not verify(engine).ok


def test_verification_leaves_the_parameters_as_they_were(bundle):
    with create_engine("onnxruntime", bundle, "model") as engine:
        own = bundle.reference().parameters["device1"]
        engine.load_parameters(own)
        assert verify(engine).ok
        assert all(np.array_equal(engine.parameters[name], own[name]) for name in own)


def test_figures_of_known_outputs():
    expected = np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    same = compare(expected, expected, choice=True)
    assert (same.error, same.top1_agreement, same.rank_correlation) == (0.0, 1.0, pytest.approx(1.0))
    turned = compare(-expected, expected, choice=True)
    assert (turned.top1_agreement, turned.rank_correlation) == (0.0, pytest.approx(-1.0))
    shifted = compare(expected + 0.1, expected, choice=True)
    assert shifted.error == pytest.approx(0.1 / expected.std()) and shifted.top1_agreement == 1.0
    absent = np.array([[0.0, 1.0, -1e4]])
    assert compare(absent, absent, choice=True).error == 0
    assert compare(absent * 0, absent, choice=True).error == np.inf
    gallery = np.eye(3)
    assert compare(expected, expected, gallery).top1_agreement == 1.0
    assert pool([same, Figures(2, float("nan"), 0.0, 0.0)]).problems(LIMITS["int8"])


@pytest.mark.parametrize("way", ["inputs", "rebind", "reload"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8_weight", "int8"])
def test_every_way_to_personalise_is_right(bundle, way, precision):
    with create_engine("onnxruntime", bundle, "model", precision, personalise=way) as engine:
        verdict = verify(engine)
    assert verdict.ok, verdict.problems


def test_parameters_that_stay_become_constants_and_others_inputs_again(bundle, monkeypatch):
    inputs, own = bundle.reference().roles["model"].inputs, bundle.reference().parameters["probe"]
    with create_engine("onnxruntime", bundle, "model") as plain:
        static = plain.infer(inputs)["scores"]
        plain.load_parameters(own)
        personal = plain.infer(inputs)["scores"]
    with create_engine("onnxruntime", bundle, "model", settle_after=3) as engine:

        def settle() -> None:
            calls = 0
            while not engine.settled:
                calls += 1
                engine.infer(inputs)
            assert calls > 3

        settle()
        np.testing.assert_allclose(engine.infer(inputs)["scores"], static, rtol=1e-4, atol=1e-5)
        engine.load_parameters(own)
        assert not engine.settled
        np.testing.assert_array_equal(engine.infer(inputs)["scores"], personal)
        with pytest.raises(ValueError, match="NaN"):
            engine.load_parameters({name: array * np.nan for name, array in own.items()})
        settle()
        assert engine.describe()["settled"] is True
        np.testing.assert_allclose(engine.infer(inputs)["scores"], personal, rtol=1e-4, atol=1e-5)
        first_row = {name: array[:1] for name, array in inputs.items()}
        np.testing.assert_allclose(engine.infer(first_row)["scores"], personal[:1], rtol=1e-4, atol=1e-5)
        engine.load_parameters(None)
        np.testing.assert_array_equal(engine.infer(inputs)["scores"], static)

    def full(*_: object) -> bytes:
        raise MemoryError("no memory")

    monkeypatch.setattr(onnx_runtime, "bake", full)  # answers go on with inputs, and the report says why
    with create_engine("onnxruntime", bundle, "model", settle_after=1) as engine:
        while engine.describe()["settled"] is False:
            np.testing.assert_array_equal(engine.infer(inputs)["scores"], static)
        assert engine.describe()["settled"] == "no memory" and not engine.settled
    with pytest.raises(UserError, match="must be 0 or more"):
        create_engine("onnxruntime", bundle, "model", settle_after=-1)


@pytest.mark.parametrize("kind", ["features", "pixels"])
def test_torch_computes_the_reference(made, kind):
    bundle = Bundle.open(made(kind).bundle)
    for role in bundle.roles:
        with create_engine("torch", bundle, role) as engine:
            verdict = verify(engine)
        assert verdict.ok, (role, verdict.problems)


@pytest.mark.soak  # a dozen calls of the compiler each
@pytest.mark.parametrize("role", ["project", "model"])
@pytest.mark.parametrize("name", ["torch_inductor", "torch_aoti"])
def test_compiled_torch_computes_the_reference(bundle, monkeypatch, tmp_path, name, role):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if (reason := engine_class(name).requirements()) is not None:
        pytest.skip(reason)
    with create_engine(name, bundle, role) as engine:
        assert verify(engine).ok
        assert engine.describe()["torch"]
    if name == "torch_aoti":
        (package,) = (tmp_path / "lit-mmpg" / "engines").glob("*.pt2")
        before = package.stat().st_mtime_ns
        with create_engine(name, bundle, role) as engine:
            assert verify(engine).ok
        assert package.stat().st_mtime_ns == before, "compiled once"


def test_torch_engines_refuse_what_they_lack(made, tmp_path):
    from lit_mmpg.cli import main

    target = str(tmp_path / "b")
    assert main(["export", "--ckpt", str(made("features").device), "--output", target, "--samples", "synthetic"]) == 0
    with pytest.raises(UserError, match="export it with --torch"):
        create_engine("torch", Bundle.open(target), "model").activate()
    bundle = Bundle.open(made("features").bundle)
    with pytest.raises(UserError, match="it must be cpu or cuda"):
        create_engine("torch", bundle, "model", device="tpu")
    with pytest.raises(UserError, match="runs fp32, not int8"):
        create_engine("torch", bundle, "model", "int8")
    with pytest.raises(UserError, match="on a GPU only"):
        create_engine("torch_tensorrt", bundle, "model", device="cpu")


def test_answers_are_kept_when_the_next_is_computed(bundle):
    samples = bundle.reference().roles["model"]
    with create_engine("onnxruntime", bundle, "model") as engine:
        first = engine.infer({name: array[:2] for name, array in samples.inputs.items()})["scores"]
        kept = first.copy()
        own = bundle.reference().parameters["probe"]
        engine.load_parameters(own)
        second = engine.infer({name: array[2:4] for name, array in samples.inputs.items()})["scores"]
        engine.load_parameters(None)
        np.testing.assert_array_equal(first, kept)
        assert not np.array_equal(first, second)
        assert own["head.u"].any() and np.array_equal(own["head.u"], bundle.reference().parameters["probe"]["head.u"])
        wider = {name: array[:, ::-1].copy()[:, ::-1][:3] for name, array in samples.inputs.items()}
        assert engine.infer(wider)["scores"].shape == (3, kept.shape[1])


def test_inputs_of_another_type_or_shape_are_converted_without_loss_or_refused(small):
    inputs = small.reference().roles["model"].inputs
    with create_engine("onnxruntime", small, "model") as engine:
        expected = engine.infer(inputs)["scores"]
        np.testing.assert_array_equal(
            engine.infer(inputs | {"text": inputs["text"].astype(np.int32)})["scores"], expected
        )
        for name, array, words in (
            ("text", inputs["text"].astype(np.float32), "'text' is float32, the graph takes int64"),
            ("frames", inputs["frames"].astype(np.float64), "'frames' is float64, the graph takes float32"),
            ("frames", inputs["frames"][..., :3], r"'frames' has shape \[4, 6, 3\], the graph takes \[B, T, 12\]"),
            ("frames", inputs["frames"][0], r"'frames' has shape \[6, 12\]"),
            ("text", inputs["text"][:3], r"'text' has shape \[3, 1, 4\], .*; B is 4 in 'frames'"),
        ):
            with pytest.raises(UserError, match=words):
                engine.infer(inputs | {name: array})
        with pytest.raises(UserError, match="input 'text' is missing"):
            engine.infer({name: array for name, array in inputs.items() if name != "text"})


class Broken(OnnxRuntimeEngine):
    """Fails when it is activated, after it has made a session."""

    def _load_parameters(self, parameters: dict[str, np.ndarray]) -> None:
        raise RuntimeError("no memory")


def test_a_failed_activation_leaves_nothing(small):
    engine = Broken(small, "model")
    with pytest.raises(RuntimeError, match="no memory"):
        engine.activate()
    assert not engine.active and engine._session is None


class Elsewhere(OnnxRuntimeEngine):
    """Its provider is there and takes no node."""

    provider = "AzureExecutionProvider"


def test_a_provider_that_does_not_run_the_graph_is_no_silent_processor(small, monkeypatch, capsys):
    import onnxruntime

    if Elsewhere.provider in onnxruntime.get_available_providers():
        with pytest.raises(UserError, match=r"AzureExecutionProvider takes no node of .*, all would run on CPUExec"):
            Elsewhere(small, "model").activate()

    def refuse(*_: object, **options: object) -> None:
        assert options["enable_fallback"] == 0
        raise ValueError("the option cannot be parsed")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(UserError, match=r"'onnxruntime' cannot run .* here: CPUExecutionProvider: the option cannot"):
        OnnxRuntimeEngine(small, "model").activate()
    assert not capsys.readouterr().out


def graph_with(folder: Path, dtype: int, *operators: str) -> Path:
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node(name, ["x", "s"], ["y"]) for name in operators]
    constant = onnx.numpy_helper.from_array(np.ones(1, onnx.helper.tensor_dtype_to_np_dtype(dtype)), "s")
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, [1])], [value("y", 1, [1])], [constant])
    path = folder / f"{dtype}{''.join(operators)}.onnx"
    onnx.save_model(onnx.helper.make_model(graph), str(path))
    return path


def test_options_of_the_tensorrt_provider(small, tmp_path, monkeypatch):
    def options(bundle: Bundle = small, **more: object) -> dict[str, str]:
        engine = create_engine("onnxruntime_tensorrt", bundle, "model", cache=str(tmp_path / "cache"), **more)
        return engine._provider_options()

    plain = options()
    assert plain["trt_fp16_enable"] == plain["trt_int8_enable"] == "False"
    assert all(value in ("True", "False") for name, value in plain.items() if name.endswith("enable"))
    assert plain["trt_engine_cache_enable"] == "True" and Path(plain["trt_engine_cache_path"]).is_dir()
    assert small.info("model").sha256 in plain["trt_engine_cache_path"]
    assert plain["trt_profile_max_shapes"] == "frames:32x6x12,frame_mask:32x6,text:32x1x4"

    retrained = options(Bundle.open(make_bundle(tmp_path / "retrained", wrong=True)))  # another graph's weights
    assert retrained["trt_engine_cache_path"] != plain["trt_engine_cache_path"]
    assert retrained["trt_timing_cache_path"] == plain["trt_timing_cache_path"], "timings are the machine's"
    assert options(max_batch=8)["trt_engine_cache_path"] != plain["trt_engine_cache_path"]
    with monkeypatch.context() as patch:
        patch.setattr(onnx_runtime, "board", lambda: {"module": "Orin NX", "power_mode": "0"})
        assert options()["trt_engine_cache_path"] != plain["trt_engine_cache_path"]
        assert options()["trt_timing_cache_path"] != plain["trt_timing_cache_path"]
    baked = options(personalise="reload")
    assert baked["trt_engine_cache_enable"] == "False" and "trt_engine_cache_path" not in baked

    for graph, fp16, int8 in (
        (graph_with(tmp_path, onnx.TensorProto.FLOAT16, "Add"), "True", "False"),
        (graph_with(tmp_path, onnx.TensorProto.FLOAT, "QuantizeLinear"), "False", "True"),
        (graph_with(tmp_path, onnx.TensorProto.FLOAT, "DequantizeLinear"), "False", "False"),
    ):
        monkeypatch.setattr(OnnxRuntimeTensorRTEngine, "graph", graph)
        assert (options()["trt_fp16_enable"], options()["trt_int8_enable"]) == (fp16, int8)

    monkeypatch.setattr("pathlib.Path.mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError("read-only")))
    assert options(max_batch=9)["trt_engine_cache_enable"] == "False", "a read-only disk costs time alone"


def test_nodes_by_provider(small):
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    assert not assigned_nodes(onnxruntime.InferenceSession(str(small.graph("model")), session_options))
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    nodes = assigned_nodes(onnxruntime.InferenceSession(str(small.graph("model")), session_options))
    assert nodes is None or nodes["CPUExecutionProvider"] > 5


class Leaving(OnnxRuntimeEngine):
    """Fails when it is left."""

    def _deactivate(self) -> None:
        raise UserError("the device is lost")


def test_an_error_on_the_way_out_hides_none_before_it(small):
    with pytest.raises(UserError, match="'text' is missing"), Leaving(small, "model") as engine:
        engine.infer({name: a for name, a in small.reference().roles["model"].inputs.items() if name != "text"})
    with pytest.raises(UserError, match="the device is lost"), Leaving(small, "model"):
        pass


def test_a_run_that_fails_names_the_shapes(small):
    inputs = small.reference().roles["model"].inputs
    words = r"could not run .*model.onnx with frames \[4, 6, 12\], .*text \[4, 1, 4\]: .*Gather"
    with create_engine("onnxruntime", small, "model") as engine, pytest.raises(UserError, match=words):
        engine.infer(inputs | {"text": inputs["text"] + 1000})


def test_torch_tensorrt_refits_in_place_and_puts_back_what_failed(small, monkeypatch):
    own = small.reference().parameters
    refits: list[tuple[np.ndarray, bool]] = []
    failing: list[bool] = []

    def refit(module: object, program: Mapping[str, np.ndarray], in_place: bool = False) -> object:
        refits.append((program["projection.u"], in_place))
        if failing and failing.pop():
            raise AssertionError("Refitting failed.")
        return module

    dynamo = ModuleType("torch_tensorrt.dynamo")
    dynamo.refit_module_weights = refit
    monkeypatch.setitem(sys.modules, "torch_tensorrt", ModuleType("torch_tensorrt"))
    monkeypatch.setitem(sys.modules, "torch_tensorrt.dynamo", dynamo)
    engine = create_engine("torch_tensorrt", small, "model", personalise="refit")
    monkeypatch.setattr(engine, "_tensor", lambda array: array)
    monkeypatch.setattr(engine, "_program", lambda _, parameters: parameters)
    engine.active, engine._module, engine._spec = True, object(), None
    engine.load_parameters(own["device0"])
    failing[:] = [False, True]  # the next one fails, putting back does not
    with pytest.raises(UserError, match=r"could not refit: AssertionError: Refitting failed\.; use personalise=inputs"):
        engine.load_parameters(own["device1"])
    assert [in_place for _, in_place in refits] == [True] * 3
    np.testing.assert_array_equal(refits[-1][0], own["device0"]["projection.u"])
    assert engine.active and np.array_equal(engine.parameters["projection.u"], own["device0"]["projection.u"])
    failing[:] = [True, True]
    with pytest.raises(UserError, match="could not refit"):
        engine.load_parameters(own["device1"])
    assert not engine.active, "neither set is whole"
