"""A profile as an MLflow run: a child of the run that trained the model where that is known, standalone where not.

Nothing here imports torch or Lightning, and MLflow only when it is called: a board has none of them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lit_mmpg.profiling import document as documents
from lit_mmpg.profiling.html import render
from lit_mmpg.profiling.tables import engine_label, start_of

PROFILE_TAG = "lit_mmpg.profile_digest"
PARENT_TAG = "mlflow.parentRunId"
EXPERIMENT = "profiles"


@dataclass(frozen=True)
class Recorded:
    """Where a profile is recorded.

    Attributes:
        run_id: Its MLflow run.
        uri: The store.
        parent: The training run it belongs to, None where that is not known here.
        new: False where the same profile was recorded before.
    """

    run_id: str
    uri: str
    parent: str | None
    new: bool


def can_record() -> str | None:
    """None where MLflow is installed, else the reason."""
    if find_spec("mlflow") is None:
        return "mlflow is not installed here; import the file later with 'lit-mmpg profile import'"
    return None


def record(profile: Mapping[str, Any], uri: str | None = None) -> Recorded:
    """Record a profile; one that the store already holds is found by its digest and left as it is.

    Args:
        profile: A complete document.
        uri: Store; None for the store that the training run is in, where that can be reached, else the default one.

    Returns:
        Where it is.

    Raises:
        UserError: If the store cannot be opened.
    """
    from mlflow.entities import Metric, Param, RunTag

    from lit_mmpg.tracking.address import kept_uri, store_uri, stores
    from lit_mmpg.tracking.store import find_run, open_store

    parent = None
    trained, store = profile["bundle"]["run_id"], store_uri(uri)
    if trained:
        for address in [store] if uri else stores(profile["bundle"]["tracking_uri"], profile["bundle"]["path"]):
            parent = find_run(address, trained)
            if parent is not None:
                store = address
                break
    client = open_store(store, None if parent else EXPERIMENT)
    if parent is not None:
        experiment_id = parent.info.experiment_id
    else:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None  # opening the store made it
        experiment_id = experiment.experiment_id
    digest = profile["digest"]
    query = f"tags.`{PROFILE_TAG}` = '{digest}' and attributes.status = 'FINISHED'"
    everywhere = [e.experiment_id for e in client.search_experiments()]
    known = client.search_runs(everywhere, query, max_results=1)
    if known:
        return Recorded(known[0].info.run_id, kept_uri(store), known[0].data.tags.get(PARENT_TAG), False)
    tags = {
        PROFILE_TAG: digest,
        "lit_mmpg.kind": "profile",
        "lit_mmpg.profile_state": profile["state"],
        "lit_mmpg.checkpoint_digest": profile["bundle"]["checkpoint_digest"],
    }
    if parent is not None:
        tags[PARENT_TAG] = parent.info.run_id
    run = client.create_run(experiment_id, tags=tags, run_name=f"profile {profile['name']}")
    run_id = run.info.run_id
    status = "FAILED"
    try:
        environment = profile["environment"]
        params = {
            "profile.name": profile["name"],
            "profile.created": profile["created"],
            "profile.board": environment.get("board") or environment.get("cpu") or "unknown",
            "profile.architecture": environment.get("architecture"),
            "profile.power_mode": (environment.get("power_mode") or {}).get("nvpmodel"),
        }
        step = 0
        stamp = run.info.start_time
        metrics = [Metric(name, value, stamp, step) for name, value in flat_metrics(profile).items()]
        for start in range(0, max(1, len(metrics)), 500):
            client.log_batch(
                run_id,
                metrics=metrics[start : start + 500],
                params=[Param(k, str(v)[:500]) for k, v in params.items()] if start == 0 else [],
                tags=[RunTag("mlflow.note.content", _note(profile))] if start == 0 else [],
            )
        with tempfile.TemporaryDirectory() as folder:
            documents.save(dict(profile), Path(folder) / "profile.json")
            (Path(folder) / "report.html").write_text(render(profile), encoding="utf-8")
            for name in ("profile.json", "report.html"):
                client.log_artifact(run_id, str(Path(folder) / name))
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)
    return Recorded(run_id, kept_uri(store), None if parent is None else parent.info.run_id, True)


def flat_metrics(profile: Mapping[str, Any]) -> dict[str, float]:
    """Figures of the finished rows under MLflow names: ``onnxruntime/fp32/b1/answer/features/latency_p50_ms``."""
    flat: dict[str, float] = {}
    for row in profile["rows"]:
        if row["status"] != "ok":
            continue
        engine = engine_label(row).replace("=", " ")
        prefix = f"{engine}/{row['precision']}/b{row['batch']}/{row['scenario']}/{start_of(row)}"
        values: dict[str, float | None] = {}
        if row["latency"]:
            wall = row["latency"]["wall"]
            values |= {f"latency_{q}_ms": wall[f"{q}_ms"] for q in ("p50", "p90", "p95", "p99", "mean")}
            values["latency_cold_ms"] = row["latency"]["cold_ms"]
        values |= {f"{name}_p50_ms": stage["p50_ms"] for name, stage in row["stages"].items() if stage}
        values["baked_ratio"] = (row.get("personalisation") or {}).get("baked_ratio")
        values["answers_per_s"] = (row.get("throughput") or {}).get("answers_per_s")
        memory = row["memory"] or {}
        values |= {key: memory.get(key) for key in ("peak_rss_bytes", "device_bytes", "engine_bytes")}
        for reading in row["energy"]:
            for kind in ("gross", "net"):
                estimate = "estimate_" if reading["estimate"] else ""
                values[f"energy_{estimate}{kind}_j/{reading['source']}"] = reading[f"{kind}_j_per_unit"]
        for direction, sizes in (row["bytes"] or {}).items():
            if isinstance(sizes, Mapping):
                values |= {f"{direction}_{key}": value for key, value in sizes.items()}
        for name, value in values.items():
            if isinstance(value, int | float):
                flat[re.sub(r"[^\w\-./ :]", "_", f"{prefix}/{name}")] = float(value)
    return flat


def _note(profile: Mapping[str, Any]) -> str:
    counts: dict[str, int] = {}
    for row in profile["rows"]:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"Profile of {profile['bundle']['path']} on {profile['name']}: rows {told}. See report.html."
