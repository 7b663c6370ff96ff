"""Product quantisation of anchors: error and validation metric against bytes, with and without its rotation.

    python -m lit_mmpg.profiling.benchmarks.codebooks --ckpt CKPT ... --output FILE.json

Checkpoints that were trained on the same data with several seeds make one row for each number of bytes. The error is
that of held-out anchors of the training devices (every other context), as a share of their variance, for codebooks
learnt on the others; residual codebooks, which the link does not have, stand beside it as the next candidate. The
metric is that of the validation devices with codebooks learnt on all training anchors, as training does, against
float32 upwards; what is sent downwards has the checkpoint's own codec. The test split is not read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_mmpg.cloud.exchange import Exchange
from lit_mmpg.device.evaluation import Evaluation
from lit_mmpg.device.outputs import answer_batch
from lit_mmpg.heartbeat import tell, working
from lit_mmpg.link import register
from lit_mmpg.link.product import MAX_WORDS, k_means, learn, nearest
from lit_mmpg.metrics.statistics import clustered_mean
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.benchmarks.trained import Trained, load
from lit_mmpg.report import format_row
from lit_mmpg.results import result, write_result
from lit_mmpg.tasks import find_task
from lit_mmpg.tracking.address import git_commit

SIZES = (2, 4, 8, 12, 16)
ROTATED = {"plain": False, "rotated": True}


@dataclass(frozen=True)
class Measured:
    """One checkpoint.

    Attributes:
        data: What tells its data from others.
        title: The same for people.
        metric: Primary metric of its task.
        errors: (variant, bytes) -> share of the variance of held-out anchors that is lost.
        values: (variant, bytes), and ``("fp32", 0)`` -> the metric for each item ``[n]`` of the validation devices.
        device: ``[n]``.
        clip: ``[n]``.
        anchors: Learnt on and held out.
    """

    data: str
    title: str
    metric: str
    errors: dict[tuple[str, int], float]
    values: dict[tuple[str, int], np.ndarray]
    device: np.ndarray
    clip: np.ndarray
    anchors: tuple[int, int]


def errors(seen: np.ndarray, unseen: np.ndarray, sizes: Sequence[int]) -> dict[tuple[str, int], float]:
    """Share of the variance of ``unseen [n, H]`` that codebooks learnt on ``seen [N, H]`` lose."""
    variance = np.square(unseen - unseen.mean(axis=0)).sum()
    found = {}
    for size in sizes:
        for variant, rotate in ROTATED.items():
            quantiser = learn(seen, size, rotate=rotate)
            arrived = quantiser.decode(quantiser.encode(unseen, None), unseen.shape, None)
            found[variant, size] = float(np.square(arrived - unseen).sum() / variance)
    for size, left in residual_errors(seen, unseen, max(sizes)).items():
        if size in sizes:
            found["residual", size] = left / float(variance)
    return found


def residual_errors(seen: np.ndarray, unseen: np.ndarray, most: int) -> dict[int, float]:
    """Bytes -> squared error of ``unseen`` where each codebook quantises whole vectors that the ones before left."""
    rng, mean = np.random.default_rng(0), seen.mean(axis=0, dtype=np.float64)
    seen, unseen, found = seen - mean, unseen - mean, {}
    for size in range(1, most + 1):
        book = k_means(seen, MAX_WORDS, 12, rng)
        seen, unseen = (left - book[nearest(left, book)] for left in (seen, unseen))
        found[size] = float(np.square(unseen).sum())
    return found


def measure(trained: Trained, sizes: Sequence[int], told: Callable[[str], None] = tell) -> Measured:
    """Errors and validation metrics of one checkpoint.

    Args:
        trained: The cloud half.
        sizes: Bytes of an anchor.
        told: Told what is at work.
    """
    module, data = trained.module, trained.data
    told("anchors of the training devices")
    contexts = list(module.training_anchors(data))
    everything = np.concatenate(contexts)
    sizes = [size for size in sizes if size <= everything.shape[1]]
    seen, unseen = np.concatenate(contexts[0::2]), np.concatenate(contexts[1::2])
    lost = errors(seen, unseen, sizes)
    told("codebooks of the training devices")
    links = {("fp32", 0): replace(module.link, upload_codec="fp32")}
    for size in sizes:
        for variant, rotate in ROTATED.items():
            quantiser = learn(everything, size, rotate=rotate)
            register(quantiser)
            links[variant, size] = replace(module.link, upload_codec=quantiser.name)
    exchanges = {key: Exchange(link, module.network.spec, module.digest()) for key, link in links.items()}
    evaluation = Evaluation([data.group("val")], list(map(str, exchanges)))
    batches = data.eval_batches("val")
    with torch.inference_mode():
        for i, batch in enumerate(batches):
            told(f"batch {i + 1} of {len(batches)}")
            features = module.network.encode(batch.frames.values)
            anchors, _ = module.select(batch.context)
            ids = [trained.name(int(d)) for d in batch.device]
            for key, exchange in exchanges.items():
                parameters = exchange(anchors, ids, module.serve)
                evaluation.update("val", str(key), batch, answer_batch(module.network, batch, features, parameters))
    metric = find_task(data.task).primary.name
    items = {key: evaluation.items("val", str(key)) for key in exchanges}
    exact = items["fp32", 0]
    return Measured(
        data=f"{data.fingerprint} {data.task}",
        title=f"{type(data).__name__}, {data.task}",
        metric=metric,
        errors=lost,
        values={key: item.values[metric] for key, item in items.items()},
        device=exact.device,
        clip=exact.clip,
        anchors=(len(seen), len(unseen)),
    )


def summarise(runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """One row for each number of bytes: means over checkpoints of the same data, differences item by item."""
    first = runs[0]
    exact = np.stack([run.values["fp32", 0] for run in runs])
    rows = []
    for size in sorted({size for _, size in first.errors}):
        row: dict[str, Any] = {"data": first.title, "metric": first.metric, "checkpoints": len(runs), "bytes": size}
        row["fp32"] = float(exact.mean())
        for variant in (*ROTATED, "residual"):
            row[f"{variant}_error"] = float(np.mean([run.errors[variant, size] for run in runs]))
        for variant in ROTATED:
            gap = np.stack([run.values[variant, size] for run in runs]) - exact
            spread = clustered_mean(gap, first.device, first.clip).interval()
            row[variant] = {"value": spread.value, "low": spread.low, "high": spread.high, "clusters": spread.clusters}
        rows.append(row)
    return rows


def _shown(row: dict[str, Any]) -> list[str]:
    lost = [f"{row[f'{variant}_error']:.4f}" for variant in (*ROTATED, "residual")]
    exact = format_row({"metric": row["metric"], "value": row["fp32"]})
    gaps = [format_row({"metric": f"{row['metric']}_minus_fp32", **row[variant]}) for variant in ROTATED]
    return [row["data"], str(row["bytes"]), *lost, f"{row['metric']} {exact}", *gaps]


@working("codebooks", bar=False)
@in_a_line
def main(args: Sequence[str] | None = None) -> None:
    """Measure and write one JSON file."""
    parser = argparse.ArgumentParser(prog="python -m lit_mmpg.profiling.benchmarks.codebooks", description=__doc__)
    parser.add_argument("--ckpt", nargs="+", required=True, help="checkpoints of cloud halves")
    parser.add_argument("--bytes", nargs="+", type=int, default=list(SIZES), help="bytes of an anchor")
    parser.add_argument("--output", type=Path, default=Path("outputs/codebooks.json"), metavar="FILE.json")
    options = parser.parse_args(args)
    commit = git_commit()
    runs: dict[str, list[Measured]] = {}
    for path in options.ckpt:
        measured = measure(load(path, []), options.bytes)
        runs.setdefault(measured.data, []).append(measured)
    rows = [row for same in runs.values() for row in summarise(same)]
    counts = "; ".join(
        f"{same[0].title}: {len(same)} checkpoints, {' + '.join(map(str, same[0].anchors))} anchors (learnt, held out)"
        for same in runs.values()
    )
    notes = [
        "Errors: share of the variance of held-out training anchors. Metrics: validation devices, mean over "
        "checkpoints, as the difference from float32 upwards with its 95 % interval. Residual codebooks are measured "
        f"here alone; the link has none. {counts}."
    ]
    columns = ["data", "bytes of an anchor", "error: plain", "rotated", "residual"]
    columns += ["fp32", "plain minus fp32", "rotated minus fp32"]
    command = "python -m lit_mmpg.profiling.benchmarks.codebooks --ckpt CKPT ..."
    found = result(
        "Product quantisation of anchors, on validation devices", command, columns, list(map(_shown, rows)), commit,
        notes, test_reads=0, values=rows,
    )  # fmt: skip
    write_result(options.output, found)
    print(*notes, f"Written: {options.output}", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
