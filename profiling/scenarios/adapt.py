"""Adapt, then answer: a new clip, upload, cloud, download, swap, answer. Every part is timed on its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from lit_mmpg.profiling.meters import network
from lit_mmpg.profiling.meters.latency import Distribution, Latency, LatencyConfig, timer_overhead_s
from lit_mmpg.profiling.scenarios import Context, Outcome
from lit_mmpg.profiling.scenarios.exchange import DeviceSide, open_cloud, sizes


def run(context: Context) -> Outcome:
    """Measure adaptations; the latency of the row is the device's own part, without network and cloud."""
    pipeline = context.pipeline
    device = DeviceSide(pipeline)
    cloud, absent = open_cloud(context.config.cloud, pipeline.bundle)
    upload = device.upload()
    reply = cloud(upload)
    parts: dict[str, Callable[[], object]] = {
        "take_clip": device.see_clip,
        "make_upload": lambda: device.upload().to_bytes(),
        "apply_download": lambda: device.apply(reply.data, upload),
        "answer": device.answer,
    }
    stages, latency = time_parts(parts, context.config.latency)
    stages_with_cloud: dict[str, Distribution | None] = {}
    notes = [
        "the row's latency is the device's part: take_clip, make_upload, apply_download and answer",
        f"context of {device.context_clips} clips; take_clip projects and selects the anchors of the new one",
    ]
    for name, stage in stages.items():
        stages_with_cloud[name] = stage
        if name == "make_upload":
            stages_with_cloud["cloud"] = None
    if absent:
        notes.append(absent)
    else:
        times = [cloud(upload).seconds for _ in range(max(10, min(context.config.latency.min_count, 50)))]
        stages_with_cloud["cloud"] = Distribution.of([seconds * 1e3 for seconds in times if seconds is not None])
        where = context.config.cloud.url or "this process, so the cloud's part ran on this machine"
        notes.append(f"cloud time: {where}")

    def work() -> None:
        for part in parts.values():
            part()

    return Outcome(
        unit=f"one adaptation and one answer, device side ({pipeline.unit})",
        latency=latency,
        work=work,
        stages=stages_with_cloud,
        bytes=sizes(upload, reply),
        network=network.costs(context.config.links, upload.message_bytes, len(reply.data)),
        notes=notes,
    )


def time_parts(
    parts: Mapping[str, Callable[[], object]], config: LatencyConfig, after: Callable[[], object] = lambda: None
) -> tuple[dict[str, Distribution], Latency]:
    """Time the parts of a unit in turn.

    Args:
        parts: Parts in their order.
        config: How long.
        after: Called after each turn, not timed.

    Returns:
        A distribution for each part, and the latency of their sum.
    """
    overhead_s, clock = timer_overhead_s(), time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in parts}
    cold_ms = 0.0
    begin = clock()
    for turn in range(10**9):
        recorded = turn - 1 - config.warmup
        elapsed = clock() - begin
        if recorded >= config.min_count and elapsed >= config.min_time_s:
            break
        if recorded >= 4 and elapsed >= config.max_time_s:
            break
        for name, part in parts.items():
            start = clock()
            part()
            spent_ms = max(0.0, clock() - start - overhead_s) * 1e3
            if turn == 0:
                cold_ms += spent_ms
            elif recorded >= 0:
                samples[name].append(spent_ms)
        after()
        if recorded < 0:
            begin = clock()
    total = [sum(values) for values in zip(*samples.values(), strict=True)]
    cut_short = len(total) < config.min_count
    latency = Latency.of_wall(total, cold_ms, overhead_s, warmup=config.warmup + 1, cut_short=cut_short)
    return {name: Distribution.of(values) for name, values in samples.items()}, latency
