"""Settings of the service."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field

from lit_mmpg.link.messages import DEFAULT_MAX_BYTES, DEFAULT_MAX_NORM

ENVIRONMENT = "LIT_MMPG_SERVE"
"""Variable through which the settings reach worker processes."""


@dataclass(frozen=True)
class ContextLimits:
    """How much context one upload may bring: memory and time grow with it, not with the bytes that were sent.

    Attributes:
        clips: Context clips C.
        anchors: Anchors per clip K.
        frames: Frames of all clips together (the reasoner reconstructs every one of them).
    """

    clips: int = 64
    anchors: int = 64
    frames: int = 4096


@dataclass(frozen=True)
class ServeConfig:
    """Settings of one worker.

    Attributes:
        ckpt: Checkpoint of the cloud half.
        device: Where to compute; ``None``: a GPU if there is one.
        download_codec: Codec of the parameters; ``None``: the checkpoint's.
        keys: File of API keys; ``None``: anybody may ask (loopback only).
        camera_memory: File of camera models that are known; ``None``: no camera is recognised.
        max_batch: Most uploads computed together.
        max_wait_ms: How long the first upload of a batch waits for others.
        max_queue: Most uploads that wait; beyond, 503.
        max_body_bytes: Largest body.
        max_norm: Largest norm of an anchor.
        request_timeout_s: Longest time for a request to arrive, from its first byte to the end of its body.
        max_connections: Most open connections; beyond, 503.
        stuck_s: How long a batch may be computed before ``/healthz`` says that the worker is stuck.
        rate_per_s: Requests per second and key (without keys: and address) in this worker; 0 for no limit.
        burst: Requests that a key may send at once.
        context: How much context an upload may bring.
        threads: CPU threads of the computation.
        log_level: Least important level that is logged.
        log_requests: Log every request, not only refused ones.
    """

    ckpt: str
    device: str | None = None
    download_codec: str | None = None
    keys: str | None = None
    camera_memory: str | None = None
    max_batch: int = 32
    max_wait_ms: float = 1.0
    max_queue: int = 128
    max_body_bytes: int = DEFAULT_MAX_BYTES
    max_norm: float = DEFAULT_MAX_NORM
    request_timeout_s: float = 10.0
    max_connections: int = 4000
    stuck_s: float = 60.0
    rate_per_s: float = 0.0
    burst: float = 20.0
    context: ContextLimits = field(default_factory=ContextLimits)
    threads: int = 1
    log_level: str = "info"
    log_requests: bool = False

    def export(self) -> None:
        """Hand the settings to worker processes that are started from here on."""
        os.environ[ENVIRONMENT] = json.dumps(asdict(self))

    @classmethod
    def from_environment(cls) -> ServeConfig:
        """The settings that :meth:`export` left."""
        values = json.loads(os.environ[ENVIRONMENT])
        return cls(**(values | {"context": ContextLimits(**values["context"])}))
