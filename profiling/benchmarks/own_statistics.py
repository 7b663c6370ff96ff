"""Whether devices should standardise features by their own statistics, judged on validation devices alone.

``python -m lit_mmpg.profiling.benchmarks.own_statistics --data msrvtt_qa msrvtt_retrieval --output FILE.json``

Both halves of a benchmark are trained with and without ``data.batch.own_statistics`` and measured on the validation
devices; the test split is not read. Validation objects where the mean of either half is worse with it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.heartbeat import working
from lit_mmpg.methods.comparison.table import lower_is_better
from lit_mmpg.metrics.statistics import clustered_mean
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.report import format_row
from lit_mmpg.results import result, write_result
from lit_mmpg.tracking.address import git_commit
from lit_mmpg.training.config import read_request
from lit_mmpg.training.evaluation import measure
from lit_mmpg.training.stages import train

HALVES = {"device": "static", "cloud": "cdc_mmpg"}


def validated(
    name: str, prior: int, seed: int, flags: Sequence[str], folder: Path
) -> dict[str, tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Train both halves of an experiment and measure them on validation devices.

    Args:
        name: Stem of the experiment file.
        prior: ``data.batch.own_statistics``.
        seed: Seed of the training.
        flags: Further flags of the training.
        folder: Where checkpoints go.

    Returns:
        Half -> primary metric, its value for each item ``[n]``, and the device and the clip of each ``[n]``.
    """
    found, checkpoint = {}, ""
    for half in HALVES:
        asked = ["--config", f"configs/experiment/{name}.yaml", *(["--stage", "device"] if half == "device" else [])]
        where = folder / f"{name}-{half}-{prior}-seed{seed}"
        own = [f"--data.batch.own_statistics={prior}", f"--seed_everything={seed}", "--trainer.logger=false", *flags]
        if checkpoint:
            own.append(f"--model.device_ckpt={checkpoint}")
        checkpoint = train(read_request("fit", [*asked, *own, f"--trainer.default_root_dir={where}"]))
        asked = ["--ckpt_path", checkpoint, "--trainer.logger=false", f"--trainer.default_root_dir={where}"]
        module = measure(read_request("validate", asked), show=False)
        assert module.evaluation is not None
        items, metric = module.evaluation.items("val", module.methods[0]), module.evaluation.task.primary.name
        found[half] = (metric, items.values[metric], items.device, items.clip)
    return found


def compare(name: str, prior: int, seeds: Sequence[int], flags: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """One row for each half: means over seeds without and with, and the paired difference with its interval."""
    runs = [[validated(name, own, seed, flags, folder) for own in (0, prior)] for seed in seeds]
    rows = []
    for half, method in HALVES.items():
        metric, _, device, clip = runs[0][0][half]
        values = np.array([[run[half][1] for run in pair] for pair in runs])  # [seeds, 2, items]
        gain = clustered_mean(values[:, 1] - values[:, 0], device, clip).interval()
        per_seed = (values[:, 1] - values[:, 0]).mean(1).tolist()
        worse = gain.value > 0 if lower_is_better(metric) else gain.value < 0
        rows.append(
            {"data": name, "half": half, "method": method, "metric": metric, "per_seed_difference": per_seed}
            | {"without": float(values[:, 0].mean()), "with": float(values[:, 1].mean()), "worse": bool(worse)}
            | {"difference": gain.value, "low": gain.low, "high": gain.high, "clusters": gain.clusters}
        )
    return rows


def _shown(row: dict[str, Any]) -> list[str]:
    plain = [format_row({"metric": row["metric"], "value": row[name]}) for name in ("without", "with")]
    gain = {"metric": f"{row['metric']}_minus_", "value": row["difference"], "clusters": row["clusters"]}
    return [
        row["data"],
        row["method"],
        row["metric"],
        *plain,
        format_row({**gain, "low": row["low"], "high": row["high"]}),
    ]


@working("own statistics", bar=False)
@in_a_line
def main(args: Sequence[str] | None = None) -> None:
    """Train, validate and write one JSON file."""
    parser = argparse.ArgumentParser(prog="python -m lit_mmpg.profiling.benchmarks.own_statistics", description=__doc__)
    parser.add_argument("--data", nargs="+", default=["msrvtt_qa", "msrvtt_retrieval"], help="experiment files (stems)")
    parser.add_argument("--prior", type=int, default=16, help="data.batch.own_statistics (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("outputs/own_statistics"), help="for checkpoints")
    parser.add_argument("--output", type=Path, default=Path("outputs/own_statistics.json"), metavar="FILE.json")
    options, flags = parser.parse_known_args(args)
    commit, begun = git_commit(), time.monotonic()
    rows = [row for name in options.data for row in compare(name, options.prior, options.seeds, flags, options.folder)]
    command = (
        f"python -m lit_mmpg.profiling.benchmarks.own_statistics --data {' '.join(options.data)} "
        f"--prior {options.prior} --seeds {' '.join(map(str, options.seeds))}"
    )
    verdicts = [
        f"{name}: validation {'objects' if any(r['worse'] for r in rows if r['data'] == name) else 'does not object'}"
        for name in options.data
    ]
    notes = [
        f"Validation devices, mean over seeds {', '.join(map(str, options.seeds))}; in brackets: 95 % interval of the "
        "paired difference. Validation objects where the mean of either half is worse with the device's own "
        f"statistics. {'; '.join(verdicts)}."
    ]
    columns = ["data", "method", "metric", "without", f"own_statistics {options.prior}", "difference"]
    found = result(
        "The device's own statistics, on validation devices", command, columns, list(map(_shown, rows)), commit, notes,
        seeds=options.seeds, test_reads=0, values=rows,
    )  # fmt: skip
    write_result(options.output, found)
    print(*notes, f"Written: {options.output} ({time.monotonic() - begun:.0f} s)", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
