"""Personalise: from the bytes of a download to the first right answer, and what parameters as inputs cost after that.

The ratio compares inference with that of the same engine with the same parameters baked in, where the engine has such a
form. Both take turns, call by call, so that whatever else runs on the machine hits both; every engine of the path is
baked, so parameters of an input layer or of the frame encoder count, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lit_mmpg.link import Download
from lit_mmpg.profiling.compare import median_interval, quantile_interval
from lit_mmpg.profiling.meters.latency import Distribution, LatencyConfig
from lit_mmpg.profiling.pipeline import Pipeline
from lit_mmpg.profiling.scenarios import Context, Outcome
from lit_mmpg.profiling.scenarios.adapt import time_parts
from lit_mmpg.profiling.scenarios.exchange import download_of
from lit_mmpg.runtime.bundle import Arrays
from lit_mmpg.runtime.engines import engine_class
from lit_mmpg.runtime.verify import ABSENT_BELOW, LIMITS

BAKED = ("reload", "refit", "rebind")
"""Ways whose engines hold the parameters inside, the preferred one first."""
BLOCKS = 20
"""Blocks of turns; each gives one ratio of medians."""
LEAST_TURNS = 4
"""Turns in a block, at least."""
SAME, NEARER = 1e-3, 0.25
"""An answer is right within this share of its size (an accelerator's order of sums varies), or of the distance to the
other device's answer."""


def baked_way(engine: str) -> str | None:
    """How an engine takes parameters inside; None where it only knows them as inputs."""
    ways = engine_class(engine).ways
    return next((way for way in BAKED if way in ways), None)


def run(context: Context) -> Outcome:
    """Measure swaps in turns between two devices, then the ratio.

    Raises:
        RuntimeError: If an answer after a swap is not that of the parameters just loaded.
    """
    pipeline = context.pipeline
    bundle, way = pipeline.bundle, pipeline.engines["model"].config.personalise
    messages = [download_of(bundle, number) for number in (0, 1)]
    decoded = [Download.parse(data).parameters(bundle.spec) for data in messages]
    expected = []
    for parameters in decoded:
        pipeline.load(parameters)
        expected.append(pipeline.answer())
    apart = _distance(*expected)
    limit = max(SAME * _size(expected[0]), NEARER * apart)
    notes = [
        "from the bytes of a download in memory: message checked and decoded, parameters loaded into every graph that "
        "takes some, one answer",
    ]
    if apart <= limit:
        notes.append("the reference's devices have the same answers, so an answer with old parameters would not show")
    turn: dict[str, Any] = {"number": 0}

    def decode() -> None:
        turn["parameters"] = Download.parse(messages[turn["number"] % 2]).parameters(bundle.spec)

    def load() -> None:
        pipeline.load(turn["parameters"])

    def first_answer() -> None:
        turn["answer"] = pipeline.answer()

    def check() -> None:
        error = _distance(turn["answer"], expected[turn["number"] % 2])
        if not error <= limit:
            raise RuntimeError(f"the answer after a swap is not that of the new parameters: off by {error:.2g}")
        turn["number"] += 1

    parts = {"decode": decode, "load": load, "first_answer": first_answer}
    stages, latency = time_parts(parts, context.config.latency, after=check)
    context.say("ratio to baked parameters")
    near = max(LIMITS[pipeline.cell.precision].error * _size(expected[0]), NEARER * apart)
    ratio = _ratio(pipeline, way, decoded[0], expected[0], near, context.config.latency)
    low, high = quantile_interval(latency.wall.samples_ms, 50)
    found = {
        "way": way,
        "download_bytes": len(messages[0]),
        "first_right_answer_ms": {"median": latency.wall.p50_ms, "low": low, "high": high},
        **ratio,
    }
    return Outcome(
        unit=f"one swap of personal parameters and the first answer with them ({pipeline.unit})",
        latency=latency,
        stages=dict[str, Distribution | None](stages),
        personalisation=found,
        notes=notes,
    )


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference, without scores of options that are padding."""
    real = (a > ABSENT_BELOW) & (b > ABSENT_BELOW)
    return float(np.sqrt(np.mean(np.square((a - b)[real], dtype=np.float64))))


def _size(answer: np.ndarray) -> float:
    """Root mean square of an answer, without padding."""
    return float(np.sqrt(np.mean(np.square(answer[answer > ABSENT_BELOW], dtype=np.float64))))


def _ratio(
    pipeline: Pipeline, way: str, parameters: Arrays, expected: np.ndarray, limit: float, config: LatencyConfig
) -> dict[str, Any]:
    """``baked_ratio`` with the interval of its median, or ``baked_reason`` where there is nothing to compare with.

    Args:
        pipeline: The row's engines.
        way: How they take parameters.
        parameters: Of one device.
        expected: The answer with them.
        limit: Farthest from it that a baked engine may answer.
        config: How long.
    """
    found: dict[str, Any] = dict.fromkeys(("baked_by", "baked_ratio", "baked_ratio_low", "baked_ratio_high"))
    found["baked_reason"] = None
    cell = pipeline.cell
    baked = baked_way(cell.engine)
    if baked is None:
        return found | {"baked_reason": f"engine '{cell.engine}' takes parameters as inputs only"}
    if way != "inputs":
        return found | {"baked_reason": "this engine's parameters are inside already"}
    selection = replace(cell.selection, options={**cell.selection.options, "personalise": baked})
    pipeline.load(parameters)
    other = Pipeline(pipeline.bundle, replace(cell, selection=selection))
    other.load(parameters)  # before it is made ready, so that it is built once
    with other:
        off = _distance(other.answer(), expected)
        if not off <= limit:
            return found | {"baked_reason": f"the engine with parameters by {baked} answers otherwise (by {off:.2g})"}
        ratios = turns(pipeline.answer, other.answer, config)
    middle, low, high = median_interval(ratios)
    return found | {"baked_by": baked, "baked_ratio": middle, "baked_ratio_low": low, "baked_ratio_high": high}


def turns(
    a: Callable[[], object],
    b: Callable[[], object],
    config: LatencyConfig,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Ratios of A's time to B's: of the medians of a block of turns A B B A, block by block.

    Args:
        a: A call.
        b: Another.
        config: How long: at least ``min_count`` turns and ``min_time_s``, at most ``max_time_s``.
        clock: Seconds.
    """
    for call in (a, b) * (1 + config.warmup):
        call()
    start = clock()
    a(), b()
    pair_s = max(clock() - start, 1e-9)
    wanted = max(config.min_count, config.min_time_s / pair_s)
    count = int(min(wanted, max(config.max_time_s / pair_s, BLOCKS * LEAST_TURNS)))
    per_block = max(LEAST_TURNS, -(-count // BLOCKS))
    found = []
    for _ in range(BLOCKS):
        times = np.zeros((per_block, 2))
        for turn in range(per_block):
            for column in (0, 1) if turn % 2 == 0 else (1, 0):
                start = clock()
                (a, b)[column]()
                times[turn, column] = clock() - start
        medians = np.median(times, axis=0)
        found.append(float(medians[0] / medians[1]))
    return found
