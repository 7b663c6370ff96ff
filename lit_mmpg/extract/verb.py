"""``lit-mmpg extract``: frame features of all videos of a folder, in one file that a data configuration can name."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_mmpg.data.readers.identity import clip_files
from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import working
from lit_mmpg.launcher import add_arguments, check_arguments, connected
from lit_mmpg.report import escape, format_bytes, wide_console
from lit_mmpg.runtime.video import SAMPLING, require_decoder, require_folder, require_video, video_digest
from lit_mmpg.texts import printable

if TYPE_CHECKING:
    from lit_mmpg.extract.store import Store

CACHE = Path("outputs/cache/encoders")
MOST_TWINS = 5


def main(argv: Sequence[str]) -> int:
    """Extract features.

    Returns:
        0, or 1 where at least one video was left out.

    Raises:
        UserError: If the folder, the encoder or the output is not usable, or no video could be read.
    """
    options = _parser().parse_args(list(argv))
    output = Path(os.path.expanduser(options.output))
    if output.suffix not in (".h5", ".hdf5") or output.is_dir():
        raise UserError(f"--output {output}: features are written as HDF5; name a file that ends in .h5")
    check_arguments(options, None if options.workers is None else "--workers")
    options.workers = (os.cpu_count() or 1) if options.workers is None else options.workers
    if options.frames < 1 or options.workers < 1 or (options.size is not None and options.size < 32):
        raise UserError("--frames and --workers must be at least 1, --size at least 32")
    # Before anything long: what is there, and whether it fits together.
    from lit_mmpg.data.vision import encoder_digest, encoder_folder
    from lit_mmpg.extract.encoder import prepare_graph
    from lit_mmpg.extract.store import Settings, Store

    require_decoder()
    videos, problems = _videos(options.videos)
    folder = encoder_folder(options.encoder)
    digest = encoder_digest(folder)
    with working("exporting the encoder, once", console=wide_console()):
        graph, (height, width) = prepare_graph(folder, digest, options.size, CACHE)
    settings = Settings(digest, height, width, options.frames, options.sampling, options.dtype)
    with Store(output, settings) as store:
        return _extract(options, store, videos, problems, graph, folder.name)


def _extract(
    options: argparse.Namespace,
    store: Store,
    videos: Mapping[str, Path],
    problems: list[str],
    graph: Path,
    encoder: str,
) -> int:
    """Encode what is not there yet; returns the exit status."""
    from lit_mmpg.extract.work import Done, Job, run_jobs, run_on_cluster

    output, console, entries = store.output, wide_console(), len(videos) + len(problems)
    where = (graph, Path(os.path.expanduser(options.videos)))
    if options.launcher == "dask":
        with connected(options.cluster, store.parts, where):
            pass  # what does not fit is told before all videos are read
    sources: dict[str, str] = {}
    with working("reading the videos, to tell which are known", len(videos), "clips", console=console) as work:
        for clip, path in videos.items():
            work.advance()
            try:
                sources[clip] = video_digest(path)
            except UserError as error:
                problems.append(str(error))
    for problem in problems:
        console.print(f"[yellow]left out[/yellow] {escape(problem)}")

    first: dict[str, str] = {}
    twins = [(clip, first[source]) for clip, source in sources.items() if first.setdefault(source, clip) != clip]
    for clip, other in twins[:MOST_TWINS]:
        console.print(
            f"[yellow]note[/yellow] {escape(printable(f'{clip} is the same video as {other}'))}, to the byte; "
            "training on one of them and testing on the other is no test"
        )
    if len(twins) > MOST_TWINS:
        console.print(f"[yellow]note[/yellow] {len(twins) - MOST_TWINS} more are the same as another one")

    jobs = [
        Job(clip, str(path), str(store.part(clip, sources[clip])))
        for clip, path in videos.items()
        if clip in sources and not store.has(clip, sources[clip])
    ]
    known = len(sources) - len(jobs)
    if known:
        console.print(f"{known} of {entries} clips are there already")
    if known and not jobs and output.is_file() and not any(store.part(c, s).is_file() for c, s in sources.items()):
        _print_next(output)
        return 1 if problems else 0
    failed: list[Done] = []
    frames, start = 0, time.perf_counter()
    if options.launcher == "dask":
        ended = run_on_cluster(jobs, store.settings, options.cluster, *where)
    else:
        ended = run_jobs(jobs, graph, store.settings, min(options.workers, max(1, len(jobs))))
    with working("extracting", len(jobs), "clips", console=console) as work:
        for done in ended:
            frames += done.frames
            work.advance()
            if done.error is not None:
                failed.append(done)
                console.print(f"[yellow]left out[/yellow] {escape(done.error)}")
    lost = {done.job.clip for done in failed}
    finished = {clip: source for clip, source in sources.items() if clip not in lost}
    if not finished:
        raise UserError(f"none of the {entries} videos in {printable(options.videos)} could be read; see above")
    count = store.finish(finished, {"encoder": encoder})
    seconds = time.perf_counter() - start
    console.print(
        f"{escape(str(output))}: {count} clips, {format_bytes(output.stat().st_size)}; now "
        f"{len(jobs) - len(failed)} with {frames} frames in {seconds:.1f} s ({frames / seconds:.0f} frames/s); "
        f"{len(failed) + len(problems)} left out"
    )
    _print_next(output)
    return 1 if failed or problems else 0


def _videos(name: str) -> tuple[dict[str, Path], list[str]]:
    """Id -> video, of a folder and its subfolders, and why others are left out.

    Raises:
        UserError: If the folder does not exist or holds none, or two videos would have the same id.
    """
    folder = require_folder(name)
    problems: list[str] = []
    found = clip_files(folder, problems.append)
    for clip, path in list(found.items()):
        try:
            require_video(path)
        except UserError as error:
            problems.append(str(error))
            del found[clip]
    return found, problems


def _print_next(output: Path) -> None:
    """Say what comes next, where the features lie in a data set that ``init-data`` made."""
    config = output.parent / f"{output.absolute().parent.name}.yaml"
    if output.name == "features.h5" and config.is_file():
        print(f"next: lit-mmpg fit --config {shlex.quote(str(config))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-mmpg extract",
        description="Frame features of all videos of a folder and its subfolders, as HDF5 with one dataset [frames, "
        "features] per video, named as the file without its suffix: what data.features of a data configuration takes. "
        "A run that was stopped, or more videos later: the same command goes on.",
        epilog="Exit status: 0 all clips are there; 1 some videos could not be read and were left out; 2 nothing "
        "could be done.",
        allow_abbrev=False,
    )
    parser.add_argument("--videos", required=True, metavar="FOLDER", help="folder of video files")
    parser.add_argument(
        "--encoder", required=True, metavar="NAME", help="vision encoder: a transformers folder, or a name on the hub"
    )
    parser.add_argument("--output", required=True, metavar="FILE.h5", help="features; an older file is added to")
    parser.add_argument(
        "--sampling",
        choices=SAMPLING,
        default="uniform",
        help="uniform: evenly over the length; shots: one frame of every shot first, then more of long shots",
    )
    parser.add_argument(
        "--frames", type=int, default=16, metavar="N", help="maximum number of frames per clip (default: 16)"
    )
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="height and width of the pictures (default: as the encoder says)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    add_arguments(parser, "clips")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="default: %(default)s")
    return parser
