"""``lit-mmpg export``: a checkpoint as a bundle."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from lit_mmpg.errors import UserError
from lit_mmpg.export.write import check_target
from lit_mmpg.heartbeat import tell
from lit_mmpg.pretrained import find_trained
from lit_mmpg.report import format_bytes, wide_console
from lit_mmpg.runtime.bundle import MANIFEST
from lit_mmpg.runtime.manifest import PRECISIONS, Manifest

if TYPE_CHECKING:
    from lit_mmpg.export.bundle import Variant


def main(argv: Sequence[str]) -> int:
    """Write a bundle and print what is in it.

    Returns:
        0, or 1 where a requested variant failed its acceptance and was left out.

    Raises:
        UserError: If the checkpoint, the data or the target is not usable.
    """
    options, flags = _parser().parse_known_args(list(argv))
    unknown = [flag for flag in flags if flag.startswith("-") and not flag.startswith("--data")]
    if unknown:
        raise UserError(f"export has no option {unknown[0]}; see lit-mmpg export --help")
    checkpoint, output = find_trained(options.ckpt), Path(options.output)
    check_target(output)
    if options.frames and not options.frame_encoder:
        raise UserError("--frames are for a frame encoder; name it with --frame-encoder")
    # Cheap checks come first: importing torch takes seconds, a typing mistake should not.
    from lit_mmpg.export.bundle import Options, write_bundle
    from lit_mmpg.export.source import open_trained

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = wide_console()
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("loading the checkpoint", total=None)
        tell("loading the checkpoint")
        source = open_trained(checkpoint, flags)
        chosen = Options(
            tuple(options.precisions or ["fp32"]),
            options.samples,
            options.keep_failed,
            options.torch,
            options.frame_encoder,
            options.frames,
        )

        def say(text: str) -> None:
            progress.update(task, description=text)
            tell(text)

        variants = write_bundle(source, output, chosen, say)
    _print(variants, output)
    _print_guard(Manifest.from_json(json.loads((output / MANIFEST).read_text(encoding="utf-8"))))
    return 0 if all(variant.written for variant in variants) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-mmpg export",
        description="Write a checkpoint as a bundle that a device runs without torch. Every graph is compared with the "
        "model on unseen devices with their generated parameters; one that is not good enough is left out and said.",
        epilog="--data.root FOLDER (and any other --data... flag) wins over the data configuration of the checkpoint.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ckpt",
        required=True,
        help="checkpoint of either half that 'lit-mmpg fit' wrote, or "
        "a folder or repository of save_pretrained (with --samples synthetic)",
    )
    parser.add_argument("--output", required=True, help="folder of the bundle; an older bundle there is replaced")
    parser.add_argument(
        "--precisions",
        action="extend",
        nargs="+",
        choices=PRECISIONS,
        metavar="P",
        help=f"{', '.join(PRECISIONS)} (default: fp32)",
    )
    parser.add_argument(
        "--samples",
        choices=("data", "synthetic"),
        default="data",
        help="what graphs are checked on: the data's unseen devices, or clips drawn from the training statistics",
    )
    parser.add_argument(
        "--frame-encoder",
        metavar="DIR",
        help="encoder that made the frame features (a transformers folder, or a name on the hub), so that the bundle "
        "starts from pixels",
    )
    parser.add_argument(
        "--frames",
        metavar="PATH",
        help="folder or zip archive of pictures CLIP/FRAME.jpg that the frame encoder is calibrated and checked on; "
        "generated pictures when not given",
    )
    parser.add_argument("--torch", action="store_true", help="also write the weights, for the engines that need torch")
    parser.add_argument("--keep-failed", action="store_true", help="write variants that failed their acceptance, too")
    return parser


def _print(variants: Sequence[Variant], output: Path) -> None:
    first = variants[0].info.acceptance
    table = Table(
        title=f"bundle {output}",
        caption=f"error: relative to the spread of the outputs; compared on {first.samples} rows "
        f"({first.source}, {first.devices or 'no'} sets of generated parameters).",
        caption_justify="left",
    )
    for name in ("role", "precision"):
        table.add_column(name, no_wrap=True)
    for name in ("size", "nodes", "MACs", "error", "top-1 agreement", "rank correlation"):
        table.add_column(name, justify="right")
    table.add_column("result")
    for variant in variants:
        info, figures = variant.info, variant.info.acceptance
        result = "ok" if not variant.problems else "; ".join(variant.problems)
        if not variant.written:
            result = f"left out: {result}"
        table.add_row(
            info.role,
            info.precision,
            format_bytes(info.bytes),
            str(info.nodes),
            f"{info.macs:,}",
            f"{figures.error:.1e}",
            _share(figures.top1_agreement),
            "" if figures.rank_correlation is None else f"{figures.rank_correlation:.4f}",
            result,
        )
    wide_console().print(table)


def _print_guard(manifest: Manifest) -> None:
    if not len(manifest.spec):
        return
    said = "finite outputs alone; bounds need 8 validation devices, and --samples data"
    if manifest.guard is not None:
        said = f"bounds of plausible parameters, chosen on {manifest.guard.devices} validation devices"
    wide_console().print(f"guard: {said}")


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
