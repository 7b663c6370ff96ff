"""A stream of clips with an adaptation every N: what a device lives through, clip by clip."""

from __future__ import annotations

import time

from lit_mmpg.profiling.config import CloudConfig, StreamConfig
from lit_mmpg.profiling.meters import network
from lit_mmpg.profiling.meters.latency import Distribution, Latency, elapsed_ms, timer_overhead_s
from lit_mmpg.profiling.pipeline import Pipeline
from lit_mmpg.profiling.scenarios import Context, Outcome
from lit_mmpg.profiling.scenarios.exchange import DeviceSide, open_cloud, sizes


class StreamOfClips:
    """A device that sees clip after clip.

    Args:
        pipeline: Activated engines, ``project`` among them.
        settings: How often it adapts.
        cloud: Where downloads come from.
    """

    def __init__(self, pipeline: Pipeline, settings: StreamConfig, cloud: CloudConfig = CloudConfig()) -> None:
        self.settings, self.device = settings, DeviceSide(pipeline)
        ask, self.absent = open_cloud(cloud, pipeline.bundle)
        self.upload = self.device.upload()
        self.reply = ask(self.upload)

    def clip(self, number: int) -> bool:
        """Live through a clip; whether an adaptation came with it."""
        adapts = number % self.settings.adapt_every == 0
        self.device.see_clip()
        if adapts:
            self.device.upload().to_bytes()
            self.device.apply(self.reply.data, self.upload)
        self.device.answer()
        return adapts


def run(context: Context) -> Outcome:
    """Measure a stream; a clip's latency is the device's own part."""
    pipeline, settings = context.pipeline, context.config.stream
    stream = StreamOfClips(pipeline, settings, context.config.cloud)
    clip = stream.clip
    cold_ms = elapsed_ms(lambda: clip(0))
    overhead_s = timer_overhead_s()
    clip_ms: list[float] = []
    adapted: list[bool] = []
    for number in range(settings.clips):
        start = time.perf_counter()
        adapted.append(clip(number))
        clip_ms.append(max(0.0, time.perf_counter() - start - overhead_s) * 1e3)
    plain = [ms for ms, adapts in zip(clip_ms, adapted, strict=True) if not adapts]
    with_adaptation = [ms for ms, adapts in zip(clip_ms, adapted, strict=True) if adapts]
    size = sizes(stream.upload, stream.reply)
    per_clip = {f"{way}_per_clip": size[way]["message_bytes"] / settings.adapt_every for way in ("upload", "download")}
    notes = [f"an adaptation comes with every {settings.adapt_every} clips; times are the device's own part"]

    def cycle() -> None:
        for number in range(settings.adapt_every):
            clip(number)

    return Outcome(
        unit=f"one clip of a stream ({pipeline.unit}); energy: a cycle of {settings.adapt_every} clips",
        latency=Latency.of_wall(clip_ms, cold_ms, overhead_s),
        work=cycle,
        stages={
            "clip_without_adaptation": Distribution.of(plain) if plain else None,
            "clip_with_adaptation": Distribution.of(with_adaptation),
        },
        series={"stream": {"clip_ms": [round(ms, 6) for ms in clip_ms], "adapted": adapted}},
        bytes={**size, **per_clip},
        network=network.costs(context.config.links, size["upload"]["message_bytes"], size["download"]["message_bytes"]),
        notes=[*notes, *([stream.absent] if stream.absent else [])],
    )
