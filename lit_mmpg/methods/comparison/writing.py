"""Writing the report: HTML for people, Markdown for a README, CSV for a spreadsheet, JSON for everything else."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from lit_mmpg.methods.comparison.code import code_lines
from lit_mmpg.methods.comparison.html import render
from lit_mmpg.methods.comparison.results import Results
from lit_mmpg.methods.comparison.table import amortised
from lit_mmpg.methods.comparison.view import (
    CHOSEN,
    MEASURED,
    REUSE,
    SPLITS,
    chosen_rows,
    claim_costs,
    claim_text,
    columns,
    cost_notes,
    cost_rows,
    environment_lines,
    introduction,
    method_lines,
    method_sentences,
    split_rows,
)
from lit_mmpg.report import format_row
from lit_mmpg.results import markdown_table as _table
from lit_mmpg.results import result
from lit_mmpg.writing import write_text


def write_report(results: Results, stem: Path) -> list[Path]:
    """Write ``STEM.html``, ``.md``, ``.csv``, ``.json`` and ``.result.json`` (one small table), each in one step.

    Returns:
        The files, the HTML first.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    texts = {
        ".html": render(results),
        ".md": markdown(results),
        ".csv": table_csv(results),
        ".json": json.dumps(finite(results.to_json()), indent=2, allow_nan=False) + "\n",
        ".result.json": json.dumps(finite(small_result(results)), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
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
    judged = [claim_text(results, i)[:2] for i in range(len(results.verdicts))]
    claims = ["\n".join(f"- *{verdict}*: {text}" for verdict, text in judged)] if judged else []
    commit = results.commits[0] if len(results.commits) == 1 else results.environment.get("commit")
    config, numbers = f"configs/experiment/{results.comparison.path.name}", " ".join(map(str, seeds))
    return result(
        results.comparison.title,
        f"lit-mmpg compare --config {config} --seeds {numbers}",
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


def finite(value: Any) -> Any:
    """Plain data in which NaN and infinity, which JSON cannot hold, are null."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table_csv(results: Results) -> str:
    """One line per row, group of devices and metric, with the costs beside."""
    costs = [
        "adapt_flops",
        "answer_flops",
        "adapt_s",
        "answer_s",
        "adapt_j",
        "answer_j",
        "peak_memory_bytes",
        "cloud_s",
    ]
    header = [
        "method",
        "setting",
        "split",
        "metric",
        "value",
        "low",
        "high",
        "clusters",
        "seeds",
        "upload_bytes",
        "download_bytes",
    ]
    spread = [f"device_{unit}_at_{reuse}" for unit in ("flops", "s", "j") for reuse in REUSE]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*header, *costs, *spread, "per_seed", "run_ids"])
    for row in results.rows:
        name = row["method"]
        cost = results.costs.get(name, {})
        values = [row.get(key, results.settings.get(name)) for key in header]
        values += [cost.get(key) for key in costs]
        values += [amortised(cost, unit, reuse) for unit in ("flops", "s", "j") for reuse in REUSE]
        runs = [str(run["run_id"]) for run in results.links.get(name, {}).values() if run["run_id"]]
        writer.writerow([*map(_plain, values), ";".join(map(repr, row.get("per_seed", ()))), ";".join(runs)])
    return file.getvalue()


def _plain(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def markdown(results: Results) -> str:
    """The report without its plots."""
    parts = [f"# {results.comparison.title}", *introduction(results)]
    if results.verdicts:
        parts.append("## What holds and what does not")
        for i in range(len(results.verdicts)):
            verdict, sentence, lines = claim_text(results, i)
            parts.append("\n".join([f"- **{verdict}**: {sentence}", *(f"    - {line}" for line in lines)]))
        parts += claim_costs(results)
    shown = columns(results)
    parts.append("## All rows")
    parts.append(f"On {SPLITS.get(results.splits[0], results.splits[0])}; in brackets: 95 % interval.")
    rows = [[name, results.settings.get(name, ""), *(c.cell(name) for c in shown)] for name in results.names]
    rows += [[name, f"n/a: {reason}", *("" for _ in shown)] for name, reason in results.not_applicable.items()]
    parts.append(_table(["row", "kind", *(c.title for c in shown)], rows))
    header, body = split_rows(results)
    if body:
        parts += ["## Other groups of devices", _table(header, body)]
    header, costs = cost_rows(results)
    if costs:
        parts += [
            "## What a device pays",
            _table(header, costs),
            "\n".join(f"- {note}" for note in cost_notes(results)),
        ]
    parts.append("## Every seed")
    parts.append(_seeds(results))
    sentences = [[name, text] for name, text in method_sentences(results).items() if text]
    if sentences:
        parts += ["## What the rows are", _table(["row", "what it is"], sentences)]
    if results.applicability:
        header = list(results.applicability[0])
        body = [[str(row[name]) for name in header] for row in results.applicability]
        parts += ["## Which method applies to which task", _table(header, body)]
    chosen = chosen_rows(results)
    if chosen:
        parts += ["## Settings chosen on validation devices", _table(list(CHOSEN), chosen)]
    parts += ["## How it was measured", "\n".join(f"- {line}" for line in method_lines(results))]
    parts.append("; ".join(environment_lines(results)))
    return "\n\n".join(parts) + "\n"


def _seeds(results: Results) -> str:
    seeds = sorted({seed for runs in results.links.values() for seed in runs})
    rows = []
    for name in results.names:
        found = results.find(name, results.splits[0], results.primary) or {}
        values = dict(zip(results.links[name], found.get("per_seed") or [], strict=False))
        shown = [
            format_row({"metric": results.primary, "value": values[seed]}) if seed in values else "" for seed in seeds
        ]
        runs = ", ".join(str(run["run_id"])[:8] for run in results.links[name].values() if run["run_id"])
        rows.append([name, *shown, runs])
    return _table(["row", *(f"seed {seed}" for seed in seeds), "runs"], rows)
