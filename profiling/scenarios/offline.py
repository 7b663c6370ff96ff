"""As fast as it can, one call after the other (MLPerf's Offline): answers per second, for every size of batch."""

from __future__ import annotations

import time

import numpy as np

from lit_mmpg.profiling.meters.latency import Latency, elapsed_ms, timer_overhead_s
from lit_mmpg.profiling.scenarios import Context, Outcome

BLOCKS = 20
"""The run is cut into so many parts of equal numbers of calls; their rates show how steady it was."""


def run(context: Context) -> Outcome:
    """Answer without pause for ``throughput.duration_s``."""
    pipeline, settings, batch = context.pipeline, context.config.throughput, context.pipeline.cell.batch
    pipeline.personalise()
    cold_ms = elapsed_ms(pipeline.answer)
    for _ in range(context.config.latency.warmup):
        pipeline.answer()
    overhead_s = timer_overhead_s()
    ends = [time.perf_counter()]
    while ends[-1] - ends[0] < settings.duration_s or len(ends) <= BLOCKS:
        pipeline.answer()
        ends.append(time.perf_counter())
    calls_s = np.diff(ends)
    blocks = [batch * len(part) / float(part.sum()) for part in np.array_split(calls_s, BLOCKS)]
    samples_ms = np.maximum(calls_s - overhead_s, 0.0) * 1e3
    return Outcome(
        unit=pipeline.unit,
        latency=Latency.of_wall(samples_ms.tolist(), cold_ms, overhead_s),
        throughput={
            "mode": "Offline",
            "answers_per_s": batch * len(calls_s) / (ends[-1] - ends[0]),
            "blocks_per_s": blocks,
        },
    )
