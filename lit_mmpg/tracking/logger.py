"""Lightning's MLflow logger on a store that is prepared for parallel and repeated runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.tracking.context.registry import resolve_tags

from lit_mmpg.tracking.store import open_store, store_uri

_MAX_PARAM_CHARACTERS = 500
_PARAMS_PER_CALL = 100


@dataclass(frozen=True, slots=True)
class Tracking:
    """Where a run is recorded.

    Attributes:
        uri: Address of the MLflow store; None for MLFLOW_TRACKING_URI, else ``sqlite:///mlruns/mlflow.db``.
        experiment: Name of the MLflow experiment; None for the name of the configuration file.
        run_name: Name of the run; None for the verb and the class of the model.
    """

    uri: str | None = None
    experiment: str | None = None
    run_name: str | None = None


class MLflowLogger(MLFlowLogger):
    """MLflow logger whose checkpoints lie under ``<default_root_dir>/<experiment>/<run id>/checkpoints``.

    Args:
        experiment: Name of the experiment, made where it is missing.
        uri: Address of the store, as for :class:`Tracking`.
        run_id: Run to go on with; None starts a new one.
        run_name: Name of a new run.
        tags: Tags of a new run.

    Raises:
        UserError: If the store cannot be opened.
    """

    def __init__(
        self,
        experiment: str,
        uri: str | None = None,
        run_id: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.uri = store_uri(uri)
        client = open_store(self.uri, experiment)
        super().__init__(experiment, run_name, self.uri, dict(tags or {}), run_id=run_id)
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """Client of the store; the first use starts the run.

        Lightning's own also makes the store the default of the whole process, and of every process that it starts.
        """
        if not self._initialized:
            self._initialized = True
            found = self._mlflow_client.get_experiment_by_name(self._experiment_name)
            assert found is not None  # opening the store made it
            self._experiment_id = found.experiment_id
            if self._run_id is None:
                run = self._mlflow_client.create_run(
                    self._experiment_id, tags=resolve_tags(self.tags), run_name=self._run_name
                )
                self._run_id = run.info.run_id
        return self._mlflow_client

    @property
    def name(self) -> str:
        """Name of the experiment (Lightning uses the number of the experiment, which says nothing in a path)."""
        return self._experiment_name

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
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Record a configuration as parameters; long values are cut, values that are already there are kept."""
        known = self.experiment.get_run(self.run_id).data.params
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
