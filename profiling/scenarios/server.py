"""Questions that arrive by chance (MLPerf's Server): the largest rate at which the 99th percentile keeps a limit.

Arrivals are a Poisson process; one engine answers them in the order of their arrival. Latency runs from the arrival,
waiting included. The rate is found by bisection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lit_mmpg.profiling.meters import latency
from lit_mmpg.profiling.meters.latency import Latency
from lit_mmpg.profiling.scenarios import Context, Outcome

LEAST_ARRIVALS = 100
"""Of one probe: a 99th percentile of fewer says nothing."""
DEFAULT_LIMIT = 5.0
"""Limit as a multiple of the median latency without waiting, where the configuration names none."""
SPIN_S = 1e-3
"""Waiting for an arrival sleeps until so long before it and spins from then on: a sleep ends late by more than this
seldom."""


def probe(
    answer: Callable[[], object],
    rate: float,
    count: int,
    seed: int,
    limit_ms: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[float]:
    """Latencies, milliseconds, of ``count`` arrivals at a rate per second.

    Args:
        answer: Answers one arrival.
        rate: Mean arrivals per second.
        count: Arrivals.
        seed: Of the arrival times.
        limit_ms: Ends as soon as so many arrivals took longer that the 99th percentile of all must, too.
        clock: Seconds.
        sleep: Waits, seconds.
    """
    arrivals = np.random.default_rng(seed).exponential(1 / rate, count).cumsum().tolist()
    latencies_ms: list[float] = []
    late = 0
    start = clock()
    for arrival in arrivals:
        wait = start + arrival - clock()
        if wait > SPIN_S:
            sleep(wait - SPIN_S)
        while clock() - start < arrival:
            pass
        answer()
        latencies_ms.append((clock() - start - arrival) * 1e3)
        late += latencies_ms[-1] > limit_ms
        if late > 0.01 * count:
            break
    return latencies_ms


def run(context: Context) -> Outcome:
    """Find the rate between nothing and what one call after the other reaches."""
    pipeline, settings = context.pipeline, context.config.throughput
    pipeline.personalise()
    alone = latency.measure(pipeline.answer, context.config.latency)
    limit_ms = settings.p99_limit_ms or DEFAULT_LIMIT * alone.wall.p50_ms
    low, high = 0.0, 1e3 / alone.wall.p50_ms
    best: tuple[float, list[float]] | None = None
    probes: list[dict[str, Any]] = []
    for number in range(settings.probes):
        rate = (low + high) / 2
        context.say(f"probe {number + 1} of {settings.probes}: {rate:.4g} questions a second")
        count = max(LEAST_ARRIVALS, round(rate * settings.duration_s))
        found = probe(pipeline.answer, rate, count, number, limit_ms)
        kept = sum(ms > limit_ms for ms in found) <= 0.01 * count
        quantiles = {"p50_ms": float(np.median(found)), "p99_ms": float(np.percentile(found, 99))}
        probes.append({"rate_per_s": rate, **quantiles, "count": len(found), "kept": kept})
        if kept:
            low, best = rate, (rate, found)
        else:
            high = rate
    source = "as configured" if settings.p99_limit_ms else f"{DEFAULT_LIMIT:g} times the median without waiting"
    notes = [f"Server: 99th percentile at most {limit_ms:.3g} ms ({source}), Poisson arrivals, one engine"]
    throughput = {"mode": "Server", "answers_per_s": low, "p99_limit_ms": limit_ms, "probes": probes}
    if best is None:
        notes.append(f"no probed rate kept the limit; the least was {high:.3g} a second")
        return Outcome(unit=pipeline.unit, throughput=throughput | {"answers_per_s": None}, notes=notes)
    measured = Latency.of_wall(best[1], alone.cold_ms, 0.0)
    return Outcome(
        unit=f"{pipeline.unit}, waiting included, at the largest rate",
        latency=measured,
        throughput=throughput,
        notes=notes,
    )
