"""The scenario ``adapt`` against a real service on loopback, over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lit_mmpg.link import Download, Upload
from lit_mmpg.profiling import document as documents
from lit_mmpg.profiling.cli import main
from lit_mmpg.runtime.bundle import Bundle
from tests.profiling.bundles import make_bundle

CONFIG = """
name: test
engines: [{engine: onnxruntime}]
scenarios: [adapt]
encoder: without
latency: {warmup: 1, min_count: 5, min_time_s: 0.0}
measure_energy: false
measure_memory: false
"""
DELAY_S = 0.02


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[str, Path, list[str | None]]]:
    folder = make_bundle(tmp_path / "bundle")
    bundle = Bundle.open(folder)
    parameters = bundle.reference().parameters["device1"]
    keys: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            keys.append(self.headers.get("Authorization"))
            upload = Upload.from_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(DELAY_S)
            data = Download.answer(upload, bundle.spec, parameters, codec="fp32").to_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", folder, keys
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(tmp_path: Path, folder: Path, *overrides: str) -> tuple[int, documents.Document]:
    (tmp_path / "test.yaml").write_text(CONFIG)
    arguments = ["--bundle", str(folder), "--config", str(tmp_path / "test.yaml"), "--output", str(tmp_path / "out")]
    status = main(["run", *arguments, "--no-record", *(part for o in overrides for part in ("--set", o))])
    return status, documents.load(tmp_path / "out" / "profile.json")


def test_cloud_time_is_measured_over_the_network_and_its_message_counted(service, tmp_path, monkeypatch) -> None:
    url, folder, keys = service
    monkeypatch.setenv("TEST_KEY", "secret")
    status, profile = run(tmp_path, folder, f"cloud.url={url}", "cloud.api_key_env=TEST_KEY")
    assert status == 0
    (row,) = profile["rows"]
    assert row["stages"]["cloud"]["count"] >= 10 and DELAY_S * 1e3 <= row["stages"]["cloud"]["p50_ms"] < 500
    assert row["bytes"]["download"]["payload_bytes"] == 4 * (12 * 2 + 2 * 8)  # what the service sent: fp32
    for way in ("upload", "download"):
        sizes = row["bytes"][way]
        assert sizes["payload_bytes"] < sizes["message_bytes"] < sizes["wire_bytes"] < sizes["message_bytes"] + 500
    assert "B with HTTP" in (tmp_path / "out" / "report.html").read_text()
    assert row["latency"]["wall"]["p50_ms"] < DELAY_S * 1e3  # the device's own part
    assert set(keys) == {"Bearer secret"}
    assert "secret" not in (tmp_path / "out" / "profile.json").read_text()


def test_a_service_that_is_away_is_a_failed_row_with_its_reason(service, tmp_path: Path) -> None:
    _, folder, _ = service
    status, profile = run(tmp_path, folder, "cloud.url=http://127.0.0.1:9")
    assert status == 1
    (row,) = profile["rows"]
    assert row["status"] == "failed" and "cloud.url http://127.0.0.1:9 does not answer" in row["reason"]


def test_a_key_that_is_not_set_is_said(service, tmp_path: Path) -> None:
    url, folder, _ = service
    _, profile = run(tmp_path, folder, f"cloud.url={url}", "cloud.api_key_env=NO_SUCH_KEY")
    assert "NO_SUCH_KEY, which is not set" in profile["rows"][0]["reason"]
