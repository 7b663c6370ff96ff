"""Scenarios: what is done with a bundle while it is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_mmpg.profiling.config import ProfileConfig
from lit_mmpg.profiling.meters.latency import Distribution, Latency
from lit_mmpg.profiling.meters.sources import CounterSource, PowerSource
from lit_mmpg.profiling.pipeline import Pipeline

Say = Callable[[str], None]


@dataclass(frozen=True)
class Context:
    """What a scenario works with.

    Attributes:
        pipeline: Activated and verified engines.
        config: The configuration.
        say: Shows one line of progress.
        sources: Energy sources that can be read, for scenarios that record power as time goes by.
        gpu: GPU that NVML shows, or None.
        root: Root of the file systems that are read.
    """

    pipeline: Pipeline
    config: ProfileConfig
    say: Say
    sources: Sequence[PowerSource | CounterSource] = ()
    gpu: Any = None
    root: Path = Path("/")


@dataclass(frozen=True)
class Outcome:
    """What a scenario measured.

    Attributes:
        unit: One unit of work in words; None where nothing was measured.
        latency: Latency of a unit.
        work: One unit, for the energy meter; None where the scenario has no such pass.
        stages: Parts of a unit.
        series: Time series.
        bytes: Sizes of the messages.
        network: Modelled costs of the messages.
        personalisation: Time to the first right answer with new parameters, and the ratio to baked ones.
        throughput: ``mode`` by MLPerf's name, ``answers_per_s``, and how it was found.
        notes: What a reader should know.
    """

    unit: str | None = None
    latency: Latency | None = None
    work: Callable[[], object] | None = None
    stages: Mapping[str, Distribution | None] = field(default_factory=dict)
    series: Mapping[str, Any] = field(default_factory=dict)
    bytes: Mapping[str, Any] | None = None
    network: Sequence[Mapping[str, Any]] = ()
    throughput: Mapping[str, Any] | None = None
    personalisation: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()


Scenario = Callable[[Context], Outcome]


def find_scenario(name: str) -> Scenario:
    """The function of a scenario, imported when it is asked for."""
    from importlib import import_module

    run: Scenario = import_module(f"lit_mmpg.profiling.scenarios.{name}").run
    return run


def more_roles(name: str) -> tuple[str, ...]:
    """Roles that a scenario needs beside those of an answer."""
    return ("project",) if name in ("adapt", "stream") else ()
