"""The MLflow store: its address, opening it safely, and finding runs in it."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import lit_mmpg
from lit_mmpg.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SQLITE = "sqlite:///"
DIGEST_TAG = "lit_mmpg.config_digest"
CHECKPOINTS_TAG = "lit_mmpg.checkpoints"

_log = logging.getLogger(__name__)


def store_uri(uri: str | None = None) -> str:
    """Absolute address of a store.

    Args:
        uri: ``sqlite:///file.db`` or the address of a tracking server. When None: the environment variable
            MLFLOW_TRACKING_URI, else ``mlruns/mlflow.db`` in the current directory.

    Raises:
        UserError: If the address has no scheme.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlruns/mlflow.db"
    if uri.startswith(SQLITE):
        return SQLITE + str(Path(uri[len(SQLITE) :]).expanduser().absolute())
    if "://" not in uri and uri != "databricks":
        raise UserError(f"tracking.uri '{uri}' has no scheme; write {SQLITE}FILE.db or http://HOST:PORT")
    return uri


def database(uri: str) -> Path | None:
    """File of an sqlite store, None for any other store."""
    return Path(uri[len(SQLITE) :]) if uri.startswith(SQLITE) else None


def open_store(uri: str, experiment: str | None = None) -> MlflowClient:
    """Client of a store; creates the database and the experiment where they are missing.

    MLflow's migrations and the creation of an experiment fail when two processes do them at once, so a file lock
    lets one process at a time through.

    Raises:
        UserError: If the store cannot be opened.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        with _lock(uri):
            file = database(uri)
            if file is not None and not file.exists():
                _log.info("making the MLflow store %s (once; takes some seconds)", file)
            client = MlflowClient(uri)
            if experiment is not None:
                _ensure_experiment(client, uri, experiment)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(f"the MLflow store {uri} cannot be opened: {str(error).splitlines()[0]}") from error
    return client


def find_run(uri: str, run_id: str) -> Run | None:
    """A run, or None where the store or the run is out of reach. Never creates a store."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
    from mlflow.exceptions import MlflowException

    file = database(uri)
    if file is not None and not file.is_file():
        return None
    retries = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)
    try:
        return open_store(uri).get_run(run_id)
    except (MlflowException, UserError):
        return None
    finally:
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(retries)


def runs_of(uri: str, experiment: str, digest: str) -> list[Run]:
    """Training runs of one configuration, newest first."""
    file = database(uri)
    if file is not None and not file.is_file():
        return []
    client = open_store(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    query = f"tags.`{DIGEST_TAG}` = '{digest}'"
    return list(client.search_runs([found.experiment_id], query, order_by=["attributes.start_time DESC"]))


def git_commit(folder: str | Path | None = None) -> str | None:
    """Commit of a checkout, with ``-dirty`` where tracked files differ from it; None outside a checkout.

    Args:
        folder: Folder in the checkout; the one that this package runs from when None.
    """
    where = Path(lit_mmpg.__file__).parent if folder is None else folder
    command = ["git", "-C", str(where), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _ensure_experiment(client: MlflowClient, uri: str, name: str) -> None:
    found = client.get_experiment_by_name(name)
    if found is None:
        file = database(uri)
        location = None if file is None else (file.parent / "artifacts").as_uri()
        client.create_experiment(name, artifact_location=location)
    elif found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)


@contextmanager
def _lock(uri: str) -> Iterator[None]:
    file = database(uri)
    if file is None:
        yield
        return
    import fcntl

    file.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{file}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
