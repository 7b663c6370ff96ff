"""``lit-mmpg profile`` and ``python -m lit_mmpg.profiling``: run, compare, import, engines, report, layers, schema."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lit_mmpg.errors import UserError, install_hint
from lit_mmpg.files import find_config
from lit_mmpg.heartbeat import tell
from lit_mmpg.invoker import handed_over
from lit_mmpg.profiling import document as documents
from lit_mmpg.profiling import engines as kept_engines
from lit_mmpg.profiling import recording
from lit_mmpg.profiling.boards import compare_boards
from lit_mmpg.profiling.compare import METRICS, Limit, compare_profiles
from lit_mmpg.profiling.config import SCENARIOS, ProfileConfig, load_config
from lit_mmpg.profiling.harness import Harness, Instruments, expected_rails_missing
from lit_mmpg.profiling.html import render, render_boards, render_comparison
from lit_mmpg.profiling.interleave import compare_bundles
from lit_mmpg.profiling.plan import Cell, engines_here, make_plan
from lit_mmpg.profiling.schema import SCHEMA
from lit_mmpg.profiling.tables import (
    layer_graphs,
    print_built,
    print_comparison,
    print_document,
    print_engines,
    print_kept,
    print_layers,
)
from lit_mmpg.profiling.trtexec import is_trtexec, read_trtexec
from lit_mmpg.report import wide_console
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines.cache import EngineCache, cache_folder
from lit_mmpg.texts import masked, printable
from lit_mmpg.writing import require_writable, write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 where a row is wrong or failed; 130 where the run was interrupted (its finished rows are kept).

    Raises:
        UserError: If what was asked is a mistake.
    """
    options = _parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    return int(options.function(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lit-mmpg profile", description="Measure a bundle on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="measure a bundle",
        description="Measure engines x precisions x batches x scenarios, each compared with the bundle's reference "
        "first. Writes profile.json and report.html, and records both in MLflow where it is installed.",
    )
    run.add_argument("--bundle", required=True, type=Path, help="folder that 'lit-mmpg export' wrote")
    run.add_argument("--config", required=True, help="configuration, for example configs/profile/generic_cpu.yaml")
    run.add_argument("--output", type=Path, help="folder for the results; outputs/profile/NAME when not given")
    run.add_argument(
        "--engines", action="extend", nargs="+", metavar="ENGINE", help="only these engines of the configuration"
    )
    run.add_argument("--scenarios", action="extend", nargs="+", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, dotted key")
    run.add_argument("--tracking-uri", help="MLflow store; the training run's when not given")
    run.add_argument("--no-record", action="store_true", help="write the files only")
    run.set_defaults(function=_run)

    imported = commands.add_parser("import", help="record profiles that offline boards wrote")
    imported.add_argument("files", nargs="+", type=Path, metavar="FILE", help="profile.json of a board")
    imported.add_argument("--tracking-uri", help="MLflow store; the training run's when not given")
    imported.set_defaults(function=_import)

    compare = commands.add_parser(
        "compare",
        help="two profiles side by side, with limits that fail",
        description="Compare two profile.json, or with --interleave measure two bundles in turns. Exit status: 0 where "
        "every limit holds, 1 where one is broken, a row is lost, or nothing could be checked.",
    )
    compare.add_argument("a", type=Path, metavar="A", help="profile.json, with --interleave a bundle: what was before")
    compare.add_argument("b", type=Path, metavar="B", help="the same: what may have become worse")
    compare.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="FIGURE=LIMIT",
        help="for example p50_ms=5%% or upload_bytes=0; a change beyond it fails unless its interval holds zero; "
        f"figures: {', '.join(METRICS)}",
    )
    compare.add_argument(
        "--interleave", action="store_true", help="measure the scenario 'answer' of both in turns, here"
    )
    compare.add_argument("--config", help="with --interleave: what to measure; configs/profile/generic_cpu.yaml")
    compare.add_argument(
        "--engines", action="extend", nargs="+", metavar="ENGINE", help="with --interleave: only these engines"
    )
    compare.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="with --interleave: a setting")
    compare.add_argument("--rounds", type=int, default=10, help="with --interleave: rounds with fresh sessions")
    compare.add_argument(
        "--output", type=Path, help="folder for comparison.json and comparison.html; outputs/compare_profiles"
    )
    compare.set_defaults(function=_compare)

    engines = commands.add_parser(
        "engines",
        help="list the engines, with the reason where one cannot run here; build, list and load what they keep",
        description="Without a command: the engines, with the reason where one cannot run here.",
    )
    engines.set_defaults(function=_engines)
    _add_kept(engines)

    report = commands.add_parser(
        "report",
        help="make the page of a profile again, or one page of several boards",
        description="Make the page of a profile again. Of several profiles of one bundle, from boards and power modes: "
        "one page with latency against energy, and answers per joule.",
    )
    report.add_argument("files", nargs="+", type=Path, metavar="FILE", help="profile.json")
    report.add_argument(
        "--output", type=Path, help="HTML file; report.html beside FILE, or boards.html for several, when not given"
    )
    report.set_defaults(function=_report)

    layers = commands.add_parser(
        "layers",
        help="the slowest layers of a profile, or of trtexec's",
        description="Print where the time goes: of the rows of the scenario 'layers', or of what trtexec exported.",
    )
    layers.add_argument(
        "file", type=Path, metavar="FILE", help="profile.json, or the file of 'trtexec --exportProfile'"
    )
    layers.add_argument(
        "--layer-info", type=Path, metavar="FILE", help="file of 'trtexec --exportLayerInfo', for the kinds of layers"
    )
    layers.add_argument("--most", type=int, default=10, help="layers of each graph; %(default)s")
    layers.set_defaults(function=_layers)

    schema = commands.add_parser("schema", help="print the JSON schema of profile.json")
    schema.set_defaults(function=_schema)
    return parser


def _add_kept(engines: argparse.ArgumentParser) -> None:
    commands = engines.add_subparsers(metavar="COMMAND")
    for name, function, told in (
        ("build", _build_engines, "build the engines of a configuration for this machine and its power mode, and keep"),
        ("load", _load_engines, "load what is kept, compared with the reference; or say why it does not fit"),
    ):
        command = commands.add_parser(name, help=told)
        command.add_argument("--bundle", required=True, type=Path, help="folder that 'lit-mmpg export' wrote")
        command.add_argument("--config", default="configs/profile/generic_cpu.yaml", help="whose engines; %(default)s")
        command.add_argument(
            "--engines", action="extend", nargs="+", metavar="ENGINE", help="only these engines of the configuration"
        )
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
        command.set_defaults(function=function)
    listed = commands.add_parser("list", help="what is kept, with its key, and why it does not fit here")
    listed.add_argument("--cache", type=Path, help="folder; the user's cache when not given")
    listed.add_argument("--json", action="store_true", help="as JSON, with whole keys")
    listed.set_defaults(function=_list_engines)


def _run(options: argparse.Namespace) -> int:
    scenarios = ["scenarios=" + json.dumps(options.scenarios)] if options.scenarios else []
    config = _load_config(options.config, [*options.set, *scenarios], options.engines)
    bundle = Bundle.open(options.bundle)
    plan = make_plan(config, bundle)
    output: Path = options.output or Path("outputs/profile") / config.name
    with handed_over(output, cache_folder()):
        return _run_plan(options, Harness(bundle, config, Instruments.open()), plan, output)


def _load_config(name: str, overrides: Sequence[str], engines: Sequence[str] | None) -> ProfileConfig:
    path = find_config(name)
    config = load_config(path, overrides)
    if not engines:
        return config
    unknown = sorted(set(engines) - {s.engine for s in config.engines})
    if unknown:
        raise UserError(f"--engines {' '.join(unknown)}: {path} names {', '.join(s.engine for s in config.engines)}")
    return replace(config, engines=tuple(s for s in config.engines if s.engine in engines))


def _compare(options: argparse.Namespace) -> int:
    limits = [Limit.parse(text) for text in options.fail_on]
    output: Path = options.output or Path("outputs/compare_profiles")
    written = [output / "comparison.json", output / "comparison.html"]
    require_writable(written[0], "--output")
    if options.interleave:
        comparison = _interleave(options, limits)
    else:
        given = [name for name in ("config", "engines", "set") if getattr(options, name)]
        if given:
            raise UserError(f"--{given[0]} says what to measure; add --interleave, or leave it out")
        if any(path.is_dir() for path in (options.a, options.b)):
            raise UserError(
                f"{options.a} and {options.b}: profile.json files; two bundles are measured with --interleave"
            )
        with documents.telling(options.a, options.b):
            comparison = compare_profiles(documents.load(options.a), documents.load(options.b), limits)
    print_comparison(comparison, ("p50_ms", "p99_ms", "peak_rss_bytes"))
    try:
        write_text(written[0], json.dumps(comparison, indent=1) + "\n")
        write_text(written[1], render_comparison(comparison))
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
    _tell_files(written)
    return 0 if comparison["passed"] else 1


def _interleave(options: argparse.Namespace, limits: Sequence[Limit]) -> dict[str, Any]:
    config = _load_config(options.config or "configs/profile/generic_cpu.yaml", options.set, options.engines)
    instruments = Instruments.open()
    a, b = (Harness(Bundle.open(path), config, instruments) for path in (options.a, options.b))
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=wide_console(), transient=True) as progress:
        task = progress.add_task("", total=None)
        return compare_bundles(a, b, limits, options.rounds, lambda text: progress.update(task, description=text))


def _run_plan(options: argparse.Namespace, harness: Harness, plan: Sequence[Cell], output: Path) -> int:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error.strerror}") from error
    warning = expected_rails_missing(harness.config, harness.instruments)
    if warning:
        wide_console().print(f"[yellow]note:[/] {warning}", highlight=False)
    profile = harness.start()
    interrupted = _measure(harness, plan, profile, output)
    if interrupted and not profile["rows"]:
        print(f"interrupted: no row is finished; {output} is as it was", file=sys.stderr)
        return 130
    profile["state"] = "interrupted" if interrupted else "complete"
    written = _save(profile, output)
    print_document(profile)
    _tell_files(written)
    if not options.no_record:
        _record(profile, options.tracking_uri)
    if interrupted:
        print(f"interrupted: {len(profile['rows'])} of {len(plan)} rows are finished and kept", file=sys.stderr)
        return 130
    bad = [row for row in profile["rows"] if row["status"] in ("wrong", "failed")]
    return 1 if bad else 0


def _measure(harness: Harness, plan: Sequence[Cell], profile: documents.Document, output: Path) -> bool:
    """Measure all cells; True where Ctrl-C (or SIGTERM) ended it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = wide_console()
    troubles: set[str] = set()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(plan))
        try:
            for cell in plan:
                harness.say = _sayer(progress, task, cell.title)
                harness.say("starting")
                profile["rows"].append(harness.measure(cell))
                progress.advance(task)
                trouble = _save_quietly(profile, output)
                if trouble and trouble not in troubles:
                    troubles.add(trouble)
                    console.print(f"[yellow]warning:[/] {trouble}", highlight=False)
        except KeyboardInterrupt:
            return True
    return False


def _sayer(progress: Progress, task: TaskID, title: str) -> Callable[[str], None]:
    def say(text: str) -> None:
        progress.update(task, description=f"{title}: {text}")
        tell(f"{title}: {text}", int(progress.tasks[0].completed), int(progress.tasks[0].total or 0), "rows")

    return say


def _save_quietly(profile: documents.Document, output: Path) -> str | None:
    """Write what there is after a row; a sentence where that fails, so that measuring goes on."""
    wanted = output / "profile.json"
    try:
        written = documents.save(profile, wanted)
    except OSError as error:
        return f"{wanted} cannot be written ({error.strerror}); the rows stay in memory and are tried again"
    return None if written == wanted else f"{wanted} cannot be written; the rows are in {written}"


def _save(profile: documents.Document, output: Path) -> list[Path]:
    written = []
    try:
        file = documents.save(profile, output / "profile.json")
        written.append(file)
        page = file.with_suffix(".html") if file.parent != output else output / "report.html"
        page.write_text(render(profile), encoding="utf-8")
        written.append(page)
    except OSError as error:
        print(
            f"error: results cannot be written: {printable(str(error))}; free some space, the table below has them",
            file=sys.stderr,
        )
    return written


def _tell_files(written: Sequence[Path]) -> None:
    for path in written:
        print(f"Written: {printable(str(path))}")


def _record(profile: dict[str, Any], uri: str | None) -> None:
    reason = recording.can_record()
    if reason:
        print(f"Not recorded: {reason}")
        return
    try:
        recorded = recording.record(profile, uri)
    except UserError as error:  # the files are written: a store that is out of reach costs nothing
        print(f"Not recorded: {error}; import the file later with 'lit-mmpg profile import'")
        return
    print(_told(recorded))


def _told(recorded: recording.Recorded) -> str:
    where = f"child of run {recorded.parent}" if recorded.parent else f"standalone in experiment {recording.EXPERIMENT}"
    verb = "Recorded" if recorded.new else "Already recorded"
    return f"{verb}: MLflow run {recorded.run_id} ({where}) in {masked(recorded.uri)}"


def _import(options: argparse.Namespace) -> int:
    reason = recording.can_record()
    if reason:
        raise UserError(f"mlflow is not installed here; {install_hint('train')}")
    profiles = [(path, documents.load(path)) for path in options.files]  # one bad file stops before any is recorded
    for path, profile in profiles:
        with documents.telling(path):
            recorded = recording.record(profile, options.tracking_uri)
        print(f"{printable(str(path))}: {_told(recorded)}")
    return 0


def _engines(_: argparse.Namespace) -> int:
    print_engines(engines_here().values())
    return 0


def _build_engines(options: argparse.Namespace) -> int:
    config = _load_config(options.config, options.set, options.engines)
    with handed_over(cache_folder()):
        rows = kept_engines.build(config, Bundle.open(options.bundle), tell)
    print_built(rows, "engines built")
    return _status(rows, ("built", "kept"))


def _load_engines(options: argparse.Namespace) -> int:
    config = _load_config(options.config, options.set, options.engines)
    rows = kept_engines.load(config, Bundle.open(options.bundle), tell)
    print_built(rows, "engines loaded")
    return _status(rows, ("loaded",))


def _status(rows: Sequence[dict[str, Any]], good: Sequence[str]) -> int:
    """0 where something is as it should be, and nothing that can be here is not."""
    states = {row["state"] for row in rows}
    return 0 if states & set(good) and states <= {*good, "none", "absent"} else 1


def _list_engines(options: argparse.Namespace) -> int:
    found = kept_engines.kept_here(options.cache)
    if options.json:
        plain = [
            {**vars(kept), "path": str(kept.path), "fits_here": reason is None, "reason": reason}
            for kept, reason in found
        ]
        print(json.dumps(plain, indent=1))
        return 0
    print_kept(found, EngineCache(options.cache).folder)
    return 0


def _report(options: argparse.Namespace) -> int:
    profiles = [(file, documents.load(file)) for file in options.files]
    several = len(profiles) > 1
    output: Path = options.output or (Path("boards.html") if several else options.files[0].with_name("report.html"))
    require_writable(output, "--output", ".html")
    with documents.telling(*options.files):
        page = render_boards(compare_boards(profiles)) if several else render(profiles[0][1])
    try:
        write_text(output, page)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
    print(f"Written: {printable(str(output))}")
    return 0


def _layers(options: argparse.Namespace) -> int:
    if is_trtexec(options.file):
        layers = read_trtexec(options.file, options.layer_info)
        print_layers(
            options.file.name, {"time_ms": sum(layer["time_ms"] for layer in layers), "layers": layers}, options.most
        )
        return 0
    if options.layer_info is not None:
        raise UserError(f"--layer-info {options.layer_info} goes with a file of 'trtexec --exportProfile'")
    with documents.telling(options.file):
        graphs = layer_graphs(documents.load(options.file)["rows"])
        for title, graph in graphs:
            print_layers(title, graph, options.most)
    if not graphs:
        raise UserError(f"{options.file} has no row of the scenario 'layers'; run the profile with --scenarios layers")
    return 0


def _schema(_: argparse.Namespace) -> int:
    print(json.dumps(SCHEMA, indent=2))
    return 0
