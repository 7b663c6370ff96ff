"""MLflow's client on stores that can be moved, and one that outlives its store."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from lit_mmpg.texts import masked
from lit_mmpg.tracking.address import address, briefly, database, portable, project, reason

RETRY_S = 60
"""A store that has failed is tried again after so many seconds, and at the end."""

_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
_CONFLICTS = ("unique constraint", "unique key", "duplicate")  # as sqlite, PostgreSQL, MySQL and SQL Server say it
_ATTEMPTS = 5
_WRITES = (
    "log_artifact",
    "log_artifacts",
    "log_batch",
    "log_dict",
    "log_figure",
    "log_inputs",
    "log_metric",
    "log_param",
    "log_text",
    "set_tag",
    "set_terminated",
    "update_run",
)
_PLACES = (("experiments", "artifact_location"), ("runs", "artifact_uri"))

_log = logging.getLogger(__name__)


class StoreClient(MlflowClient):
    """Client of a store, whose address comes from :func:`~lit_mmpg.tracking.address.store_uri`.

    Artifacts of an sqlite store are found by paths relative to its project folder (:func:`~.store.project`), which is
    also where MLflow's own commands find them when they run there.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(address(uri))
        self.uri = uri
        if database(uri) is None:
            return
        store = self._tracking_client.store  # one for all clients of an address: MLflow's functions use it, too
        if "get_run" in vars(store):
            return
        get_run, folder = store.get_run, project(uri)

        def found(run_id: str, *args: Any, **kwargs: Any) -> Run:
            run: Run = get_run(run_id, *args, **kwargs)
            place = urlsplit(str(run.info.artifact_uri))
            if place.scheme in ("", "file") and not place.path.startswith("/"):
                run.info._artifact_uri = (folder / unquote(place.path)).as_uri()
            return run

        store.get_run = found

    def relocate(self, fresh: bool) -> None:
        """Make the places of artifacts relative that MLflow, or a version before this one, has made absolute."""
        file = database(self.uri)
        if file is None:
            return
        inside = f"{file.parent.name}/" if file.parent.name == "mlruns" else ""
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(file, timeout=30)) as connection, connection:
            if fresh:
                connection.execute("UPDATE experiments SET artifact_location = ?", (f"{inside}artifacts",))
            for table, column in _PLACES:
                absolute = f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE '/%' OR {column} LIKE 'file:/%'"
                for (place,) in connection.execute(absolute).fetchall():
                    path = unquote(urlsplit(place).path) if place.startswith("file:") else place
                    relative = portable(path, project(self.uri))
                    if relative == path:  # in the folder that it was moved from
                        before, _, rest = path.rpartition(f"/{inside}artifacts")
                        relative = f"{inside}artifacts{rest}" if before else path
                    if relative != path:
                        change = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
                        connection.execute(change, (quote(relative), place))


class SteadyClient(StoreClient):
    """Client whose writing never ends a training: what a failing store does not take is kept and sent later.

    It is kept in memory, as JSON lines in :attr:`unsent`, and sent when the store answers again.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.unsent: Path | None = None
        self._waiting: list[tuple[str, Callable[[], Any]]] = []
        self._failed_at, self._inside = 0.0, False

    def send(self, name: str, call: Callable[[], Any], record: Any) -> Any:
        """Write to the store, after what waits; keep it where the store fails."""
        if self._inside:  # one of MLflow's methods calls another
            return call()
        if self._waiting and time.monotonic() - self._failed_at < RETRY_S:
            return self._keep(name, call, record)
        self._inside = True
        try:
            self._send_waiting()
            return _settled(call)
        except (MlflowException, SQLAlchemyError, OSError, sqlite3.Error) as error:
            if getattr(error, "error_code", None) in _REFUSED:
                raise
            self._failed_at = time.monotonic()
            if not self._waiting:
                _log.warning(
                    "the MLflow store %s has failed (%s); the training goes on, and its record is kept in %s",
                    masked(self.uri), reason(error), self.unsent or "memory",
                )  # fmt: skip
            return self._keep(name, call, record)
        finally:
            self._inside = False

    def finish(self) -> None:
        """Send what waits, or say where it is."""
        if not self._waiting:
            return
        self._failed_at = float("-inf")
        count = len(self._waiting)
        try:
            self._send_waiting()
        except (MlflowException, SQLAlchemyError, OSError, sqlite3.Error) as error:
            _log.warning(
                "the MLflow store %s still fails (%s); %d of %d records were not sent: %s",
                masked(self.uri), reason(error), len(self._waiting), count, self.unsent or "lost",
            )  # fmt: skip
        else:
            _log.info("the MLflow store %s answers again: the record is complete", masked(self.uri))

    def _send_waiting(self) -> None:
        before, self._inside = self._inside, True
        try:
            if self._waiting:
                with briefly():  # a server that hangs would cost a minute each time
                    self.search_experiments(max_results=1)
            while self._waiting:
                name, call = self._waiting[0]
                try:
                    _settled(call)
                except (MlflowException, FileNotFoundError) as error:
                    if isinstance(error, MlflowException) and error.error_code not in _REFUSED:
                        raise
                    _log.warning("%s was not recorded: %s", name, reason(error))
                del self._waiting[0]
        finally:
            self._inside = before
        if self.unsent is not None:
            self.unsent.unlink(missing_ok=True)

    def _keep(self, name: str, call: Callable[[], Any], record: Any) -> None:
        self._waiting.append((name, call))
        if self.unsent is not None:
            self.unsent.parent.mkdir(parents=True, exist_ok=True)
            with self.unsent.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"call": name, "with": record}, default=_plain) + "\n")


def _settled(call: Callable[[], Any]) -> Any:
    """Call again where another process has just recorded the same: a store looks it up, then inserts it."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return call()
        except MlflowException as error:
            if attempt == _ATTEMPTS or not any(conflict in str(error).lower() for conflict in _CONFLICTS):
                raise


def _steady(name: str) -> Callable[..., Any]:
    plain = getattr(StoreClient, name)

    @wraps(plain)
    def method(self: SteadyClient, *args: Any, **kwargs: Any) -> Any:
        return self.send(name, lambda: plain(self, *args, **kwargs), [*args, kwargs])

    return method


for _name in _WRITES:
    setattr(SteadyClient, _name, _steady(_name))


def _plain(value: Any) -> Any:
    try:
        return dict(value)  # an entity of MLflow
    except (TypeError, ValueError):
        return str(value)
