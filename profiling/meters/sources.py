"""What energy can be read from: instantaneous power, or a counter of joules. Each source names itself and its scope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class SourceLost(Exception):
    """A sensor that could be read when it was opened cannot be read any more."""


@dataclass(frozen=True)
class Unavailable:
    """A source that this machine does not offer.

    Attributes:
        name: Name of the source, for example ``rapl``.
        reason: Why, and what would make it readable.
    """

    name: str
    reason: str


@runtime_checkable
class PowerSource(Protocol):
    """Instantaneous power of one or more rails.

    Attributes:
        name: ``nvml_polled``, ``ina3221`` or ``ina238``.
        scope: What the total covers: ``module``, ``board``, ``gpu`` or ``rails``.
        scope_note: The same in a sentence.
        total: Names of the rails whose sum is the total; empty where no total is known.
        update_interval_s: Seconds between two new values of the sensor.
        update_interval_known: False where the interval is an assumption.
        resolution_w: Step in which the sensor reports, watts.
    """

    name: str
    scope: str
    scope_note: str
    total: Sequence[str]
    update_interval_s: float
    update_interval_known: bool
    resolution_w: float

    def read_w(self) -> Mapping[str, float]:
        """Watts of every rail now.

        Raises:
            SourceLost: If a rail of the total cannot be read.
        """


class CounterSource(Protocol):
    """A counter that the hardware keeps.

    Attributes:
        name: ``nvml_counter`` or ``rapl``.
        scope: ``gpu`` or ``package``.
        scope_note: The same in a sentence.
        update_interval_s: Seconds between two updates of the counter.
        resolution_j: Step of the counter, joules.
    """

    name: str
    scope: str
    scope_note: str
    update_interval_s: float
    resolution_j: float

    def read_j(self) -> float:
        """Joules since an arbitrary moment; never falls.

        Raises:
            SourceLost: If the counter cannot be read.
        """
