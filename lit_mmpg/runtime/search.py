"""``lit-mmpg search``: the clips of a folder that fit a sentence. No torch."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import working
from lit_mmpg.pages.blocks import Facts, Gallery, Heading, Picture, Text, render
from lit_mmpg.report import escape, print_facts, wide_console
from lit_mmpg.runtime.adaptation import Adaptation, facts
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.camera import FRAMES, add_device_options, open_camera
from lit_mmpg.runtime.client import KEY_VARIABLE, count, open_cloud
from lit_mmpg.runtime.looking import Eye, Look
from lit_mmpg.runtime.personal import Match, PersonalDevice
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import Visit
from lit_mmpg.runtime.video import jpeg_file, list_videos, picture_at
from lit_mmpg.tasks import find_task
from lit_mmpg.writing import require_writable, write_text

PICTURE_WIDTH = 320
"""Width of the pictures of a page, pixels."""


def main(argv: Sequence[str]) -> int:
    """Search a folder of videos.

    Returns:
        0, or 1 where at least one video could not be read.

    Raises:
        UserError: If the folder, the bundle or the address is not usable, or no video can be read.
    """
    options = _parser().parse_args(list(argv))
    videos, bundle = list_videos(options.clips), Bundle.open(options.bundle)
    if not options.query.strip():
        raise UserError("the query is empty; write it in quotes behind 'search'")
    if not find_task(bundle.manifest.task).searches:
        raise UserError(f"{options.bundle} answers questions, it does not search; use 'lit-mmpg answer'")
    if options.html:
        require_writable(Path(options.html), "--html", ".html", ".htm")
    client = open_cloud(options, bundle)
    camera = open_camera(options.camera_memory, bundle, options.camera_query, client)
    console = wide_console()
    folder = Path(options.state) if options.state else None
    with (
        client or contextlib.nullcontext(),
        Visit(bundle, options.state, options.device_id, "search") as visit,
        DeviceSession(bundle, options.engine, options.precision) as session,
    ):
        device, state = PersonalDevice(session, visit.state, camera=camera), visit.state
        outcome = Adaptation(device.source)
        eye = Eye(session, options.frames, folder / "features" if folder else None, pixels=camera is not None)
        looks, problems = _look_at(videos, eye, console)
        remembers = client is not None or bundle.manifest.own_statistics is not None
        if remembers or camera is not None:
            for look in looks[-max(state.clips.maxlen or 1, FRAMES if camera else 1) :]:
                device.observe(look)
        if client is not None and visit.alone:
            outcome = device.adapt(client)
        start = time.perf_counter()
        found = device.search(options.query, looks)
        rank_ms = 1e3 * (time.perf_counter() - start)
        unknown = session.note_on_words([options.query])
        if remembers:
            visit.keep()
    notes = [*problems, *visit.notes, *(note for note in (outcome.error,) if note), *unknown]
    said = [
        *facts(outcome, state.statistics_text(), None if camera is None else camera.text),
        *_work(looks, outcome.cloud_ms, rank_ms),
    ]
    shown = [(looks[match.number], match) for match in found[: options.top]]
    _print(console, options.query, shown)
    print_facts(console, said, notes)
    if options.html:
        scores = [match.score for _, match in shown]
        pictures = [_picture(look, match, min(scores), max(scores)) for look, match in shown]
        target = Path(options.html)
        try:
            write_text(target, search_page(options.query, pictures, [*said, *(("note", n) for n in notes)]))
        except OSError as error:
            raise UserError(f"--html {target}: cannot be written ({error.strerror}); name another file") from error
        console.print(f"page: {escape(str(target))}")
    return 1 if problems else 0


def _look_at(videos: Sequence[Path], eye: Eye, console: Console) -> tuple[list[Look], list[str]]:
    looks, problems = [], []
    with working("looking at the clips", len(videos), "clips", console=console) as work:
        for video in videos:
            try:
                looks.append(eye.look(video))
            except UserError as error:
                problems.append(f"left out: {error}")
            work.advance()
    if not looks:
        raise UserError(f"none of the {len(videos)} videos could be read; the first: {problems[0]}")
    return looks, problems


def _work(looks: Sequence[Look], cloud_ms: float, rank_ms: float) -> list[tuple[str, str]]:
    """What was looked at, and how long that took."""
    fresh = [look for look in looks if not look.known]
    known = f", {len(looks) - len(fresh)} known from before" if len(fresh) < len(looks) else ""
    frames = sum(len(look.features) for look in looks)
    decode, encode = sum(look.decode_ms for look in fresh), sum(look.encode_ms for look in fresh)
    cloud = f", cloud {cloud_ms:.0f} ms" if cloud_ms else ""
    spent = f"decode {decode:.0f} ms, encode {encode:.0f} ms{cloud}, rank {rank_ms:.1f} ms"
    return [("clips", f"{len(looks)}, {frames} frames{known}"), ("time", spent)]


def _print(console: Console, query: str, found: Sequence[tuple[Look, Match]]) -> None:
    table = Table(title=escape(f"“{query}”"), title_justify="left")
    for name in ("rank", "clip", "score", "best moment", "decode ms", "encode ms"):
        table.add_column(name, justify="left" if name == "clip" else "right", overflow="fold")
    for i, (look, match) in enumerate(found, 1):
        seconds = float(look.times_s[match.frame])
        spent = ("known", "") if look.known else (f"{look.decode_ms:.0f}", f"{look.encode_ms:.0f}")
        table.add_row(str(i), escape(look.video.name), f"{match.score:.3f}", f"{seconds:.1f} s", *spent)
    console.print(table)


def search_page(query: str, pictures: Sequence[Picture], facts: Sequence[tuple[str, str]]) -> str:
    """The page of a search.

    Args:
        query: What was looked for.
        pictures: The clips, best first.
        facts: What else to say, as pairs of a name and a text.
    """
    said = (
        "Clips by similarity to these words, most similar first. The picture is the frame that fits best; the bar "
        "runs from the least to the most similar clip shown."
    )
    return render(query, [Heading(f"“{query}”", 1), Text(said, soft=True), Gallery(pictures), Facts(facts)])


def _picture(look: Look, match: Match, low: float, high: float) -> Picture:
    minutes, seconds = divmod(int(look.times_s[match.frame]), 60)
    text = f"score {match.score:.3f} · at {minutes}:{seconds:02d}"
    share = (match.score - low) / (high - low) if high > low else 1.0
    try:
        jpeg = jpeg_file(picture_at(look.video, int(look.indices[match.frame]), PICTURE_WIDTH))
    except UserError:  # deleted since its features were kept
        jpeg = None
    return Picture(look.video.name, text, share, jpeg)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-mmpg search",
        description="Rank the video files of a folder by how well they fit a sentence, with a device bundle of a "
        "retrieval model; no torch is needed.",
        epilog=f"An API key for the cloud is taken from the environment variable {KEY_VARIABLE}. Exit status: 0; 1 "
        "some videos could not be read; 2 nothing could be done.",
        allow_abbrev=False,
    )
    parser.add_argument("query", help="what to look for, in quotes")
    add_device_options(parser, "search", "service to request personal parameters from before the search")
    parser.add_argument("--clips", required=True, metavar="FOLDER", help="folder of video files")
    parser.add_argument("--html", metavar="FILE.html", help="write a page with pictures")
    parser.add_argument(
        "--top", type=count, default=20, metavar="N", help="number of clips to show (default: %(default)s)"
    )
    parser.add_argument(
        "--state",
        metavar="DIR",
        help="folder that keeps the context, the last good parameters and the features of clips; only read while a "
        "device uses it",
    )
    return parser
