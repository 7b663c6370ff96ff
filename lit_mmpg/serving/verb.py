"""``lit-mmpg serve``: the cloud half behind HTTP."""

from __future__ import annotations

import argparse
import ipaddress
import multiprocessing
import os
import socket
import ssl
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.errors import UserError, nearest
from lit_mmpg.launcher import end_with
from lit_mmpg.pretrained import find_trained
from lit_mmpg.serving.config import ContextLimits, ServeConfig
from lit_mmpg.serving.limits import affordable_connections
from lit_mmpg.settings import MOST_THREADS
from lit_mmpg.writing import give_up_output

if TYPE_CHECKING:
    from starlette.applications import Starlette


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C; requests that are being answered are finished first.

    Raises:
        UserError: If the checkpoint, the keys, the camera memory, the port or a setting is not usable.
    """
    options = _parser().parse_args(list(argv))
    if options.new_key is not None:
        return _new_key(options)
    if options.devices is not None:
        raise UserError("--devices are the ids of a new key, and limit no service; add --new-key NAME, or leave it out")
    config = _config(options)
    _check_network(options)
    import uvicorn

    read_checkpoint(config.ckpt, half="cloud")  # a mistake is told here once, not by every worker
    affordable = affordable_connections(options.max_connections)
    if affordable < options.max_connections:
        print(f"warning: the limit of open files allows {affordable} connections per worker, not "
              f"{options.max_connections}; raise 'ulimit -n' or lower --max-connections", flush=True)  # fmt: skip
    replace(config, max_connections=affordable).export()
    scheme = "https" if options.ssl_certfile else "http"
    print(
        f"cloud half of {config.ckpt} on {scheme}://{options.host}:{options.port} "
        f"({options.workers} worker{'s' if options.workers > 1 else ''}; page: /docs; SIGTERM or Ctrl-C ends it)",
        flush=True,
    )
    # A single worker ends by the signal itself, so that nothing here could take a folder away.
    prefix = f"lit-mmpg-metrics-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix) if options.workers > 1 else nullcontext() as folder:
        if folder is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        uvicorn.run(
            "lit_mmpg.serving.verb:worker",
            factory=True,
            host=options.host,
            port=options.port,
            workers=options.workers,
            loop="lit_mmpg.serving.protocol:ServiceLoop",
            http="lit_mmpg.serving.protocol:GuardedProtocol",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=bool(options.proxy_ips),
            forwarded_allow_ips=",".join(options.proxy_ips),
            backlog=min(2048, affordable),
            timeout_keep_alive=options.keep_alive_s,
            timeout_graceful_shutdown=options.drain_s,
            ssl_certfile=options.ssl_certfile,
            ssl_keyfile=options.ssl_keyfile,
        )
    return 0


def worker() -> Starlette:
    """The application of a worker, which may be a process of its own."""
    from lit_mmpg.cli import spare_imports

    spare_imports()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with(parent.pid)  # killed, it tells nobody: its workers would serve on, and hold the port
    from lit_mmpg.serving.app import from_environment

    try:
        return from_environment()
    except UserError as error:
        if parent is None:
            raise
        raise SystemExit(f"error: {error}") from error  # of a checkpoint that is gone since: one line, not a traceback


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that are values, where the text does not name them itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = "default" in (action.help or "") or action.default in (None, False, [])
        return action.help if said else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-mmpg serve",
        description="Serve the cloud half of a checkpoint: devices POST anchors to /v1/adapt and get their parameters. "
        "With a camera memory, devices started with --camera-query POST a picture of the static content of their "
        "frames to /v1/camera and get a correction of their camera's artefacts.",
        formatter_class=_Defaults,
    )
    default = ServeConfig("")
    parser.add_argument("--ckpt", help="checkpoint of the cloud half, or a folder or repository of save_pretrained")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all, which needs --keys")
    parser.add_argument("--port", type=int, default=8400, help="port to listen on")
    parser.add_argument("--workers", type=_count, default=1, help="processes that share the port")
    parser.add_argument("--threads", type=_count, help="CPU threads per worker (default: cores / workers)")
    parser.add_argument("--device", help="cpu or cuda[:N] (default: a GPU if there is one)")
    parser.add_argument("--download-codec", help="codec of the parameters (default: the checkpoint's)")
    parser.add_argument(
        "--camera-memory",
        metavar="FILE",
        help="memory of camera models, made by 'lit-mmpg memory', for devices with --camera-query (default: none, "
        "their queries get 404)",
    )
    group = parser.add_argument_group("batching")
    group.add_argument(
        "--max-batch", type=_count, default=default.max_batch, help="maximum number of uploads computed together"
    )
    group.add_argument(
        "--max-wait-ms", type=float, default=default.max_wait_ms, help="how long the first upload waits for others"
    )
    group.add_argument(
        "--max-queue", type=_count, default=default.max_queue, help="maximum number of waiting uploads, then 503"
    )
    group = parser.add_argument_group("access")
    group.add_argument("--keys", help="file of API keys, required beyond loopback; changes take effect within a second")
    group.add_argument(
        "--new-key", metavar="NAME", help="make a key, write its digest to --keys, print the key once, and exit"
    )
    group.add_argument(
        "--devices", action="extend", nargs="+", metavar="ID", help="device ids of the new key; 'kitchen-*' for many"
    )
    group.add_argument("--rate", type=float, default=0.0, help="requests per second and key; 0 for no limit")
    group.add_argument("--burst", type=float, default=default.burst, help="requests that a key may send at once")
    group.add_argument("--ssl-certfile", help="TLS certificate (PEM)")
    group.add_argument("--ssl-keyfile", help="private key of the certificate (PEM)")
    group.add_argument(
        "--proxy-ips",
        action="extend",
        nargs="+",
        default=[],
        metavar="IP",
        help="proxies whose X-Forwarded-* headers are trusted",
    )
    group = parser.add_argument_group("limits")
    group.add_argument("--max-body-bytes", type=_count, default=default.max_body_bytes, help="largest upload, bytes")
    group.add_argument(
        "--max-clips", type=_count, default=default.context.clips, help="maximum number of clips of a context"
    )
    group.add_argument(
        "--max-anchors", type=_count, default=default.context.anchors, help="maximum number of anchors of a clip"
    )
    group.add_argument(
        "--max-frames", type=_count, default=default.context.frames, help="maximum number of frames of a context"
    )
    group.add_argument(
        "--max-connections",
        type=_count,
        default=default.max_connections,
        help="maximum number of open connections per worker, then 503",
    )
    group.add_argument(
        "--request-timeout-s", "--body-timeout-s", "--header-timeout-s", type=float, default=default.request_timeout_s,
        help="time from a request's first byte to the end of its body (three names of one limit)",
    )  # fmt: skip
    group.add_argument(
        "--keep-alive-s",
        type=_count,
        default=30,
        help="time after which an idle connection, or one whose answer is not read, is closed",
    )
    group.add_argument(
        "--stuck-s", type=float, default=default.stuck_s, help="time limit of a batch, then /healthz answers 503"
    )
    group.add_argument("--drain-s", type=int, default=30, help="time to finish requests after SIGTERM")
    parser.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="lowest level that is logged"
    )
    parser.add_argument("--log-requests", action="store_true", help="log every request, not only refused ones")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _new_key(options: argparse.Namespace) -> int:
    from lit_mmpg.serving.keys import add_key

    if options.keys is None:
        raise UserError("--new-key needs --keys FILE, the file that the key's digest is written to")
    secret = add_key(options.keys, options.new_key, options.devices or [])
    try:
        print(secret, flush=True)
    except OSError as error:
        give_up_output()
        raise UserError(
            f"the key '{options.new_key}' could not be shown ({error.strerror}), and nobody knows it now; remove its "
            f"entry from {options.keys} and make it again"
        ) from error
    return 0


def _config(options: argparse.Namespace) -> ServeConfig:
    from lit_mmpg.camera_memory import CameraMemory
    from lit_mmpg.link import codec_names
    from lit_mmpg.serving.keys import KeyRing

    if options.ckpt is None:
        raise UserError("--ckpt is missing; name the checkpoint of a cloud half, as 'lit-mmpg fit' printed it")
    checkpoint = str(find_trained(options.ckpt))
    if options.keys is not None:
        KeyRing.load(options.keys)
    if options.camera_memory is not None:
        CameraMemory.ready(options.camera_memory)
    if options.download_codec is not None and options.download_codec not in codec_names():
        raise UserError(
            f"--download-codec {options.download_codec} does not exist; choose from {', '.join(codec_names())}"
        )
    for name in ("workers", "threads"):
        if (getattr(options, name) or 0) > MOST_THREADS:
            raise UserError(f"--{name} {getattr(options, name)} is out of range; it must be at most {MOST_THREADS}")
    for name in ("rate", "burst", "max_wait_ms", "request_timeout_s", "keep_alive_s", "stuck_s", "drain_s"):
        if not 0 <= getattr(options, name) < 1e6 or (name == "request_timeout_s" and not options.request_timeout_s):
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} is out of range")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = {entry.name for entry in fields(ServeConfig)}
    given = {name: value for name, value in vars(options).items() if name in settings}
    given |= {
        "ckpt": checkpoint,
        "rate_per_s": options.rate / options.workers,
        "burst": max(1.0, options.burst / options.workers),
        "context": ContextLimits(options.max_clips, options.max_anchors, options.max_frames),
        "threads": options.threads or max(1, cores // options.workers),
    }
    return ServeConfig(**given)


def _check_network(options: argparse.Namespace) -> None:
    if (options.ssl_certfile is None) != (options.ssl_keyfile is None):
        raise UserError("--ssl-certfile and --ssl-keyfile go together")
    for path in (options.ssl_certfile, options.ssl_keyfile):
        if path is not None and not Path(path).is_file():
            raise UserError(f"{path} does not exist or is not a file{nearest(Path(path))}")
    if options.ssl_certfile is not None:
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile, password=lambda: "")
        except OSError as error:
            raise UserError(
                f"--ssl-certfile {options.ssl_certfile} and --ssl-keyfile {options.ssl_keyfile} cannot be used "
                f"({error.strerror or error}); both are PEM, belong together, and the key has no password"
            ) from error
    with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"cannot listen on {options.host}:{options.port} ({error}); choose another --port"
            ) from error
        address = probe.getsockname()[0]
    if not ipaddress.ip_address(address).is_loopback and options.keys is None:
        raise UserError(f"--host {options.host} is open to other machines: name a file of keys with --keys")
