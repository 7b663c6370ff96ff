"""The service: an ASGI application around one :class:`CloudHalf` and, where it holds one, a memory of camera models.

Only ``POST /v1/adapt`` is hot; it is a plain ASGI callable. Checks come in the order of their price: whether so many
requests are at work that the queue is full (asked by the protocol when the head is there, before anything is made for
the request), transport, key, rate, room in the queue, declared size, then the body, its form, its device, its
checkpoint, its context, and its values last. What takes longer than the event loop may be held up is parsed and decoded
in a thread. ``POST /v1/camera`` is checked alike, and its pictures are decoded and looked up in a thread of their own.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any, ClassVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from lit_mmpg.camera_memory import CameraMemory
from lit_mmpg.link import PROTOCOL_VERSION, codec_names
from lit_mmpg.link.camera import CameraAnswer, CameraQuery
from lit_mmpg.link.errors import ImplausibleError, LinkError, VersionError
from lit_mmpg.link.messages import Upload
from lit_mmpg.runtime.network import is_loopback_address
from lit_mmpg.serving.batcher import Batcher
from lit_mmpg.serving.cloud_half import CloudHalf
from lit_mmpg.serving.config import ServeConfig
from lit_mmpg.serving.errors import Refused
from lit_mmpg.serving.keys import ApiKey, WatchedKeys
from lit_mmpg.serving.limits import Budget, RateLimiter, Receive, read_body, unless_gone
from lit_mmpg.serving.logs import configure
from lit_mmpg.serving.metrics import CONTENT_TYPE, Metrics
from lit_mmpg.serving.openapi import document, page
from lit_mmpg.serving.protocol import GuardedProtocol

_log = logging.getLogger("lit_mmpg.serving")
ADAPT_PATH = b"/v1/adapt"
_ADAPT = ADAPT_PATH.decode()
CAMERA_BYTES = 8192
"""Largest query about a camera: pictures of :data:`lit_mmpg.link.camera.MOST_BYTES` and what is around them."""
CAMERAS_WAITING = 16
"""Most queries about cameras that wait; beyond, 503. One is computed in a tenth of a second or more."""
KEPT_BYTES = 256 * 2**20
"""Most free memory that a worker keeps."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_OCTETS = (b"content-type", b"application/octet-stream")
_INLINE_BYTES, _INLINE_VALUES = 2**15, 2**16
"""What is parsed and decoded in the event loop itself, about a millisecond's work; a thread costs more than that."""

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Endpoint(ABC):
    """What is asked for with a key and a body, and answered with bytes or a refusal.

    Args:
        batcher: Where what is asked waits to be computed; ``None``: nothing is.
        config: Settings.
        keys: API keys; ``None``: anybody may ask.
        limiter: How often a client may ask, whichever endpoint.
        metrics: What is counted; requests as those of :attr:`event`.
    """

    event: ClassVar[str]
    said: ClassVar[str]
    """What an answer is called in the log, for programs and for people."""

    def __init__(
        self, batcher: Any, config: ServeConfig, keys: WatchedKeys | None, limiter: RateLimiter, metrics: Metrics
    ) -> None:
        self.batcher, self.config, self.keys, self.limiter = batcher, config, keys, limiter
        self.metrics, self.requests = metrics, metrics.requests[self.event]
        self._overloads, self._overload_said = 0, -math.inf

    @abstractmethod
    async def _answer(self, scope: Scope, receive: Receive, about: dict[str, Any]) -> tuple[bytes, int, str]:
        """The answer, the bytes of the request, and how it ended, for counting; ``about`` is logged.

        Raises:
            Refused: If there is none.
        """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        start = time.perf_counter()
        about: dict[str, Any] = {}
        try:
            answer, size, outcome = await self._answer(scope, receive, about)
        except Refused as refusal:
            await self._refuse(refusal, send, about)
            return
        except Exception:
            _log.exception("a request failed")
            await self._refuse(Refused(500, "internal", "see the log"), send, about)
            return
        elapsed = time.perf_counter() - start
        self.requests.answered(elapsed, outcome)
        if self.config.log_requests:
            extra = about | {"status": 200, "ms": round(elapsed * 1e3, 2), "upload_bytes": size}
            _log.info(self.said, extra=extra | {"event": self.event, "download_bytes": len(answer)})
        headers = [_OCTETS, (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _admit(self, scope: Scope, headers: dict[bytes, bytes], about: dict[str, Any]) -> ApiKey | None:
        """The key of a request that may be looked at, by transport, key and rate."""
        if self.keys is None:
            self.limiter.take(_host(scope))
            return None
        if scope["scheme"] != "https" and not is_loopback_address(_host(scope)):
            raise Refused(403, "insecure", "keys are not accepted over plain HTTP; use https")
        key = self.keys.find(headers.get(b"authorization"))
        if key is None:
            raise Refused(401, "key", "send a valid key as 'Authorization: Bearer KEY'")
        about["key"] = key.name
        self.limiter.take(key.name)
        return key

    async def _refuse(self, refusal: Refused, send: Send, about: dict[str, Any]) -> None:
        self.count(refusal, about)
        body = refusal.body()
        await send({"type": "http.response.start", "status": refusal.status, "headers": refusal.headers(body)})
        await send({"type": "http.response.body", "body": body})

    def count(self, refusal: Refused, about: dict[str, Any] | None = None) -> None:
        """Count and log a refusal; those of an overload are logged once a second, with their number so far."""
        self.requests.refused(refusal.status, refusal.error)
        extra = (about or {}) | {"event": "refused", "status": refusal.status, "reason": refusal.error}
        if refusal.error == "overloaded":
            self._overloads += 1
            if time.monotonic() - self._overload_said < 1:
                return
            self._overload_said, extra["count"] = time.monotonic(), self._overloads
        level = logging.ERROR if refusal.status == 500 else logging.INFO
        _log.log(level, "refused", extra=extra | {"detail": refusal.detail})


class AdaptEndpoint(Endpoint):
    """``POST /v1/adapt``: an upload in, a download out.

    Args:
        half: The cloud half.
        beside: Most other requests that are at work.
        settings: See :class:`Endpoint`; uploads wait to be computed together.
    """

    event, said = "adapt", "adapted"
    batcher: Batcher[Upload, bytes]

    def __init__(self, half: CloudHalf, beside: int, *settings: Any) -> None:
        super().__init__(*settings)
        self.half = half
        self.bodies = Budget(self.config.max_queue * self.config.max_body_bytes)
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._full, self._most = self.batcher.full(), self.config.max_queue + self.config.max_batch + beside

    def turned_away(self, method: bytes, target: bytes, at_work: int) -> Refused | None:
        """Why a request need not be looked at, by its head and the number of requests that are at work."""
        return self._full if at_work >= self._most and target == ADAPT_PATH and method == b"POST" else None

    async def _answer(self, scope: Scope, receive: Receive, about: dict[str, Any]) -> tuple[bytes, int, str]:
        headers = dict(scope["headers"])
        key = self._admit(scope, headers, about)
        self.batcher.check_room()
        with self.bodies.holding() as take:
            data = await read_body(receive, headers.get(b"content-length"), self.config.max_body_bytes, take)
            upload = await self._run(len(data) > _INLINE_BYTES, parse, data, self.config)
            about |= {"device": upload.device_id, "request": upload.request_id}
            require_device(key, upload.device_id)
            self.half.check(upload)
            self.batcher.check_room()
            await self._run(upload.num_values > _INLINE_VALUES, check_values, upload, self.config)
        answer = await unless_gone(scope, self.batcher.enqueue(upload))
        self.metrics.upload_bytes.inc(len(data))
        self.metrics.download_bytes.inc(len(answer))
        return answer, len(data), "ok"

    async def _run(self, in_thread: bool, function: Callable[..., Any], *arguments: Any) -> Any:
        if in_thread:
            return await asyncio.get_running_loop().run_in_executor(self._decoder, function, *arguments)
        return function(*arguments)


class CameraEndpoint(Endpoint):
    """``POST /v1/camera``: a query about a camera in, what it is recognised as out.

    Queries are answered one at a time; without a batcher no memory is held.
    """

    event, said = "camera", "looked up"
    batcher: Batcher[CameraQuery, CameraAnswer] | None

    async def _answer(self, scope: Scope, receive: Receive, about: dict[str, Any]) -> tuple[bytes, int, str]:
        headers = dict(scope["headers"])
        key = self._admit(scope, headers, about)
        if self.batcher is None:
            raise Refused(404, "camera", "this service holds no camera memory; start it with --camera-memory")
        self.batcher.check_room()
        data = await read_body(receive, headers.get(b"content-length"), CAMERA_BYTES)
        with _refusing():
            query = CameraQuery.from_bytes(data)
        about["device"] = query.device_id
        require_device(key, query.device_id)
        answer = await unless_gone(scope, self.batcher.enqueue(query))
        about["reason"] = outcome = "unknown" if answer.model < 0 else "recognised"
        return answer.to_bytes(), len(data), outcome


def require_device(key: ApiKey | None, device_id: str) -> None:
    """Check that a key may ask for a device.

    Raises:
        Refused: 403 if it may not.
    """
    if key is not None and not key.allows(device_id):
        raise Refused(403, "device", "this key may not ask for this device")


def recognise(memory: CameraMemory, query: CameraQuery) -> CameraAnswer:
    """What a query is recognised as, and what undoes it.

    Raises:
        Refused: As :func:`_refusing` says, if its pictures cannot be decoded.
    """
    height, width = memory.scene.mean.shape[-2:]
    with _refusing():
        gradient = query.gradient((height, width))
    found, correction = memory.correct(gradient, memory.gate(query.frames))
    return CameraAnswer.encode(query, correction, -1 if found is None else found.model, memory.version)


def parse(data: bytes, config: ServeConfig) -> Upload:
    """Parse a body and leave its values encoded.

    Raises:
        Refused: As :func:`_refusing` says.
    """
    with _refusing():
        return Upload.parse(data, max_bytes=config.max_body_bytes)


def check_values(upload: Upload, config: ServeConfig) -> None:
    """Decode the values of an upload.

    Raises:
        Refused: As :func:`_refusing` says.
    """
    with _refusing():
        upload.check_values(config.max_norm)


@contextmanager
def _refusing() -> Iterator[None]:
    """Refuse with 409 for another protocol version, 422 for values that no working device sends, else 400."""
    try:
        yield
    except VersionError as error:
        raise Refused(409, "protocol_version", str(error)) from error
    except ImplausibleError as error:
        raise Refused(422, "implausible", str(error)) from error
    except LinkError as error:
        raise Refused(400, "malformed", str(error)[:300]) from error


def _host(scope: Scope) -> str:
    return scope["client"][0][:64] if scope.get("client") else ""  # a proxy may pass on any text


class Service(Starlette):
    """Adaptations go straight to their endpoint, all else along the routes: those cost a tenth of an adaptation.

    Args:
        endpoint: Answers them.
        settings: Of Starlette.
    """

    def __init__(self, endpoint: AdaptEndpoint, **settings: Any) -> None:
        super().__init__(**settings)
        self._endpoint = endpoint

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] == _ADAPT and scope["method"] == "POST":
            await self._endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(half: CloudHalf, config: ServeConfig) -> Starlette:
    """The application around a loaded cloud half.

    Raises:
        UserError: If the file of keys or the camera memory is not usable.
    """
    metrics = Metrics()
    keys = WatchedKeys(config.keys) if config.keys else None
    memory = CameraMemory.ready(config.camera_memory) if config.camera_memory else None
    state = {"ready": False}

    def answer(uploads: Sequence[Upload]) -> list[bytes]:
        with metrics.compute.time():
            return [download.to_bytes() for download in half.generate(uploads)]

    batcher: Batcher[Upload, bytes] = Batcher(
        answer, config.max_batch, config.max_wait_ms, config.max_queue, metrics.batch.observe
    )

    cameras: Batcher[CameraQuery, CameraAnswer] | None = None
    if memory is not None:
        known = memory
        cameras = Batcher(lambda queries: [recognise(known, query) for query in queries], 1, 0.0, CAMERAS_WAITING)
    batchers: list[Batcher[Any, Any]] = [batcher] if cameras is None else [batcher, cameras]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        for each in batchers:
            each.start()
        state["ready"] = True
        yield {"refused": endpoint.count, "turned_away": endpoint.turned_away}
        state["ready"] = False
        for each in batchers:
            await each.stop()

    async def healthz(request: Request) -> Response:
        # A liveness probe is to restart what computes for ever; a full queue is no reason to.
        stuck = any(each.computing_s > config.stuck_s for each in batchers)
        return JSONResponse({"status": "stuck" if stuck else "ok"}, 503 if stuck else 200)

    async def readyz(request: Request) -> Response:
        full = batcher.waiting >= config.max_queue
        status = "ok" if state["ready"] and not full else "overloaded" if full else "stopping"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def exposition(request: Request) -> Response:
        return Response(metrics.expose(batcher), headers={"content-type": CONTENT_TYPE})

    async def info(request: Request) -> Response:
        return JSONResponse(
            {
                "protocol_version": PROTOCOL_VERSION,
                "checkpoint_digest": half.checkpoint_digest,
                "spec_digest": half.spec_digest,
                "model_digest": half.model_digest,
                "spec": half.spec.to_json(),
                "upload_codecs": list(codec_names()),
                "trained_upload_codec": half.upload_codec,
                "download_codec": half.download_codec,
                "anchor_width": half.width,
                "max_body_bytes": config.max_body_bytes,
                "max_clips": config.context.clips,
                "max_anchors": config.context.anchors,
                "max_frames": config.context.frames,
                "camera_models": None if memory is None else len(memory),
                "camera_memory_version": None if memory is None else memory.version,
                "run_id": half.run_id,
                "compute_device": str(half.device),
            }
        )

    openapi = document(config)
    openapi_page = page(openapi)

    async def specification(request: Request) -> Response:
        return JSONResponse(openapi)

    async def docs(request: Request) -> Response:
        return HTMLResponse(openapi_page)

    async def on_refused(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        reason = {404: "not_found", 405: "method"}.get(status, "internal")
        return JSONResponse(
            {"error": reason, "detail": getattr(error, "detail", "see the log")},
            status,
            headers=getattr(error, "headers", None),
        )

    limiter = RateLimiter(config.rate_per_s, config.burst)
    beside = 0 if cameras is None else CAMERAS_WAITING + 1
    endpoint = AdaptEndpoint(half, beside, batcher, config, keys, limiter, metrics)
    camera = CameraEndpoint(cameras, config, keys, limiter, metrics)
    routes = [
        Route(_ADAPT, endpoint, methods=["POST"]),
        Route("/v1/camera", camera, methods=["POST"]),
        Route("/v1/info", info),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", exposition),
        Route("/openapi.json", specification),
        Route("/docs", docs),
    ]
    handlers = {404: on_refused, 405: on_refused, 500: on_refused}
    app = Service(endpoint, routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect would repeat the Host that the client named
    app.state.batcher, app.state.half, app.state.cameras = batcher, half, cameras
    return app


def keep_memory() -> None:
    """Let glibc keep what a batch has freed for the next one.

    It would give large blocks back and take them again page by page, in threads after every batch: a tenth of its time.
    Other C libraries are left as they are.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)


def from_environment() -> Starlette:
    """The application of a worker process, from the settings that its parent exported."""
    import torch

    config = ServeConfig.from_environment()
    configure(config.log_level)
    torch.set_num_threads(config.threads)
    GuardedProtocol.request_timeout_s = config.request_timeout_s
    GuardedProtocol.max_connections = config.max_connections
    keep_memory()
    half = CloudHalf.load(config.ckpt, config.download_codec, config.device, config.context)
    if not half.batches and config.threads > 1:  # batches on one thread are faster than single uploads on several
        torch.set_num_threads(1)
        half.batches = half.can_batch()
        torch.set_num_threads(1 if half.batches else config.threads)
    if not half.batches:
        _log.warning("results depend on the batch on this machine: uploads are computed one at a time")
    elif torch.get_num_threads() < config.threads:
        _log.warning("with several threads results depend on the batch on this machine: one thread computes; "
                     "--workers uses more cores")  # fmt: skip
    _log.info("ready", extra={"event": "ready", "detail": f"checkpoint {half.checkpoint_digest[:12]} on {half.device}"})
    app = create_app(half, config)
    gc.collect()
    gc.freeze()  # what is loaded by now stays; looking through all of it for garbage would hold requests up
    return app
