"""Right before fast: an engine's outputs against the reference of the bundle. An engine that fails is not timed.

Three figures, each with a limit per precision. ``error`` is the root mean square error over the root mean square
deviation of the expected outputs from their mean, so it does not depend on the scale of the scores. ``top1_agreement``
and ``rank_correlation`` say what the error does to the task: scores are compared within a row, and embeddings by the
similarities that they give to the reference embeddings of the other modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lit_mmpg.runtime.bundle import STATIC_CASE, Arrays, Bundle, Reference
from lit_mmpg.runtime.engines.base import Engine
from lit_mmpg.tasks import find_task

ABSENT_BELOW = -9e3
"""Scores below this belong to options that are padding."""

NEAR_TIE = 1e-4
"""A choice whose expected score is this close to the best (in deviations of the scores) counts as the same choice."""


@dataclass(frozen=True)
class Limits:
    """What a precision may cost.

    Attributes:
        error: Most relative error.
        top1_agreement: Least agreement of the best choice.
        rank_correlation: Least rank correlation.
    """

    error: float
    top1_agreement: float
    rank_correlation: float

    def with_slack(self, rows: int) -> Limits:
        """Limits for few rows: where choices may differ at all, one more may."""
        return self if self.top1_agreement == 1.0 else replace(self, top1_agreement=self.top1_agreement - 1 / rows)


LIMITS = {
    "fp32": Limits(1e-3, 1.0, 0.999),
    "fp16": Limits(2e-2, 0.99, 0.995),
    "int8_weight": Limits(3e-2, 0.97, 0.98),
    "int8": Limits(1e-1, 0.95, 0.95),
}
"""Limits by precision."""


@dataclass(frozen=True)
class Figures:
    """Comparison of outputs with what was expected.

    Attributes:
        samples: Rows compared.
        error: Relative error.
        top1_agreement: ``None`` where the outputs are no choice.
        rank_correlation: ``None`` where the outputs are no choice.
    """

    samples: int
    error: float
    top1_agreement: float | None = None
    rank_correlation: float | None = None

    def problems(self, limits: Limits) -> list[str]:
        """What exceeds the limits, in words; NaN exceeds every limit."""
        found = []
        if not self.error <= limits.error:
            found.append(f"relative error {self.error:.2g} > {limits.error:g}")
        for name in ("top1_agreement", "rank_correlation"):
            value, least = getattr(self, name), getattr(limits, name)
            if value is not None and not value >= least:
                found.append(f"{name.replace('_', ' ')} {value:.4g} < {least:g}")
        return found


@dataclass(frozen=True)
class Verdict:
    """Whether an engine computes what the model computes.

    Attributes:
        engine: Name of the engine.
        role: The graph.
        precision: Its precision.
        figures: Over all cases.
        limits: The limits of the precision.
        problems: What is wrong; empty for a right engine.
    """

    engine: str
    role: str
    precision: str
    figures: Figures
    limits: Limits
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the engine is right."""
        return not self.problems


def compare(got: np.ndarray, expected: np.ndarray, gallery: np.ndarray | None = None, choice: bool = False) -> Figures:
    """Compare outputs.

    Args:
        got: ``[R, ...]``.
        expected: The same shape.
        gallery: ``[G, H]`` embeddings of the other modality, by whose similarities embeddings are compared.
        choice: The outputs are scores, of which the best in a row is chosen.
    """
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if got.shape != expected.shape:
        raise ValueError(f"outputs have shape {got.shape}, expected {expected.shape}")
    present = expected > ABSENT_BELOW if choice else np.ones(expected.shape, bool)
    if choice and ((got > ABSENT_BELOW) != present).any():
        return Figures(len(got), float("inf"), 0.0, 0.0)
    error = _relative_error(got[present], expected[present])
    if gallery is not None:
        got, expected = got @ gallery.T.astype(np.float64), expected @ gallery.T.astype(np.float64)
        present = np.ones(expected.shape, bool)
    elif not choice:
        return Figures(len(got), error)
    same, correlations = [], []
    for ours, theirs, real in zip(got, expected, present, strict=True):
        if real.sum() > 1:
            ours, theirs = ours[real], theirs[real]
            same.append(np.isfinite(ours).all() and theirs.max() - theirs[ours.argmax()] <= NEAR_TIE * theirs.std())
            correlations.append(_spearman(ours, theirs))
    if not same:
        return Figures(len(got), error)
    return Figures(len(got), error, float(np.mean(same)), float(np.mean(correlations)))


def pool(figures: Sequence[Figures]) -> Figures:
    """All rows together: the largest error, and the mean over rows of the others. NaN stays NaN."""

    def mean(name: str) -> float | None:
        known = [(getattr(f, name), f.samples) for f in figures if getattr(f, name) is not None]
        return float(np.average([v for v, _ in known], weights=[n for _, n in known])) if known else None

    error = float(np.max([f.error for f in figures]))
    return Figures(sum(f.samples for f in figures), error, mean("top1_agreement"), mean("rank_correlation"))


def gallery_of(role: str, task: str, reference: Reference) -> np.ndarray | None:
    """Reference embeddings that the embeddings of a role are compared by; ``None`` where there are none."""
    other = find_task(task).paired_roles.get(role)
    return None if other is None else reference.roles[other].outputs[STATIC_CASE]["embedding"]


def verify(engine: Engine, bundle: Bundle | None = None) -> Verdict:
    """Compare an active engine with the reference: every case as one batch, and its first row alone.

    The engine's personal parameters are afterwards what they were before.

    Args:
        engine: An active engine.
        bundle: The bundle whose reference counts; the engine's own when None.
    """
    bundle = bundle or engine.bundle
    reference = bundle.reference()
    role, limits = engine.role, LIMITS[engine.precision]
    samples = reference.roles[role]
    gallery = gallery_of(role, bundle.manifest.task, reference)
    before = dict(engine.parameters)
    found: list[Figures] = []
    problems: list[str] = []
    try:
        for case, expected in samples.outputs.items():
            if engine.personal:
                engine.load_parameters(reference.parameters[case])
            for rows in (None, 1):
                problems += _case(engine, samples.inputs, expected, rows, gallery, case, found)
    finally:
        if engine.personal:
            engine.load_parameters(before)
    figures = pool(found) if found else Figures(0, float("inf"))
    problems += figures.problems(limits.with_slack(len(next(iter(samples.inputs.values()))) * len(samples.outputs)))
    return Verdict(engine.name, role, engine.precision, figures, limits, tuple(dict.fromkeys(problems)))


def _case(
    engine: Engine,
    inputs: Mapping[str, np.ndarray],
    expected: Arrays,
    rows: int | None,
    gallery: np.ndarray | None,
    case: str,
    found: list[Figures],
) -> list[str]:
    outputs = engine.infer({name: np.ascontiguousarray(array[:rows]) for name, array in inputs.items()})
    for name, target in expected.items():
        where = f"case {case}" + (" (one row)" if rows else "")
        if name not in outputs:
            return [f"{where}: output '{name}' is missing"]
        got = outputs[name]
        if got.shape != target[:rows].shape:
            return [f"{where}: output '{name}' has shape {got.shape}, expected {target[:rows].shape}"]
        if not np.isfinite(got).all():
            return [f"{where}: output '{name}' holds NaN or infinity"]
        figures = compare(got, target[:rows], gallery, choice=name == "scores")
        # Of one row only the error is judged: agreement of a single choice is all or nothing.
        found.append(figures if rows is None else Figures(figures.samples, figures.error))
    return []


def _relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    spread = float(np.sqrt(np.mean(np.square(expected - expected.mean()))))
    return float(np.sqrt(np.mean(np.square(got - expected)))) / max(spread, 1e-12)


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    ranks = [np.unique(side, return_inverse=True)[1].astype(np.float64) for side in (left, right)]
    left, right = (side - side.mean() for side in ranks)
    scale = float(np.sqrt((left**2).sum() * (right**2).sum()))
    return float((left * right).sum() / scale) if scale else 1.0
