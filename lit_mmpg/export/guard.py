"""Bounds of plausible parameters, chosen on validation devices: what a device holds a download against.

For each validation device parameters are generated from contexts of one clip, of a few and of full length, as in the
course of its life. Their sizes, and the outputs on the clips that they were made from, give a range for each figure of
:mod:`lit_mmpg.runtime.guard`, which is widened by :data:`MARGIN` on either side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lit_mmpg.batch import Frames
from lit_mmpg.data.statistics import OwnStatistics
from lit_mmpg.device.graphs import GraphSpec
from lit_mmpg.export.reference import expected_outputs
from lit_mmpg.export.samples import DEVICES, generate
from lit_mmpg.export.source import Source
from lit_mmpg.runtime.bundle import Arrays
from lit_mmpg.runtime.guard import CLIPS, Run, outputs, size
from lit_mmpg.runtime.manifest import Guard
from lit_mmpg.tasks import Task

LEAST_DEVICES = 8
"""Validation devices without which no bounds are chosen: the range of a few says nothing of the next one."""

QUESTIONS = 8
"""Most questions that a device asks itself."""

MARGIN = 0.5
"""Share of its width by which a range is widened on either side."""

LEAST_SIZES = 0.2
"""A range of sizes counts as at least this wide, in powers of ten."""


@dataclass(frozen=True)
class Life:
    """A device at one moment of its life.

    Attributes:
        device: Its index in the device table.
        parameters: What the cloud generates for it now.
        clips: ``[T, D]`` frame features of the clips of its context, oldest first.
        questions: ``[N, O, L]`` what is asked about its clips.
    """

    device: int
    parameters: Arrays
    clips: list[np.ndarray]
    questions: np.ndarray


def context_lengths(source: Source) -> tuple[int, ...]:
    """Lengths of contexts at which devices are looked at, in clips."""
    shape = source.data.batch
    return (1,) if shape.context == "clip" else tuple(sorted({1, min(CLIPS, shape.context_clips), shape.context_clips}))


@torch.inference_mode()
def lives(source: Source, group: str) -> Iterator[Life]:
    """Devices of a group at each length of context, at most :data:`~lit_mmpg.export.samples.DEVICES` of them."""
    network, own = source.network, OwnStatistics(source.meta.get("own_statistics", {}))
    for length in context_lengths(source):
        seen: set[int] = set()
        for batch in source.data.eval_batches(group, True, context_clips=length):
            for b in range(len(batch)):
                device, mask = int(batch.device[b]), batch.context.mask[b : b + 1]
                if device in seen or not mask.any() or not batch.text_mask[b].any():
                    continue
                seen.add(device)
                context = Frames(batch.context.values[b : b + 1], mask)
                values = own(context, context).values[0]
                if network.shapes.pixels and not network.encodes_personally:
                    values = network.encode(values)
                clips = [v[m].numpy() for v, m in zip(values, mask[0], strict=True) if m.any()]
                yield Life(device, generate(source, context), clips, batch.text[b][batch.text_mask[b]].numpy())
            if len(seen) >= DEVICES:
                break


def runner(source: Source, spec: GraphSpec, parameters: Arrays) -> Run:
    """The device model itself, as the guard runs it."""

    def run(features: np.ndarray, questions: np.ndarray | None) -> np.ndarray:
        rows = 1 if questions is None else len(questions)
        if source.network.shapes.pixels and source.network.encodes_personally:
            own = tuple(torch.from_numpy(parameters[e.name]) for e in source.network.spec) if parameters else ()
            with torch.inference_mode():
                features = source.network.encode(torch.from_numpy(features), own).numpy()
        frames = np.repeat(features[None], rows, 0)
        inputs = {"frames": frames, "frame_mask": np.ones(frames.shape[:2], bool)}
        inputs |= {} if questions is None else {"text": questions}
        return expected_outputs(spec, source.network, inputs, parameters)[spec.output]

    return run


def choose_guard(source: Source, spec: GraphSpec) -> Guard | None:
    """Bounds for a checkpoint of a cloud half, by the validation devices of its data, which is set up.

    Args:
        source: The checkpoint.
        spec: Its graph that takes the parameters.

    Returns:
        The bounds; ``None`` where there are too few devices, or nothing is generated.
    """
    if source.cloud is None or not len(source.network.spec):
        return None
    found = list(lives(source, "val"))
    devices = {life.device for life in found}
    if len(devices) < LEAST_DEVICES:
        return None
    task = source.network.task
    questions = None if task.searches else pick_questions([life.questions for life in found])
    sizes: dict[str, list[float]] = defaultdict(list)
    differs: dict[int, dict[str, list[float]]] = {}
    static, counts = runner(source, spec, {}), sorted({1, min(CLIPS, max(context_lengths(source)))})
    for life in found:
        personal = runner(source, spec, life.parameters)
        for name, array in life.parameters.items():
            sizes[name].append(np.log10(max(size(array), 1e-12)))
        for count in counts:
            if len(life.clips) < count:
                continue
            # Of single clips all of the latest ones count, each alone.
            latest = life.clips[-CLIPS:]
            for part in [[clip] for clip in latest] if count == 1 else [latest]:
                before, after = (outputs(run, part, questions) for run in (static, personal))
                for name, value in task.output_figures(before, after).items():
                    differs.setdefault(count, defaultdict(list))[name].append(value)
    return Guard(
        devices=len(devices),
        contexts=context_lengths(source),
        margin=MARGIN,
        questions=[] if questions is None else questions.tolist(),
        sizes={name: _powers(*_widened(values, LEAST_SIZES)) for name, values in sizes.items()},
        outputs={count: _ranges(named, task) for count, named in differs.items()},
    )


def pick_questions(asked: Sequence[np.ndarray]) -> np.ndarray:
    """Different questions ``[Q, O, L]``, spread evenly over all that occur."""
    distinct: dict[str, np.ndarray] = {}
    for rows in asked:
        for row in rows:
            words = row[:, : max(1, int((row != 0).any(0).sum()))]
            distinct.setdefault(str(words.tolist()), words)
    several = list(distinct.values())
    chosen = [several[i] for i in np.unique(np.linspace(0, len(several) - 1, min(QUESTIONS, len(several))).astype(int))]
    options, length = (max(words.shape[i] for words in chosen) for i in (0, 1))
    padded = [np.pad(w, [(0, options - w.shape[0]), (0, length - w.shape[1])]) for w in chosen]
    return np.stack(padded).astype(np.int64)


def _ranges(named: Mapping[str, list[float]], task: Task) -> dict[str, tuple[float, float]]:
    found = {}
    for name, values in named.items():
        figure = task.figures[name]
        low, high = _widened(values, figure.least_width)
        least, most = figure.least, figure.most
        found[name] = (low if least is None else least, high if most is None else most + 1e-6)
    return found


def _widened(values: Sequence[float], least_width: float) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    margin = MARGIN * max(high - low, least_width)
    return low - margin, high + margin


def _powers(low: float, high: float) -> tuple[float, float]:
    return 10**low, 10**high
