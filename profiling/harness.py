"""Runs a plan: right before fast, one row after the other, each row written as soon as it is there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from lit_mmpg import sysfs
from lit_mmpg.errors import UserError, reason_of
from lit_mmpg.profiling import document, environment
from lit_mmpg.profiling.config import ProfileConfig
from lit_mmpg.profiling.meters import emissions, energy, memory, nvml, rails, rapl, state
from lit_mmpg.profiling.meters.latency import elapsed_ms
from lit_mmpg.profiling.meters.sources import CounterSource, PowerSource, SourceLost, Unavailable
from lit_mmpg.profiling.pipeline import Pipeline
from lit_mmpg.profiling.plan import Cell, engines_here
from lit_mmpg.profiling.scenarios import Context, Outcome, find_scenario, more_roles
from lit_mmpg.profiling.schema import KIND, VERSION
from lit_mmpg.report import json_ready
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import create_engine

Say = Callable[[str], None]
VERDICT = ("role", "precision", "ok", "figures", "limits", "problems")
"""What a row keeps of :class:`lit_mmpg.runtime.verify.Verdict`: the engine is its own."""


@dataclass(frozen=True)
class Instruments:
    """What this machine offers to measure with, opened once.

    Attributes:
        gpu: GPU that NVML shows, or why there is none.
        sources: Energy sources that answer.
        unavailable: Sources that do not, with their reasons.
        root: Root of the file systems that are read.
    """

    gpu: nvml.Gpu | Unavailable
    sources: Sequence[PowerSource | CounterSource]
    unavailable: Sequence[Unavailable]
    root: Path = Path("/")

    @classmethod
    def open(cls, root: Path | None = None) -> Instruments:
        """Try everything that there is.

        Args:
            root: Root of the file systems that are read; ``LIT_MMPG_ROOT`` or ``/`` when None.
        """
        root = sysfs.system_root() if root is None else root
        gpu = nvml.open_gpu()
        found = [rails.open_rails(root), nvml.open_energy(gpu), rapl.open_rapl(root)]
        sources = [source for source in found if not isinstance(source, Unavailable)]
        return cls(gpu, sources, [source for source in found if isinstance(source, Unavailable)], root)

    @property
    def known_gpu(self) -> nvml.Gpu | None:
        """The GPU, or None."""
        return self.gpu if isinstance(self.gpu, nvml.Gpu) else None

    @property
    def power_rails(self) -> rails.RailSource | None:
        """The board's power rails, or None."""
        return next((source for source in self.sources if isinstance(source, rails.RailSource)), None)


@dataclass
class Harness:
    """Measures the cells of a plan.

    Attributes:
        bundle: The bundle.
        config: The configuration.
        instruments: Opened sources.
        say: Shows one line of progress.
    """

    bundle: Bundle
    config: ProfileConfig
    instruments: Instruments
    say: Say = lambda _: None
    _memory: dict[str, memory.Memory] = field(default_factory=dict)

    def start(self) -> document.Document:
        """The document without rows."""
        manifest = self.bundle.manifest
        return json_ready(
            {
                "kind": KIND,
                "schema_version": VERSION,
                "digest": "",
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "state": "running",
                "name": self.config.name,
                "bundle": {
                    "path": self.bundle.path.name,
                    "task": manifest.task,
                    "checkpoint_digest": manifest.checkpoint_digest,
                    "run_id": manifest.run_id,
                    "tracking_uri": manifest.tracking_uri,
                    "roles": {role: self.bundle.precisions(role) for role in self.bundle.roles},
                },
                "config": self.config,
                "environment": environment.describe(self.instruments.root, self.instruments.gpu)
                | {
                    "energy_sources": [
                        {"name": s.name, "scope": s.scope, "note": s.scope_note} for s in self.instruments.sources
                    ],
                    "energy_unavailable": self.instruments.unavailable,
                    **self._rails(),
                },
                "engines": [
                    {"name": row.name, "help": row.help, "precisions": row.precisions, "reason": row.reason}
                    for row in engines_here().values()
                ],
                "rows": [],
            }
        )

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Measure one cell; what goes wrong becomes its reason."""
        row: dict[str, Any] = {
            **cell.fields,
            **_measured(Outcome()),
            "status": "absent",
            "reason": cell.absent,
            "roles": {},
            "engine_details": {},
            "verdicts": [],
            "activate_ms": None,
            "build_ms": {},
            "memory": None,
            "energy": [],
            "state_before": None,
            "state_after": None,
            "throttled": [],
            "throttle_watch": None,
        }
        if cell.absent is None:
            try:
                self._compile(cell, row) if cell.selection.compile_only else self._run(cell, row)
                self.require_same_bundle()
            except Exception as error:  # one engine's failure must not cost the other rows
                row["status"] = "failed"
                row["reason"] = reason_of(error)
        return json_ready(row)

    def require_same_bundle(self) -> None:
        """Check that the bundle is still the one that was opened: every cell reads its files again.

        Raises:
            UserError: If it was replaced or damaged since.
        """
        if Bundle.open(self.bundle.path).manifest != self.bundle.manifest:
            raise UserError(f"{self.bundle.path} was replaced while it was measured; measure it again")

    def _run(self, cell: Cell, row: dict[str, Any]) -> None:
        with Pipeline(self.bundle, cell, more_roles(cell.scenario)) as pipeline:
            row |= {"roles": pipeline.roles, "activate_ms": pipeline.activate_ms}
            row["engine_details"] = pipeline.engines["model"].describe()
            row["build_ms"] = pipeline.build_ms
            cold_ms = elapsed_ms(pipeline.answer)
            self.say("comparing with the reference")
            verdicts = pipeline.verify()
            row["verdicts"] = [{name: getattr(verdict, name) for name in VERDICT} for verdict in verdicts]
            wrong = [f"{v.role}: {problem}" for v in verdicts if not v.ok for problem in v.problems]
            if wrong:
                row |= {
                    "status": "wrong",
                    "reason": "outputs differ from the reference, not timed: " + "; ".join(wrong),
                }
                return
            root, gpu = self.instruments.root, self.instruments.known_gpu
            before = state.read_state(root, gpu)
            self.say("latency")
            context = Context(pipeline, self.config, self.say, self.instruments.sources, gpu, root)
            with state.Watch(root, gpu) as watch:
                outcome = find_scenario(cell.scenario)(context)
                if self.config.measure_energy and outcome.work is not None:
                    row["energy"] = self._energy(outcome, watch)
            if outcome.latency is not None and cell.scenario != "finetune":
                # The comparison has warmed the engine up: the first answer was before it.
                outcome = replace(outcome, latency=replace(outcome.latency, cold_ms=cold_ms))
            row |= _measured(outcome)
            after = state.read_state(root, gpu)
            row |= {"state_before": before, "state_after": after, "throttle_watch": watch.to_json()}
            row["throttled"] = state.throttled(before, after, watch.episodes)
        if self.config.measure_memory:
            row["memory"] = self._memory_of(cell, row["roles"])
        row["status"] = "ok"

    def _compile(self, cell: Cell, row: dict[str, Any]) -> None:
        roles = {}
        sizes = {}
        begin = time.perf_counter()
        for role in self.bundle.roles:
            precision = cell.precision if cell.precision in self.bundle.precisions(role) else "fp32"
            engine = create_engine(cell.engine, self.bundle, role, precision, **cell.selection.options)
            self.say(f"compiling {role} {precision}")
            sizes[role] = len(engine.build())
            roles[role] = precision
            row["engine_details"] = engine.describe()
        row |= {
            "status": "compiled",
            "reason": "compiled ahead of time and not run: no figure of speed comes from this row",
            "roles": roles,
            "activate_ms": (time.perf_counter() - begin) * 1e3,
            "engine_details": row["engine_details"] | {"compiled_bytes": sizes},
            "memory": memory.Memory(engine_bytes=sum(sizes.values()), reason="not run", device_reason="not run"),
        }

    def _energy(self, outcome: Outcome, watch: state.Watch) -> list[energy.Energy]:
        assert outcome.work is not None
        found = []
        quiet = partial(state.wait_quiet, root=self.instruments.root)
        for source in self.instruments.sources:
            self.say(f"energy by {source.name}")
            watch.enter(f"energy by {source.name}")
            found.append(energy.measure(source, outcome.work, self.config.energy, wait_quiet=quiet))
        if any(e.gross_j_per_unit is not None for e in found):
            return found
        missing = list(self.instruments.unavailable)
        model = emissions.available()
        if model is None and self.config.energy.model:
            self.say("energy by codecarbon's model")
            watch.enter("energy by codecarbon's model")
            return [*found, energy.nothing(missing), emissions.estimate(outcome.work, self.config.energy)]
        missing.append(model or Unavailable(emissions.SOURCE, "switched off by energy.model"))
        return [*found, energy.nothing(missing)]

    def _memory_of(self, cell: Cell, roles: dict[str, str]) -> memory.Memory:
        """Memory of the model's engine and, where it is in the path, the encoder's: in one fresh process.

        Of the scenario ``stream``: of a process that lives through it, with all that it needs.
        """
        request = json_ready(
            {
                "bundle": str(self.bundle.path.resolve()),
                "engine": cell.engine,
                "roles": {role: roles[role] for role in ("encode", "model") if role in roles},
                "options": cell.selection.options,
                "batch": cell.batch,
                "finetune": self.config.finetune if cell.scenario == "finetune" else None,
                "stream": self.config.stream if cell.scenario == "stream" else None,
            }
        )
        key = json.dumps(request)
        if key not in self._memory:
            self.say("memory in a fresh process")
            self._memory[key] = memory.measure(request)
        return self._memory[key]

    def _rails(self) -> dict[str, Any]:
        """Power of every rail now, and why channels that exist are not among them."""
        source = self.instruments.power_rails
        if source is None:
            return {"rails": {}, "rails_unreadable": []}
        try:
            return {"rails": source.read_w(), "rails_unreadable": source.problems}
        except SourceLost as error:
            return {"rails": {}, "rails_unreadable": [*source.problems, str(error)]}


def expected_rails_missing(config: ProfileConfig, instruments: Instruments) -> str | None:
    """A sentence where this machine does not show the rails that the configuration expects; None where it does."""
    if not config.expected_rails:
        return None
    total = instruments.power_rails.total if instruments.power_rails else ()
    if set(total) == set(config.expected_rails):
        return None
    return (
        f"'{config.name}' expects the rails {', '.join(config.expected_rails)}; "
        f"this machine shows {', '.join(total) or 'none'}"
    )


def _measured(outcome: Outcome) -> dict[str, Any]:
    """What a row keeps of an outcome: all but the work itself."""
    return {entry.name: getattr(outcome, entry.name) for entry in fields(outcome) if entry.name != "work"}
