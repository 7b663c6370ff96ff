"""Writing the report: HTML for people, Markdown for a README, CSV for a spreadsheet, JSON for everything else."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from lit_mmpg.methods.comparison.code import code_lines
from lit_mmpg.methods.comparison.page import MEASURED, REUSE, blocks, columns
from lit_mmpg.methods.comparison.results import Results
from lit_mmpg.methods.comparison.table import amortised
from lit_mmpg.pages.blocks import markdown, render
from lit_mmpg.report import json_ready
from lit_mmpg.results import result
from lit_mmpg.writing import write_text

UNITS = ("flops", "s", "j")


def write_report(results: Results, stem: Path) -> list[Path]:
    """Write ``STEM.html``, ``.md``, ``.csv``, ``.json`` and ``.result.json`` (one small table), each in one step.

    Returns:
        The files, the HTML first.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    said = list(blocks(results))
    small = json_ready(small_result(results))
    texts = {
        ".html": render(results.comparison.title, said),
        ".md": markdown(said),
        ".csv": table_csv(results),
        ".json": json.dumps(json_ready(results.to_json()), indent=2, allow_nan=False) + "\n",
        ".result.json": json.dumps(small, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    files = []
    for suffix, text in texts.items():
        path = stem.with_name(stem.name + suffix)
        write_text(path, text)
        files.append(path)
    return files


def small_result(results: Results) -> dict[str, Any]:
    """The main table with its verdicts, as :mod:`lit_mmpg.results` keeps it: to be put in ``docs/results``.

    Times and energies, which are those of one machine at one moment, stay in the report.
    """
    shown = [column for column in columns(results) if column.title not in MEASURED]
    seeds = sorted({seed for runs in results.links.values() for seed in runs})
    claims = ["\n".join(f"- *{v.verdict}*: {v.claim.text}" for v in results.verdicts)] if results.verdicts else []
    commit = results.commits[0] if len(results.commits) == 1 else results.environment.get("commit")
    config, numbers = f"configs/experiment/{results.comparison.path.name}", " ".join(map(str, seeds))
    config += f" --data {results.comparison.data}" if results.comparison.data else ""
    only = f" --only {' '.join(results.comparison.only)}" if results.comparison.only else ""
    return result(
        results.comparison.title,
        f"lit-mmpg compare --config {config} --seeds {numbers}{only}",
        ["row", *(column.title for column in shown)],
        [[name, *(column.cell(name) for column in shown)] for name in results.names],
        commit,
        [*claims, *code_lines(results.code)],
        seeds=seeds,
        test_reads=len(results.reads),
        values=[
            row for row in results.rows if str(row["metric"]).startswith(results.primary) and row["low"] is not None
        ],
        verdicts=[verdict.to_json() for verdict in results.verdicts],
    )


def table_csv(results: Results) -> str:
    """One line per row, group of devices and metric, with the costs beside."""
    costs = [f"{part}_{unit}" for unit in UNITS for part in ("adapt", "answer")] + ["peak_memory_bytes", "cloud_s"]
    header = ["method", "setting", "split", "metric", "value", "low", "high", "clusters", "seeds"]
    header += ["upload_bytes", "download_bytes"]
    spread = [f"device_{unit}_at_{reuse}" for unit in UNITS for reuse in REUSE]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*header, *costs, *spread, "per_seed", "run_ids"])
    for row in results.rows:
        name = row["method"]
        cost = results.costs.get(name, {})
        values = [row.get(key, results.settings.get(name)) for key in header]
        values += [cost.get(key) for key in costs]
        values += [amortised(cost, unit, reuse) for unit in UNITS for reuse in REUSE]
        runs = [str(run["run_id"]) for run in results.links.get(name, {}).values() if run["run_id"]]
        writer.writerow([*map(_plain, values), ";".join(map(repr, row.get("per_seed", ()))), ";".join(runs)])
    return file.getvalue()


def _plain(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
