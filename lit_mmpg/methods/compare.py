"""``lit-mmpg compare``: several methods on the same data, with the same seeds, in one table.

A comparison is a YAML file that names training runs::

    seeds: [0, 1, 2]
    runs:
      static:     {config: demo_device.yaml}
      cdc_mmpg:   {config: demo.yaml, device_half: static, also: [shuffled_device]}
      upload_all: {config: demo.yaml, device_half: static, flags: [--model.anchors.count=0]}
    baselines: [ridge]

Each run and seed is one cell: fit, then test. A finished cell is kept and not repeated while its settings and its data
stay the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from lit_mmpg.errors import UserError
from lit_mmpg.report import check_output, print_rows, write_rows
from lit_mmpg.training.config import find_config, read_request

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.base import AnsweringModule
    from lit_mmpg.device.evaluation import Evaluation

BASELINES = ("ridge",)
CELL_VERSION = 2
"""Raise it when cells of an older version must not be reused."""


@dataclass(frozen=True)
class TrainedRun:
    """One training run of a comparison.

    Attributes:
        config: Experiment file, relative to the comparison's file.
        flags: Further arguments of ``fit``.
        device_half: Name of an earlier run whose checkpoint is the device half.
        also: Further methods of the test to report (controls), beside the run's own.
    """

    config: str
    flags: tuple[str, ...] = ()
    device_half: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """A parsed comparison file."""

    path: Path
    seeds: tuple[int, ...]
    runs: dict[str, TrainedRun]
    baselines: tuple[str, ...] = ()


@dataclass
class Cell:
    """Results of one run and seed: scalar rows, and values of single items.

    Attributes:
        rows: Result rows of the test.
        items: ``method|split|metric`` -> ``[n]`` values; ``method|split|device`` and ``method|split|clip`` -> ``[n]``.
        checkpoint: Best checkpoint; empty for a baseline.
    """

    rows: list[dict[str, Any]]
    items: dict[str, np.ndarray] = field(default_factory=dict)
    checkpoint: str = ""


def read_comparison(name: str) -> Comparison:
    """Parse a comparison file.

    Raises:
        UserError: If a field is missing, unknown or refers to nothing.
    """
    path = find_config(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not isinstance(data.get("runs"), dict):
        raise UserError(f"{path}: a comparison needs 'runs'; an experiment such as this one is for 'lit-mmpg fit'")
    unknown = set(data) - {"seeds", "runs", "baselines"}
    if unknown:
        raise UserError(f"{path}: unknown fields {sorted(unknown)}; known are seeds, runs and baselines")
    runs: dict[str, TrainedRun] = {}
    for key, value in data["runs"].items():
        try:
            run = TrainedRun(**value)
        except TypeError as error:
            raise UserError(f"{path}: run '{key}': {error}; known are config, flags, device_half and also") from error
        if run.device_half is not None and run.device_half not in runs:
            raise UserError(
                f"{path}: run '{key}' takes its device half from '{run.device_half}', which is no earlier run"
            )
        find_config(run.config, path.parent)
        runs[key] = TrainedRun(run.config, tuple(map(str, run.flags)), run.device_half, tuple(run.also))
    baselines = tuple(data.get("baselines", ()))
    if set(baselines) - set(BASELINES):
        raise UserError(
            f"{path}: unknown baselines {sorted(set(baselines) - set(BASELINES))}; known are {', '.join(BASELINES)}"
        )
    return Comparison(path, tuple(map(int, data.get("seeds", [0]))), runs, baselines)


def main(argv: Sequence[str]) -> int:
    """Run a comparison.

    Raises:
        UserError: If the file or a run's settings are wrong.
    """
    parser = argparse.ArgumentParser(
        prog="lit-mmpg compare",
        description="Train and test several methods with the same seeds and print one table. Finished cells are kept "
        "in outputs/compare and not repeated. Flags such as --data.root FOLDER go to every run.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", required=True, help="comparison file")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds instead of those of the file")
    parser.add_argument("--output", help="JSON file for the rows of the table")
    parser.add_argument("--fresh", action="store_true", help="repeat cells that are finished")
    options, flags = parser.parse_known_args(list(argv))
    check_output(options.output)
    comparison = read_comparison(options.config)
    seeds = tuple(options.seeds or comparison.seeds)
    folder = Path("outputs/compare") / comparison.path.stem
    fingerprint = _data(comparison, flags).fingerprint
    cells: dict[str, list[Cell]] = {}
    total = len(seeds) * len(comparison.runs)
    for s, seed in enumerate(seeds):
        finished: dict[str, str] = {}
        for r, (name, run) in enumerate(comparison.runs.items()):
            print(f"[{s * len(comparison.runs) + r + 1}/{total}] {name}, seed {seed}", flush=True)
            arguments = _arguments(comparison, run, seed, flags, finished)
            digest = _digest(arguments, fingerprint)
            cell = _cell(folder / f"{name}-seed{seed}", arguments, digest, options.fresh, f"{name} seed {seed}")
            finished[name] = cell.checkpoint
            cells.setdefault(name, []).append(cell)
    for name in comparison.baselines:
        print(f"baseline {name}", flush=True)
        cells[name] = [_baseline(_data(comparison, flags))]
    rows = aggregate(comparison, cells)
    print_rows(rows, title=comparison.path.stem)
    for line in _room(_data(comparison, flags), comparison.runs, rows):
        print(line)
    if options.output:
        write_rows(rows, options.output)
        print(f"rows with every metric: {options.output}")
    return 0


def _config(comparison: Comparison, run: TrainedRun) -> Path:
    return find_config(run.config, comparison.path.parent)


def _arguments(
    comparison: Comparison, run: TrainedRun, seed: int, flags: Sequence[str], finished: Mapping[str, str]
) -> list[str]:
    arguments = ["--config", str(_config(comparison, run)), *run.flags, *flags, f"--seed_everything={seed}"]
    if run.device_half is not None:
        arguments.append(f"--model.device_ckpt={finished[run.device_half]}")
    return arguments


def _data(comparison: Comparison, flags: Sequence[str]) -> DeviceData:
    """The data that all runs share, as the first one names it; not set up."""
    from lit_mmpg.training.lightning_cli import CLI

    first = next(iter(comparison.runs.values()))
    return CLI(read_request("fit", ["--config", str(_config(comparison, first)), *flags])).data()


def _cell(path: Path, arguments: list[str], digest: str, fresh: bool, name: str) -> Cell:
    """Results of a run, from its file where the same run is already finished."""
    from lit_mmpg.training.evaluation import measure
    from lit_mmpg.training.stages import train

    if not fresh:
        kept = _load(path, digest)
        if kept is not None:
            print(f"finished before: {path}.json", flush=True)
            return kept
    tags = {"lit_mmpg.comparison": path.parent.name, "lit_mmpg.cell": name}
    checkpoint = train(read_request("fit", [*arguments, f"--tracking.run_name={name}"]), tags)
    module = measure(read_request("test", ["--ckpt_path", checkpoint, f"--tracking.run_name={name} test"]), tags)
    cell = Cell(_rows(module), item_values(module.evaluation, module.methods), checkpoint)
    _save(path, digest, cell)
    return cell


def _rows(module: AnsweringModule) -> list[dict[str, Any]]:
    return [dict(row, own=row["method"] == module.methods[0]) for row in module.result_rows]


def item_values(evaluation: Evaluation | None, methods: Sequence[str]) -> dict[str, np.ndarray]:
    """Values of single items of all methods and groups, as :class:`Cell` keeps them."""
    assert evaluation is not None
    values: dict[str, np.ndarray] = {}
    for group in evaluation.groups:
        for method in methods:
            items = evaluation.items(group, method)
            arrays = {"device": items.device, "clip": items.clip, **items.values}
            values |= {f"{method}|{group}|{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    return values


def _digest(arguments: Sequence[str], fingerprint: str) -> str:
    """Digest of what decides a cell: the resolved configuration of both halves, the flags and the data's content."""
    request = read_request("fit", arguments)
    content: list[Any] = [CELL_VERSION, fingerprint, request.arguments()]
    if request.options["device_stage"]:
        content.append(request.derive(Path(request.options["device_stage"])).arguments())
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _room(data: DeviceData, runs: Mapping[str, TrainedRun], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The computed room for adaptation, where it is known, and the share of it that each method recovers."""
    from lit_mmpg.training.devices import room_lines

    lines, points = room_lines(data)
    for row in rows:
        wanted = (row["split"], row["metric"]) == ("test_unseen", "accuracy_minus_static")
        if points and wanted and row["method"] in runs:
            gain = 100 * row["value"]
            lines.append(f"  {row['method']} recovers {gain:+.1f} points of it on unseen devices ({gain / points:.0%})")
    return lines


def _save(path: Path, digest: str, cell: Cell) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(cell.items, path.with_suffix(".safetensors"))
    text = json.dumps({"digest": digest, "checkpoint": cell.checkpoint, "rows": cell.rows})
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path.with_suffix(".json"))  # last, so that a cell counts as finished only when it is whole


def _load(path: Path, digest: str) -> Cell | None:
    try:
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if stored["digest"] != digest or not Path(stored["checkpoint"]).is_file():
            return None
        return Cell(stored["rows"], load_file(path.with_suffix(".safetensors")), stored["checkpoint"])
    except (OSError, ValueError, KeyError):
        return None


def _baseline(data: DeviceData) -> Cell:
    from lit_mmpg.methods.ridge import RidgeBaseline

    data.setup("fit")
    ridge = RidgeBaseline(data)
    evaluation = ridge.evaluate(data.test_groups)
    rows = [dict(row, own=True) for row in evaluation.rows({})]
    return Cell(rows, item_values(evaluation, ["ridge"]))


def aggregate(comparison: Comparison, cells: Mapping[str, Sequence[Cell]]) -> list[dict[str, Any]]:
    """Rows over seeds: means, intervals over devices (and clips, with several seeds), and paired gains over ``static``.

    Args:
        comparison: The comparison.
        cells: Name of the run or baseline -> its cells, one per seed.

    Returns:
        Rows as ``lit-mmpg test`` writes them; the method is the name of the run.
    """
    rows: list[dict[str, Any]] = []
    for name, own_cells in cells.items():
        also = comparison.runs[name].also if name in comparison.runs else ()
        for label, wanted in [(name, None), *((method, method) for method in also)]:
            rows += _aggregate_method(label, wanted, own_cells, cells.get("static"))
    order = {split: i for i, split in enumerate(dict.fromkeys(row["split"] for row in rows))}
    return sorted(rows, key=lambda row: order[row["split"]])


def _aggregate_method(
    label: str, wanted: str | None, cells: Sequence[Cell], static: Sequence[Cell] | None
) -> list[dict[str, Any]]:
    from lit_mmpg.device.evaluation import PRIMARY, interval_fields
    from lit_mmpg.metrics.statistics import Interval

    def mine(row: Mapping[str, Any]) -> bool:
        return bool(row["own"]) if wanted is None else row["method"] == wanted

    result = []
    for first in (row for row in cells[0].rows if mine(row) and "_minus_" not in row["metric"]):
        same = [
            next(r for r in c.rows if mine(r) and (r["split"], r["metric"]) == (first["split"], first["metric"]))
            for c in cells
        ]
        identity = {"method": label, "split": first["split"]}
        sent = {key: float(np.mean([row[key] for row in same])) for key in ("upload_bytes", "download_bytes")}
        value = float(np.mean([row["value"] for row in same]))
        key = f"{first['method']}|{first['split']}"
        interval = Interval(value, np.nan, np.nan)
        if f"{key}|{first['metric']}" in cells[0].items:
            values = [cell.items[f"{key}|{first['metric']}"] for cell in cells]
            interval = _interval(values, cells[0].items[f"{key}|device"], cells[0].items[f"{key}|clip"])
            if static is not None and label != "static" and first["metric"] in PRIMARY.values():
                reference = [_static_items(cell, first["split"], first["metric"]) for cell in static]
                # A deterministic baseline has one cell; it is held against every seed of the static model.
                pairs = range(max(len(values), len(reference)))
                gain = _interval(
                    [values[i % len(values)] - reference[i % len(reference)] for i in pairs],
                    cells[0].items[f"{key}|device"],
                    cells[0].items[f"{key}|clip"],
                )
                metric = f"{first['metric']}_minus_static"
                result.append(identity | {"metric": metric} | interval_fields(gain) | {"seeds": len(cells)} | sent)
        result.append(identity | {"metric": first["metric"]} | interval_fields(interval) | {"seeds": len(cells)} | sent)
    return result


def _static_items(cell: Cell, split: str, metric: str) -> np.ndarray:
    method = next(row["method"] for row in cell.rows if row["own"])
    return cell.items[f"{method}|{split}|{metric}"]


def _interval(values: Sequence[np.ndarray], device: np.ndarray, clip: np.ndarray) -> Any:
    from lit_mmpg.metrics.statistics import cluster_bootstrap, two_way_cluster_bootstrap

    if len(values) == 1:
        return cluster_bootstrap(values[0], device)
    return two_way_cluster_bootstrap(np.stack(values), device, clip)
