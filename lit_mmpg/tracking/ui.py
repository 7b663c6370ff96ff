"""``lit-mmpg ui``: MLflow's web page on our store."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from lit_mmpg.errors import UserError
from lit_mmpg.texts import masked
from lit_mmpg.tracking.address import address, database, project, runs_page, store_uri
from lit_mmpg.tracking.store import open_store


def main(argv: Sequence[str]) -> int:
    """Serve the page until interrupted.

    Raises:
        UserError: If nothing is recorded yet, the port is taken, or the store is a server with its own page.
    """
    parser = argparse.ArgumentParser(prog="lit-mmpg ui", description="Open the recorded runs in MLflow's web page.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--uri", help="store to show (default: as for fit)")
    options = parser.parse_args(list(argv))
    uri = store_uri(options.uri)
    file = database(uri)
    if file is None:
        raise UserError(f"{masked(uri)} is not a local store; open its own page in a browser")
    if not file.is_file():
        raise UserError(f"nothing is recorded in {file} yet; run lit-mmpg fit, or name a store with --uri")
    _check_port(options.host, options.port)
    client = open_store(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    newest = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)
    page = runs_page(newest[0].info.experiment_id) if newest else ""
    print(f"MLflow: http://{options.host}:{options.port}{page} (store {file}; Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", address(uri)]
    command += ["--host", options.host, "--port", str(options.port), "--workers", "1"]
    # In a session of its own, so that all of its processes end with this one, however this one is ended; in the folder
    # that the artifacts of the store are relative to.
    server = subprocess.Popen(command, cwd=project(uri), start_new_session=True)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        return server.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {host}:{port} ({error}); choose another with --port") from error
