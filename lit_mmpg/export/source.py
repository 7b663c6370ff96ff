"""What is exported: a checkpoint with its networks, and the data on whose devices the graphs are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_mmpg.checkpoint import load_module, read_checkpoint, trained_config
from lit_mmpg.cloud.exchange import state_digest
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.device.base import AnsweringModule
from lit_mmpg.errors import UserError
from lit_mmpg.training.config import Request, merge
from lit_mmpg.training.lightning_cli import CLI, Run

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.contract import DeviceModel


@dataclass(frozen=True)
class Trained:
    """A trained half without its data, as ``save_pretrained`` wrote it: enough for devices.

    Attributes:
        path: File or folder.
        module: The half that it holds, with its weights, in evaluation mode.
        ours: What it says about itself (``half``, ``data``, ``run_id``, ...).
    """

    path: Path
    module: AnsweringModule
    ours: dict[str, Any]

    @property
    def shape(self) -> BatchShape:
        """How clips and contexts were cut in training."""
        return BatchShape(**self.meta["batch"])

    @property
    def network(self) -> DeviceModel:
        """The device model."""
        return self.module.network  # type: ignore[return-value]

    @property
    def cloud(self) -> CloudModule | None:
        """The cloud half; ``None`` for a checkpoint of the device half."""
        return self.module if isinstance(self.module, CloudModule) else None

    @property
    def meta(self) -> dict[str, Any]:
        """What the checkpoint remembers of its data."""
        return self.ours["data"]  # type: ignore[no-any-return]

    def digest(self) -> str:
        """SHA-256 of the weights, as the messages of the link carry it."""
        return self.cloud.digest() if self.cloud else state_digest(nn.ModuleList([self.network]))


@dataclass(frozen=True)
class Source(Trained):
    """A checkpoint, ready to be exported.

    Attributes:
        data: The data module as configured, not set up.
    """

    data: DeviceData

    @property
    def shape(self) -> BatchShape:
        """How the data cuts clips and contexts, flags included."""
        return self.data.batch


def open_trained(path: str | Path, data_flags: Sequence[str] = ()) -> Trained:
    """Load a checkpoint of either half, or what ``save_pretrained`` wrote of one.

    Args:
        path: File or folder.
        data_flags: As for :func:`open_source`; a folder knows of no data.

    Raises:
        UserError: If it is not usable, or of a version that did not say how its clips were cut.
    """
    folder = Path(path)
    if not folder.is_dir():
        return open_source(path, data_flags)
    if data_flags:
        raise UserError(f"{folder} does not say with which data it was trained; leave {data_flags[0]} out")
    module, _ = load_module(folder, AnsweringModule)  # type: ignore[type-abstract]
    if "batch" not in module.meta:
        raise UserError(f"{folder} was saved by another version of lit-mmpg; save it again")
    return Trained(folder, module, {"half": module.half_name, "data": module.meta})


def open_source(path: str | Path, data_flags: Sequence[str] = ()) -> Source:
    """Load a checkpoint of either half.

    Args:
        path: The file.
        data_flags: ``--data...`` flags that win over the data configuration of the checkpoint.

    Raises:
        UserError: If the checkpoint or a flag is not usable.
    """
    checkpoint = read_checkpoint(path)
    kept = trained_config(path, checkpoint)
    ours = checkpoint["lit_mmpg"]
    trainer = {"logger": False, "accelerator": "cpu", "devices": 1}
    cli = CLI(Request("export", merge(kept, {"trainer": trainer}), list(data_flags), name=Path(path).name))
    cli.build(Run(), trained=ours["data"])
    module: AnsweringModule = cli.model
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    module.eval().requires_grad_(False)
    return Source(Path(path), module, ours, cli.datamodule)
