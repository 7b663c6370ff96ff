"""Everything that a comparison found, ready to be written down in several forms."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_mmpg import sysfs
from lit_mmpg.methods.comparison.cells import Cell
from lit_mmpg.methods.comparison.claims import Verdict, judge
from lit_mmpg.methods.comparison.plan import Comparison
from lit_mmpg.methods.comparison.table import Row, aggregate, lower_is_better, pool, primary_metric, rows_of, splits_of
from lit_mmpg.texts import masked

if TYPE_CHECKING:
    from lit_mmpg.methods.comparison.tracking import ComparisonRun


@dataclass(frozen=True)
class Results:
    """What a comparison found.

    Attributes:
        comparison: The comparison.
        primary: The task's primary metric.
        splits: Groups of test devices, the main one first.
        rows: Rows as ``lit-mmpg test`` writes them, over seeds.
        verdicts: Verdicts on the claims.
        costs: Row -> what one device pays.
        links: Row -> seed -> ``{run_id, test_run_id}`` of the MLflow runs behind its cells.
        devices: Row -> device -> primary metric, the mean over seeds; the worst device first.
        settings: Row -> what kind of row it is (``trained``, ``control``, ``closed form``, or a method's setting).
        notes: Row -> how it was selected and trained, by seed.
        not_applicable: Row -> why it does not apply here.
        applicability: Matrix of methods and tasks.
        reads: Readings of the test split.
        environment: What it ran on.
        store: Where the MLflow runs are; empty without tracking.
        code: Row -> seed -> which code made the cell.
    """

    comparison: Comparison
    primary: str
    splits: list[str]
    rows: list[dict[str, Any]]
    verdicts: list[Verdict]
    costs: dict[str, dict[str, Any]]
    links: dict[str, dict[int, dict[str, str | None]]]
    devices: dict[str, dict[str, float]]
    settings: dict[str, str]
    notes: dict[str, dict[int, dict[str, Any]]]
    not_applicable: dict[str, str]
    applicability: list[dict[str, str]]
    reads: list[dict[str, Any]]
    environment: dict[str, Any]
    store: dict[str, str]
    code: dict[str, dict[int, dict[str, str]]]

    def find(self, method: str, split: str, metric: str) -> dict[str, Any] | None:
        """One row of the table."""
        wanted = (method, split, metric)
        return next((row for row in self.rows if (row["method"], row["split"], row["metric"]) == wanted), None)

    @property
    def names(self) -> list[str]:
        """Rows with results, in the order of the file."""
        return list(dict.fromkeys(str(row["method"]) for row in self.rows))

    def verdict_lines(self) -> list[str]:
        """The verdicts, for the screen."""
        if not self.verdicts:
            return []
        lines = ["Claims:"]
        for verdict in self.verdicts:
            lines.append(f"  [{verdict.verdict}] {verdict.claim.text}")
            lines += [f"      {line}" for line in verdict.lines()]
        return lines

    @property
    def commits(self) -> list[str]:
        """Commits of the code that computed the rows, where their cells say so."""
        made = (code for name, own in self.code.items() if name not in self.not_applicable for code in own.values())
        return sorted({code["commit"] for code in made if code.get("commit")})

    def to_json(self) -> dict[str, Any]:
        """Plain data: everything."""
        return {
            "title": self.comparison.title,
            "about": self.comparison.about,
            "primary": self.primary,
            "rows": self.rows,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "costs": self.costs,
            "runs": self.links,
            "devices": self.devices,
            "settings": self.settings,
            "notes": self.notes,
            "not_applicable": self.not_applicable,
            "applicability": self.applicability,
            "test_reads": self.reads,
            "commits": self.commits,
            "environment": self.environment,
            "store": self.store,
            "code": self.code,
        }


def collect(
    comparison: Comparison,
    cells: Mapping[str, Sequence[Cell]],
    reads: Sequence[Mapping[str, Any]],
    run: ComparisonRun | None = None,
) -> Results:
    """Aggregate the cells (of a run, adapted row or baseline, one per seed) and judge the claims."""
    reasons = {
        name: str(own[0].notes["not_applicable"]) for name, own in cells.items() if "not_applicable" in own[0].notes
    }
    dropped: dict[str, str] = {}
    present = {name: own for name, own in cells.items() if name not in reasons}
    rows = rows_of(comparison, present)
    for name in comparison.row_names:
        owner = comparison.owner(name)
        if name not in rows and owner != name and owner in present:
            known = ", ".join(dict.fromkeys(str(row["method"]) for row in present[owner][0].rows))
            dropped[name] = f"the test of {owner} reports no '{comparison.runs[owner].also[name]}', but {known}"
    primary = primary_metric(rows)
    splits = splits_of(rows)
    costs = {name: cost for name, row in rows.items() if (cost := _cost(row))}
    lines = aggregate(comparison, present)
    # Bytes are counted on the messages of the test itself; the other costs are measured apart.
    for line in lines:
        own = costs.setdefault(str(line["method"]), {})
        own.setdefault("upload_bytes", line["upload_bytes"])
        own.setdefault("download_bytes", line["download_bytes"])
    return Results(
        comparison=comparison,
        primary=primary,
        splits=splits,
        rows=lines,
        verdicts=judge(comparison.claims, rows, primary, costs, reasons),
        costs=costs,
        links={
            name: {c.seed: {"run_id": c.run_id, "test_run_id": c.test_run_id} for c in row.cells}
            for name, row in rows.items()
        },
        devices={name: values for name, row in rows.items() if (values := _devices(row, splits[0], primary))},
        settings={name: _setting(comparison, name, row) for name, row in rows.items()},
        notes={name: {c.seed: c.notes for c in own} for name, own in cells.items()},
        not_applicable=reasons | dropped,
        applicability=_applicability(comparison),
        reads=[dict(entry) for entry in reads],
        environment=environment(),
        store={} if run is None else {"uri": masked(run.uri), "experiment_id": run.experiment_id, "run_id": run.run_id},
        code={name: {c.seed: dict(c.code) for c in own} for name, own in cells.items()},
    )


def _cost(row: Row) -> dict[str, Any]:
    """Costs over seeds: the median of timings; all else does not depend on the seed."""
    found = [dict(row.cost(cell)) for cell in row.cells]
    found = [cost for cost in found if cost]
    if not found:
        return {}
    result = dict(found[0])
    for name in result:
        if name.endswith(("_s", "_j")):
            values = [cost[name] for cost in found if cost.get(name) is not None]
            result[name] = float(np.median(values)) if values else None
    return result


def _devices(row: Row, split: str, metric: str) -> dict[str, float]:
    pooled = pool(row, split, metric)
    if pooled is None:
        return {}
    labels, means = pooled.device_means()
    names = row.cells[0].devices
    shown = [names[int(label)] if str(label).isdigit() and int(label) < len(names) else str(label) for label in labels]
    order = np.argsort(-means if lower_is_better(metric) else means, kind="stable")
    return {shown[i]: float(means[i]) for i in order}


def _setting(comparison: Comparison, name: str, row: Row) -> str:
    if row.control is not None:
        return "control"
    if name in comparison.adapted:
        return str(row.cells[0].notes.get("setting", "adapted"))
    return "trained" if name in comparison.runs else "closed form"


def _applicability(comparison: Comparison) -> list[dict[str, str]]:
    if not comparison.adapted:
        return []
    from lit_mmpg.methods.registry import applicability

    return applicability(list(dict.fromkeys(row.method for row in comparison.adapted.values())))


def environment() -> dict[str, Any]:
    """Machine and versions."""
    import os
    from importlib.metadata import version

    import torch

    from lit_mmpg import __version__
    from lit_mmpg.tracking.address import git_commit

    return {
        "lit_mmpg": __version__,
        "commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def processor() -> str:
    """Name of the processor."""
    return sysfs.processor_name() or platform.processor() or "unknown"
