"""Lightning's MLflow logger on a store that is prepared for parallel and repeated runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from mlflow.entities import Dataset, DatasetInput, InputTag, Param
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from lit_mmpg.errors import UserError
from lit_mmpg.texts import masked
from lit_mmpg.tracking.address import address, database, runs_page, source_tags, store_uri
from lit_mmpg.tracking.client import SteadyClient
from lit_mmpg.tracking.store import open_store

_MAX_PARAM_CHARACTERS = 500
_PARAMS_PER_CALL = 100


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where a run is recorded.

    Attributes:
        uri: Address of the MLflow store; None for MLFLOW_TRACKING_URI, else ``sqlite:///mlruns/mlflow.db``.
        experiment: Name of the MLflow experiment; None for the name of the configuration file.
        run_name: Name of the run; None for one that says configuration, half and seed, or what is tested.
        system_metrics: Record processor, memory, disk, network and GPU beside the training (as
            MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING does); needs the package psutil.
    """

    uri: str | None = None
    experiment: str | None = None
    run_name: str | None = None
    system_metrics: bool = False


class MLflowLogger(MLFlowLogger):
    """MLflow logger whose checkpoints lie under ``<default_root_dir>/<experiment>/<run id>/checkpoints``.

    Args:
        experiment: Name of the experiment, made where it is missing.
        uri: Address of the store, as for :class:`Tracking`.
        run_id: Run to go on with; None starts a new one.
        run_name: Name of a new run.
        tags: Tags of a new run.
        verb: The verb that makes the run.
        folder: Where ``<experiment>/<run id>`` holds the files of a run, and what a failing store does not take.
        system_metrics: As for :class:`Tracking`.

    Raises:
        UserError: If the store cannot be opened, or psutil is missing for the system metrics.
    """

    def __init__(
        self,
        experiment: str,
        uri: str | None = None,
        run_id: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        verb: str = "fit",
        folder: str | Path = "outputs",
        system_metrics: bool = False,
    ) -> None:
        self.uri, self._folder = store_uri(uri), Path(folder)
        self._monitor: Any = None
        self._system_metrics = system_metrics or bool(MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get())
        if self._system_metrics and find_spec("psutil") is None:
            raise UserError("tracking.system_metrics needs the package psutil; run pip install psutil, or leave it out")
        client = open_store(self.uri, experiment, steady=True)
        assert isinstance(client, SteadyClient)
        super().__init__(experiment, run_name, address(self.uri), source_tags(verb) | dict(tags or {}), run_id=run_id)
        self._client = self._mlflow_client = client
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")

    @property
    @rank_zero_experiment
    def experiment(self) -> SteadyClient:
        """Client of the store; the first use starts the run.

        Lightning's own also makes the store the default of the whole process, and of every process that it starts.
        """
        if not self._initialized:
            self._initialized = True
            found = self._client.get_experiment_by_name(self._experiment_name)
            assert found is not None  # opening the store made it
            self._experiment_id = found.experiment_id
            if self._run_id is None:
                tags = {name: masked(str(value)) for name, value in resolve_tags(self.tags).items()}
                run = self._client.create_run(self._experiment_id, tags=tags, run_name=self._run_name)
                self._run_id = run.info.run_id
            self._client.unsent = self._folder / self.name / str(self._run_id) / "unsent.jsonl"
        return self._client

    @property
    def page(self) -> str:
        """Where the runs of the experiment are shown, for people."""
        page = runs_page(str(self.experiment_id))
        return f"{self.uri}{page}" if database(self.uri) is None else f"http://127.0.0.1:5000{page} (lit-mmpg ui)"

    @property
    def name(self) -> str:
        """The experiment as a folder (Lightning uses its number, which says nothing), inside that of all runs."""
        parts = [part.encode()[:200].decode(errors="ignore") for part in self._experiment_name.split("/")]
        return "/".join(part for part in parts if part not in ("", ".", "..")) or "experiment"

    @property
    def save_dir(self) -> None:
        """None: files of the run lie under the trainer's ``default_root_dir``, whatever the store."""
        return None

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Nothing: the whole configuration is recorded once, by :meth:`log_config`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics; MLflow allows no ``@`` in their names, so ``R@10`` becomes ``R_at_10``."""
        super().log_metrics({name.replace("@", "_at_"): value for name, value in metrics.items()}, step)

    @rank_zero_only
    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any], context: str) -> None:
        """Record which data a run read: by class and fingerprint, for ``training``, ``validation`` or ``testing``.

        ``source`` is the folder of the data, or the path of its class where that makes it; ``profile`` is what else is
        to be said of it.
        """
        made = source == name
        origin = {"tags": {"mlflow.source.name": source}} if made else {"uri": source}
        kind, short = ("code" if made else "local"), name.rpartition(".")[2]
        data = Dataset(short, digest[:36], kind, json.dumps(origin), profile=json.dumps(profile))
        self.experiment.log_inputs(self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    @rank_zero_only
    def watch_system(self) -> None:
        """Begin to record the machine, if that was asked for."""
        if not self._system_metrics or self._monitor is not None:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # What it says of a failing store has been said once.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=address(self.uri))
        self._monitor.start()

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """End the run; send what the store has not taken, or say where it is."""
        if not self._initialized:
            return
        if self._monitor is not None:
            self._monitor.finish()
            last = self._monitor.aggregate_metrics()  # a run shorter than the interval of the samples has these alone
            self.log_metrics({f"system/{name}": value for name, value in last.items()}, self._monitor._logging_step)
            self._monitor = None
        self.experiment.set_terminated(self.run_id, "FAILED" if status == "failed" else "FINISHED")
        self.experiment.finish()

    @rank_zero_only
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record a configuration as parameters; long values are cut, values that are already there are kept."""
        try:
            known = self.experiment.get_run(self.run_id).data.params
        except MlflowException:  # away since the run began
            known = {}
        params = [
            Param(key, text if len(text) <= _MAX_PARAM_CHARACTERS else text[: _MAX_PARAM_CHARACTERS - 3] + "...")
            for key, text in flatten(config).items()
            if key not in known
        ]
        for start in range(0, len(params), _PARAMS_PER_CALL):
            self.experiment.log_batch(self.run_id, params=params[start : start + _PARAMS_PER_CALL])


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mapping to dotted keys and text; ``init_args`` is left out of the keys."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, name)
        else:
            flat[name] = str(value)
    return flat
