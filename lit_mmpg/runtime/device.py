"""``lit-mmpg device``: looks at clips, asks a cloud when its policy says so, answers always. No torch."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.markup import escape

from lit_mmpg.errors import UserError
from lit_mmpg.report import wide_console
from lit_mmpg.runtime.answer import KEY_VARIABLE
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.client import CloudClient
from lit_mmpg.runtime.journal import Record
from lit_mmpg.runtime.looking import Eye
from lit_mmpg.runtime.loop import Device, StateFolder
from lit_mmpg.runtime.policies import KINDS, Uncertainty, parse_policy
from lit_mmpg.runtime.questions import Questions, read_questions
from lit_mmpg.runtime.recorder import Recorder
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.summary import print_line, print_summary, summarise
from lit_mmpg.runtime.video import list_videos, require_video


def main(argv: Sequence[str]) -> int:
    """Run a device over clips.

    Returns:
        0, or 1 where at least one clip could not be read.

    Raises:
        UserError: If an option, the bundle, a file or the address is not usable.
    """
    options = _parser().parse_args(list(argv))
    policy = parse_policy(options.policy)
    if not 0 <= options.anchor_noise < float("inf"):
        raise UserError(f"--anchor-noise {options.anchor_noise} must be 0 or more")
    videos, left_out = _videos(options.clips)
    questions = read_questions(options.questions, options.question or ())
    bundle = Bundle.open(options.bundle)
    _check(bundle, questions, options.cloud is not None)
    if bundle.manifest.task == "retrieval" and isinstance(policy, Uncertainty):
        raise UserError("--policy uncertainty needs a model that answers questions; use drift")
    console = wide_console()
    folder = StateFolder(Path(options.state_dir)) if options.state_dir else None
    with contextlib.ExitStack() as stack:
        if folder is not None:
            stack.callback(folder.close)
        client = None
        if options.cloud:
            client = stack.enter_context(CloudClient(options.cloud, os.environ.get(KEY_VARIABLE), options.timeout))
        session = stack.enter_context(DeviceSession(bundle, options.engine, options.precision))
        eye = Eye(session, options.frames)
        device = Device(
            session,
            eye,
            questions,
            policy,
            client,
            options.device_id,
            folder,
            options.upload_codec,
            options.anchor_noise,
        )
        recorder = None
        if options.mlflow:
            params = {"device_id": options.device_id, "policy": str(policy), "cloud": options.cloud or "none"}
            params |= {"engine": options.engine, "precision": options.precision, "clips": str(len(videos))}
            recorder = stack.enter_context(Recorder(options.mlflow, bundle, params))
        waiting = videos if options.again else [video for video in videos if not device.known(video)]
        if len(waiting) < len(videos):
            console.print(f"{len(videos) - len(waiting)} of {len(videos)} clips were answered before (--again repeats)")
        for note in left_out:
            console.print(f"[yellow]left out[/yellow] {escape(note)}", soft_wrap=True)
        if device.state.note:
            console.print(f"[yellow]note[/yellow] {escape(device.state.note)}")
        records: list[Record] = []
        try:
            with _terminated():
                said: str | None = None
                for video in waiting:
                    record = device.take(video)
                    records.append(record)
                    print_line(console, record)
                    if device.storage_error not in (None, said):
                        console.print(f"[yellow]note[/yellow] {escape(str(device.storage_error))}")
                    said = device.storage_error
                    if recorder is not None:
                        recorder.clip(record)
        finally:
            figures = summarise(records)
            if records:
                print_summary(console, figures)
            if recorder is not None:
                recorder.finish(figures, device.journal.path if device.journal else None)
                where = recorder.error or f"run {recorder.run_id} in {recorder.uri}"
                console.print(f"recorded: {escape(where)}", soft_wrap=True)
    return 1 if left_out or any(record.unreadable for record in records) else 0


def _videos(named: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The videos that are named, and why others are left out."""
    found: list[Path] = []
    left_out: list[str] = []
    for name in named:
        try:
            found += list_videos(name) if os.path.isdir(os.path.expanduser(name)) else [require_video(name)]
        except UserError as error:
            left_out.append(str(error))
    if not found:
        raise UserError(left_out[0])
    return found, left_out


def _check(bundle: Bundle, questions: Questions, cloud: bool) -> None:
    """Whether the bundle can do what is asked, before anything is opened."""
    if cloud and not len(bundle.spec):
        raise UserError(f"{bundle.path} holds a static model, which no cloud can adapt; leave --cloud out")
    task = bundle.manifest.task
    for question in [*questions.common, *(q for own in questions.own.values() for q in own)]:
        if task == "multiple_choice" and len(question.options) < 2:
            raise UserError(
                f"'{question.text}' has no options; a multiple-choice model needs a CSV with 'options' a|b|c"
            )
        if task != "multiple_choice" and question.options:
            raise UserError(f"'{question.text}' has options, which the model of {bundle.path} does not take")


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: the present clip is given up, all before it are on the disk."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-mmpg device",
        description="Run a device over video files: decode, encode, take anchors into the context, ask the cloud when "
        "the policy says so, load what it sends, answer. Prints a line per clip and a summary. No torch is needed. "
        "Whatever the cloud does, every clip is answered: with parameters of before, or with the static model.",
        epilog=f"An API key for the cloud is taken from the environment variable {KEY_VARIABLE}. Exit status: 0; 1 "
        "some clips could not be read; 2 nothing could be done; 130 interrupted (the same command goes on).",
        allow_abbrev=False,
    )
    parser.add_argument("--bundle", required=True, help="folder that 'lit-mmpg export' wrote, with a frame encoder")
    parser.add_argument("--clips", required=True, nargs="+", metavar="PATH", help="video files, or folders of them")
    parser.add_argument("--cloud", metavar="URL", help="the cloud half (default: none, answer with what is there)")
    parser.add_argument(
        "--question", action="append", metavar="TEXT", help="question about every clip; may be repeated"
    )
    parser.add_argument(
        "--questions",
        metavar="FILE",
        help="text: a question about every clip per line; or CSV: video,question and, if wanted, answer and options",
    )
    parser.add_argument("--policy", default="drift:0.2", help=f"when to ask: {KINDS} (default: %(default)s)")
    parser.add_argument("--upload-codec", metavar="NAME", help="codec of the uploads (default: as trained)")
    parser.add_argument(
        "--anchor-noise",
        type=float,
        default=0.0,
        metavar="X",
        help="Gaussian noise on what is uploaded, as a share of its size (default: none)",
    )
    parser.add_argument("--state-dir", metavar="DIR", help="keep state and answers here; a stopped device goes on")
    parser.add_argument("--again", action="store_true", help="answer clips anew that the state folder knows")
    parser.add_argument("--device-id", default="device", help="name of this device (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="longest silence of the cloud, seconds")
    parser.add_argument("--frames", type=int, metavar="N", help="frames to look at per clip (default: as trained)")
    parser.add_argument(
        "--mlflow", metavar="URI", help="record the run in this MLflow store (sqlite:///FILE.db, http://...)"
    )
    parser.add_argument("--engine", default="onnxruntime", help="engine (see 'lit-mmpg profile engines')")
    parser.add_argument("--precision", default="fp32", help="precision of the device model (default: %(default)s)")
    return parser
