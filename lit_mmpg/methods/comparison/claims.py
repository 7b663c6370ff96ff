"""Claims and what the comparison says about them.

A claim holds when its method beats every rival by more than the margin, with family-wise error 5 % (Holm over the
rivals of the claim) and within its condition on cost. It does not hold when one rival is shown not to be beaten: the
interval of the advantage lies at or below the margin, or the method costs more than the condition allows. Otherwise it
is undecided; and where a row that it needs was not measured, it is *not tested*, which is never *holds*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lit_mmpg.methods.comparison.plan import GAP, Claim
from lit_mmpg.methods.comparison.table import NotPaired, Row, amortised, lower_is_better, pool
from lit_mmpg.metrics.statistics import Estimate, clustered_combination, clustered_mean, holm
from lit_mmpg.report import format_row

HOLDS, FAILS, UNDECIDED, NOT_TESTED = "holds", "does not hold", "undecided", "not tested"
ALPHA = 0.05


@dataclass(frozen=True)
class Comparand:
    """The method of a claim against one rival.

    Attributes:
        rival: The rival's row.
        verdict: Verdict against this rival alone.
        advantage: Mean advantage over the rival, in units of the metric, signed so that more is better; None where it
            was not measured.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Two-sided p-value of "the advantage is the margin", adjusted by Holm over the rivals of the claim.
        flops_ratio: Device FLOPs per answer of the method over those of the rival.
        clusters: The smaller of the numbers of devices and of clips behind the interval.
        note: Why there is no verdict, or what else decided it.
    """

    rival: str
    verdict: str
    advantage: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    flops_ratio: float | None = None
    clusters: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the comparison says about a claim."""

    claim: Claim
    verdict: str
    metric: str
    against: tuple[Comparand, ...]
    cost: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """One line on the method against each rival."""
        return [self._line(entry) for entry in self.against]

    def _line(self, entry: Comparand) -> str:
        text = f"against {entry.rival}: {entry.verdict}"
        if entry.advantage is not None:
            row = {"metric": f"{self.metric}_minus_", "value": entry.advantage, "low": entry.low, "high": entry.high}
            text += f", advantage {format_row({**row, 'clusters': entry.clusters})}"
        if entry.p_value is not None:
            text += f", p {'< 0.001' if entry.p_value < 0.001 else f'{entry.p_value:.3f}'}"
        if entry.flops_ratio is not None:
            reuse = self.claim.reuse
            text += f", at {entry.flops_ratio:.2f} times its device FLOPs when one adaptation serves {reuse} clips"
        return f"{text} ({entry.note})" if entry.note else text


def judge(
    claims: tuple[Claim, ...],
    rows: Mapping[str, Row],
    primary: str,
    costs: Mapping[str, Mapping[str, Any]],
    not_applicable: Mapping[str, str] | None = None,
) -> list[Verdict]:
    """Verdicts on claims; rows that do not apply to the task (``not_applicable``: row -> reason) are needed by none."""
    return [_judge(claim, rows, claim.metric or primary, costs, not_applicable or {}) for claim in claims]


def _judge(
    claim: Claim,
    rows: Mapping[str, Row],
    metric: str,
    costs: Mapping[str, Mapping[str, Any]],
    not_applicable: Mapping[str, str],
) -> Verdict:
    if claim.kind == GAP:
        against = [_gap(claim, rows, metric)]
    else:
        rivals = [name for name in claim.rivals if name not in not_applicable]
        found = [_against(claim, name, rows, metric) for name in rivals]
        against = _adjusted(claim, found, costs)
        against += [Comparand(n, "n/a", note=not_applicable[n]) for n in claim.rivals if n in not_applicable]
    overall = _overall([entry.verdict for entry in against])
    return Verdict(claim, overall, metric, tuple(against), costs.get(claim.method, {}))


def _overall(verdicts: list[str]) -> str:
    counted = [verdict for verdict in verdicts if verdict != "n/a"]
    if not counted:
        return NOT_TESTED
    return next((verdict for verdict in (FAILS, NOT_TESTED, UNDECIDED) if verdict in counted), HOLDS)


def _against(claim: Claim, rival: str, rows: Mapping[str, Row], metric: str) -> tuple[Comparand, float]:
    """The advantage over one rival with its unadjusted p-value (NaN where there is none)."""
    missing = [name for name in (claim.method, rival) if name not in rows]
    if missing:
        return Comparand(rival, NOT_TESTED, note=f"row '{missing[0]}' was not measured"), float("nan")
    try:
        difference = pool(rows[claim.method], claim.split, metric, (rows[rival], claim.split))
    except NotPaired as error:
        return Comparand(rival, NOT_TESTED, note=str(error)), float("nan")
    if difference is None:
        return Comparand(rival, NOT_TESTED, note=f"no {metric} on {claim.split}"), float("nan")
    sign = -1.0 if lower_is_better(metric) else 1.0
    estimate = clustered_mean(sign * difference.values, difference.device, difference.clip)
    return _measured(rival, estimate), estimate.p_value(claim.margin)


def _measured(rival: str, estimate: Estimate, note: str = "") -> Comparand:
    value = estimate.interval()
    if not np.isfinite(value.low):
        return Comparand(rival, UNDECIDED, value.value, note=note or "too few devices or clips for an interval")
    return Comparand(rival, UNDECIDED, value.value, value.low, value.high, clusters=value.clusters, note=note)


def _adjusted(
    claim: Claim, found: list[tuple[Comparand, float]], costs: Mapping[str, Mapping[str, Any]]
) -> list[Comparand]:
    """Verdicts after Holm's adjustment over all rivals of the claim that were measured."""
    measured = [i for i, (_, p) in enumerate(found) if np.isfinite(p)]
    adjusted = dict(zip(measured, holm([found[i][1] for i in measured]), strict=True)) if measured else {}
    result = []
    for i, (entry, _) in enumerate(found):
        if i not in adjusted:
            result.append(entry)
            continue
        assert entry.advantage is not None and entry.high is not None
        p_value, verdict, note = float(adjusted[i]), UNDECIDED, entry.note
        if p_value < ALPHA:
            verdict = HOLDS if entry.advantage > claim.margin else FAILS
        elif entry.high <= claim.margin:
            verdict = FAILS
        ratio = flops_ratio(costs, claim.method, entry.rival, claim.reuse)
        limit = claim.max_device_flops_ratio
        if limit is not None:
            note = within_from(costs, claim.method, entry.rival, limit)
        if limit is not None and verdict == HOLDS:
            if ratio is None:
                verdict, note = UNDECIDED, "the device FLOPs of one of the two are not known"
            elif ratio > limit:
                verdict = FAILS
        result.append(replace(entry, verdict=verdict, p_value=p_value, flops_ratio=ratio, note=note))
    return result


def flops_ratio(costs: Mapping[str, Mapping[str, Any]], method: str, rival: str, reuse: int) -> float | None:
    """Device FLOPs per answered clip of one row over another's; None where one is not known."""
    ours, theirs = (amortised(costs.get(name, {}), "flops", reuse) for name in (method, rival))
    return ours / theirs if ours and theirs else None


def within_from(costs: Mapping[str, Mapping[str, Any]], method: str, rival: str, limit: float) -> str:
    """From how many answered clips per adaptation on the method costs at most ``limit`` times the rival, as a note."""
    ours, theirs = costs.get(method, {}), amortised(costs.get(rival, {}), "flops", float("inf"))
    if ours.get("answer_flops") is None or ours.get("adapt_flops") is None or theirs is None:
        return ""
    room = limit * theirs - float(ours["answer_flops"])
    if room <= 0:
        return f"it costs more than {limit:g} times the rival however many clips one adaptation serves"
    return f"at most {limit:g} times once one adaptation serves {max(1, math.ceil(ours['adapt_flops'] / room))} clips"


def _gap(claim: Claim, rows: Mapping[str, Row], metric: str) -> Comparand:
    """Whether more than a share of the gap between clean and shifted data is closed.

    The gap is what the rival loses on shifted data. ``method - shifted - share * (clean - shifted)`` is linear in the
    three means, which share devices and clips.
    """
    rival = claim.rivals[0]
    missing = [name for name in (claim.method, rival) if name not in rows]
    if missing:
        return Comparand(rival, NOT_TESTED, note=f"row '{missing[0]}' was not measured")
    method = pool(rows[claim.method], claim.split, metric)
    shifted = pool(rows[rival], claim.split, metric)
    clean = pool(rows[rival], claim.clean_split, metric)
    if method is None or shifted is None or clean is None:
        absent = claim.clean_split if clean is None else claim.split
        return Comparand(rival, NOT_TESTED, note=f"no {metric} on {absent}")
    sign = -1.0 if lower_is_better(metric) else 1.0
    weights = (1.0, claim.share - 1.0, -claim.share)
    sets = [(p.values, p.device, p.clip) for p in (method, shifted, clean)]
    excess = clustered_combination(sets, [sign * weight for weight in weights])
    lost = sign * (clean.values.mean() - shifted.values.mean())
    closed = sign * (method.values.mean() - shifted.values.mean())
    scale, unit = (100.0, " points") if "accuracy" in metric or "R@" in metric else (1.0, "")
    text = f"the rival loses {scale * lost:.3g}{unit} on shifted data, of which {scale * closed:.3g} are regained"
    if lost <= 0:
        return Comparand(rival, UNDECIDED, note="there is no gap: the rival is no worse on shifted data")
    entry = _measured(rival, excess, f"{text} ({closed / lost:.0%}); the interval is of the excess over the share")
    if entry.low is None or entry.high is None:
        return entry
    verdict = HOLDS if entry.low > 0 else FAILS if entry.high <= 0 else UNDECIDED
    return replace(entry, verdict=verdict, p_value=excess.p_value())
