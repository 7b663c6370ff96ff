"""Prometheus metrics of the service, over all workers."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from lit_mmpg.serving.batcher import Batcher

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What is counted.

    With several workers the environment variable ``PROMETHEUS_MULTIPROC_DIR`` names a folder that they share, and any
    of them answers for all.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "lit_mmpg_adapt_requests", "Adaptations asked for, or not even that, by HTTP status and reason",
            ["status", "reason"], registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "lit_mmpg_adapt_seconds", "Time from the headers to the answer of an adaptation, successful ones",
            buckets=_LATENCY_S, registry=registry,
        )  # fmt: skip
        self.batch = Histogram("lit_mmpg_batch_size", "Uploads per computed batch", buckets=_SIZES, registry=registry)
        self.compute = Histogram(
            "lit_mmpg_compute_seconds", "Time of one computed batch", buckets=_LATENCY_S, registry=registry
        )
        self.upload_bytes = Counter("lit_mmpg_upload_bytes", "Bytes of accepted uploads", registry=registry)
        self.download_bytes = Counter("lit_mmpg_download_bytes", "Bytes of downloads", registry=registry)
        self.queue = Gauge("lit_mmpg_queue_length", "Uploads that wait", registry=registry, multiprocess_mode="livesum")
        self._ok = self.requests.labels("200", "ok")
        self._overloaded = self.requests.labels("503", "overloaded")  # counted when there is least time

    def answered(self, seconds: float, upload_bytes: int, download_bytes: int) -> None:
        """Count a success."""
        self._ok.inc()
        self.seconds.observe(seconds)
        self.upload_bytes.inc(upload_bytes)
        self.download_bytes.inc(download_bytes)

    def refused(self, status: int, reason: str) -> None:
        """Count a refusal."""
        child = self._overloaded if reason == "overloaded" else self.requests.labels(str(status), reason)
        child.inc()

    def expose(self, batcher: Batcher) -> bytes:  # type: ignore[type-arg]
        """All metrics in Prometheus' text format."""
        self.queue.set(batcher.waiting)
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
            return generate_latest(registry)
        return generate_latest(self._registry)
