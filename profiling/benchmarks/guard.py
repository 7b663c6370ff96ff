"""What the guard of a device refuses: good parameters by mistake, and bad ones as it should.

    python -m lit_mmpg.profiling.benchmarks.guard --ckpt CKPT

Bounds come from the validation devices, as in an export; the parameters of validation devices and of unseen ones, at
each length of context, are then judged as they are, taken from another device, and spoilt in the ways of a broken or
hostile generator. Judged by one clip (a device that has just started) and by the latest few.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.device.graphs import graph_specs
from lit_mmpg.errors import UserError
from lit_mmpg.export.guard import LEAST_DEVICES, Life, choose_guard, lives, runner
from lit_mmpg.export.source import Source
from lit_mmpg.heartbeat import working
from lit_mmpg.profiling.benchmarks import in_a_line
from lit_mmpg.profiling.benchmarks.trained import Trained, command
from lit_mmpg.runtime.bundle import Arrays
from lit_mmpg.runtime.guard import CLIPS, odd_outputs, odd_size, outputs, questions_of

GROUPS = {"val": "validation", "test_unseen": "unseen"}


def spoilt(life: Life, others: Sequence[Life], rng: np.random.Generator) -> Iterator[tuple[str, Arrays]]:
    """Parameters to judge: what was done to them, and what came of it."""
    own = life.parameters

    def each(change: Callable[[np.ndarray], np.ndarray]) -> Arrays:
        return {name: np.asarray(change(array), np.float32) for name, array in own.items()}

    def noise(array: np.ndarray) -> np.ndarray:
        drawn = rng.standard_normal(array.shape)
        return np.asarray(drawn * np.linalg.norm(array) / np.linalg.norm(drawn))

    yield "its own", own
    yield "another device's", others[int(rng.integers(len(others)))].parameters
    yield "noise of the same norms", each(noise)
    yield "values permuted within each tensor", each(lambda a: rng.permutation(a.ravel()).reshape(a.shape))
    yield "rows permuted within each tensor", each(lambda a: rng.permutation(a, axis=0))
    yield "times 3", each(lambda a: 3 * a)
    yield "times 10", each(lambda a: 10 * a)
    yield "zeros", each(np.zeros_like)
    yield "sign of all tensors flipped", each(np.negative)
    flipped = {name: -array if i % 2 else array for i, (name, array) in enumerate(own.items())}
    yield "sign of every other tensor flipped", flipped
    yield "infinity in one value", each(lambda a: np.where(np.arange(a.size).reshape(a.shape), a, np.inf))


def measure(trained: Trained, options: argparse.Namespace, told: Callable[[str], None]) -> dict[str, Any]:
    """Share of refused parameters by group, what was done to them, and number of clips."""
    source = Source(trained.path, trained.module, read_checkpoint(trained.path)["lit_mmpg"], trained.data)
    network, shape = source.network, source.data.batch
    spec = next(s for s in graph_specs(network, shape.max_frames, 2) if s.role == "model")
    told("choosing bounds on the validation devices")
    guard, task = choose_guard(source, spec), network.shapes.task
    if guard is None:
        raise UserError(f"{trained.path}: its data has fewer than {LEAST_DEVICES} validation devices")
    questions, static = questions_of(guard, task), runner(source, spec, {})
    refused: dict[tuple[str, str, int], list[bool]] = defaultdict(list)
    for group in GROUPS:
        told(f"{GROUPS[group]} devices")
        rng, found = np.random.default_rng(0), list(lives(source, group))
        for life in found:
            others = [o for o in found if o.device != life.device and len(o.clips) == len(life.clips)]
            for count in sorted(guard.outputs):
                if len(life.clips) < count or not others:
                    continue
                clips = life.clips[-1:] if count == 1 else life.clips[-CLIPS:]
                before = outputs(static, clips, questions)
                for kind, parameters in spoilt(life, others, rng):
                    problem = odd_size(guard, parameters)
                    if problem is None:
                        after = outputs(runner(source, spec, parameters), clips, questions)
                        problem = odd_outputs(guard, before, after, len(clips), task)
                    refused[group, kind, count].append(problem is not None)
    rows = [
        {"group": group, "parameters": kind, "clips": count, "judged": len(values), "refused": float(np.mean(values))}
        for (group, kind, count), values in refused.items()
    ]
    return {"devices": guard.devices, "contexts": list(guard.contexts), "margin": guard.margin, "rows": rows}


def _cells(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = result["rows"]
    columns = list(dict.fromkeys((row["group"], row["clips"]) for row in rows))
    share = {(row["group"], row["clips"], row["parameters"]): row for row in rows}
    heads = [f"{GROUPS[g]}, {n} clip{'s' if n > 1 else ''} ({rows_of(rows, g, n)})" for g, n in columns]
    body = [
        [kind, *(f"{share[g, n, kind]['refused']:.0%}" for g, n in columns)]
        for kind in dict.fromkeys(row["parameters"] for row in rows)
    ]
    return ["refused", *heads], body


def rows_of(rows: Sequence[dict[str, Any]], group: str, clips: int) -> int:
    """Parameters of one kind that were judged."""
    return next(row["judged"] for row in rows if row["group"] == group and row["clips"] == clips)


def markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    heads, body = _cells(result)
    table = [f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *body]]
    return "\n".join([f"Checkpoint `{result['checkpoint']}`", "", *table])


def screen_table(result: dict[str, Any]) -> Table:
    """The result for the screen."""
    heads, body = _cells(result)
    table = Table(*heads, title="what the guard refuses")
    for cells in body:
        table.add_row(*cells)
    return table


@working("guard", bar=False)
@in_a_line
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write ``guard.json`` and ``guard.md``."""
    return command("guard", __doc__, measure, markdown, screen_table, argv)


if __name__ == "__main__":
    sys.exit(main())
