"""Answer one question (or embed and compare, for retrieval): the steady state of a device."""

from __future__ import annotations

from lit_mmpg.profiling.meters import latency
from lit_mmpg.profiling.meters.latency import Distribution
from lit_mmpg.profiling.scenarios import Context, Outcome

PARTS_CALLS = 50
"""Calls after the measurement that are taken apart."""


def run(context: Context) -> Outcome:
    """Measure answers, with the personal parameters of one of the reference's devices where the model takes them."""
    pipeline = context.pipeline
    pipeline.personalise()
    measured = latency.measure(pipeline.answer, context.config.latency, device_ms=pipeline.device_ms)
    apart = [parts for _ in range(PARTS_CALLS) if (parts := pipeline.parts_ms()) is not None]
    stages = {name: Distribution.of([parts[name] for parts in apart]) for name in (apart[0] if apart else ())}
    notes = [] if apart else [f"engine '{pipeline.cell.engine}' does not tell copies from computing"]
    return Outcome(unit=pipeline.unit, latency=measured, work=pipeline.answer, stages=stages, notes=notes)
