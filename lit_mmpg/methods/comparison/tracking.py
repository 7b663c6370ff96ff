"""The MLflow runs of a comparison: one parent, and under it one child for each row and seed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lit_mmpg.methods.comparison.cells import Cell, CellStore
from lit_mmpg.methods.comparison.plan import Comparison
from lit_mmpg.texts import masked
from lit_mmpg.tracking.address import database, kept_uri, source_tags
from lit_mmpg.tracking.logger import flatten
from lit_mmpg.tracking.store import find_run, open_store

if TYPE_CHECKING:
    from lit_mmpg.tracking.client import SteadyClient

_PER_CALL = 500
"""Values that are logged at once; MLflow takes 1,000."""
PARENT = "mlflow.parentRunId"
ROW, SEED = "lit_mmpg.row", "lit_mmpg.seed"


class ComparisonRun:
    """The parent run, which the store of the cells remembers: the same one again when a comparison goes on."""

    def __init__(self, comparison: Comparison, experiment: str, uri: str, store: CellStore) -> None:
        self.uri, self.kept, self.experiment = uri, kept_uri(uri), experiment
        self.client = cast("SteadyClient", open_store(uri, experiment, steady=True))
        found = self.client.get_experiment_by_name(experiment)
        assert found is not None  # opening the store made it
        self.experiment_id = found.experiment_id
        known = store.parent(self.kept)
        run = find_run(uri, known) if known else None
        if run is None or run.info.lifecycle_stage == "deleted" or run.info.experiment_id != self.experiment_id:
            tags = {"lit_mmpg.comparison": comparison.name} | source_tags("compare")
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=f"compare {comparison.name}")
            store.keep_parent(self.kept, run.info.run_id)
        self.run_id: str = run.info.run_id
        self.client.unsent = store.folder / f"unsent-{os.getpid()}.jsonl"
        self.client.update_run(self.run_id, status="RUNNING")
        self.client.log_text(self.run_id, masked(comparison.path.read_text(encoding="utf-8")), "comparison.yaml")

    def tags(self, row: str, seed: int) -> dict[str, str]:
        """Tags of a child."""
        return {PARENT: self.run_id, ROW: row, SEED: str(seed)}

    def adopt(self, cell: Cell, row: str) -> None:
        """Make the runs of a cell children of this comparison, where it was computed under another parent."""
        if cell.run_id is None or cell.uri != self.kept or find_run(self.uri, cell.run_id) is None:
            return
        for key, value in self.tags(row, cell.seed).items():
            self.client.set_tag(cell.run_id, key, value)

    def record(self, row: str, cell: Cell, parameters: Mapping[str, Any]) -> None:
        """Make a child run for a cell whose row has no training run; the cell gets its id."""
        run = self.client.create_run(
            self.experiment_id,
            tags=self.tags(row, cell.seed) | source_tags("compare"),
            run_name=f"{row} seed {cell.seed}",
        )
        for name, value in flatten(parameters).items():
            self.client.log_param(run.info.run_id, name, value[:500])
        own = [line for line in cell.rows if line["own"]]
        self._log_values(run.info.run_id, {f"{line['split']}/{line['metric']}": line["value"] for line in own})
        self.client.log_text(run.info.run_id, json.dumps({"rows": cell.rows}, indent=2), "rows.json")
        self.client.log_text(run.info.run_id, json.dumps(cell.notes, indent=2), "notes.json")
        self.client.set_terminated(run.info.run_id, "FINISHED")
        cell.run_id, cell.uri = run.info.run_id, self.kept

    def finish(self, rows: Sequence[Mapping[str, Any]], verdicts: Mapping[str, str], files: Sequence[Path]) -> None:
        """Log the table, the verdicts and the report; end the run."""
        values = {f"{row['split']}/{row['metric']}/{row['method']}": row["value"] for row in rows}
        self._log_values(self.run_id, values)
        for claim, verdict in verdicts.items():
            self.client.set_tag(self.run_id, f"claim.{claim}", verdict)
        for path in files:
            self.client.log_artifact(self.run_id, str(path), "report")
        self.client.set_terminated(self.run_id, "FINISHED")
        self.client.finish()

    def _log_values(self, run_id: str, values: Mapping[str, float | None]) -> None:
        """Log values where there are some, many with one call: a comparison has thousands."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        known = {name.replace("@", "_at_"): value for name, value in values.items() if value is not None}
        metrics = [Metric(name, float(value), now, 0) for name, value in known.items()]
        for start in range(0, len(metrics), _PER_CALL):
            self.client.log_batch(run_id, metrics=metrics[start : start + _PER_CALL])

    def fail(self) -> None:
        """End the run as interrupted; the next call goes on with it."""
        self.client.set_terminated(self.run_id, "FAILED")

    def where(self) -> str:
        """Where the runs are, for people."""
        file = database(self.uri)
        return f"{file if file is not None else self.kept}, experiment {self.experiment}"
