"""``lit-mmpg memory``: learn a memory of camera models from what the devices of a fleet have filmed. No torch."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lit_mmpg.camera_memory import CameraMemory, Evidence, learn, require_clean
from lit_mmpg.errors import UserError, nearest
from lit_mmpg.heartbeat import working
from lit_mmpg.maps import PixelMaps, Scene
from lit_mmpg.records import clip_id
from lit_mmpg.report import escape, format_bytes, wide_console
from lit_mmpg.runtime.video import sample_video
from lit_mmpg.writing import require_writable

PICTURES = (".jpg", ".jpeg", ".png")
FEWEST_CLIPS = 4
"""Clips without which a device says nothing of its camera."""


def main(argv: Sequence[str]) -> int:
    """Learn a memory, or add models to one.

    Returns:
        0, or 1 where a file could not be read.

    Raises:
        UserError: If a folder or file is not usable, or there is too little to learn from.
    """
    options = _parser().parse_args(list(argv))
    fleet, clean, output = _devices(options.fleet), _clean(options.clean), Path(options.output)
    require_writable(output, "--output", ".safetensors")
    former = CameraMemory.load(options.add) if options.add else None
    size = _size(options.height, options.width, former)
    problems: list[str] = []
    shown: dict[bytes, Path] = {}
    again: list[str] = []
    with working("looking at clips", len(clean) + sum(map(len, fleet.values())), "clips") as work:

        def frames(files: Sequence[Path]) -> np.ndarray:
            seen = []
            for file in files:
                try:
                    frame = sample_video(file, 1, size).pixels[0]
                    first = shown.setdefault(hashlib.sha256(frame.tobytes()).digest(), file)
                    if first is file:
                        seen.append(frame)
                    else:  # what copies have in common is no camera's
                        again.append(f"{file} shows the same picture as {first}")
                except UserError as error:
                    problems.append(str(error))
                work.advance()
            return np.stack(seen) if seen else np.zeros((0, 3, *size), np.uint8)

        ordinary = frames(clean)
        seen = {name: frames(files) for name, files in fleet.items()}
    copies = [f"{len(again)} clips are left out, as {again[0]}"] if again else []
    few = [name for name, taken in seen.items() if len(taken) < FEWEST_CLIPS]
    devices = {name: taken for name, taken in seen.items() if name not in few}
    if len(devices) < options.fewest:
        raise UserError(
            f"--fleet {options.fleet}: {len(devices)} devices have {FEWEST_CLIPS} clips or more that can be read, a "
            f"model is learnt from {options.fewest}; " + "; ".join([*copies, "give more clips, or a smaller --fewest"])
        )
    require_clean(len(ordinary), options.share)
    memory = CameraMemory.empty(Scene.of(ordinary)) if former is None else former
    evidence = [Evidence.uploaded(PixelMaps.of(taken), memory.scene) for taken in devices.values()]
    with working("comparing the devices"):
        learnt, groups = learn(CameraMemory.empty(memory.scene), evidence, options.least, options.fewest)
        new = ~memory.holds(learnt.change)
        if new.any():
            memory = memory.with_models(learnt.change[new], learnt.opacity[new], learnt.devices[new])
        memory = memory.with_gates(ordinary, options.share)
    console = wide_console()
    _show(console, list(devices), groups, new, len(memory))
    for note in [*(f"{name}: fewer than {FEWEST_CLIPS} clips, left out" for name in few), *problems, *copies]:
        console.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)
    if not len(memory):
        raise UserError(
            f"no {options.fewest} devices of {options.fleet} are alike by {options.least:g} or more; nothing is written"
        )
    memory.save(output)
    gates = ", ".join(f"{score:.3f} by {count} frame{'s' * (count > 1)}" for count, score in memory.gates.items())
    console.print(
        f"a camera is recognised above a score of {gates}, which one in {round(1 / options.share)} clean ones has"
    )
    console.print(f"memory: {escape(str(output))}, {len(memory)} models, {format_bytes(output.stat().st_size)}")
    console.print(f"next: lit-mmpg answer VIDEO QUESTION --bundle BUNDLE --camera-memory {escape(str(output))}")
    return 1 if problems else 0


def _show(console: Console, names: Sequence[str], groups: Sequence[np.ndarray], new: np.ndarray, models: int) -> None:
    """The models that were learnt, which of them are new (the last of so many), and which devices they are of."""
    added = int(new.sum())
    known = f", {len(new) - added} that were known" if added < len(new) else ""
    table = Table(title=f"{added} camera models{known}", title_justify="left")
    for column in ("model", "devices", "among them"):
        table.add_column(column, justify="left" if column == "among them" else "right", overflow="fold")
    numbers = iter(range(models - added + 1, models + 1))
    for group, is_new in zip(groups, new.tolist(), strict=True):
        some = ", ".join(names[i] for i in group[:4].tolist())
        number = str(next(numbers)) if is_new else "known"
        table.add_row(number, str(len(group)), escape(some + (", ..." if len(group) > 4 else "")))
    console.print(table)
    alone = len(names) - sum(map(len, groups))
    console.print(f"{alone} devices are like no others: their cameras show nothing, or nothing that is shared")


def _size(height: int | None, width: int | None, former: CameraMemory | None) -> tuple[int, int]:
    """Size of the frames: that of the memory that is added to, where there is one."""
    if former is None:
        return height or 72, width or 96
    kept: tuple[int, int] = former.scene.mean.shape[-2:]
    if (height or kept[0], width or kept[1]) != kept:
        raise UserError(
            f"--add holds pictures of {kept[0]} x {kept[1]} pixels, --height and --width say otherwise; leave them out"
        )
    return kept


def _folder(folder: str, option: str) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{option} {folder} is not a folder{nearest(path)}")
    return path


def _devices(folder: str) -> dict[str, list[Path]]:
    found = {device.name: _clips(device) for device in sorted(_folder(folder, "--fleet").iterdir()) if device.is_dir()}
    if not any(found.values()):
        raise UserError(f"--fleet {folder} holds no folder with videos or pictures; make one folder for each device")
    return {name: files for name, files in found.items() if files}


def _clean(folder: str) -> list[Path]:
    files = _clips(_folder(folder, "--clean"))
    if not files:
        raise UserError(f"--clean {folder} holds no videos or pictures")
    return files


def _clips(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and not file.name.startswith(".") and (clip_id(file) or file.suffix.lower() in PICTURES)
    )


def _between(kind: type[Any], low: float, high: float) -> Callable[[str], Any]:
    """Type of an option that takes numbers of a range."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not between {low:g} and {high:g}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-mmpg memory",
        description="Learn the artefacts that cameras of one model share (shading, a housing, an overlay) from clips "
        "of a fleet. The camera models need not be known. The middle frame of each clip is used. Devices then "
        "recognise their camera with --camera-memory. No torch is needed.",
        epilog="Exit status: 0; 1 some files could not be read; 2 nothing could be done.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--fleet", required=True, metavar="FOLDER", help="folder with a subfolder of videos or pictures for each device"
    )
    parser.add_argument(
        "--clean",
        required=True,
        metavar="FOLDER",
        help="folder of 50 or more videos or pictures of cameras without artefacts",
    )
    parser.add_argument("--output", required=True, metavar="FILE.safetensors", help="the memory to write")
    parser.add_argument(
        "--add", metavar="FILE", help="existing memory whose models are kept; models that it does not hold are added"
    )
    for name, kind, low, high, default, said in (
        ("--height", int, 8, 512, None, "height of frames, pixels (default: that of --add, else 72)"),
        ("--width", int, 8, 512, None, "width of frames, pixels (default: that of --add, else 96)"),
        ("--least", float, 0.01, 1, 0.4, "lowest correlation of devices of one model"),
        ("--fewest", int, 2, 1000, 3, "smallest number of devices of a model"),
        ("--share", float, 0.001, 0.5, 0.02, "share of clean cameras that may be recognised as a known model"),
    ):
        parser.add_argument(
            name,
            type=_between(kind, low, high),
            default=default,
            help=said if default is None else f"{said} (default: %(default)s)",
        )
    return parser
