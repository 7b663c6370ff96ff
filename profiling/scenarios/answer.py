"""Answer one question (or embed and compare, for retrieval): the steady state of a device."""

from __future__ import annotations

from lit_mmpg.profiling.meters import latency
from lit_mmpg.profiling.scenarios import Context, Outcome


def run(context: Context) -> Outcome:
    """Measure answers, with the personal parameters of one of the reference's devices where the model takes them."""
    pipeline = context.pipeline
    pipeline.personalise()
    measured = latency.measure(pipeline.answer, context.config.latency, device_timer=pipeline.device_timer)
    return Outcome(unit=pipeline.unit, latency=measured, work=pipeline.answer)
