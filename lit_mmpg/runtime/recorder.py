"""A device's work as an MLflow run: a child of the run that trained the model where the store holds that. No torch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from lit_mmpg.errors import UserError, first_line
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.journal import Record
from lit_mmpg.texts import masked

EXPERIMENT = "devices"
PARENT_TAG = "mlflow.parentRunId"
BATCH = 50
"""Clips whose metrics are sent at once."""


class Recorder(AbstractContextManager["Recorder"]):
    """Sends metrics of each clip and, at the end, the sums. A store that fails costs the record, not the device.

    Args:
        uri: The store: ``sqlite:///FILE.db`` or the address of a tracking server.
        bundle: The bundle.
        params: Settings of the device.

    Attributes:
        uri: The store, without credentials.
        error: Why nothing is recorded (any more); ``None`` while all is well.

    Raises:
        UserError: If MLflow is not installed, or the address is none.
    """

    def __init__(self, uri: str, bundle: Bundle, params: dict[str, str]) -> None:
        if find_spec("mlflow") is None:
            raise UserError("--mlflow needs MLflow: pip install mlflow")
        from lit_mmpg.tracking.address import kept_uri, store_uri

        self._address = store_uri(uri)
        self.uri, self.run_id, self._stamp = kept_uri(self._address), "", 0
        self._client: Any = None
        self._waiting: list[Any] = []
        self.error: str | None = None
        self._try(lambda: self._begin(bundle, params))

    def _begin(self, bundle: Bundle, params: dict[str, str]) -> None:
        from lit_mmpg.tracking.store import find_run, open_store

        manifest = bundle.manifest
        self._client = open_store(self._address, EXPERIMENT)
        parent = find_run(self._address, manifest.run_id) if manifest.run_id else None
        own: Any = self._client.get_experiment_by_name(EXPERIMENT)  # opening the store made it
        experiment = own.experiment_id
        tags = {"lit_mmpg.kind": "device", "lit_mmpg.checkpoint_digest": manifest.checkpoint_digest}
        if parent is not None:
            experiment = parent.info.experiment_id
            tags[PARENT_TAG] = parent.info.run_id
        run = self._client.create_run(experiment, tags=tags, run_name=f"device {params['device_id']}")
        self.run_id, self._stamp = run.info.run_id, run.info.start_time
        for name, value in params.items():
            self._client.log_param(self.run_id, name, value)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._try(lambda: self._client.set_terminated(self.run_id, "FINISHED" if kind is None else "KILLED"))

    def clip(self, record: Record) -> None:
        """Metrics of one clip; its number is the step."""
        if self.error is not None:
            return
        from mlflow.entities import Metric

        values: dict[str, float] = {f"{stage}_ms": value for stage, value in record.times_ms.items()}
        values |= {"asked": float(record.asked), "drift": record.drift, "uncertainty": record.uncertainty}
        values["adapted"] = float(record.source == "cloud")
        if record.traffic is not None:
            values |= {key: float(value) for key, value in vars(record.traffic).items()}
        self._waiting += [Metric(name, value, self._stamp, record.number) for name, value in values.items()]
        if len(self._waiting) > 10 * BATCH:
            self._send()

    def finish(self, figures: dict[str, Any], journal: Path | None) -> None:
        """The sums, and the journal as an artifact."""
        if self.error is not None:
            return
        from mlflow.entities import Metric

        flat = {name: value for name, value in figures.items() if isinstance(value, int | float)}
        flat |= {f"faults_{reason}": count for reason, count in figures["faults"].items()}
        self._waiting += [Metric(f"summary/{name}", float(value), self._stamp, 0) for name, value in flat.items()]
        self._send()
        if journal is not None and journal.is_file():
            self._try(lambda: self._client.log_artifact(self.run_id, str(journal)))

    def _send(self) -> None:
        metrics, self._waiting = self._waiting, []
        for start in range(0, len(metrics), 500):
            part = metrics[start : start + 500]
            self._try(lambda part=part: self._client.log_batch(self.run_id, metrics=part))  # type: ignore[misc]

    def _try(self, action: Any) -> None:
        if self.error is not None:
            return
        try:
            action()
        except Exception as error:  # the store is not the device's work
            said = masked(first_line(error))
            self.error = said if isinstance(error, UserError) else f"{self.uri}: {said}"
