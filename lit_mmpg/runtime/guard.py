"""Whether parameters that a cloud sent are plausible, judged by a device on what it has. No torch.

Well-formed parameters can still be bad: of a broken generator, or of a cloud that somebody else runs. Three things are
looked at, each within bounds that the bundle carries (:class:`lit_mmpg.runtime.manifest.Guard`), chosen at export on
validation devices (:mod:`lit_mmpg.export.guard`):

* the size (root mean square) of each tensor;
* whether all outputs are finite, on the features of the latest clips;
* how the outputs there differ from the static model's: for questions the share of the same best answers, the
  Jensen-Shannon divergence of the answers and their confidence, over a few questions that come with the bundle; for
  retrieval the cosine of the clip embeddings.

The model starts at raw frame features, so the anchors of the context, which are projected, do not suffice: the
features of the latest :data:`CLIPS` clips are kept beside them, in memory alone (some 100 KiB a clip at most). They are
not written to the disk: that would be several times the rest of the state at each clip, and hold more of what was
filmed. So a device that has just started judges by the present clip, with the wider bounds of one clip.

What is compared with is the static model, not the former parameters: it is the one fixed point, and the bounds were
chosen against it. A reconstruction. It has limits: parameters of another device are plausible, and mostly pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lit_mmpg.tasks import find_task

if TYPE_CHECKING:
    from lit_mmpg.runtime.manifest import Guard

CLIPS = 4
"""Latest clips that are looked at."""

Run = Callable[[np.ndarray, "np.ndarray | None"], np.ndarray]
"""Scores ``[Q, A]`` or an embedding ``[1, H]``, for features ``[T, D]`` of a clip and questions ``[Q, O, L]``."""


def questions_of(guard: Guard | None, task: str) -> np.ndarray | None:
    """Questions ``[Q, O, L]`` that are asked; one word that nobody knows where the bundle brings none."""
    if find_task(task).searches:
        return None
    if guard is not None and guard.questions:
        return np.array(guard.questions, np.int64)
    return np.ones((1, 2 if find_task(task).takes_options else 1, 1), np.int64)


def outputs(run: Run, clips: Sequence[np.ndarray], questions: np.ndarray | None) -> np.ndarray:
    """Outputs for all clips and questions, one below the other."""
    return np.concatenate([run(clip, questions) for clip in clips]).astype(np.float64)


def size(array: np.ndarray) -> float:
    """Root mean square of a tensor."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))


def odd_size(guard: Guard | None, parameters: Mapping[str, np.ndarray]) -> str | None:
    """Which tensor is of an implausible size; ``None``: none."""
    for name, (low, high) in (guard.sizes if guard else {}).items():
        found = size(parameters[name])
        if not low <= found <= high:
            return f"'{name}' has size {found:.3g}, expected {low:.3g} to {high:.3g}"
    return None


def odd_outputs(guard: Guard | None, static: np.ndarray, personal: np.ndarray, clips: int, task: str) -> str | None:
    """What is implausible about outputs; ``None``: nothing.

    Args:
        guard: Bounds; ``None``: outputs must be finite, no more.
        static: See :meth:`lit_mmpg.tasks.Task.output_figures`.
        personal: Likewise.
        clips: Clips behind them.
        task: Name of the task of the bundle.
    """
    if not np.isfinite(personal).all():
        return "the outputs are not finite"
    if guard is None or not guard.outputs:
        return None
    bounds = guard.outputs[max((n for n in guard.outputs if n <= clips), default=min(guard.outputs))]
    asked = find_task(task)
    for name, found in asked.output_figures(static, personal).items():
        low, high = bounds[name]
        if not low <= found <= high:
            return f"{asked.figures[name].words} is {found:.2g}, expected {low:.2g} to {high:.2g}"
    return None
