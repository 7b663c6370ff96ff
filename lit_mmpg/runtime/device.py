"""``lit-mmpg device``: looks at clips, asks a cloud when its policy says so, answers always. No torch."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import sigterm_interrupts
from lit_mmpg.report import escape, wide_console
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.camera import add_device_options, open_camera
from lit_mmpg.runtime.client import KEY_VARIABLE, open_cloud
from lit_mmpg.runtime.folder import StateFolder
from lit_mmpg.runtime.journal import Record
from lit_mmpg.runtime.looking import Eye
from lit_mmpg.runtime.loop import Device
from lit_mmpg.runtime.policies import KINDS, Uncertainty, parse_policy
from lit_mmpg.runtime.questions import Questions, read_questions
from lit_mmpg.runtime.recorder import Recorder
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.summary import never_helped, print_line, print_summary, summarise
from lit_mmpg.runtime.video import list_videos, require_video
from lit_mmpg.tasks import find_task
from lit_mmpg.writing import FULL, give_up_output


def main(argv: Sequence[str]) -> int:
    """Run a device over clips.

    Returns:
        0, or 1 where at least one clip could not be read, or the cloud was asked and never helped.

    Raises:
        UserError: If an option, the bundle, a file or the address is not usable.
    """
    options = _parser().parse_args(list(argv))
    policy = parse_policy(options.policy)
    videos, left_out = _videos(options.clips)
    questions = read_questions(options.questions, options.question or ())
    bundle = Bundle.open(options.bundle)
    _check(bundle, questions)
    if not any(questions.about(video.name) for video in videos):
        raise UserError(
            f"--questions {options.questions}: none is about the clips ({videos[0].name}, ...), they are about "
            f"{next(iter(questions.own))}, ...; name the clips as their files are named"
        )
    if find_task(bundle.manifest.task).searches and isinstance(policy, Uncertainty):
        raise UserError("--policy uncertainty needs a model that answers questions; use drift")
    console = wide_console()
    with contextlib.ExitStack() as stack:
        client = open_cloud(options, bundle)
        if client is not None:
            stack.enter_context(client)
        camera = open_camera(options.camera_memory, bundle, options.camera_query, client)
        folder = StateFolder(Path(options.state_dir)) if options.state_dir else None
        if folder is not None:
            stack.callback(folder.close)
        session = stack.enter_context(DeviceSession(bundle, options.engine, options.precision))
        eye = Eye(session, options.frames, pixels=camera is not None)
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
            camera=camera,
        )
        recorder = None
        if options.mlflow:
            params = {"device_id": device.device_id, "policy": str(policy), "cloud": options.cloud or "none"}
            params |= {"engine": options.engine, "precision": options.precision, "clips": str(len(videos))}
            recorder = stack.enter_context(Recorder(options.mlflow, bundle, params))
        waiting = device.waiting(videos, options.again)
        if len(waiting) < len(videos):
            left = f"{len(videos) - len(waiting)} of {len(videos)} clips"
            _show(console.print, f"{left} were answered before (--again repeats), or named twice")
        for note in left_out:
            _show(console.print, f"[yellow]left out[/yellow] {escape(note)}", soft_wrap=True)
        asked = (question for video in waiting for question in questions.about(video.name))
        notes = [*device.notes, *session.note_on_words(text for q in asked for text in (q.text, *q.options))]
        notes += [recorder.error] if recorder is not None and recorder.error else []
        for note in notes:
            _show(console.print, f"[yellow]note[/yellow] {escape(note)}")
        records: list[Record] = []
        try:
            with sigterm_interrupts():  # the present clip is given up, all before it are on the disk
                said: str | None = None
                faults: set[str] = set()
                for video in waiting:
                    record = device.take(video)
                    records.append(record)
                    _show(print_line, console, record)
                    if record.asked and record.reason and record.reason not in faults:  # once, with its remedy
                        faults.add(record.reason)
                        told = escape(record.error or record.reason)
                        _show(console.print, f"[yellow]note[/yellow] {told}", soft_wrap=True)
                    problem = device.storage_error
                    if problem not in (None, said):
                        _show(console.print, f"[yellow]note[/yellow] {escape(str(problem))}")
                    said = problem
                    if recorder is not None:
                        recorder.clip(record)
        finally:
            figures = summarise(records)
            if records:
                _show(print_summary, console, figures)
            if records and camera is not None:
                _show(console.print, f"camera: {escape(camera.text)}", soft_wrap=True)
            if recorder is not None:
                recorder.finish(figures, device.journal.path if device.journal else None)
                where = recorder.error or f"run {recorder.run_id} in {recorder.uri}"
                _show(console.print, f"recorded: {escape(where)}", soft_wrap=True)
            if not _show(sys.stdout.flush):
                give_up_output()
    return 1 if left_out or figures["unreadable"] or never_helped(figures) else 0


def _show(show: Callable[..., None], *arguments: Any, **options: Any) -> bool:
    """Show something; whether that was possible. A screen that is a log on a full disk ends no device."""
    try:
        show(*arguments, **options)
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"note: the output cannot be written ({error.strerror})", file=sys.stderr)
        return False
    return True


def _videos(named: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The videos that are named, and why others are left out.

    A file that is named twice, or has a second name, is one clip under its first name.
    """
    found: dict[object, Path] = {}
    left_out: list[str] = []
    for name in named:
        try:
            videos = list_videos(name) if os.path.isdir(os.path.expanduser(name)) else [require_video(name)]
        except UserError as error:
            left_out.append(str(error))
            continue
        for video in videos:
            found.setdefault(_identity(video), video)
    if not found:
        raise UserError(left_out[0])
    return list(found.values()), left_out


def _identity(video: Path) -> object:
    try:
        status = video.stat()
    except OSError:  # told when its turn comes
        return video
    return status.st_dev, status.st_ino


def _check(bundle: Bundle, questions: Questions) -> None:
    """Whether the bundle can answer what is asked, before anything is opened."""
    task = find_task(bundle.manifest.task)
    for question in [*questions.common, *(q for own in questions.own.values() for q in own)]:
        if task.takes_options and len(question.options) < 2:
            raise UserError(
                f"'{question.text}' has no options; a multiple-choice model needs a CSV with 'options' a|b|c"
            )
        if not task.takes_options and question.options:
            raise UserError(f"'{question.text}' has options, which the model of {bundle.path} does not take")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-mmpg device",
        description="Run a device over video files: decode, encode, add anchors to the context, request personal "
        "parameters when the policy says so, load them, answer. Prints a line per clip and a summary. No torch is "
        "needed. If a request fails, clips are answered with the former parameters or the static model.",
        epilog=f"An API key for the cloud is taken from the environment variable {KEY_VARIABLE}. Exit status: 0; 1 "
        "some clips could not be read, or the cloud was asked and never helped; 2 nothing could be done; "
        "130 interrupted (the same command goes on).",
        allow_abbrev=False,
    )
    add_device_options(parser, "device", "service with the cloud half (default: none, no adaptation)")
    parser.add_argument(
        "--clips", required=True, action="extend", nargs="+", metavar="PATH", help="video files, or folders of them"
    )
    parser.add_argument(
        "--question", action="append", metavar="TEXT", help="question about every clip; may be repeated"
    )
    parser.add_argument(
        "--questions",
        metavar="FILE",
        help="text file with one question per line for all clips, or CSV: video,question and optionally answer,options",
    )
    parser.add_argument("--policy", default="drift:0.2", help=f"when to ask the cloud: {KINDS} (default: %(default)s)")
    parser.add_argument("--upload-codec", metavar="NAME", help="codec of the uploads (default: as trained)")
    parser.add_argument(
        "--anchor-noise",
        type=float,
        default=0.0,
        metavar="X",
        help="Gaussian noise on uploads, relative to their RMS value (default: none)",
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", help="folder that keeps state and answers, so that a stopped device continues"
    )
    parser.add_argument("--again", action="store_true", help="answer again clips that were answered before")
    parser.add_argument(
        "--mlflow", metavar="URI", help="record the run in this MLflow store (sqlite:///FILE.db, http://...)"
    )
    return parser
