"""Several streams at once (MLPerf's MultiStream): a thread and sessions for each, all answering without pause."""

from __future__ import annotations

import time
from contextlib import ExitStack
from threading import Barrier, Thread

from lit_mmpg.profiling.meters.latency import Latency, elapsed_ms, timer_overhead_s
from lit_mmpg.profiling.pipeline import Pipeline
from lit_mmpg.profiling.scenarios import Context, Outcome


def run(context: Context) -> Outcome:
    """Answer in ``throughput.streams`` threads for ``throughput.duration_s``.

    Raises:
        RuntimeError: If a stream failed; its error is the cause.
    """
    settings, first = context.config.throughput, context.pipeline
    overhead_s = timer_overhead_s()
    samples_ms: list[list[float]] = [[] for _ in range(settings.streams)]
    spans: list[tuple[float, float]] = []
    errors: list[BaseException] = []
    with ExitStack() as stack:
        others = [stack.enter_context(Pipeline(first.bundle, first.cell)) for _ in range(settings.streams - 1)]
        pipelines = [first, *others]
        cold_ms = elapsed_ms(first.answer)
        for number, pipeline in enumerate(pipelines):
            pipeline.personalise(number)  # streams of different devices
            for _ in range(1 + context.config.latency.warmup):
                pipeline.answer()
        barrier = Barrier(settings.streams)

        def stream(number: int) -> None:
            try:
                barrier.wait()
                begin = now = time.perf_counter()
                while now - begin < settings.duration_s or len(samples_ms[number]) < 4:
                    pipelines[number].answer()
                    now, before = time.perf_counter(), now
                    samples_ms[number].append(max(0.0, now - before - overhead_s) * 1e3)
                spans.append((begin, now))
            except BaseException as error:
                barrier.abort()
                errors.append(error)

        threads = [Thread(target=stream, args=(number,)) for number in range(settings.streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise RuntimeError(f"a stream failed: {errors[0]}") from errors[0]
    span_s = max(end for _, end in spans) - min(begin for begin, _ in spans)
    answers = first.cell.batch * sum(map(len, samples_ms))
    return Outcome(
        unit=f"{first.unit}, {settings.streams} streams at once",
        latency=Latency.of_wall([ms for own in samples_ms for ms in own], cold_ms, overhead_s),
        throughput={
            "mode": "MultiStream",
            "answers_per_s": answers / span_s,
            "streams": settings.streams,
            "stream_answers": [len(own) for own in samples_ms],
        },
    )
