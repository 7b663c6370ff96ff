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
        if self.fault == "ignores" and hasattr(self, "_personal"):
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
