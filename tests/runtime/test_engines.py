from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import ENGINES, create_engine, engine_class, engine_table
from lit_mmpg.runtime.engines.onnx_runtime import OnnxRuntimeEngine
from lit_mmpg.runtime.verify import LIMITS, Figures, compare, pool, verify


@pytest.fixture
def bundle(made) -> Bundle:
    return Bundle.open(made("features").bundle)


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


@pytest.mark.parametrize("kind", ["features", "pixels"])
def test_torch_computes_the_reference(made, kind):
    bundle = Bundle.open(made(kind).bundle)
    for role in bundle.roles:
        with create_engine("torch", bundle, role) as engine:
            verdict = verify(engine)
        assert verdict.ok, (role, verdict.problems)


COMPILED = [
    pytest.param(name, role, marks=() if role == "project" else pytest.mark.soak)
    for name in ("torch_inductor", "torch_aoti")
    for role in ("project", "model")
]


@pytest.mark.parametrize(("name", "role"), COMPILED)
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
