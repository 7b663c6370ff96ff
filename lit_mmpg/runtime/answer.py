"""``lit-mmpg answer``: one video file, one question, one answer, and where bytes and time went. No torch."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence

from lit_mmpg.errors import UserError
from lit_mmpg.report import escape, json_alone, print_facts, wide_console
from lit_mmpg.runtime.adaptation import Adaptation, facts
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.camera import add_device_options, open_camera
from lit_mmpg.runtime.client import KEY_VARIABLE, open_cloud
from lit_mmpg.runtime.looking import Eye
from lit_mmpg.runtime.personal import PersonalDevice
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import Visit
from lit_mmpg.runtime.video import require_video


def main(argv: Sequence[str]) -> int:
    """Answer a question about a video.

    Raises:
        UserError: If the video, the bundle or the address is not usable.
    """
    options = _parser().parse_args(list(argv))
    with json_alone(options.json) as write:
        return _answer(options, write)


def _answer(options: argparse.Namespace, write: Callable[[str], None]) -> int:
    video, bundle = require_video(options.video), Bundle.open(options.bundle)
    if not options.question.strip():
        raise UserError("the question is empty; write it in quotes behind the video")
    client = open_cloud(options, bundle)
    camera = open_camera(options.camera_memory, bundle, options.camera_query, client)
    times: dict[str, float] = {}

    def timed(name: str, start: float) -> None:
        times[name] = 1e3 * (time.perf_counter() - start)

    start = time.perf_counter()
    with (
        client or contextlib.nullcontext(),
        Visit(bundle, options.state, options.device_id, "answer") as visit,
        DeviceSession(bundle, options.engine, options.precision) as session,
    ):
        device, statistics = PersonalDevice(session, visit.state, camera=camera), visit.state.statistics_text()
        eye = Eye(session, options.frames, pixels=camera is not None)
        timed("load", start)
        look = eye.look(video)
        times |= {"decode": look.decode_ms, "encode": look.encode_ms}
        start, outcome = time.perf_counter(), Adaptation(device.source)
        if client is not None or bundle.manifest.own_statistics is not None:
            device.observe(look)
        if client is not None:
            if visit.alone:
                outcome = device.adapt(client)
            timed("cloud", start)
        start = time.perf_counter()
        answer = device.answer(look, options.question, options.options or ())
        timed("answer", start)
        unknown = session.note_on_words([options.question, *(options.options or ())])
        visit.keep()
    notes = [note for note in (*visit.notes, outcome.error, *unknown) if note]
    if options.json:
        found = {
            "answer": answer.text,
            "probability": answer.confidence,
            "ranking": [[name, share] for name, share in answer.ranking],
            "parameters": outcome.source,
            "camera": None if camera is None else camera.text,
            "bytes": None if outcome.traffic is None else vars(outcome.traffic),
            "frames": len(look.features),
            "times_ms": times,
            "notes": notes,
        }
        write(json.dumps(found, indent=2, default=float))
        return 0
    console = wide_console()
    console.print(f"[bold]{escape(answer.text)}[/bold]   (probability {answer.confidence:.0%}, not calibrated)")
    shown = [
        ("next", ", ".join(f"{name} {share:.0%}" for name, share in answer.ranking[1:])),
        *facts(outcome, statistics, None if camera is None else camera.text),
        ("frames", f"{len(look.features)} of {video.name}"),
        ("time", ", ".join(f"{name} {value:.0f} ms" for name, value in times.items())),
    ]
    print_facts(console, shown, notes)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-mmpg answer",
        description="Answer one question about one video file with a device bundle; no torch is needed.",
        epilog=f"An API key for the cloud is taken from the environment variable {KEY_VARIABLE}.",
        allow_abbrev=False,
    )
    parser.add_argument("video", help="video file")
    parser.add_argument("question", help="question, in quotes")
    add_device_options(parser, "answer", "service to request personal parameters from before the answer")
    parser.add_argument("--json", action="store_true", help="print one JSON document to stdout, and nothing else")
    parser.add_argument(
        "--options", action="extend", nargs="+", metavar="TEXT", help="candidate answers of a multiple-choice model"
    )
    parser.add_argument(
        "--state",
        metavar="DIR",
        help="folder that keeps the context and the last good parameters; only read while a device uses it",
    )
    return parser
