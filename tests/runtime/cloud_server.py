"""A real HTTP server that plays the cloud, well or as badly as it is told; and small videos."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np

from lit_mmpg.link import Download, Upload
from lit_mmpg.runtime.bundle import Bundle


def write_video(path: Path, frames: int = 12, height: int = 48, width: int = 64) -> Path:
    """A clip whose frame t is grey of level 16 t."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for t in range(frames):
            picture = np.full((height, width, 3), 16 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def odd_entries(folder: Path, video: Path) -> tuple[list[Path], list[Path]]:
    """Entries of a folder that are named as videos: good ones with odd names, and ones that cannot be read."""
    names = ["..mp4", "12:30.mp4", "%d#?&.mp4", "-y.mp4", "~no.mp4", "two\nlines.mp4", "\x1b[2J.mp4", "café 🎥.MP4"]
    good = [folder / name for name in (*names, "x" * 251 + ".mp4", os.fsdecode(b"caf\xe9.mp4"))]
    for path in good:
        shutil.copy(video, path)
    bad = [folder / f"{kind}.mp4" for kind in ("folder", "dangling", "loop", "pipe", "socket", "failing", "empty")]
    bad[0].mkdir()
    for path, target in zip((*bad[1:3], bad[5]), ("gone", bad[2], "/proc/self/mem"), strict=True):
        path.symlink_to(target)  # the first page of a process's memory is a regular file that cannot be read
    os.mkfifo(bad[3])
    os.mknod(bad[4], stat.S_IFSOCK)
    bad[6].write_bytes(b"")
    (folder / "._good.mp4").write_bytes(b"what macOS leaves beside a file")
    return good, bad


def parameters_of(bundle: Bundle, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {e.name: rng.normal(0, 0.3, e.shape).astype(np.float32) for e in bundle.spec}


@contextlib.contextmanager
def serving(bundle: Bundle, port: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Its address; and what it is told (``fault``, ``parameters``) and has received (``uploads``)."""
    told: dict[str, Any] = {"fault": "", "uploads": []}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            upload = Upload.from_bytes(self.rfile.read(int(self.headers["content-length"])))
            told["uploads"].append(upload)
            fault, status = told["fault"], 200
            asked = dataclasses.replace(upload, model="0" * 32) if fault == "another request" else upload
            asked = dataclasses.replace(upload, device_id="somebody else") if fault == "another device" else asked
            parameters = told.get("parameters") or parameters_of(bundle, 5)
            data = Download.answer(asked, bundle.spec, parameters, codec="fp16").to_bytes()
            if fault == "stall":
                time.sleep(1.0)
            if fault == "reset":
                self.connection.close()
                return
            if fault == "flipped bits":
                data = data[:-9] + bytes([data[-9] ^ 16]) + data[-8:]
            if fault == "another version":
                data = data[:4] + (99).to_bytes(2, "little") + data[6:]
            if fault in ("429", "503", "401", "409"):
                status, data = int(fault), b'{"error": "told", "detail": "told \\u001b[2Jso"}'
            if fault == "page":
                data = b"<html>welcome to the hotel</html>"
            self.send_response(status)
            self.send_header("content-length", str(len(data) + (50 if fault == "truncated" else 0)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for byte in data if fault == "trickle" else b"":
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.1)
                self.wfile.write(b"x" * 2**23 if fault == "flood" else data)

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", told
    server.shutdown()
    server.server_close()
