"""From cells to the table: every value with an interval, and its difference from a reference row.

Intervals are 95 % intervals of means whose items share devices and clips
(:func:`lit_mmpg.metrics.statistics.clustered_mean`); values of the same item are averaged over seeds first. Where seeds
have other devices (cameras, dealing), the items of all seeds are pooled and a device of one seed is another device than
that of the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_mmpg.device.evaluation import interval_fields
from lit_mmpg.methods.comparison.cells import Cell
from lit_mmpg.methods.comparison.plan import Comparison
from lit_mmpg.metrics.statistics import Interval, cluster_bootstrap, clustered_mean
from lit_mmpg.tasks import all_tasks

WORST_SHARE = 10
"""One in how many devices counts as the worst: the worst decile."""

LOWER_IS_BETTER = ("mean_log_rank", "MedR", "MnR")


class NotPaired(ValueError):
    """Two rows were measured on different items, so that there is no difference item by item."""


@dataclass(frozen=True)
class Row:
    """One row of the table: the cells that make it, one per seed, and its method within them.

    Attributes:
        name: Name of the row.
        cells: Its cells, by seed.
        control: Method of the test; ``None`` for the cells' own.
        once: Whether it draws nothing, so that its one cell stands for every seed.
    """

    name: str
    cells: Sequence[Cell]
    control: str | None = None
    once: bool = False

    def key(self, cell: Cell) -> str:
        """Name of the row's method within a cell."""
        method = cell.method(self.control)
        if method is None:
            raise KeyError(f"{self.name}: the test reports no method '{self.control}'")
        return method

    def array(self, cell: Cell, split: str, name: str) -> np.ndarray | None:
        """``[n]`` values of a metric, or the ``device`` or ``clip`` of the items; None where there are none."""
        return cell.items.get(f"{self.key(cell)}|{split}|{name}")

    def cost(self, cell: Cell) -> Mapping[str, Any]:
        """Costs of the row in one cell."""
        return cell.costs.get(self.key(cell), {})


@dataclass(frozen=True)
class Pooled:
    """Values of single items over all seeds.

    Attributes:
        values: ``[n]``.
        device: ``[n]`` labels, equal for items of the same device.
        clip: ``[n]`` labels, equal for items of the same clip.
        per_seed: Mean of each seed.
    """

    values: np.ndarray
    device: np.ndarray
    clip: np.ndarray
    per_seed: tuple[float, ...]

    def interval(self) -> Interval:
        """Mean with its interval."""
        return clustered_mean(self.values, self.device, self.clip).interval()

    def device_means(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels of the devices, and the mean over the items of each."""
        labels, index = np.unique(self.device, return_inverse=True)
        return labels, np.bincount(index, self.values) / np.bincount(index)

    def macro(self) -> Interval:
        """Mean over devices, each weighing the same."""
        _, means = self.device_means()
        return clustered_mean(means, np.arange(len(means))).interval()

    def worst_decile(self, lower_is_better: bool) -> Interval:
        """Mean over the worst tenth of the devices (rounded down, at least one)."""
        _, means = self.device_means()

        def worst(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
            order = np.argsort(-values if lower_is_better else values, kind="stable")
            ordered, counts = values[order], weights[:, order]
            wanted = np.maximum(1, weights.sum(1) // WORST_SHARE)[:, None]
            before = np.cumsum(counts, axis=1) - counts
            taken = np.clip(wanted - before, 0, counts)
            result: np.ndarray = (taken @ ordered) / wanted[:, 0]
            return result

        return cluster_bootstrap(means, np.arange(len(means)), worst)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one."""
    own = (task.primary.name for task in all_tasks() if task.primary.lower_is_better)
    return any(part in metric for part in (*LOWER_IS_BETTER, *own))


def amortised(cost: Mapping[str, Any], unit: str, reuse: float) -> float | None:
    """Cost of one answered clip with its share of one adaptation.

    Args:
        cost: Costs of a row.
        unit: ``flops``, ``s`` or ``j``: ``answer_UNIT`` and ``adapt_UNIT`` are added.
        reuse: Clips that are answered with one adaptation.

    Returns:
        The cost; None where a part of it is not known.
    """
    answer, adapt = cost.get(f"answer_{unit}"), cost.get(f"adapt_{unit}")
    return None if answer is None or adapt is None else float(answer) + float(adapt) / reuse


def rows_of(comparison: Comparison, cells: Mapping[str, Sequence[Cell]]) -> dict[str, Row]:
    """The rows of the table that have cells, in the order of the file."""
    rows: dict[str, Row] = {}
    for name in comparison.row_names:
        owner = comparison.owner(name)
        if not cells.get(owner):
            continue
        control = None if owner == name else comparison.runs[owner].also[name]
        if control is not None and cells[owner][0].method(control) is None:
            continue
        rows[name] = Row(name, cells[owner], control, name in comparison.baselines and not comparison.seed_flags)
    return rows


def _pairs(row: Row, other: Row) -> list[tuple[Cell, Cell]]:
    """Cells of two rows, seed by seed; seeds that one of them lacks are left out."""
    if row.once or other.once:
        count = max(len(row.cells), len(other.cells))
        return [(row.cells[i % len(row.cells)], other.cells[i % len(other.cells)]) for i in range(count)]
    if [cell.seed for cell in row.cells] == [cell.seed for cell in other.cells]:
        return list(zip(row.cells, other.cells, strict=True))
    theirs = {cell.seed: cell for cell in other.cells}
    pairs = [(cell, theirs[cell.seed]) for cell in row.cells if cell.seed in theirs]
    if not pairs:
        raise NotPaired(f"{row.name} and {other.name} have no finished seed in common")
    return pairs


def pool(row: Row, split: str, metric: str, minus: tuple[Row, str] | None = None) -> Pooled | None:
    """Values of a row's items over all seeds, or their differences from another row's.

    Args:
        row: The row.
        split: Group of test devices.
        metric: Metric that single items have.
        minus: Another row and its group of test devices. Seeds that only one of the two has are left out.

    Returns:
        The values; None where the items have none.

    Raises:
        NotPaired: If the two rows were measured on different items, or with different seeds.
    """
    other, other_split = minus or (row, split)
    parts: list[tuple[Cell, np.ndarray, np.ndarray, np.ndarray]] = []
    for cell, theirs in _pairs(row, other):
        found = [row.array(cell, split, name) for name in (metric, "device", "clip")]
        if any(array is None for array in found):
            return None
        values, device, clip = (np.asarray(array) for array in found)
        if minus is not None:
            wanted = [other.array(theirs, other_split, name) for name in (metric, "device", "clip")]
            if any(array is None for array in wanted):
                return None
            if not (np.array_equal(wanted[1], device) and np.array_equal(wanted[2], clip)):  # type: ignore[arg-type]
                raise NotPaired(f"{row.name} and {other.name} were measured on different items of {split}")
            values = values - wanted[0]
        parts.append((cell, values, device, clip))
    per_seed = tuple(float(values.mean()) for _, values, _, _ in parts)
    first = parts[0]
    if all(cell.data == first[0].data and np.array_equal(device, first[2]) for cell, _, device, _ in parts):
        return Pooled(np.mean([values for _, values, _, _ in parts], axis=0), first[2], first[3], per_seed)
    return Pooled(
        np.concatenate([values for _, values, _, _ in parts]),
        np.concatenate([_labels(cell.data, device) for cell, _, device, _ in parts]),
        np.concatenate([_labels(cell.corpus, clip) for cell, _, _, clip in parts]),
        per_seed,
    )


def _labels(world: str, index: np.ndarray) -> np.ndarray:
    return np.char.add(f"{world[:16]}:", index.astype(str))


def primary_metric(rows: Mapping[str, Row]) -> str:
    """The primary metric of the comparison's task."""
    names = {str(row["metric"]) for entry in rows.values() for row in entry.cells[0].rows}
    return next(metric for metric in (task.primary.name for task in all_tasks()) if metric in names)


def splits_of(rows: Mapping[str, Row]) -> list[str]:
    """Groups of test devices that any row was measured on."""
    return list(dict.fromkeys(str(row["split"]) for entry in rows.values() for row in entry.cells[0].rows))


def aggregate(comparison: Comparison, cells: Mapping[str, Sequence[Cell]]) -> list[dict[str, Any]]:
    """Rows over seeds: means, intervals over devices and clips, and paired gains over the reference row.

    Returns:
        Rows as ``lit-mmpg test`` writes them; the method is the name of the row. ``per_seed`` holds the value of each
        seed.
    """
    rows = rows_of(comparison, cells)
    primary = primary_metric(rows)
    reference = rows.get(comparison.reference)
    result = [line for row in rows.values() for line in _lines(row, primary, reference)]
    order = {split: i for i, split in enumerate(dict.fromkeys(line["split"] for line in result))}
    return sorted(result, key=lambda line: order[line["split"]])


def _lines(row: Row, primary: str, reference: Row | None) -> Iterator[dict[str, Any]]:
    first = row.cells[0]
    own = [line for line in first.rows if line["method"] == row.key(first) and "_minus_" not in line["metric"]]
    computed = {f"{primary}_macro", f"{primary}_worst_decile"}
    for line in own:
        split, metric = str(line["split"]), str(line["metric"])
        if metric in computed:
            continue
        same = [_find(cell, row.key(cell), split, metric) for cell in row.cells]
        values = [float(found["value"]) for found in same if found is not None]
        sent = {
            name: float(np.mean([found[name] for found in same if found is not None]))
            for name in ("upload_bytes", "download_bytes")
        }
        shared = {"method": row.name, "split": split}
        after = {"seeds": len(row.cells), **sent}
        pooled = pool(row, split, metric)
        interval = Interval(float(np.mean(values)), np.nan, np.nan) if pooled is None else pooled.interval()
        yield {**shared, "metric": metric, **interval_fields(interval, metric), **after, "per_seed": values}
        if pooled is None or metric != primary:
            continue
        for name, value in (
            (f"{metric}_macro", pooled.macro()),
            (f"{metric}_worst_decile", pooled.worst_decile(lower_is_better(metric))),
        ):
            yield {**shared, "metric": name, **interval_fields(value, name), **after}
        if reference is not None and reference.name != row.name:
            try:
                gain = pool(row, split, metric, (reference, split))
            except NotPaired:
                gain = None
            if gain is not None:
                fields = {"metric": f"{metric}_minus_{reference.name}", **interval_fields(gain.interval())}
                yield {**shared, **fields, **after, "per_seed": list(gain.per_seed)}


def _find(cell: Cell, method: str, split: str, metric: str) -> Mapping[str, Any] | None:
    wanted = (method, split, metric)
    return next((line for line in cell.rows if (line["method"], line["split"], line["metric"]) == wanted), None)
