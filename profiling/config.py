"""What a profile measures: engines, precisions, batches, scenarios, meters and links. Bad combinations stop here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.files import find_config, parse_yaml, read_config, read_yaml
from lit_mmpg.profiling.meters.energy import EnergyConfig
from lit_mmpg.profiling.meters.latency import LatencyConfig
from lit_mmpg.profiling.meters.network import LinkModel
from lit_mmpg.runtime.manifest import PRECISIONS
from lit_mmpg.runtime.network import parse_address
from lit_mmpg.settings import MOST, from_plain, within

SCENARIOS = (
    "answer",
    "personalise",
    "offline",
    "multistream",
    "server",
    "layers",
    "adapt",
    "stream",
    "finetune",
    "sustained",
)
ENCODER = ("without", "with", "both")


@dataclass(frozen=True)
class EngineSelection:
    """One engine to profile.

    Attributes:
        engine: Its name, see ``lit-mmpg profile engines``.
        precisions: Precisions of the graphs.
        options: Options of the engine.
        compile_only: Build and report, without a run: for compilers whose target is not this machine.
    """

    engine: str
    precisions: tuple[str, ...] = ("fp32",)
    options: Mapping[str, Any] = field(default_factory=dict)
    compile_only: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.precisions) - set(PRECISIONS))
        if unknown or not self.precisions:
            raise UserError(
                f"engines: {self.engine}: precisions {unknown or '[]'}; choose from {', '.join(PRECISIONS)}"
            )


@dataclass(frozen=True)
class StreamConfig:
    """A stream of clips.

    Attributes:
        clips: Number of clips.
        adapt_every: Clips per adaptation.
    """

    clips: int = 64
    adapt_every: int = 8

    def __post_init__(self) -> None:
        within("stream.", 1, 1_000_000, clips=self.clips)
        if not 1 <= self.adapt_every <= self.clips:
            raise UserError("stream: adapt_every must lie between 1 and clips")


@dataclass(frozen=True)
class SustainedConfig:
    """A load without pauses.

    Attributes:
        duration_s: Length, seconds; ten minutes show whether the cooling holds.
        interval_s: Length of the intervals whose median latency, temperature and clocks are kept.
    """

    duration_s: float = 600.0
    interval_s: float = 5.0

    def __post_init__(self) -> None:
        within("sustained.", 0.01, interval_s=self.interval_s)
        if self.interval_s > self.duration_s:
            raise UserError("sustained: interval_s must lie between 0.01 and duration_s")


@dataclass(frozen=True)
class ThroughputConfig:
    """The scenarios ``offline``, ``multistream`` and ``server``.

    Attributes:
        duration_s: Length of each measurement, seconds; for ``server`` of each probe.
        streams: Streams at once in ``multistream``.
        p99_limit_ms: Limit of the 99th percentile in ``server``; five times the median without waiting when None.
        probes: Steps of the bisection in ``server``.
    """

    duration_s: float = 5.0
    streams: int = 2
    p99_limit_ms: float | None = None
    probes: int = 8

    def __post_init__(self) -> None:
        if self.duration_s <= 0:
            raise UserError("throughput: duration_s must be positive")
        within("throughput.", 1, 256, streams=self.streams, probes=self.probes)
        if self.p99_limit_ms is not None and self.p99_limit_ms <= 0:
            raise UserError(f"throughput: p99_limit_ms is {self.p99_limit_ms}; it must be positive")


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning on the device, whose cost generated parameters avoid.

    Attributes:
        steps: Optimiser steps of one adaptation; take the number from a comparison of accuracies.
        batch: Labelled clips in a step.
        lr: Learning rate.
    """

    steps: int = 100
    batch: int = 16
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0:
            raise UserError("finetune: steps and lr must be positive")
        within("finetune.", 1, MOST, batch=self.batch)


@dataclass(frozen=True)
class CloudConfig:
    """Source of the cloud half's time in the scenario ``adapt``.

    Attributes:
        url: A running service (``lit-mmpg serve``); None: not measured over a network.
        ckpt: Checkpoint whose cloud half runs in this process (needs torch); None: not measured.
        api_key_env: Environment variable that holds the service's API key; a key itself does not belong in a file.
    """

    url: str | None = None
    ckpt: str | None = None
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        if self.url and self.ckpt:
            raise UserError("cloud: give url or ckpt, not both")
        if self.url is not None:  # before it is written anywhere
            parse_address(self.url, "cloud.url")


@dataclass(frozen=True)
class ProfileConfig:
    """Settings of a profile.

    Attributes:
        name: Name of the board or machine, for titles and runs.
        engines: Engines with their precisions and options.
        batches: Batch sizes of the scenarios ``answer`` and ``offline``; all others answer one clip at a time.
        scenarios: From ``SCENARIOS``.
        encoder: Whether the frame encoder is in the measured path: ``without``, ``with``, or ``both`` (a row each).
        measure_memory: Run each engine in a fresh process for its memory.
        measure_energy: Measure energy.
        latency: Settings of the latency meter.
        energy: Settings of the energy meter.
        stream: Settings of the scenario ``stream``.
        sustained: Settings of the scenario ``sustained``.
        throughput: Settings of the scenarios ``offline``, ``multistream`` and ``server``.
        finetune: Settings of the scenario ``finetune``.
        cloud: Source of the cloud half's time.
        links: Links whose cost is modelled.
        expected_rails: Rails whose sum is the board's total; a warning tells if the board has others.
    """

    name: str
    engines: tuple[EngineSelection, ...]
    batches: tuple[int, ...] = (1,)
    scenarios: tuple[str, ...] = ("answer", "personalise")
    encoder: str = "both"
    measure_memory: bool = True
    measure_energy: bool = True
    latency: LatencyConfig = LatencyConfig()
    energy: EnergyConfig = EnergyConfig()
    stream: StreamConfig = StreamConfig()
    sustained: SustainedConfig = SustainedConfig()
    throughput: ThroughputConfig = ThroughputConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    cloud: CloudConfig = CloudConfig()
    links: tuple[LinkModel, ...] = ()
    expected_rails: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip(". ") or {"/", "\0"} & set(self.name):
            raise UserError(f"name is {self.name!r}; it names the folder of the results: give a text without '/'")
        if not self.engines:
            raise UserError("engines: none is named; see lit-mmpg profile engines")
        if not self.batches or min(self.batches) < 1 or max(self.batches) > MOST:
            raise UserError(f"batches: {list(self.batches)} must be numbers between 1 and {MOST}")
        for what, values, known in (("scenarios", self.scenarios, SCENARIOS), ("encoder", (self.encoder,), ENCODER)):
            unknown = sorted(set(values) - set(known))
            if unknown or not values:
                raise UserError(f"{what}: {', '.join(unknown) or 'none'}; choose from {', '.join(known)}")
        graphs = [(own.engine, precision, own.options) for own in self.engines for precision in own.precisions]
        named: dict[str, Sequence[object]] = {
            "engines": [" ".join(map(str, graph[: 2 + bool(graph[2])])) for graph in graphs],
            "batches": self.batches,
            "scenarios": self.scenarios,
            "links": [link.name for link in self.links],
        }
        for what, entries in named.items():
            twice = [entry for i, entry in enumerate(entries) if entry in entries[:i]]
            if twice:
                raise UserError(f"{what}: {twice[0]} is there twice; delete one")


def load_config(path: Path, overrides: Sequence[str] = ()) -> ProfileConfig:
    """Read a configuration.

    Args:
        path: YAML file, or one of its variants; ``links`` may be a file beside it.
        overrides: ``key=value`` with dotted keys and YAML values, for example ``latency.min_count=20``.

    Raises:
        UserError: If the file is not readable or a field does not exist or does not fit.
    """
    data = read_config(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a mapping of settings")
    if isinstance(data.get("links"), str):
        data["links"] = read_yaml(find_config(data["links"], path.parent))
    for override in overrides:
        _apply(data, override)
    try:
        return from_plain(ProfileConfig, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write key=value, for example latency.min_count=20")
    value = parse_yaml(text, f"--set {override}: the value")
    node = data
    *groups, last = key.split(".")
    for group in groups:
        node = node.setdefault(group, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {override}: '{group}' holds no settings")
    node[last] = value
