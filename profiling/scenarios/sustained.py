"""A load without pauses, with temperature, clocks and power as time goes by: what the cooling allows for long."""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from lit_mmpg.profiling.meters.energy import Recorder
from lit_mmpg.profiling.meters.latency import Latency, elapsed_ms, timer_overhead_s
from lit_mmpg.profiling.meters.sources import SourceLost
from lit_mmpg.profiling.meters.state import read_state
from lit_mmpg.profiling.scenarios import Context, Outcome

KEPT_SAMPLES = 20_000
"""At most so many single latencies are kept; the intervals hold all of them in their medians."""


def run(context: Context) -> Outcome:
    """Answer for ``sustained.duration_s`` and watch the device."""
    pipeline, settings = context.pipeline, context.config.sustained
    pipeline.personalise()
    cold_ms = elapsed_ms(pipeline.answer)
    overhead_s = timer_overhead_s()
    series: dict[str, list[Any]] = {name: [] for name in ("time_s", "p50_ms", "answers_per_s", "temperature_c")}
    clocks_mhz: dict[str, list[float | None]] = {}
    samples: list[float] = []
    notes = [f"answers without pause for {settings.duration_s:g} s"]
    with ExitStack() as stack:
        recorders = [stack.enter_context(Recorder(source)) for source in context.sources]
        start = time.perf_counter()
        while (now := time.perf_counter()) - start < settings.duration_s:
            end = min(now + settings.interval_s, start + settings.duration_s)
            interval: list[float] = []
            while not interval or time.perf_counter() < end:
                before = time.perf_counter()
                pipeline.answer()
                interval.append(max(0.0, time.perf_counter() - before - overhead_s))
            state = read_state(context.root, context.gpu)
            elapsed = time.perf_counter() - start
            series["time_s"].append(round(elapsed, 3))
            series["p50_ms"].append(float(np.median(interval)) * 1e3)
            series["answers_per_s"].append(len(interval) / (time.perf_counter() - now))
            series["temperature_c"].append(_hottest(state))
            clocks = _clocks_mhz(state)
            for domain in {**clocks_mhz, **clocks}:
                clocks_mhz.setdefault(domain, [None] * (len(series["time_s"]) - 1)).append(clocks.get(domain))
            samples += interval
            context.say(f"{elapsed:.0f} of {settings.duration_s:.0f} s, {series['p50_ms'][-1]:.2f} ms")
    power = {}
    for recorder in recorders:
        try:
            window = recorder.window()
        except SourceLost as error:
            notes.append(f"{recorder.source.name}: {error}")
            continue
        if window.energy_j is not None:
            power[recorder.source.name] = {
                "mean_w": window.energy_j / window.duration_s,
                "energy_j": window.energy_j,
                "bound_j": window.bound_j,
                "times_s": window.times_s,
                "power_w": window.power_w,
                "scope": recorder.source.scope,
            }
    gc.collect()
    kept = samples if len(samples) <= KEPT_SAMPLES else samples[:: -(-len(samples) // KEPT_SAMPLES)]
    if len(kept) < len(samples):
        notes.append(f"{len(kept)} of {len(samples)} single latencies are kept, evenly spaced")
    samples_ms, kept_ms = ([second * 1e3 for second in seconds] for seconds in (samples, kept))
    latency = Latency.of_wall(samples_ms, cold_ms, overhead_s, kept_ms=kept_ms)
    return Outcome(
        pipeline.unit,
        latency,
        None,
        series={"sustained": {**series, "clocks_mhz": clocks_mhz}, "power": power},
        notes=notes,
    )


def _hottest(state: dict[str, Any]) -> float | None:
    values = [value for value in state["temperatures_c"].values() if value is not None]
    gpu = (state["nvml"] or {}).get("temperature_c")
    values += [] if gpu is None else [gpu]
    return max(values) if values else None


def _clocks_mhz(state: dict[str, Any]) -> dict[str, float | None]:
    """Every clock by its name: the mean of domains that run apart is nobody's clock."""
    cores = {f"core {number}": mhz for number, mhz in enumerate(state["cpu_mhz"])}
    others = {"emc": state["emc_mhz"], "nvml sm": (state["nvml"] or {}).get("sm_mhz")}
    return cores | state["gpu_mhz"] | {name: mhz for name, mhz in others.items() if mhz is not None}
