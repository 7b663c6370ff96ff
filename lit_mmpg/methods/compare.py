"""``lit-mmpg compare``: several methods on the same data, with the same seeds, with verdicts and a report.

A comparison is a YAML file (:mod:`lit_mmpg.methods.comparison.plan`) that names training runs, methods that adapt their
checkpoints afterwards, and claims. Each row and seed is one cell; a finished cell is kept and not repeated while its
settings and its data stay the same, and a training that was cut short goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_mmpg.errors import UserError
from lit_mmpg.files import find_config, read_yaml
from lit_mmpg.launcher import CHILD_OF, add_arguments, check_arguments, connected, end_with
from lit_mmpg.methods.comparison.plan import Comparison, is_template, read_comparison
from lit_mmpg.report import print_rows
from lit_mmpg.settings import within

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.methods.comparison.cells import CellStore
    from lit_mmpg.methods.comparison.tracking import ComparisonRun
    from lit_mmpg.methods.comparison.work import Work


def main(argv: Sequence[str]) -> int:
    """Run a comparison.

    Raises:
        UserError: If the file or a run's settings are wrong.
    """
    options, flags = _parser().parse_known_args(list(argv))
    if options.child_of is not None:
        end_with(options.child_of)
    template = is_template(read_yaml(find_config(options.config)))
    comparison = read_comparison(options.config, options.data if template else None)
    data = ["--data", options.data] if options.data else []
    if not template:
        flags += data  # as any other flag: to every run
    if options.only:
        comparison = comparison.with_rows(tuple(options.only))
    seeds = tuple(options.seeds or comparison.seeds)
    for seed in seeds:
        within("", 0, 2**32 - 1, seed=seed)
        if seeds.count(seed) > 1:
            raise UserError(f"seed {seed} is given twice, which would count one training as two; leave one out")
    folder = Path("outputs/compare") / comparison.name
    output = report_stem(options.output, folder)
    from lit_mmpg.methods.comparison.cells import CellStore
    from lit_mmpg.methods.comparison.jobs import compute_in_processes
    from lit_mmpg.methods.comparison.work import Work

    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; it must be at least 1")
    check_arguments(options, None if options.jobs is None else "--jobs")
    store = CellStore(folder)
    if options.finished and options.fresh:
        raise UserError("--finished reports what is there and --fresh computes it again; choose one")
    work = Work(comparison, store, flags, options.fresh, options.finished)
    if options.child_of is None:
        work.check(() if options.list or options.finished else seeds)
    if options.list:
        _list(comparison, seeds, store)
        return 0
    work.run = _parent(work, store)
    if options.child_of is not None:
        work.compute(seeds, baselines=False, only=options.cell)
        if work.run is not None:
            work.run.client.finish()
        return 0
    apart = None
    if not options.finished:
        only = ["--only", *options.only] if options.only else []
        again = ["--config", options.config, *(data if template else []), *only, *flags]
        if options.launcher == "dask":
            apart = partial(_on_cluster, options.cluster, again, work, seeds)
        elif (options.jobs or 1) > 1 and len(seeds) > 1:
            again += ["--fresh"] if options.fresh else []
            apart = partial(compute_in_processes, again, seeds, options.jobs)
    return _run(work, seeds, store, output, apart)


def _on_cluster(address: str | None, arguments: Sequence[str], work: Work, seeds: Sequence[int]) -> None:
    """Compute the cells on a cluster.

    Raises:
        UserError: If the cluster or the store of the runs is not fit for it, or a cell fails.
    """
    from lit_mmpg.methods.comparison.jobs import compute_on_cluster
    from lit_mmpg.tracking.address import database

    work.store.folder.mkdir(parents=True, exist_ok=True)
    with connected(address, work.store.folder) as cluster:
        others = cluster.other_hosts
        if work.run is not None and database(work.run.uri) is not None and others:
            raise UserError(
                f"the workers run on other hosts ({', '.join(others)}), which must not write the file of the store "
                f"{work.run.uri} at once; start an MLflow server and name it with --tracking.uri http://HOST:PORT"
            )
        if work.fresh:  # said once: a cell whose worker dies goes on, it does not start anew
            for name in (*work.comparison.runs, *work.comparison.adapted):
                for seed in seeds:
                    work.store.forget(name, seed)
        compute_on_cluster(cluster, arguments, work.comparison, seeds)


def _parent(work: Work, store: CellStore) -> ComparisonRun | None:
    from lit_mmpg.methods.comparison.tracking import ComparisonRun

    uri, experiment, tracked = work.tracked()
    name = experiment or work.comparison.name
    return ComparisonRun(work.comparison, name, uri, store) if tracked else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-mmpg compare",
        description="Train and test several methods with the same seeds; print one table and a verdict on each claim, "
        "and write a report (HTML, Markdown, CSV, JSON). Finished cells are kept in outputs/compare and not repeated. "
        "Flags such as --data.root FOLDER go to every run.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", required=True, help="comparison file")
    parser.add_argument(
        "--data", metavar="EXPERIMENT", help="for a template: its data set, as configs/experiment/msvd.yaml#qa"
    )
    parser.add_argument("--seeds", type=int, action="extend", nargs="+", help="seeds instead of those of the file")
    parser.add_argument(
        "--only", action="extend", nargs="+", metavar="ROW", help="these rows, and the runs that they start from, alone"
    )
    parser.add_argument("--list", action="store_true", help="show rows, finished cells and claims; compute nothing")
    parser.add_argument(
        "--output", help="folder for the report, or a .json file beside which its other forms are written"
    )
    parser.add_argument("--finished", action="store_true", help="report what is finished; compute nothing")
    parser.add_argument("--fresh", action="store_true", help="repeat cells that are finished")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="compute N seeds at once, each in a process of its own (default: 1)"
    )
    add_arguments(parser, "cells")
    parser.add_argument(CHILD_OF, type=int, help=argparse.SUPPRESS)  # pid of the process that has the report
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # the one row to compute, from what is finished
    return parser


def report_stem(output: str | None, folder: Path) -> Path:
    """Path of the report's files without their suffix.

    Raises:
        UserError: If the output is a file of another kind.
    """
    if output is None:
        return folder / "report"
    path = Path(output)
    if path.suffix == ".json":
        return path.with_suffix("")
    if path.is_file() or path.suffix in (".html", ".csv", ".md", ".txt", ".yaml"):
        raise UserError(f"--output {output}: name a folder, or the report's JSON file (FILE.json)")
    return path / "report"


def _run(
    work: Work, seeds: tuple[int, ...], store: CellStore, output: Path, apart: Callable[[], None] | None = None
) -> int:
    """Compute what is missing (``apart`` first, where other processes do it), then print and write the report."""
    from lit_mmpg.methods.comparison.code import code_lines
    from lit_mmpg.methods.comparison.results import collect
    from lit_mmpg.methods.comparison.writing import write_report

    comparison = work.comparison
    try:
        if apart is not None:
            apart()
            work.fresh = False
        cells = work.compute(seeds)
        results = collect(comparison, cells, store.reads(), work.run)
        print_rows(results.rows, title=comparison.title)
        for name, reason in results.not_applicable.items():
            print(f"{name}: n/a ({reason})")
        for line in (*_room(work.data(seeds[0]), comparison, results.rows), *results.verdict_lines()):
            print(line)
        for line in code_lines(results.code):
            print(line)
        files = write_report(results, output)
    except BaseException:
        if work.run is not None:
            work.run.fail()
        raise
    if work.run is not None:
        work.run.finish(results.rows, {v.claim.id: v.verdict for v in results.verdicts}, files)
        print(f"runs: {work.run.where()}, run {work.run.run_id}")
    print(f"report: {files[0]} (the same as {', '.join(path.name for path in files[1:])} beside it)")
    return 0


def _list(comparison: Comparison, seeds: Sequence[int], store: CellStore) -> None:
    from rich.table import Table

    from lit_mmpg.report import wide_console

    table = Table(title=f"{comparison.title}: rows")
    for column in ("row", "made by", *(f"seed {seed}" for seed in seeds)):
        table.add_column(column)
    for name in comparison.row_names:
        owner = comparison.owner(name)
        if name in comparison.adapted:
            row = comparison.adapted[name]
            made = f"{row.method} on {row.checkpoint}"
        elif owner != name:
            made = f"test of {owner}"
        else:
            made = comparison.runs[owner].config if owner in comparison.runs else "closed form"
        kept = [store.path(owner, seed).with_name(f"{owner}-seed{seed}.json").is_file() for seed in seeds]
        table.add_row(name, made, *("kept" if there else "-" for there in kept))
    wide_console().print(table)
    for claim in comparison.claims:
        print(f"claim {claim.id}: {claim.text} ({claim.method} against {', '.join(claim.rivals)})")


def _room(data: DeviceData, comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The computed room for adaptation, where it is known, and the share of it that each method recovers."""
    from lit_mmpg.training.devices import room_lines

    lines, points = room_lines(data)
    for row in rows:
        wanted = (row["split"], row["metric"]) == ("test_unseen", "accuracy_minus_static")
        if points and wanted and row["method"] in comparison.runs:
            gain = 100 * row["value"]
            lines.append(f"  {row['method']} recovers {gain:+.1f} points of it on unseen devices ({gain / points:.0%})")
    return lines
