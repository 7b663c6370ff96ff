"""Which verdicts changed when intervals were computed anew: published figures against those of today.

``python -m lit_mmpg.profiling.benchmarks.verdict_changes --output FILE.json``

For every result in ``docs/results/earlier`` whose comparison was computed again (``docs/results/NAME.json``), each
interval that was published is set beside today's. Where the cells of the new computation are at hand
(``outputs/compare/NAME``), the interval that the earlier method, the two-way bootstrap, gives for the very same scores
is shown, too: it tells a change of method from one of training.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.methods.comparison.cells import Cell, CellStore
from lit_mmpg.methods.comparison.plan import Comparison, read_comparison
from lit_mmpg.methods.comparison.table import Row, lower_is_better, pool, rows_of
from lit_mmpg.profiling.benchmarks.interval_coverage import pigeonhole
from lit_mmpg.report import format_row
from lit_mmpg.results import FOLDER, load, result, write_result
from lit_mmpg.tracking.store import git_commit

EARLIER = FOLDER / "earlier"
DRAWS = 2000
"""Bootstrap samples, as many as the published intervals had."""
INTERVAL = re.compile(r"\[(?P<low>[+-]?[\d.]+), (?P<high>[+-]?[\d.]+)\]")
METRICS = {
    "accuracy": "accuracy",
    "accuracy, %": "accuracy",
    "mean log-rank": "t2v/mean_log_rank",
    "mean log-rank (lower is better)": "t2v/mean_log_rank",
}
"""Heading of a published table -> primary metric."""


def sign(low: float, high: float, metric: str) -> str:
    """What an interval of a difference from the static model says."""
    if low <= 0 <= high:
        return "undecided"
    return "worse" if (low > 0) == lower_is_better(metric) else "better"


def cells_of(folder: Path, comparison: Comparison) -> dict[str, Row]:
    """Rows from the finished cells of a comparison, whatever computed them; none where there are no cells."""
    store = CellStore(folder)
    cells: dict[str, list[Cell]] = {}
    for name in (*comparison.runs, *comparison.adapted, *comparison.baselines):
        for path in sorted(folder.glob(f"{name}-seed*.json")):
            stored = store.read(name, int(path.stem.rpartition("-seed")[2]))
            if stored is not None:
                cells.setdefault(name, []).append(stored[1])
    return rows_of(comparison, cells)


def bootstrap_interval(rows: Mapping[str, Row], name: str, split: str, metric: str, reference: str | None) -> str:
    """The earlier method's interval of the scores of a row, or of their difference from a reference; empty without."""
    if name not in rows or (reference is not None and reference not in rows):
        return ""
    pooled = pool(rows[name], split, metric, None if reference is None else (rows[reference], split))
    if pooled is None:
        return ""
    device, clip = (np.unique(labels, return_inverse=True)[1] for labels in (pooled.device, pooled.clip))
    low, high = pigeonhole(pooled.values[None], device, clip, DRAWS)
    shown = metric if reference is None else f"{metric}_minus_{reference}"
    return format_row({"metric": shown, "value": pooled.values.mean(), "low": low[0], "high": high[0]})


def changes(
    earlier: Mapping[str, Any], now: Mapping[str, Any], rows: Mapping[str, Row], reference: str = "static"
) -> Iterator[list[str]]:
    """``row, quantity, published, same scores with the bootstrap, now, verdict before, verdict now`` of each interval.

    Args:
        earlier: Published result; its rows have the names of the comparison.
        now: The result that was computed again.
        rows: Rows of its cells.
        reference: Row that differences are from.
    """
    primary = next(METRICS[title] for title in earlier["columns"] if title in METRICS)
    found = {(v["method"], v["metric"]): v for v in reversed(now["values"])}  # the main group of devices stands first
    for cells in earlier["rows"]:
        name = cells[0]
        for title, published in zip(earlier["columns"][1:], cells[1:], strict=True):
            interval = INTERVAL.search(published)
            difference = title.startswith(f"minus {reference}")
            if interval is None or (title not in METRICS and not difference):
                continue
            value = found.get((name, f"{primary}_minus_{reference}" if difference else primary))
            if value is None:
                continue
            before, after = "", ""
            if difference:
                before = sign(float(interval["low"]), float(interval["high"]), primary)
                after = sign(value["low"], value["high"], primary)
            same = bootstrap_interval(rows, name, value["split"], primary, reference if difference else None)
            yield [name, title, published.replace("*", ""), same, format_row(value), before, after]
    judged = {verdict["claim"]["id"]: verdict for verdict in now.get("verdicts", [])}
    for claim, verdict in earlier.get("verdicts", {}).items():
        if claim in judged:
            yield [judged[claim]["claim"]["text"], "claim", "", "", "", verdict, judged[claim]["verdict"]]


def main(args: Sequence[str] | None = None) -> None:
    """Compare all results that were computed again with what was published before, and write one JSON file.

    Raises:
        UserError: If nothing was computed again.
    """
    command = "python -m lit_mmpg.profiling.benchmarks.verdict_changes"
    parser = argparse.ArgumentParser(prog=command, description=__doc__)
    parser.add_argument("--output", type=Path, default=FOLDER / "verdict_changes.json", metavar="FILE.json")
    parser.add_argument("--cells", type=Path, default=Path("outputs/compare"), metavar="FOLDER")
    options = parser.parse_args(args)
    today, shown = load(), []
    for name, earlier in load(EARLIER).items():
        if name not in today:
            continue
        comparison = read_comparison(f"configs/experiment/{name}.yaml")
        rows = cells_of(options.cells / name, comparison)
        shown += [[name, *row] for row in changes(earlier, today[name], rows, comparison.reference)]
    if not shown:
        raise UserError(f"no result of {EARLIER} has one of the same name in {FOLDER}")
    for row in shown:
        row.append("yes" if row[-2] != row[-1] else "no" if row[-2] else "")
    changed = [row for row in shown if row[-1] == "yes"]
    counted = sum(bool(row[-1]) for row in shown)
    columns = ["comparison", "row", "quantity", "published", "same scores as now, two-way bootstrap", "now"]
    columns += ["verdict published", "verdict now", "changed"]
    notes = [
        f"{len(changed)} of {counted} verdicts changed. A verdict on a row is whether its 95 % interval of the "
        "difference from the static model holds 0. Of what was published only rounded figures were kept, no scores of "
        "single items, and the models were trained again by later code: the column in the middle gives the earlier "
        "intervals of the same scores as now, where those are at hand."
    ]
    title = "Verdicts that changed with the intervals"
    sources = {name: today[name]["commit"] for name in dict.fromkeys(row[0] for row in shown)}
    write_result(options.output, result(title, command, columns, shown, git_commit(), notes, results=sources))
    print(notes[0])
    print(f"Written: {options.output}")


if __name__ == "__main__":
    main()
