"""The comparison file: what is trained, what is adapted afterwards, and which claims the result has to answer.

title: Personal clips
about: One paragraph for a reader who has never seen the project.
seeds: [0, 1, 2]
seed_flags: ["--data.clips.seed={seed}"]          # further arguments of every run, a function of the seed
tests: {clean: [--data.clips.camera_severity=0]}  # further test passes on other data
reference: static                                 # the row against which every row's difference is shown
runs:
static:     {config: demo.yaml, stage: device, about: One sentence.}
elsewhere:  {config: demo.yaml, stage: device, checkpoint: "notebook-{seed}.ckpt"}
cdc_mmpg:   {config: demo.yaml, device_half: static, also: [shuffled_device]}
adapted:
tent:       {method: tent, checkpoint: static, options: {steps: 1}}
baselines: [ridge]
claims:
beats_static: {text: ..., method: cdc_mmpg, rivals: [static], margin: 0.0}

A file whose runs say ``config: "{data}"`` is a template: ``--data`` names the experiment of a data set, whose ``title``
and ``about`` are those of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError, closest
from lit_mmpg.files import find_config, read_config, read_yaml, split_variant
from lit_mmpg.settings import from_plain

BASELINES = ("ridge",)
TEMPLATE = "{data}"
"""Configuration of the runs of a template."""
GAP = "gap"
DIFFERENCE = "difference"


@dataclass(frozen=True)
class TrainedRun:
    """One training run of a comparison.

    Attributes:
        config: Experiment file, relative to the comparison's file.
        stage: ``device`` trains the device half of an experiment with both alone.
        flags: Further arguments of ``fit``.
        device_half: Name of an earlier run whose checkpoint is the device half.
        also: Further methods of the test to report (controls), beside the run's own: row name -> method of the test.
        test_flags: Further arguments of ``test`` (a model that was trained on other data than it is tested on).
        about: One sentence on what this is, for the report.
        checkpoint: Checkpoint of a model that was trained elsewhere, as in a notebook, instead of a training here;
            ``{seed}`` in it stands for the seed.
    """

    config: str
    stage: str | None = None
    flags: tuple[str, ...] = ()
    device_half: str | None = None
    also: Mapping[str, str] = field(default_factory=dict)
    test_flags: tuple[str, ...] = ()
    about: str = ""
    checkpoint: str | None = None


@dataclass(frozen=True)
class AdaptedRow:
    """A method that adapts a trained checkpoint afterwards, without a training run of its own.

    Attributes:
        method: Name of the method.
        checkpoint: Name of the run whose checkpoint it starts from.
        options: Settings of the method.
        about: One sentence on what this is, for the report.
    """

    method: str
    checkpoint: str
    options: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True)
class Claim:
    """A sentence that the comparison confirms, refutes or leaves open.

    The advantage of the method over a rival is the difference of the metric, signed so that more is better. The claim
    says that it exceeds ``margin`` against *every* rival.

    Attributes:
        id: Name.
        text: The sentence.
        method: Row that the claim is about.
        rivals: Rows that it is held against.
        margin: Least advantage, in units of the metric (accuracy and R@k as fractions); below 0: "never worse than".
        metric: Metric; ``None`` for the task's primary one.
        split: Group of test devices.
        kind: ``difference``; or ``gap``: the method closes more than ``share`` of what the first rival loses between
            ``clean_split`` and ``split``.
        share: Share of the gap.
        clean_split: Group of test devices without a shift.
        max_device_flops_ratio: The method may cost at most this many times the device FLOPs of each rival, per answer
            and with its adaptation amortised over ``reuse`` answers; ``None``: cost is shown but no condition.
        reuse: Answers that one adaptation serves, for the condition.
    """

    id: str
    text: str
    method: str
    rivals: tuple[str, ...] = ()
    margin: float = 0.0
    metric: str | None = None
    split: str = "test_unseen"
    kind: str = DIFFERENCE
    share: float = 0.5
    clean_split: str = "test_clean"
    max_device_flops_ratio: float | None = None
    reuse: int = 256


@dataclass(frozen=True)
class _File:
    """What a comparison file may hold."""

    runs: Mapping[str, TrainedRun]
    title: str = ""
    about: str = ""
    seeds: tuple[int, ...] = (0,)
    seed_flags: tuple[str, ...] = ()
    tests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reference: str | None = None
    frame_encoder: Mapping[str, Any] | None = None
    adapted: Mapping[str, AdaptedRow] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()
    claims: Mapping[str, Claim] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A parsed comparison file; ``only`` are the rows to which it was cut, where it was."""

    path: Path
    seeds: tuple[int, ...]
    runs: dict[str, TrainedRun]
    baselines: tuple[str, ...] = ()
    adapted: dict[str, AdaptedRow] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    title: str = ""
    about: str = ""
    seed_flags: tuple[str, ...] = ()
    tests: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reference: str = "static"
    frame_encoder: Mapping[str, Any] | None = None
    template: TrainedRun | None = None
    data: str | None = None
    only: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the comparison, for its folder and its runs."""
        if self.data is None:
            return self.path.stem
        file, variant = split_variant(Path(self.data))
        return "_".join(part for part in (self.path.stem, file.stem, variant) if part)

    def named(self, run: TrainedRun) -> list[str]:
        """Arguments of ``fit`` that name a run's configuration."""
        stage = [] if run.stage is None else ["--stage", run.stage]
        return ["--config", str(find_config(run.config, self.path.parent)), *stage]

    @property
    def first(self) -> TrainedRun:
        """The run whose file names the data that all rows share: the file's first, whichever rows are wanted."""
        return self.template or next(iter(self.runs.values()))

    @property
    def row_names(self) -> list[str]:
        """Names of all rows that the file asks for, in order."""
        names: list[str] = []
        for name, run in self.runs.items():
            names += [name, *run.also]
        return [*names, *self.adapted, *self.baselines]

    def owner(self, row: str) -> str:
        """Cell that makes a row: its own, or the run whose test reports it as a control."""
        return next((name for name, run in self.runs.items() if row in run.also), row)

    def start(self, cell: str) -> str | None:
        """The run whose checkpoint a cell starts from, where it does."""
        if cell in self.adapted:
            return self.adapted[cell].checkpoint
        return self.runs[cell].device_half if cell in self.runs else None

    def way_to(self, cell: str) -> list[str]:
        """A cell and the runs that it starts from, in order."""
        start = self.start(cell)
        return [*(self.way_to(start) if start is not None else []), cell]

    def with_rows(self, wanted: tuple[str, ...]) -> Comparison:
        """The same comparison with fewer rows: the wanted ones, and the runs that these start from.

        Raises:
            UserError: If there is no such row.
        """
        unknown = [name for name in wanted if name not in self.row_names]
        if unknown:
            raise UserError(f"{self.path}: --only {unknown[0]}: no such row; it has {', '.join(self.row_names)}")
        needed = {name for row in wanted for name in self.way_to(self.owner(row))}
        return replace(
            self,
            template=self.first,
            only=wanted,
            runs={name: run for name, run in self.runs.items() if name in needed},
            adapted={name: row for name, row in self.adapted.items() if name in needed},
            baselines=tuple(name for name in self.baselines if name in needed),
        )


def read_comparison(name: str, experiment: str | None = None) -> Comparison:
    """Parse a comparison file.

    Args:
        name: The file.
        experiment: For a template: experiment file of a data set, also relative to the template's folder.

    Raises:
        UserError: If a field is missing, unknown or refers to nothing.
    """
    path = find_config(name)
    data = read_yaml(path)
    if not isinstance(data, dict) or not isinstance(data.get("runs"), dict):
        raise UserError(f"{path}: a comparison needs 'runs'; an experiment such as this one is for 'lit-mmpg fit'")
    told = _fill(path, data, experiment)
    for run in data["runs"].values():
        if isinstance(run, dict) and isinstance(run.get("also"), list):
            run["also"] = {str(method): str(method) for method in run["also"]}
    if isinstance(data.get("claims"), dict):
        own = data["claims"].items()
        data["claims"] = {name: {"id": name, **claim} if isinstance(claim, dict) else claim for name, claim in own}
    try:
        file = from_plain(_File, {key: value for key, value in data.items() if value is not None})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for what, names in {
        "run": file.runs,
        "adapted row": file.adapted,
        "claim": file.claims,
        "test": file.tests,
    }.items():
        for name in names:
            _check_name(path, what, name)
    _check_starts(path, file)
    _check_claims(path, file)
    if set(file.baselines) - set(BASELINES):
        raise UserError(
            f"{path}: unknown baselines {sorted(set(file.baselines) - set(BASELINES))}; known are "
            f"{', '.join(BASELINES)}"
        )
    comparison = Comparison(
        path,
        file.seeds or (0,),
        dict(file.runs),
        file.baselines,
        dict(file.adapted),
        tuple(file.claims.values()),
        title=file.title or str(told.get("title") or path.stem),
        about=" ".join((file.about or str(told.get("about") or "")).split()),
        seed_flags=file.seed_flags,
        tests=dict(file.tests),
        reference=file.reference or "static",
        frame_encoder=file.frame_encoder,
        data=experiment,
    )
    rows = comparison.row_names
    repeated = sorted({row for row in rows if rows.count(row) > 1})
    if repeated:
        raise UserError(
            f"{path}: row '{repeated[0]}' is made twice; give one of them another name (also: {{NAME: METHOD}})"
        )
    asked = [("reference", file.reference)] if file.reference else []
    asked += [(f"claim '{claim.id}'", row) for claim in comparison.claims for row in (claim.method, *claim.rivals)]
    for what, row in asked:
        if row not in rows:
            raise UserError(f"{path}: {what} names row '{row}'{closest(row, rows)}; it has {', '.join(rows)}")
    return comparison


def is_template(data: Any) -> bool:
    """Whether the runs of a comparison file take their experiment from ``--data``."""
    runs = data.get("runs") if isinstance(data, dict) else None
    known = runs.values() if isinstance(runs, dict) else ()
    return any(isinstance(run, dict) and run.get("config") == TEMPLATE for run in known)


def _fill(path: Path, data: dict[str, Any], experiment: str | None) -> Mapping[str, Any]:
    """Put the experiment of a data set into a template; returns what its file says."""
    if not is_template(data):
        return {}
    if experiment is None:
        known = "configs/experiment/msvd.yaml#qa"
        raise UserError(f"{path} is a template; name the experiment of a data set, for example --data {known}")
    try:
        chosen = find_config(experiment)
    except UserError:
        chosen = find_config(experiment, path.parent)
    for run in data["runs"].values():
        if isinstance(run, dict) and run.get("config") == TEMPLATE:
            run["config"] = str(chosen.absolute())
    told = read_config(chosen)
    return told if isinstance(told, dict) else {}


def _check_name(path: Path, what: str, name: Any) -> None:
    """Names become those of files and runs; a number, yes or no is another name to YAML than as text."""
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or {"/", "|"} & set(name)
        or not 0 < len(name.encode()) < 200
    ):
        raise UserError(
            f"{path}: {what} {name!r}: a name is text of 1 to 199 bytes without / and |; quotes make text of a number"
        )


def _check_starts(path: Path, file: _File) -> None:
    """Check that what rows start from is there."""
    earlier: list[str] = []
    for name, run in file.runs.items():
        if run.device_half is not None and run.device_half not in earlier:
            raise UserError(
                f"{path}: run '{name}' takes its device half from '{run.device_half}', which is no earlier run"
            )
        earlier.append(name)
        find_config(run.config, path.parent)
    for name, row in file.adapted.items():
        if row.checkpoint not in file.runs:
            raise UserError(
                f"{path}: adapted row '{name}' starts from '{row.checkpoint}', which is no run of this file"
            )


def _check_claims(path: Path, file: _File) -> None:
    for claim in file.claims.values():
        if not claim.rivals:
            raise UserError(f"{path}: claim '{claim.id}' names no rivals; a claim is held against at least one row")
        if claim.kind not in (DIFFERENCE, GAP):
            raise UserError(f"{path}: claim '{claim.id}': kind is '{claim.kind}'; known are {DIFFERENCE} and {GAP}")
