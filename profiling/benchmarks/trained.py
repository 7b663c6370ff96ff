"""A finished cloud half with its devices, for the benchmarks of the link: loading, and writing what was measured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from lit_mmpg.checkpoint import require_checkpoint
from lit_mmpg.cloud.exchange import Anchors
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.errors import UserError
from lit_mmpg.report import wide_console
from lit_mmpg.writing import write_text

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData


@dataclass(frozen=True)
class Trained:
    """A cloud half and its data.

    Attributes:
        path: The checkpoint.
        module: Both halves, in evaluation mode.
        data: The data, set up.
    """

    path: Path
    module: CloudModule
    data: DeviceData

    def name(self, device: int) -> str:
        """Id of a device."""
        return self.data.device_table.devices[device].id


def load(path: str, flags: Sequence[str]) -> Trained:
    """Load a cloud half.

    Args:
        path: The checkpoint.
        flags: ``--data...`` flags as for ``lit-mmpg test``.

    Raises:
        UserError: If it is no cloud half whose parameters cross the link, or the data is not usable.
    """
    file = require_checkpoint(path)
    from lit_mmpg.training.evaluation import restore

    module, data = restore(file, flags)
    if not isinstance(module, CloudModule):
        raise UserError(f"{file} holds the device half; name the checkpoint of a cloud half")
    if module.cloud_config.place != "cloud" or module.cloud_config.context != "anchors":
        raise UserError(f"{file}: its devices send nothing (a control); name one with cloud.context=anchors")
    return Trained(Path(file), module, data)


def context_anchors(clips: Anchors, groups: Sequence[Sequence[int]], width: int) -> Anchors:
    """Contexts made of clips whose anchors are known.

    Args:
        clips: Anchors of M clips, ``[1, M, K, ...]``.
        groups: Clips of each context, oldest first, at least one.
        width: Clips of the longest context.

    Returns:
        ``[B, width, K, ...]``; padding comes last.
    """
    index = torch.zeros(len(groups), width, dtype=torch.long)
    real = torch.zeros(len(groups), width, dtype=torch.bool)
    for b, group in enumerate(groups):
        index[b, : len(group)], real[b, : len(group)] = torch.tensor(list(group)), True

    def pick(tensor: Tensor) -> Tensor:
        chosen = tensor[0][index]
        return chosen * real.reshape(*real.shape, *[1] * (chosen.dim() - 2)).to(chosen.dtype)

    return Anchors(pick(clips.features), pick(clips.times), pick(clips.mask), pick(clips.num_frames))


def write_results(folder: str | Path, name: str, result: Mapping[str, Any], text: str) -> tuple[Path, Path]:
    """Write ``NAME.json`` and ``NAME.md``, each in one step."""
    files = Path(folder) / f"{name}.json", Path(folder) / f"{name}.md"
    for path, content in zip(files, (json.dumps(result, indent=1, allow_nan=False), text), strict=True):
        write_text(path, content.rstrip("\n") + "\n")
    return files


def command(
    name: str,
    description: str | None,
    measure: Callable[[Trained, argparse.Namespace, Callable[[str], None]], dict[str, Any]],
    markdown: Callable[[dict[str, Any]], str],
    table: Callable[[dict[str, Any]], Table],
    argv: Sequence[str] | None,
    ckpt: str = "checkpoint of a cloud half",
    add_options: Callable[[argparse.ArgumentParser], Any] = lambda parser: None,
) -> int:
    """A benchmark of the link as a command: load, measure, write ``NAME.json`` and ``NAME.md``, show a table.

    Args:
        name: Name of the benchmark.
        description: For ``--help``.
        measure: Figures of a checkpoint; told the options, and where to say what is at work.
        markdown: The result for people.
        table: The same, shorter, for the screen.
        argv: Arguments; what no option knows are flags of the data.
        ckpt: Help of ``--ckpt``.
        add_options: Adds options of its own; one called ``name`` names the files.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(prog=f"python -m lit_mmpg.profiling.benchmarks.{name}", description=description)
    parser.add_argument("--ckpt", required=True, help=ckpt)
    parser.add_argument("--output", default="outputs/benchmarks", metavar="DIR", help="default: %(default)s")
    add_options(parser)
    options, flags = parser.parse_known_args(argv)
    console = wide_console()
    trained = load(options.ckpt, flags)
    with console.status("") as status:
        result: dict[str, Any] = {"checkpoint": str(trained.path), "flags": list(flags)}
        result |= measure(trained, options, lambda text: status.update(text))
    files = write_results(options.output, getattr(options, "name", name), result, markdown(result))
    console.print(table(result))
    console.print(f"written: {files[0]}, {files[1]}", soft_wrap=True)
    return 0
