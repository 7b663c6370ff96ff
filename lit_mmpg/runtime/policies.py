"""When a device asks the cloud: always, every so many clips, on drift, on uncertainty.

A reconstruction. What a policy may know is a :class:`Situation`; it keeps nothing itself, so it can be changed between
two starts of a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lit_mmpg.errors import UserError


@dataclass(frozen=True)
class Situation:
    """What a device knows when a clip has come into its context and nothing has been answered about it yet.

    Attributes:
        personal: Whether the device has personal parameters.
        context: Clips in the context.
        clips: Clips since the last adaptation, this one included.
        drift: Distance of the context's mean anchor from that at the last adaptation, as a share of the length of an
            anchor: 0 for none, about 1.4 for a context that has nothing in common with the former.
        answers: Answers since the last adaptation, at most those that :data:`RECENT` says.
        uncertainty: One minus their mean confidence, 0 to 1; 0 where there is none.
    """

    personal: bool
    context: int
    clips: int
    drift: float
    answers: int
    uncertainty: float


RECENT = 12
"""Answers that count as recent."""


def drift(means: np.ndarray, reference: np.ndarray) -> float:
    """See :attr:`Situation.drift`.

    Args:
        means: ``[C, H]`` mean anchor of each clip of the context.
        reference: ``[H]`` mean of those at the last adaptation.
    """
    length = float(np.sqrt(np.square(means).sum(1).mean()))
    return float(np.linalg.norm(means.mean(0) - reference)) / max(length, 1e-9)


class Policy(Protocol):
    """A rule when to ask."""

    def asks(self, situation: Situation) -> bool:
        """Whether to ask now."""


@dataclass(frozen=True)
class Always:
    """At each clip."""

    def asks(self, situation: Situation) -> bool:
        """See :class:`Policy`."""
        return True

    def __str__(self) -> str:
        return "always"


@dataclass(frozen=True)
class EveryN:
    """At each N-th clip.

    Attributes:
        clips: N, at least 1.
    """

    clips: int

    def asks(self, situation: Situation) -> bool:
        """See :class:`Policy`."""
        return not situation.personal or situation.clips >= self.clips

    def __str__(self) -> str:
        return f"every:{self.clips}"


@dataclass(frozen=True)
class Drift:
    """When the context has moved away from what the parameters were made for.

    A context that fills up moves, too: its first clips ask several times, a settled one seldom.

    Attributes:
        distance: From which :attr:`Situation.drift` on, above 0.
        first: Clips before the first request: what a cloud makes of one clip may be worse than nothing.
    """

    distance: float
    first: int = 3

    def asks(self, situation: Situation) -> bool:
        """See :class:`Policy`."""
        if not situation.personal:
            return max(situation.context, situation.clips) >= self.first  # a context may never hold as many
        return situation.drift >= self.distance

    def __str__(self) -> str:
        return f"drift:{self.distance:g}"


@dataclass(frozen=True)
class Uncertainty:
    """When the recent answers are unsure.

    Attributes:
        level: From which :attr:`Situation.uncertainty` on, above 0 and below 1.
        answers: Answers that must be there since the last adaptation, so that one hard question does not ask and a
            device that stays unsure does not ask all the time.
    """

    level: float
    answers: int = 6

    def asks(self, situation: Situation) -> bool:
        """See :class:`Policy`."""
        if not situation.personal:
            return True
        return situation.answers >= self.answers and situation.uncertainty >= self.level

    def __str__(self) -> str:
        return f"uncertainty:{self.level:g}"


KINDS = "always, every:N, drift:X or uncertainty:X"


def parse_policy(text: str) -> Policy:
    """The policy that a command line names.

    Args:
        text: ``always``, ``every:N``, ``drift:X`` or ``uncertainty:X``.

    Raises:
        UserError: If it names none, or its number is out of range.

    Example:
        >>> parse_policy("every:8")
        EveryN(clips=8)
        >>> parse_policy("drift:-1")
        Traceback (most recent call last):
        lit_mmpg.errors.UserError: --policy 'drift:-1': X is a number above 0; write drift:0.3
    """
    kind, colon, number = text.partition(":")
    if kind == "always" and not colon:
        return Always()
    if kind not in ("every", "drift", "uncertainty"):
        raise UserError(f"--policy '{text}' is unknown; write {KINDS}")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind == "every":
        if not (value >= 1 and value.is_integer()):
            raise UserError(f"--policy '{text}': N is a whole number of clips, at least 1; write every:8")
        return EveryN(int(value))
    top = math.inf if kind == "drift" else 1.0
    if not 0 < value < top:
        limits = "above 0" if kind == "drift" else "above 0 and below 1"
        raise UserError(f"--policy '{text}': X is a number {limits}; write {kind}:0.3")
    return Drift(value) if kind == "drift" else Uncertainty(value)
