from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lit_mmpg.device.graphs import graph_specs
from lit_mmpg.errors import UserError
from lit_mmpg.export.precision import convert
from lit_mmpg.export.reference import expected_outputs, static_parameters
from lit_mmpg.export.statistics import count_macs, zeros
from lit_mmpg.onnx_graphs import IR_VERSION, OPSET, export_graph
from lit_mmpg.runtime.manifest import PRECISIONS
from lit_mmpg.tasks.graphs import ABSENT, GraphSpec
from tests.export.conftest import Exported, device_model, exported

TASKS = ("open_ended", "multiple_choice", "retrieval")
FORMS = ("low_rank", "full", "core", "basis")
CHOSEN = [("open_ended", "low_rank"), ("multiple_choice", "core"), ("retrieval", "basis")]
CASES = [*CHOSEN, ("open_ended", None)]
REST = [(task, form) for task in TASKS for form in (*FORMS, None) if (task, form) not in CASES]
ALL = [*CASES, *(pytest.param(*case, marks=pytest.mark.soak) for case in REST)]
"""An export takes seconds, so the combinations that add least run with the long tests."""


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def random_inputs(
    case: Exported, role: str, rows: int, frames: int, words: int, options: int = 3
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([rows, frames, words])
    names = set(case.network.spec.names)
    sizes = {"B": rows, "N": rows, "T": frames, "L": words, "O": options}
    inputs = {n: a for n, a in zeros(case.graphs[role], sizes).items() if n not in names}
    for name, array in inputs.items():
        if name in ("frames", "features"):
            inputs[name] = rng.standard_normal(array.shape).astype(np.float32)
        elif name == "pixels":
            inputs[name] = rng.integers(0, 256, array.shape).astype(np.uint8)
        elif name == "frame_mask":
            inputs[name] = np.arange(frames) < rng.integers(1, frames + 1, (rows, 1))
        elif name == "text":
            text = rng.integers(1, 40, array.shape)
            inputs[name] = np.where(np.arange(words) < rng.integers(1, words + 1, (*array.shape[:-1], 1)), text, 0)
    return inputs


@pytest.mark.parametrize(("task", "form"), ALL)
def test_onnx_computes_what_torch_computes(task, form):
    case = exported(task, form)
    for role, spec in case.specs.items():
        run = session(case.graphs[role])
        for seed, (rows, frames, words) in enumerate([(1, 1, 1), (2, 5, 9), (3, 8, 4), (7, 2, 6)]):
            inputs = random_inputs(case, role, rows, frames, words)
            own = case.parameters(seed) if spec.personal else {}
            expected = expected_outputs(spec, case.network, inputs, own)[spec.output]
            (got,) = run.run([spec.output], {**inputs, **own})
            assert got.dtype == np.float32 and got.shape == expected.shape
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("task", "form"), CHOSEN)
def test_static_parameters_give_the_static_model(task, form):
    case = exported(task, form)
    spec = case.specs["model"]
    inputs = random_inputs(case, "model", 4, 5, 6)
    expected = expected_outputs(spec, case.network, inputs, {})[spec.output]
    static = static_parameters(case.network)
    case.network.spec.validate(static)
    (got,) = session(case.graphs["model"]).run([spec.output], {**inputs, **static})
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)
    (moved,) = session(case.graphs["model"]).run([spec.output], {**inputs, **case.parameters()})
    assert np.abs(moved - expected).max() > 1e-2, "the parameters are not used"


def test_pixels_become_features_in_a_graph_of_their_own():
    case = exported("open_ended", "low_rank", (3, 24, 24))
    assert set(case.graphs) == {"model", "project", "encode"}
    for rows in (1, 3):
        inputs = random_inputs(case, "encode", rows, 1, 1)
        expected = expected_outputs(case.specs["encode"], case.network, inputs, {})["features"]
        (got,) = session(case.graphs["encode"]).run(["features"], inputs)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_absent_options_score_as_in_training():
    case = exported("multiple_choice", "core")
    inputs = random_inputs(case, "model", 2, 3, 4)
    inputs["text"][:, 2] = 0
    (scores,) = session(case.graphs["model"]).run(["scores"], {**inputs, **case.parameters()})
    assert (scores[:, 2] == ABSENT).all() and (scores[:, :2] > ABSENT).all()


@pytest.mark.parametrize(("task", "form"), CASES)
def test_graphs_suit_the_oldest_runtime_and_name_what_varies(task, form):
    case = exported(task, form)
    for role, graph in case.graphs.items():
        assert graph.ir_version <= IR_VERSION == 10
        assert {(o.domain, o.version) for o in graph.opset_import} == {("", OPSET)} and OPSET <= 20
        inputs = [value.name for value in graph.graph.input]
        spec = case.specs[role]
        names = case.network.spec.names if spec.personal else ()
        assert inputs == [*spec.example, *names]
        shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.graph.input}
        for entry in case.network.spec if spec.personal else ():
            assert shapes[entry.name] == list(entry.shape), "personal parameters are unbatched"
        for name, dims in spec.dims.items():
            assert all(shapes[name][axis] == dim for axis, dim in dims.items())
        assert graph.graph.output[0].name == spec.output


def test_no_loop_is_unrolled():
    longer = device_model("open_ended", words=32)
    graph = export_graph(graph_specs(longer, 24, 1)[0], longer).graph
    assert len(graph.node) == len(exported("open_ended", "low_rank").graphs["model"].graph.node) < 130


def test_macs_are_those_of_the_layers():
    case = exported("open_ended", None)
    sizes = {"B": 1, "N": 1, "T": 5, "L": 6}
    assert count_macs(case.graphs["project"], sizes) == 24 * 16
    linear = {name: m for name, m in case.network.named_modules() if isinstance(m, torch.nn.Linear)}
    rows = dict.fromkeys(linear, 1) | {"frame_projection": 5, "time": 5, "temporal.0": 5, "temporal.2": 5}
    rows |= {"text_encoder.mix": 6, "text_encoder.score": 6}
    expected = sum(rows[name] * m.in_features * m.out_features for name, m in linear.items())
    assert count_macs(case.graphs["model"], sizes) == expected
    pixels = exported("open_ended", "low_rank", (3, 24, 24))
    convolutions = 4 * 12**2 * 27 + 8 * 6**2 * 36 + 16 * 3**2 * 72
    assert count_macs(pixels.graphs["encode"], {"N": 1}) == convolutions + 16 * 16 * 20


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("task", "form"), [*CASES, ("pixels", "low_rank")])
def test_tensorrt_builds_every_variant(task, form, precision):
    engines = pytest.importorskip("lit_mmpg.runtime.engines.tensorrt")
    library = engines.Library(pytest.importorskip("tensorrt_rtx"))
    case = exported("open_ended", form, (3, 24, 24)) if task == "pixels" else exported(task, form)
    for role, graph in case.graphs.items():
        if task == "pixels" and role != "encode":
            continue
        personal = [case.parameters(seed) if case.specs[role].personal else {} for seed in range(4)]
        samples = [{**random_inputs(case, role, 4, 5, 6), **own} for own in personal]
        data = convert(graph, precision, samples).SerializeToString()
        engine, _ = engines.build_engine(library, data, {"B": 4, "N": 8, "T": 5, "L": 9, "O": 3})
        assert len(engine) > 10_000


class ByValue(torch.nn.Module):
    """What no graph can say: a choice by the value of a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[: int(x.sum())] if x.sum() > 0 else x


def test_what_cannot_be_written_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^graph 'encode' cannot be written as ONNX \(.*data-dependent.*\)") as error:
        export_graph(GraphSpec("encode", ByValue(), {"x": torch.ones(2, 3)}, {"x": {0: "N"}}, "y"))
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
