"""Two bundles measured in turns on this machine, so that its drift hits both.

Every round opens fresh sessions of both, since the same session repeated hides what differs between sessions (the
layout of memory, choices of kernels). Within a round the two take turns of some milliseconds, A B B A. A round gives a
ratio per figure; the ratios of the rounds give the change and its interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.compare import (
    Change,
    Limit,
    finish,
    judged,
    lost,
    median_interval,
    row_key,
    side,
)
from lit_mmpg.profiling.harness import Harness
from lit_mmpg.profiling.meters import energy, latency
from lit_mmpg.profiling.pipeline import Pipeline
from lit_mmpg.profiling.plan import Cell, make_plan

Open = Callable[[Harness, Cell], Pipeline]

LEAST_ROUNDS = 6
"""Fewer rounds give no interval."""


Figures = dict[str, list[float]]
"""What the rounds of one bundle gave: a list of each figure, one per round."""


def open_pipeline(harness: Harness, cell: Cell) -> Pipeline:
    """A pipeline with fresh sessions."""
    return Pipeline(harness.bundle, cell)


def compare_bundles(
    a: Harness,
    b: Harness,
    limits: Sequence[Limit],
    rounds: int,
    say: Callable[[str], None] = lambda _: None,
    open_b: Open = open_pipeline,
) -> dict[str, Any]:
    """Measure the scenario ``answer`` of two bundles in turns.

    Args:
        a: Harness of the bundle to compare with; its configuration says what is measured, and for how long in a round.
        b: Harness of the bundle that may have become worse.
        limits: What fails.
        rounds: Rounds of each cell, at least ``LEAST_ROUNDS``.
        say: Shows one line of progress.
        open_b: Opens B's pipeline.

    Returns:
        A document of :data:`lit_mmpg.profiling.compare.KIND`.

    Raises:
        UserError: If nothing can be measured here.
    """
    if rounds < LEAST_ROUNDS:
        raise UserError(f"--rounds {rounds}: at least {LEAST_ROUNDS} give an interval")
    config = replace(a.config, scenarios=("answer",))
    cells = [cell for cell in make_plan(config, a.bundle) if cell.absent is None and not cell.selection.compile_only]
    if not cells:
        raise UserError(f"'{config.name}' has no cell that can run here; see lit-mmpg profile engines")
    others = {row_key(cell.fields): cell for cell in make_plan(config, b.bundle)}
    rows = []
    for number, cell in enumerate(cells, start=1):
        title = f"[{number}/{len(cells)}] {cell.title}"
        absent = others[row_key(cell.fields)].absent
        if absent is not None:
            rows.append(lost(cell.fields, f"B: {absent}"))
            continue
        rows.append(_measure(a, b, cell, limits, rounds, _sayer(say, title), open_b))
        a.require_same_bundle()
        b.require_same_bundle()
    remarks = [f"measured in turns, {rounds} rounds with fresh sessions each"]
    starts = [side(harness.start()) for harness in (a, b)]
    return finish("interleaved", starts[0], starts[1], rows, limits, remarks)


def _sayer(say: Callable[[str], None], title: str) -> Callable[[str], None]:
    return lambda text: say(f"{title}: {text}")


def _measure(
    a: Harness, b: Harness, cell: Cell, limits: Sequence[Limit], rounds: int, say: Callable[[str], None], open_b: Open
) -> dict[str, Any]:
    sides: tuple[Figures, Figures] = (defaultdict(list), defaultdict(list))
    want_energy = any(limit.metric.startswith("energy") for limit in limits)
    meter = replace(a.config.latency, attempts=1)
    unit = None
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        with ExitStack() as stack:
            openers = ((a, open_pipeline), (b, open_b))
            order = (0, 1) if number % 2 == 0 else (1, 0)
            opened: dict[int, Pipeline] = {}
            for which in order:
                harness, opener = openers[which]
                opened[which] = stack.enter_context(opener(harness, cell))
                sides[which]["activate_ms"].append(opened[which].activate_ms)
                sides[which]["cold_ms"].append(latency.elapsed_ms(opened[which].answer))
            unit = opened[0].unit
            if number == 0:
                for which, name in ((0, "A"), (1, "B")):
                    problems = [p for v in opened[which].verify() if not v.ok for p in v.problems]
                    if problems:
                        reason = f"{name}'s outputs differ from its reference, not timed: {'; '.join(problems)}"
                        return lost(cell.fields | {"unit": unit}, reason)
            for which in order:
                opened[which].personalise()
            measured = latency.measure_in_turns([opened[which].answer for which in order], meter)
            for which, found in zip(order, measured, strict=True):
                for key in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms"):
                    sides[which][key].append(getattr(found, key))
                if want_energy:
                    say(f"round {number + 1} of {rounds}, energy")
                    _energy(openers[which][0], opened[which], sides[which])
    changes = _changes(sides)
    row = judged(cell.fields | {"unit": unit}, changes, limits, [])
    ratios = {name: _ratios(sides, name) for name in changes}
    return row | {"round_ratios": ratios, "rounds": rounds}


def _energy(harness: Harness, pipeline: Pipeline, found: Figures) -> None:
    """By the first source that answers; none leaves the figure out, and a limit on it fails."""
    for source in harness.instruments.sources:
        reading = energy.measure(source, pipeline.answer, harness.config.energy)
        if reading.gross_j_per_unit is not None and reading.net_j_per_unit is not None:
            found["energy_j"].append(reading.gross_j_per_unit)
            found["energy_net_j"].append(reading.net_j_per_unit)
            return


def _ratios(sides: Sequence[Figures], name: str) -> list[float]:
    return [y / x for x, y in zip(*(figures[name] for figures in sides), strict=True)]


def _changes(sides: Sequence[Figures]) -> dict[str, tuple[float, float, Change]]:
    changes = {}
    for name, values in sides[0].items():
        others = sides[1].get(name, [])
        if len(others) != len(values) or min(values) <= 0:
            continue
        middle, low, high = median_interval(_ratios(sides, name))
        ends = (None if low is None else low - 1, None if high is None else high - 1)
        changes[name] = (float(np.median(values)), float(np.median(others)), Change(middle - 1, *ends))
    return changes
