"""The MLflow store: opening it safely, and finding runs in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lit_mmpg.errors import UserError
from lit_mmpg.texts import masked
from lit_mmpg.tracking.address import briefly, database, reason

if TYPE_CHECKING:
    from mlflow.entities import Run

    from lit_mmpg.tracking.client import StoreClient

DIGEST_TAG = "lit_mmpg.config_digest"
CHECKPOINTS_TAG = "lit_mmpg.checkpoints"

_log = logging.getLogger(__name__)


def open_store(uri: str, experiment: str | None = None, steady: bool = False) -> StoreClient:
    """Client of a store; creates the database and the experiment where they are missing.

    MLflow's migrations and the creation of an experiment fail when two processes do them at once, so a file lock
    lets one process at a time through. A server is asked once, with a short timeout.

    Args:
        uri: Address from :func:`~lit_mmpg.tracking.address.store_uri`.
        experiment: Name of an experiment that will be used.
        steady: Whether work goes on when the store fails later (:class:`~lit_mmpg.tracking.client.SteadyClient`).

    Raises:
        UserError: If the store cannot be opened.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from lit_mmpg.tracking.client import SteadyClient, StoreClient

    # Errors are raised, too, and said in one line.
    for noisy, level in {"alembic": "WARNING", "mlflow.store.db.utils": "CRITICAL", "urllib3": "ERROR"}.items():
        logging.getLogger(noisy).setLevel(level)
    file = database(uri)
    try:
        with _lock(uri), briefly():
            fresh = file is not None and not file.exists()
            if fresh:
                _log.info("making the MLflow store %s (once; takes some seconds)", file)
            try:
                client = (SteadyClient if steady else StoreClient)(uri)
                if experiment is not None:
                    _ensure_experiment(client, experiment)
                elif file is None:
                    client.search_experiments(max_results=1)
                client.relocate(fresh)
            except BaseException:
                if fresh and file is not None:  # half a store, which MLflow neither finishes nor opens
                    file.unlink(missing_ok=True)
                raise
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:  # ValueError: no URL
        if file is None:
            raise UserError(
                f"the MLflow server {masked(uri)} does not answer as one: {reason(error)}; start it, name another, or "
                "record nothing (--trainer.logger=false; profile: --no-record; device: leave --mlflow out)"
            ) from error
        raise UserError(
            f"the MLflow store {uri} cannot be opened: {reason(error)}; mend it or name another store"
        ) from error
    return client


def find_run(uri: str, run_id: str) -> Run | None:
    """A run, or None where the store or the run is out of reach. Never creates a store."""
    from mlflow.exceptions import MlflowException

    file = database(uri)
    if file is not None and not file.is_file():
        return None
    try:
        with briefly():
            return open_store(uri).get_run(run_id)
    except (MlflowException, UserError):
        return None


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


def _ensure_experiment(client: StoreClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        file = database(client.uri)
        # Made absolute by MLflow; `relocate` sets it right.
        location = None if file is None else (file.parent / "artifacts").as_uri()
        try:
            client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process made it in between
                raise
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
