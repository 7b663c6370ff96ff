"""The benchmark compares what computes the same, counts what it says and notices when something differs."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from lit_mmpg.profiling.benchmarks import layers, training_step
from lit_mmpg.profiling.benchmarks.timing import Timings, interleave

SMALL = layers.LayerCase("small", 12, 5, 3, rank=2)

ROW_KEYS = {
    "comparison",
    "case",
    "devices",
    "part",
    "implementation",
    "median_ms",
    "reference",
    "reference_median_ms",
    "ratio_median",
    "ratio_low",
    "ratio_high",
    "rounds",
    "target",
    "target_met",
}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[training_step.Stages]:
    configs = training_step.read_configs()
    data = copy.deepcopy(configs["data"])
    data["init_args"]["clips"] = {
        "train_devices": 4,
        "val_devices": 2,
        "test_devices": 2,
        "train_clips": 6,
        "seen_clips": 1,
        "unseen_clips": 4,
        "image_size": 24,
    }
    data["init_args"]["cache_dir"] = str(tmp_path_factory.mktemp("cache"))
    data["init_args"]["batch"] = {"devices": 2, "clips": 2, "items_per_clip": 2, "context_clips": 3}
    yield training_step.build_stages({**configs, "data": data})


@pytest.fixture(autouse=True)
def untouched_stages(request: pytest.FixtureRequest) -> Iterator[None]:
    """Training steps of one test must not reach the next."""
    if "stages" not in request.fixturenames:
        yield
        return
    built: training_step.Stages = request.getfixturevalue("stages")
    states = [copy.deepcopy(stage.module.state_dict()) for stage in (built.static, built.cloud)]
    yield
    for stage, state in zip((built.static, built.cloud), states, strict=True):
        stage.module.load_state_dict(state)


def test_stages_answer_the_same_and_then_learn(stages: training_step.Stages) -> None:
    training_step.check_stages(stages)
    for stage, batch in ((stages.static, stages.pixels[0]), (stages.cloud, stages.features[0])):
        before = [p.detach().clone() for p in stage.module.parameters() if p.requires_grad]
        assert np.isfinite(stage.step(batch))
        after = [p for p in stage.module.parameters() if p.requires_grad]
        assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert not any(p.requires_grad for p in stages.cloud.module.network.encoder.parameters())
    assert stages.features[0].frames.values.is_floating_point()
    assert stages.pixels[0].frames.values.dtype == torch.uint8


def test_stages_that_answer_differently_are_noticed(stages: training_step.Stages) -> None:
    training_step.check_stages(stages)
    head = stages.static.module.network.head.bias
    with torch.no_grad():
        head[0] += 1.0
    try:
        with pytest.raises(AssertionError):
            training_step.check_stages(stages)
    finally:
        with torch.no_grad():
            head[0] -= 1.0


def test_rows_of_the_steps_and_of_the_data(stages: training_step.Stages) -> None:
    rows = training_step.compare_steps(stages, rounds=1)
    assert [row["case"] for row in rows] == ["as run", "pixels in both", "encoded once in both"]
    assert all(set(row) == ROW_KEYS for row in rows)
    assert rows[0]["target_met"] is (rows[0]["ratio_median"] <= training_step.STEP_TARGET)  # type: ignore[operator]
    data = training_step.measure_data(stages, most=2)
    assert [row["encode_once_s"] is None for row in data] == [True, False]


@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("kind", ["layer", "model"])
def test_all_implementations_give_the_outputs_and_gradients_of_the_batched_layers(devices: int, kind: str) -> None:
    torch.manual_seed(1)
    problem = layers.layer_problem(SMALL, devices) if kind == "layer" else layers.model_problem(devices, frames=3)
    candidates = layers.implementations(problem)
    outputs = candidates[layers.BATCHED](problem.parameters)
    assert outputs.shape[0] == devices
    layers.check_equal(problem, candidates, torch.randn_like(outputs))
    static = problem.static(*problem.inputs)
    assert float((outputs - static).detach().abs().max()) > 1e-2, "the parameters must matter, or equality says nothing"


def test_the_loop_equals_numpy() -> None:
    torch.manual_seed(2)
    problem = layers.layer_problem(SMALL, 3)
    found = layers.implementations(problem)["functional_call"](problem.parameters).detach().numpy()
    u, v, c = (p.detach().numpy().astype(np.float64) for p in problem.parameters)
    layer = problem.layers[""]
    weight = layer.weight.numpy() + np.einsum("gor,gir->goi", u, v)
    expected = np.einsum("gni,goi->gno", problem.inputs[0].numpy(), weight) + layer.bias.numpy() + c[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_wrong_output_or_a_wrong_gradient_is_noticed() -> None:
    problem = layers.layer_problem(SMALL, 3)
    candidates = layers.implementations(problem)
    batched = candidates[layers.BATCHED]
    upstream = torch.ones_like(batched(problem.parameters))
    with pytest.raises(AssertionError, match="swapped differs"):
        layers.check_equal(problem, {**candidates, "swapped": lambda p: batched([x.flip(0) for x in p])}, upstream)

    def stopped(parameters: object) -> torch.Tensor:  # right output, gradient only half
        y = batched(problem.parameters)
        return 0.5 * y + 0.5 * y.detach()

    with pytest.raises(AssertionError, match="stopped differs"):
        layers.check_equal(problem, {**candidates, "stopped": stopped}, upstream)


def test_rows_of_the_layers() -> None:
    problem = layers.layer_problem(SMALL, 2)
    rows = layers.compare("small", problem, layers.implementations(problem), rounds=1)
    assert len(rows) == 6
    assert all(set(row) == ROW_KEYS for row in rows)
    assert {row["implementation"] for row in rows if row["target"]} == {"functional_call"}
    json.dumps(rows, allow_nan=False)


@pytest.mark.skipif(importlib.util.find_spec("hypernn") is None, reason="hyper-nn is not in this environment")
def test_hyper_nn_gives_the_same() -> None:
    problem = layers.layer_problem(SMALL, 3)
    candidates = {**layers.implementations(problem), **layers.hyper_nn_implementations(problem)}
    layers.check_equal(problem, candidates, torch.randn(3, SMALL.rows, SMALL.outputs))


def test_turns_are_interleaved_and_warm_up_is_not_counted() -> None:
    turns: list[str] = []
    now = itertools.count()  # every look at the clock is one second later: one call per turn
    calls = {name: lambda n=name: turns.append(n) for name in "ab"}
    timings = interleave(calls, rounds=3, warmup=2, clock=lambda: float(next(now)))
    assert "".join(turns) == "aabb" + "ab" * 5
    assert {name: list(values) for name, values in timings.seconds.items()} == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_a_short_call_is_repeated_within_its_turn() -> None:
    clock = [0.0]

    def call() -> None:
        clock[0] += 1.0

    timings = interleave({"a": call}, rounds=2, warmup=0, least_s=5.0, clock=lambda: clock[0])
    assert clock[0] == 2 + 2 * 5
    assert timings.median_ms("a") == 1000.0


def test_ratio_pairs_the_rounds() -> None:
    reference = np.array([1.0, 10.0, 1.0, 100.0, 1.0])
    timings = Timings({"a": reference * np.array([2.0, 3.0, 4.0, 5.0, 6.0]), "b": reference})
    ratio = timings.ratio("a", "b")
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((4.0, 2.4, 5.6))


def test_result_is_printed_with_missing_parts(capsys: pytest.CaptureFixture[str]) -> None:
    problem = layers.layer_problem(SMALL, 2)
    rows = layers.compare("small", problem, layers.implementations(problem), rounds=1)
    step = {**rows[0], "comparison": "training step", "case": "as run", "target": "<= 2", "target_met": False}
    other = {**rows[0], "devices": 7, "implementation": "hyper_nn", "target": None, "target_met": None}
    training_step.print_result(
        {
            "environment": training_step.environment(),
            "rows": [step, *rows, other],
            "data": [{"stage": "static", "batch_ms": 1.0, "encode_once_s": None, "steps_per_epoch": 3}],
            "hyper_nn": "skipped: no",
        }
    )
    printed = capsys.readouterr().out
    assert "<= 2 missed" in printed
    assert "hyper_nn" in printed
    assert "hyper-nn: skipped: no" in printed


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--threads", "0"], ["--devices", "0"]])
def test_numbers_below_one_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        training_step.main(wrong)
    assert stop.value.code == 2
    assert f"{wrong[0]} must be at least 1" in capsys.readouterr().err
