"""Computing the cells of a comparison, in order, each at most once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from lit_mmpg.checkpoint import read_checkpoint, require_checkpoint
from lit_mmpg.data.readers.files import fingerprint_files
from lit_mmpg.errors import UserError
from lit_mmpg.methods.comparison.cells import ADAPTED_VERSION, CELL_VERSION, Cell, CellStore
from lit_mmpg.methods.comparison.code import code_here
from lit_mmpg.methods.comparison.plan import Comparison, TrainedRun
from lit_mmpg.methods.comparison.progress import Progress
from lit_mmpg.methods.costs import adapted_costs, check_encoder, device_costs, frame_encoder
from lit_mmpg.tracking.address import store_uri
from lit_mmpg.training.config import Request, read_request, split_flags

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.base import AnsweringModule
    from lit_mmpg.methods.adapted import Adapted
    from lit_mmpg.methods.base import Loaded
    from lit_mmpg.methods.comparison.tracking import ComparisonRun
    from lit_mmpg.training.lightning_cli import CLI


class Work:
    """Computes cells, or takes those that are finished: all anew (``fresh``), or none (``finished_only``).

    ``flags`` are further arguments of every run.
    """

    def __init__(
        self,
        comparison: Comparison,
        store: CellStore,
        flags: Sequence[str],
        fresh: bool = False,
        finished_only: bool = False,
    ) -> None:
        self.comparison, self.store, self.flags, self.fresh = comparison, store, list(flags), fresh
        self.finished_only = finished_only
        self.code = code_here()
        self.run: ComparisonRun | None = None
        self._data: dict[str, DeviceData] = {}
        self._parsed: dict[tuple[str, ...], CLI] = {}
        self._loaded: tuple[str, Loaded] | None = None

    def check(self, seeds: Sequence[int] = ()) -> None:
        """Parse the settings of every run, so that a mistake is answered before anything is trained.

        Args:
            seeds: For which the checkpoints that the file names must be there.

        Raises:
            UserError: If a run's settings are wrong.
        """
        from lit_mmpg.methods.registry import find_method

        seed = self.comparison.seeds[0]
        for name in self.comparison.runs:
            for path in {self._given(name, seed) for seed in seeds} - {None}:
                require_checkpoint(str(path))
        for run in self.comparison.runs.values():
            given = self._asked(run, seed)
            self.parsed(read_request("fit", given))
            own, *further = self._test_passes(run, seed).values()
            for flags in (own, *(further if run is next(iter(self.comparison.runs.values())) else ())):  # alike in all
                self.parsed(read_request("fit", [*given, *flags]))
        if self.comparison.frame_encoder is not None:
            check_encoder(self.comparison.frame_encoder)
        if "ridge" in self.comparison.baselines:
            from lit_mmpg.methods.ridge import require_retrieval

            require_retrieval(self.data(seed).task)
        for name, row in self.comparison.adapted.items():
            kind = find_method(row.method, f"{self.comparison.path}: adapted row '{name}'")
            unknown = sorted(set(row.options) - set(kind.grid) - {"labels"})
            if unknown:
                known = ", ".join((*kind.grid, *(("labels",) if kind.knows == "labelled" else ()))) or "none"
                raise UserError(
                    f"{self.comparison.path}: adapted row '{name}': method '{row.method}' has no option "
                    f"{unknown[0]}; it has {known}"
                )
            try:
                labels = row.options.get("labels", 1)
                if type(labels) is not int or labels < 1:
                    raise UserError(f"option labels is {labels!r}; give a number of clips")
                kind.points({key: value for key, value in row.options.items() if key != "labels"})
            except UserError as error:
                raise UserError(f"{self.comparison.path}: adapted row '{name}': {error}") from error

    # -- what a cell is ------------------------------------------------------------------------------------------

    def arguments(self, run: TrainedRun, seed: int, finished: Mapping[str, Cell]) -> list[str]:
        """Arguments of ``fit`` for one cell."""
        arguments = self._asked(run, seed)
        arguments.append(f"--seed_everything={seed}")
        if run.device_half is not None:
            arguments.append(f"--model.device_ckpt={finished[run.device_half].checkpoint}")
        return arguments

    def _asked(self, run: TrainedRun, seed: int) -> list[str]:
        """Arguments of ``fit`` before anything is trained."""
        return [*self.comparison.named(run), *run.flags, *self._seed_flags(seed), *self.flags]

    def _seed_flags(self, seed: int) -> list[str]:
        return [flag.replace("{seed}", str(seed)) for flag in self.comparison.seed_flags]

    def _data_flags(self, seed: int) -> list[str]:
        return split_flags([*self._seed_flags(seed), *self.flags], "data")[0]

    def _test_passes(self, run: TrainedRun, seed: int) -> dict[str, list[str]]:
        """Name of each reading of the test split ('' for the first) -> its flags, beside what the checkpoint says."""
        # The data of a run that was trained here are as the flags of all runs say: its checkpoint holds them.
        again = run.test_flags or run.checkpoint is not None
        own = [*run.test_flags, *(self._data_flags(seed) if again else [])]
        return {"": own, **{name: [*own, *flags] for name, flags in self.comparison.tests.items()}}

    def data(self, seed: int) -> DeviceData:
        """The data that all runs share, as the first one names it; not set up."""
        first = self.comparison.first
        # Flags of the first run that concern its model mean nothing here, those that concern its data do.
        flags = [*first.test_flags, *self._seed_flags(seed), *self.flags]
        return self._made(self.parsed(read_request("fit", [*self.comparison.named(first), *flags])))

    def parsed(self, request: Request) -> CLI:
        """What a request says with all defaults, but for its seed; nothing is built, and each is parsed once."""
        key = tuple(text for text in request.arguments() if not text.startswith("--seed_everything="))
        if key not in self._parsed:
            self._parsed[key] = parse(request)
        return self._parsed[key]

    def tracked(self) -> tuple[str, str | None, bool]:
        """As the first run says: store, experiment (where a flag or file names one), whether runs are tracked."""
        cli = self.parsed(read_request("fit", [*self.comparison.named(self.comparison.first), *self.flags]))
        return store_uri(cli.tracking.uri), cli.tracking.experiment, cli.config["trainer"]["logger"] is not False

    def _made(self, cli: CLI) -> DeviceData:
        key = json.dumps(cli.record["data"], sort_keys=True)
        if key not in self._data:
            self._data[key] = cli.data()
        return self._data[key]

    def digest(self, run: TrainedRun, seed: int, arguments: Sequence[str]) -> str:
        """Digest of what decides a cell: resolved configuration of both halves, flags and content of the data."""
        request = read_request("fit", arguments)
        cli = self.parsed(request)
        fingerprints = [self._made(cli).fingerprint, self.data(seed).fingerprint]
        content: list[Any] = [CELL_VERSION, fingerprints, request.arguments(), self._test_passes(run, seed)]
        # Settings that nobody wrote count, too: a default that changed makes other cells.
        content += [self.comparison.frame_encoder, cli.record["model"]]
        if request.options["device_stage"]:
            first = request.derive(request.options["device_stage"])
            content += [first.arguments(), self.parsed(first).record["model"]]
        return _sha(content)

    # -- computing -----------------------------------------------------------------------------------------------

    def compute(self, seeds: Sequence[int], baselines: bool = True, only: str | None = None) -> dict[str, list[Cell]]:
        """All cells, by row.

        Args:
            seeds: The seeds.
            baselines: False where another process computes those.
            only: Compute this row alone; what it starts from is finished.
        """
        comparison = self.comparison
        once = not comparison.seed_flags  # a baseline draws nothing: it needs a seed only where the data does
        baseline_seeds = seeds[:1] if once else seeds
        rows = [*comparison.runs, *comparison.adapted] if only is None else comparison.way_to(only)
        names = rows * len(seeds)
        closed_form = comparison.baselines if baselines else ()
        progress = Progress(names + [name for name in closed_form for _ in baseline_seeds])
        cells: dict[str, list[Cell]] = {}
        for seed in seeds:
            finished: dict[str, Cell] = {}
            for name in rows:
                progress.start(name, seed)
                cell = self._cell(name, seed, finished)
                if cell is not None:
                    progress.done(name, cell.seconds)
                    finished[name] = cell
                    cells.setdefault(name, []).append(cell)
        for name in closed_form:
            for seed in baseline_seeds:
                progress.start(name, seed)
                cell = self._baseline(name, seed)
                if cell is not None:
                    progress.done(name, cell.seconds)
                    cells.setdefault(name, []).append(cell)
        if not cells:
            raise UserError(f"{comparison.path}: no cell is finished yet; leave --finished out to compute them")
        return cells

    def _cell(self, name: str, seed: int, finished: Mapping[str, Cell]) -> Cell | None:
        run = self.comparison.runs.get(name)
        start = self.comparison.start(name)
        if start is not None and start not in finished:
            return None  # what it starts from is not finished
        with nullcontext() if self.finished_only else self.store.locked(name, seed):
            return self._adapted(name, seed, finished) if run is None else self._trained(name, run, seed, finished)

    def _given(self, name: str | None, seed: int) -> str | None:
        """The checkpoint that the file names for a run, where it does."""
        run = self.comparison.runs.get(name or "")
        return None if run is None or run.checkpoint is None else run.checkpoint.replace("{seed}", str(seed))

    def _with_weights(self, digest: str, name: str | None, seed: int) -> str:
        """A digest to which the content of the checkpoint counts that the file names for a run."""
        given = self._given(name, seed)
        return digest if given is None else _sha([digest, fingerprint_files([require_checkpoint(given)])])

    def _kept(self, name: str, seed: int, digest: str) -> Cell | None:
        cell = None if self.fresh else self.store.load(name, seed, digest)
        if cell is not None:
            print(f"finished before: {self.store.path(name, seed)}.json", flush=True)
            if self.run is not None:
                self.run.adopt(cell, name)
        return cell

    def _tags(self, name: str, seed: int) -> dict[str, str]:
        tags = {"lit_mmpg.comparison": self.comparison.name, "lit_mmpg.cell": f"{name} seed {seed}"}
        return tags | (self.run.tags(name, seed) if self.run is not None else {})

    def _tracking(self, name: str) -> list[str]:
        """Flags for the record: they decide nothing, so they are no part of the digest."""
        flags = [f"--tracking.run_name={name}"]
        return flags if self.run is None else [*flags, f"--tracking.experiment={self.run.experiment}"]

    def _trained(self, name: str, run: TrainedRun, seed: int, finished: Mapping[str, Cell]) -> Cell | None:
        from lit_mmpg.training.stages import train

        arguments = self.arguments(run, seed, finished)
        digest = self.digest(run, seed, arguments)
        given = self._given(name, seed)
        digest = self._with_weights(self._with_weights(digest, name, seed), run.device_half, seed)
        kept = self._kept(name, seed, digest)
        if kept is not None or self.finished_only:
            return kept
        begun, began = time.monotonic(), self.store.begin(name, seed, digest, self.fresh)
        tags = self._tags(name, seed)
        request = read_request("fit", [*arguments, *self._tracking(f"{name} seed {seed}"), "--ckpt_path=last"])
        checkpoint = given or train(request, tags, since_ms=began, following=self._followers(name, seed))
        cell = Cell([], checkpoint=checkpoint, seed=seed, notes=_selection(checkpoint), code=self.code)
        for split, flags in self._test_passes(run, seed).items():
            self.store.count_read(name, seed, digest, split or "test")
            title = " ".join([name, f"seed {seed} test", split]).strip()
            asked = ["--ckpt_path", checkpoint, *flags, *self._tracking(title)]
            asked += [] if self.run is not None else ["--trainer.logger=false"]
            module = measure_quietly(asked, {key: v for key, v in tags.items() if key != "mlflow.parentRunId"})
            assert module.evaluation is not None
            cell.add(module.result_rows, module.evaluation, module.methods, split)
            if not split:
                self._describe(cell, module)
        cell.seconds = time.monotonic() - begun
        self.store.save(name, digest, cell)
        return cell

    def _followers(self, name: str, seed: int) -> dict[str, CLI]:
        """The runs that start from a run, by how errors call them."""
        return {
            f"{self.comparison.path}: run '{other}': ": self.parsed(read_request("fit", self._asked(run, seed)))
            for other, run in self.comparison.runs.items()
            if run.device_half == name
        }

    def _describe(self, cell: Cell, module: AnsweringModule) -> None:
        """Which data and runs made a cell, and what its methods cost a device."""
        from lit_mmpg.tracking.logger import MLflowLogger

        ours = read_checkpoint(cell.checkpoint)["lit_mmpg"]
        cell.run_id, cell.uri = ours.get("run_id"), ours.get("tracking_uri")
        logger = next((logger for logger in module.trainer.loggers if isinstance(logger, MLflowLogger)), None)
        cell.test_run_id = logger.run_id if logger is not None else None
        data = module.trainer.datamodule  # type: ignore[attr-defined]
        _identify(cell, data)
        cell.costs = device_costs(module, data, frame_encoder(self.comparison.frame_encoder))

    def _adapted(self, name: str, seed: int, finished: Mapping[str, Cell]) -> Cell | None:
        from lit_mmpg.methods.adapted import evaluate_adapted

        row = self.comparison.adapted[name]
        checkpoint = finished[row.checkpoint].checkpoint
        passes = self._test_passes(self.comparison.runs[row.checkpoint], seed)
        content = [
            ADAPTED_VERSION,
            row.method,
            dict(row.options),
            checkpoint,
            finished[row.checkpoint].data,
            passes,
            seed,
        ]
        digest = self._with_weights(_sha([*content, self.comparison.frame_encoder]), row.checkpoint, seed)
        kept = self._kept(name, seed, digest)
        if kept is not None or self.finished_only:
            return kept
        begun = time.monotonic()
        cell = Cell([], seed=seed, code=self.code)
        options = dict(row.options)
        for split, more in passes.items():
            loaded = self._load(checkpoint, [*self._data_flags(seed), *more])
            self.store.count_read(name, seed, digest, split or "test")
            found = evaluate_adapted(loaded, row.method, name, options, seed)
            if not split:
                _identify(cell, loaded.data)
                cell.notes = adapted_notes(found)
                # Further passes answer with what validation chose: nothing is selected on them.
                options |= found.chosen
                if found.cost is not None:
                    cell.costs = {name: adapted_costs(found.cost, loaded, frame_encoder(self.comparison.frame_encoder))}
            if found.evaluation is None:
                break
            cell.add(found.rows, found.evaluation, [name], split)
        if self.run is not None:
            self.run.record(name, cell, {"method": row.method, "checkpoint": checkpoint, **cell.notes})
        cell.seconds = time.monotonic() - begun
        self.store.save(name, digest, cell)
        return cell

    def _load(self, checkpoint: str, flags: list[str]) -> Loaded:
        """A checkpoint with its data; the last one is kept, since several rows start from it."""
        from lit_mmpg.methods.adapted import load

        key = json.dumps([checkpoint, flags])
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = (key, load(checkpoint, flags))
        return self._loaded[1]

    def _baseline(self, name: str, seed: int) -> Cell | None:
        from lit_mmpg.methods.ridge import RidgeBaseline

        data = self.data(seed)
        digest = _sha([CELL_VERSION, name, data.fingerprint, data.device_table.digest(), data.task])
        kept = self._kept(name, seed, digest)
        if kept is not None or self.finished_only:
            return kept
        begun = time.monotonic()
        data.setup("fit")
        ridge = RidgeBaseline(data)
        self.store.count_read(name, seed, digest, "test")
        evaluation = ridge.evaluate(data.test_groups)
        cell = Cell([], seed=seed, code=self.code)
        cell.add(evaluation.rows({}), evaluation, ["ridge"])
        cell.notes = {"selection": {"split": "val", "options": {"strength": ridge.strength}}}
        _identify(cell, data)
        if self.run is not None:
            self.run.record(name, cell, {"method": name, **cell.notes})
        cell.seconds = time.monotonic() - begun
        self.store.save(name, digest, cell)
        return cell


def measure_quietly(arguments: Sequence[str], tags: Mapping[str, str]) -> AnsweringModule:
    """Test a checkpoint without printing the rows: the comparison prints one table at its end."""
    from lit_mmpg.training.evaluation import measure

    return measure(read_request("test", arguments), tags, show=False)


def adapted_notes(found: Adapted) -> dict[str, Any]:
    """What the report should say about a method that adapts a checkpoint."""
    notes: dict[str, Any] = {"setting": found.setting}
    if found.reason is not None:
        return notes | {"not_applicable": found.reason}
    if found.sweep:
        notes["selection"] = {"split": "val", "options": found.chosen, "sweep": found.sweep}
    if found.cost is not None:
        notes |= {"support_clips": found.cost.support_clips, "labelled_items": found.cost.labelled_items}
        notes |= {"backward": found.cost.backward, "bytes_per": found.cost.per}
    return notes


def _identify(cell: Cell, data: DeviceData) -> None:
    cell.corpus = data.fingerprint
    cell.data = _sha([data.fingerprint, data.device_table.digest()])
    cell.devices = [device.id for device in data.device_table.devices]


def _selection(checkpoint: str) -> dict[str, Any]:
    """How the checkpoint was chosen, from what Lightning keeps in it."""
    stored = read_checkpoint(checkpoint)
    notes: dict[str, Any] = {"epochs": int(stored.get("epoch", 0)) + 1, "steps": int(stored.get("global_step", 0))}
    for state in stored.get("callbacks", {}).values():
        if isinstance(state, dict) and state.get("monitor") and state.get("current_score") is not None:
            with suppress(TypeError, ValueError):
                notes["selection"] = {
                    "split": "val",
                    "metric": state["monitor"],
                    "score": float(state["current_score"]),
                }
    return notes


def _sha(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def parse(request: Request) -> CLI:
    """What a request says with all defaults; nothing is built."""
    from lit_mmpg.training.lightning_cli import CLI

    return CLI(request)
