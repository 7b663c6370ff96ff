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
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.methods.comparison.cells import Cell, CellStore
from lit_mmpg.methods.comparison.plan import Comparison, read_comparison
from lit_mmpg.methods.comparison.table import Row, lower_is_better, pool, rows_of
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.benchmarks.interval_coverage import pigeonhole
from lit_mmpg.report import format_row
from lit_mmpg.results import FOLDER, load, result, write_result
from lit_mmpg.tracking.address import git_commit

EARLIER = FOLDER / "earlier"
DRAWS = 2000
"""Bootstrap samples, as many as the published intervals had."""
SAME = "same scores as now, two-way bootstrap"
COLUMNS = (
    "row",
    "quantity",
    "published",
    SAME,
    "now",
    "verdict published",
    f"verdict, {SAME}",
    "verdict now",
    "changed",
)
Fields = Mapping[str, Any]
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


def bootstrap(rows: Mapping[str, Row], name: str, split: str, metric: str, reference: str | None) -> Fields | None:
    """The earlier method's interval of the scores of a row, or of their difference from a reference, as a result row.

    Args:
        rows: Rows of the cells.
        name: The row.
        split: Group of devices.
        metric: Primary metric.
        reference: Row that the difference is from; None for the row itself.

    Returns:
        ``metric, value, low, high``; None without the scores.
    """
    if name not in rows or (reference is not None and reference not in rows):
        return None
    pooled = pool(rows[name], split, metric, None if reference is None else (rows[reference], split))
    if pooled is None:
        return None
    device, clip = (np.unique(labels, return_inverse=True)[1] for labels in (pooled.device, pooled.clip))
    low, high = pigeonhole(pooled.values[None], device, clip, DRAWS)
    shown = metric if reference is None else f"{metric}_minus_{reference}"
    return {"metric": shown, "value": float(pooled.values.mean()), "low": float(low[0]), "high": float(high[0])}


def changes(
    earlier: Fields, now: Fields, rows: Mapping[str, Row], reference: str = "static"
) -> Iterator[dict[str, str]]:
    """Each published row with its intervals and verdicts, then each claim.

    Args:
        earlier: Published result; its rows have the names of the comparison.
        now: The result that was computed again.
        rows: Rows of its cells.
        reference: Row that differences are from.

    Yields:
        Heading (:data:`COLUMNS`) -> cell, empty where nothing is known; ``changed`` is empty where no verdict is.
    """
    primary = next(METRICS[title] for title in earlier["columns"] if title in METRICS)
    found = {(v["method"], v["metric"]): v for v in reversed(now["values"])}  # the main group of devices stands first
    for cells in earlier["rows"]:
        published = dict(zip(earlier["columns"], cells, strict=True))
        name = cells[0]
        for metric, difference in ((primary, False), (f"{primary}_minus_{reference}", True)):
            value = found.get((name, metric))
            if value is None:
                continue
            title = next((t for t in published if (t.startswith("minus") if difference else t in METRICS)), "")
            text = published.get(title, "").replace("*", "")
            same = bootstrap(rows, name, value["split"], primary, reference if difference else None)
            line = {"row": name, "quantity": f"minus {reference}" if difference else title, "published": text}
            line |= {SAME: format_row(same) if same else "", "now": format_row(value)}
            if difference:
                known = INTERVAL.search(text)
                before = sign(float(known["low"]), float(known["high"]), primary) if known else ""
                again = sign(same["low"], same["high"], primary) if same else ""
                after = sign(value["low"], value["high"], primary)
                earlier_verdicts = [verdict for verdict in (before, again) if verdict]
                line |= {"verdict published": before, f"verdict, {SAME}": again, "verdict now": after}
                line["changed"] = "" if not earlier_verdicts else "no" if {*earlier_verdicts} == {after} else "yes"
            yield {column: line.get(column, "") for column in COLUMNS}
    judged = {verdict["claim"]["id"]: verdict for verdict in now.get("verdicts", [])}
    for claim, before in earlier.get("verdicts", {}).items():
        if claim in judged:
            text, after = judged[claim]["claim"]["text"], judged[claim]["verdict"]
            line = {"row": text, "quantity": "claim", "verdict published": before, "verdict now": after}
            line["changed"] = "no" if before == after else "yes"
            yield {column: line.get(column, "") for column in COLUMNS}


@in_a_line
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
    today: dict[str, dict[str, Any]] = load()
    shown: list[dict[str, str]] = []
    for name, earlier in load(EARLIER).items():
        if name in today:
            comparison = read_comparison(f"configs/experiment/{name}.yaml")
            rows = cells_of(options.cells / name, comparison)
            found = changes(earlier, today[name], rows, comparison.reference)
            shown += [{"comparison": name, **line} for line in found]
    if not shown:
        raise UserError(f"no result of {EARLIER} has one of the same name in {FOLDER}")
    changed, counted = (sum(line["changed"] in kinds for line in shown) for kinds in (("yes",), ("yes", "no")))
    notes = [
        f"{changed} of {counted} verdicts changed. A verdict on a row is whether its 95 % interval of the difference "
        "from the static model holds 0; it changed when it is not the published one, or not that of the two-way "
        "bootstrap (the earlier kind of interval) on the same scores as now. Of what was published only rounded "
        "figures were kept, no scores of single items, and the models were trained again by later code."
    ]
    columns, cells = ["comparison", *COLUMNS], [list(line.values()) for line in shown]
    title = "Verdicts that changed with the intervals"
    sources = {name: today[name]["commit"] for name in dict.fromkeys(line["comparison"] for line in shown)}
    write_result(options.output, result(title, command, columns, cells, git_commit(), notes, results=sources))
    print(notes[0])
    print(f"Written: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
