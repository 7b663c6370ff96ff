"""From a configuration and a bundle to the cells of the grid; what cannot work is refused or listed with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.config import EngineSelection, ProfileConfig
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import EngineRow, engine_class, engine_table
from lit_mmpg.tasks import find_task

NEEDS_PARAMETERS = ("personalise", "adapt", "stream", "finetune")


@dataclass(frozen=True)
class Cell:
    """One row of the result.

    Attributes:
        selection: The engine with its options.
        precision: Of the ``model`` graph.
        batch: Clips at once.
        scenario: See :mod:`lit_mmpg.profiling.scenarios`.
        encoder: Whether the frame encoder is in the measured path.
        absent: Why the cell cannot run here; None where it can.
    """

    selection: EngineSelection
    precision: str
    batch: int
    scenario: str
    encoder: bool
    absent: str | None = None

    @property
    def engine(self) -> str:
        """Name of the engine."""
        return self.selection.engine

    @property
    def fields(self) -> dict[str, Any]:
        """What a row of a profile says of its cell."""
        return {
            "engine": self.engine,
            "options": dict(self.selection.options),
            "precision": self.precision,
            "batch": self.batch,
            "scenario": self.scenario,
            "encoder_included": self.encoder,
        }

    @property
    def title(self) -> str:
        """One line for people."""
        path = "pixels to answer" if self.encoder else "features to answer"
        return f"{self.engine} {self.precision} batch {self.batch} {self.scenario} ({path})"


def engines_here() -> dict[str, EngineRow]:
    """All engines by name, with the reasons why they cannot run on this machine."""
    return {row.name: row for row in engine_table()}


def make_plan(config: ProfileConfig, bundle: Bundle) -> list[Cell]:
    """All cells, in the order in which they run.

    Raises:
        UserError: If the configuration names an engine that does not exist, a precision that an engine never runs, or
            an option that it does not have.
    """
    rows = engines_here()
    cells: list[Cell] = []
    for selection in config.engines:
        _check(selection, rows)
        for precision in selection.precisions:
            for scenario in config.scenarios:
                if scenario == "finetune":
                    continue
                for encoder in {"without": (False,), "with": (True,), "both": (False, True)}[config.encoder]:
                    for batch in config.batches if scenario in ("answer", "offline") else (1,):
                        absent = _absent(selection, precision, scenario, encoder, rows, bundle)
                        cells.append(Cell(selection, precision, batch, scenario, encoder, absent))
    if "finetune" in config.scenarios:
        # Training is torch's, whatever engines answer: one row.
        torch = EngineSelection("torch")
        absent = _absent(torch, "fp32", "finetune", False, rows, bundle)
        cells.append(Cell(torch, "fp32", 1, "finetune", False, absent))
    return [c for i, c in enumerate(cells) if not c.selection.compile_only or _first(cells, i)]


def _first(cells: list[Cell], index: int) -> bool:
    """Compilation does not depend on batch, scenario or path: one row says it all."""
    key = (cells[index].selection, cells[index].precision)
    return all((c.selection, c.precision) != key for c in cells[:index])


def _check(selection: EngineSelection, rows: dict[str, EngineRow]) -> None:
    if selection.engine not in rows:
        engine_class(selection.engine)  # raises with the nearest name
    row = rows[selection.engine]
    impossible = sorted(set(selection.precisions) - set(row.precisions)) if row.precisions else []
    if impossible:
        raise UserError(
            f"engine '{selection.engine}' runs {', '.join(row.precisions)}, not {', '.join(impossible)}; "
            "change engines.precisions"
        )
    if row.precisions:  # a class whose library is missing cannot check its options
        cls = engine_class(selection.engine)
        cls.config_class.from_options(selection.engine, selection.options)


def _absent(
    selection: EngineSelection,
    precision: str,
    scenario: str,
    encoder: bool,
    rows: dict[str, EngineRow],
    bundle: Bundle,
) -> str | None:
    row = rows[selection.engine]
    reason = row.reason
    if selection.compile_only and row.precisions:
        # Compiling needs less than running: no GPU, for example.
        cls = engine_class(selection.engine)
        compiler = getattr(cls, "compile_requirements", None)
        config = cls.config_class.from_options(selection.engine, selection.options) if len(bundle.spec) else None
        reason = compiler(config) if compiler else "this engine has no compilation of its own; remove compile_only"
    if reason:
        return reason
    if precision not in bundle.precisions("model"):
        return f"the bundle holds no {precision} graph; {bundle.why_not('model', precision)}"
    if encoder and "encode" not in bundle.roles:
        return "the bundle holds no frame encoder; export with --frame-encoder"
    if scenario in NEEDS_PARAMETERS and not len(bundle.spec):
        return "the bundle's model takes no personal parameters"
    if scenario == "personalise":
        path = [*(["encode"] if encoder else []), "model", *find_task(bundle.manifest.task).paired_roles]
        if not any(entry.graph in path for entry in bundle.spec):
            return "all personal parameters act in the frame encoder, which is not in the path from features"
    return None
