"""Accuracy against bytes: each codec of the link on unseen devices, per adaptation.

    python -m lit_mmpg.profiling.benchmarks.codecs --ckpt CKPT

Every upload codec with the download codec of the checkpoint, and every download codec with its upload codec; the
reference sends both as float32. All rows answer the same questions with parameters that passed the real messages.
Payload and message bytes are counted on these; bytes on the wire on a real HTTP exchange over loopback of one of them.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

from lit_mmpg.cloud.codebooks import resolve
from lit_mmpg.cloud.exchange import Anchors, Exchange, LinkConfig, state_digest
from lit_mmpg.device.evaluation import Evaluation
from lit_mmpg.device.outputs import answer_batch
from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import working
from lit_mmpg.link import Download, Upload
from lit_mmpg.link.product import PQ
from lit_mmpg.metrics.statistics import clustered_mean
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.benchmarks.trained import Trained, command
from lit_mmpg.report import format_bytes
from lit_mmpg.runtime.client import CloudClient, Traffic
from lit_mmpg.tasks import find_task

PLAIN = ("fp32", "fp16", "int8", "int7", "int6", "int4")
REFERENCE = LinkConfig("fp32", "fp32")


@dataclass(frozen=True)
class Pair:
    """An upload and a download codec, as configurations call them."""

    upload: str
    download: str

    def __str__(self) -> str:
        return f"{self.upload}/{self.download}"


def pairs(link: LinkConfig, codebooks: bool) -> list[Pair]:
    """The reference, the checkpoint's own codecs, and one of the two varied at a time; int8 down with every upload."""
    uploads = [*PLAIN, *([PQ] if codebooks else [])]
    found = [Pair("fp32", "fp32"), Pair(link.upload_codec, link.download_codec)]
    found += [Pair(up, link.download_codec) for up in uploads]
    found += [Pair(link.upload_codec, down) for down in PLAIN]
    found += [Pair(up, "int8") for up in ("int7", *([PQ] if codebooks else []))]
    return list(dict.fromkeys(found))


def measure(trained: Trained, group: str, told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """All pairs of codecs on one group of devices.

    Args:
        trained: The cloud half.
        group: Group of the device table.
        told: Told what is at work.

    Raises:
        UserError: If the group has no devices.
    """
    module, data = trained.module, trained.data
    chosen = pairs(module.link, module.quantiser is not None)
    both = nn.ModuleList(m for m in (module.network, module.reasoner, module.pool, module.adaptor) if m is not None)
    digest = state_digest(both)
    exchanges = {
        pair: Exchange(resolve(LinkConfig(pair.upload, pair.download), module.quantiser), module.network.spec, digest)
        for pair in chosen
    }
    names = ["static", *map(str, chosen)]
    evaluation = Evaluation([data.group(group)], names)
    batches = data.eval_batches(group)
    if not len(batches):
        raise UserError(f"the data has no devices in group {group}")
    first: tuple[Anchors, str] | None = None
    with torch.inference_mode():
        for i, batch in enumerate(batches):
            told(f"batch {i + 1} of {len(batches)}")
            features = module.network.encode(batch.frames.values)
            anchors, _ = module.select(batch.context)
            ids = [trained.name(int(d)) for d in batch.device]
            if first is None:
                first = anchors, ids[0]
            evaluation.update(group, "static", batch, answer_batch(module.network, batch, features))
            for pair, exchange in exchanges.items():
                parameters = exchange(anchors, ids, module.generate)
                evaluation.update(group, str(pair), batch, answer_batch(module.network, batch, features, parameters))
        assert first is not None
        wires = {pair: wire(trained, pair, *first, digest) for pair in chosen}
    metric = find_task(data.task).primary.name
    items = {name: evaluation.items(group, name) for name in names}
    exact = items["fp32/fp32"]
    rows = []
    for name in names:
        values = items[name].values[metric]
        spread = clustered_mean(values - exact.values[metric], exact.device, exact.clip).interval()
        row: dict[str, Any] = {"codecs": name, metric: float(values.mean())}
        row |= {"minus_fp32": spread.value, "low": spread.low, "high": spread.high}
        sending = next((p for p in chosen if str(p) == name), None)
        if sending is not None:
            exchange, sent = exchanges[sending], wires[sending]
            for direction in ("upload", "download"):
                message = float(getattr(exchange, f"{direction}_bytes"))
                row[f"{direction}_payload_bytes"] = float(getattr(exchange, f"{direction}_payload_bytes"))
                row[f"{direction}_message_bytes"] = message
                extra = getattr(sent, f"{direction}_wire_bytes") - getattr(sent, f"{direction}_message_bytes")
                row[f"{direction}_wire_bytes"] = message + extra
        rows.append(row)
    shape = data.batch
    anchors = first[0]
    return {
        "group": group,
        "metric": metric,
        "devices": len(np.unique(exact.device)),
        "items": len(exact.item),
        "context_clips": shape.context_clips,
        "anchors_per_clip": int(anchors.features.shape[2]),
        "width": int(anchors.features.shape[3]),
        "rows": rows,
    }


def wire(trained: Trained, pair: Pair, anchors: Anchors, device: str, digest: str) -> Traffic:
    """Bytes of one adaptation that really crosses HTTP on loopback, by the device's own client."""
    module = trained.module
    spec = module.network.spec
    link = resolve(LinkConfig(pair.upload, pair.download), module.quantiser)
    count = int((anchors.num_frames[0] > 0).sum())
    upload = Upload.encode(
        anchors=anchors.features[0, :count].numpy(),
        anchor_mask=anchors.mask[0, :count].numpy(),
        positions=anchors.times[0, :count].numpy(),
        num_frames=anchors.num_frames[0, :count].numpy(),
        device_id=device,
        codec=link.upload_codec,
        checkpoint_digest=digest,
        spec_digest=spec.digest(),
    )
    generated = module.generate(
        Anchors(*(getattr(anchors, n)[:1] for n in ("features", "times", "mask", "num_frames")))
    )
    own = {entry.name: tensor[0].numpy() for entry, tensor in zip(spec, generated, strict=True)}
    answering = _answering(lambda up: Download.answer(up, spec, own, codec=link.download_codec).to_bytes())
    with answering as url, CloudClient(url, timeout_s=30.0) as client:
        return client.adapt(upload)[1]


@contextmanager
def _answering(answer: Callable[[Upload], bytes]) -> Iterator[str]:
    """A plain HTTP server on loopback that answers uploads."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            """Answer one upload."""
            data = answer(Upload.from_bytes(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-type", "application/octet-stream")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    percent = result["metric"] == "accuracy"
    scale, unit = (100.0, " %") if percent else (1.0, "")
    lines = [
        f"Checkpoint `{result['checkpoint']}`, {result['devices']} devices of {result['group']}, {result['items']} "
        f"items; context {result['context_clips']} clips, {result['anchors_per_clip']} x {result['width']} values.",
        "",
        f"| up / down | {result['metric']} | minus fp32, 95 % interval | up: payload, message, wire | "
        "down: payload, message, wire |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        gap = [f"{scale * row[key]:+.2f}" for key in ("minus_fp32", "low", "high")]
        cells = [row["codecs"], f"{scale * row[result['metric']]:.2f}{unit}", f"{gap[0]} [{gap[1]}, {gap[2]}]"]
        for direction in ("upload", "download"):
            keys = [f"{direction}_{kind}_bytes" for kind in ("payload", "message", "wire")]
            cells.append(", ".join(f"{row[key]:,.0f}" for key in keys if key in row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def screen_table(result: dict[str, Any]) -> Table:
    """The result for the screen."""
    table = Table("up / down", result["metric"], "minus fp32", "up, payload", "down, payload")
    for row in result["rows"]:
        gap = f"{row['minus_fp32']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        sent = [format_bytes(row.get(f"{d}_payload_bytes")) for d in ("upload", "download")]
        table.add_row(row["codecs"], f"{row[result['metric']]:.4f}", gap, *sent)
    return table


@working("codecs", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write ``NAME.json`` and ``NAME.md``."""

    def add_options(parser: argparse.ArgumentParser) -> None:
        groups = ("val", "test_unseen")
        parser.add_argument("--group", default="test_unseen", choices=groups, help="default: %(default)s")
        parser.add_argument("--name", default="codecs", help="name of the files (default: %(default)s)")

    return command(
        "codecs",
        __doc__,
        lambda trained, options, told: measure(trained, options.group, told),
        markdown,
        screen_table,
        argv,
        add_options=add_options,
    )


if __name__ == "__main__":
    sys.exit(main())
