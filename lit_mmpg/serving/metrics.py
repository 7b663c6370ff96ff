"""Prometheus metrics of the service, over all workers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from lit_mmpg.serving.batcher import Batcher

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Requests:
    """The requests to one endpoint.

    Args:
        name: Short name of what is asked for.
        plural: The same for people.
        outcomes: How successes end; the reason of their status.
        registry: Where they are counted.
    """

    def __init__(self, name: str, plural: str, outcomes: Sequence[str], registry: CollectorRegistry) -> None:
        self._requests = Counter(
            f"lit_mmpg_{name}_requests", f"{plural} asked for, or not even that, by HTTP status and reason",
            ["status", "reason"], registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            f"lit_mmpg_{name}_seconds", "Time from the headers to the answer, successful requests",
            buckets=_LATENCY_S, registry=registry,
        )  # fmt: skip
        # These are counted often, or when there is least time.
        self._outcomes = {outcome: self._requests.labels("200", outcome) for outcome in outcomes}
        self._overloaded = self._requests.labels("503", "overloaded")

    def answered(self, seconds: float, outcome: str) -> None:
        """Count a success."""
        self._outcomes[outcome].inc()
        self._seconds.observe(seconds)

    def refused(self, status: int, reason: str) -> None:
        """Count a refusal."""
        child = self._overloaded if reason == "overloaded" else self._requests.labels(str(status), reason)
        child.inc()


class Metrics:
    """What is counted.

    With several workers the environment variable ``PROMETHEUS_MULTIPROC_DIR`` names a folder that they share, and any
    of them answers for all.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = {
            "adapt": Requests("adapt", "Adaptations", ["ok"], registry),
            "camera": Requests("camera", "Recognitions of cameras", ["recognised", "unknown"], registry),
        }
        self.batch = Histogram("lit_mmpg_batch_size", "Uploads per computed batch", buckets=_SIZES, registry=registry)
        self.compute = Histogram(
            "lit_mmpg_compute_seconds", "Time of one computed batch", buckets=_LATENCY_S, registry=registry
        )
        self.upload_bytes = Counter("lit_mmpg_upload_bytes", "Bytes of accepted uploads", registry=registry)
        self.download_bytes = Counter("lit_mmpg_download_bytes", "Bytes of downloads", registry=registry)
        self.queue = Gauge("lit_mmpg_queue_length", "Uploads that wait", registry=registry, multiprocess_mode="livesum")

    def expose(self, batcher: Batcher) -> bytes:  # type: ignore[type-arg]
        """All metrics in Prometheus' text format."""
        self.queue.set(batcher.waiting)
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
            return generate_latest(registry)
        return generate_latest(self._registry)
