"""What is exported: a checkpoint with its networks, and the data on whose devices the graphs are checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_mmpg.checkpoint import read_checkpoint, trained_config
from lit_mmpg.cloud.exchange import state_digest
from lit_mmpg.cloud.loading import load_module
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.errors import UserError
from lit_mmpg.pretrained import read_folder
from lit_mmpg.training.config import Request, merge
from lit_mmpg.training.lightning_cli import CLI, Run

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.base import AnsweringModule
    from lit_mmpg.device.contract import DeviceModel


TRAINED = "trained.json"
"""Beside what ``save_pretrained`` writes: the configuration that the checkpoint was trained with, and its run."""

_KEPT = ("run_id", "tracking_uri")


@dataclass(frozen=True)
class Source:
    """A checkpoint, ready to be exported.

    Attributes:
        path: The file.
        module: The half that it holds, with its weights, in evaluation mode.
        data: The data module as configured, not set up.
        ours: What the checkpoint says about itself (``half``, ``data``, ``run_id``, ...).
    """

    path: Path
    module: AnsweringModule
    data: DeviceData
    ours: dict[str, Any]

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


def open_source(path: str | Path, data_flags: Sequence[str] = ()) -> Source:
    """Load a checkpoint of either half.

    Args:
        path: The file, or a folder that :func:`save_source` wrote.
        data_flags: ``--data...`` flags that win over the data configuration of the checkpoint.

    Raises:
        UserError: If the checkpoint or a flag is not usable.
    """
    if Path(path).is_dir():
        checkpoint, kept = _read_saved(Path(path))
    else:
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
    return Source(Path(path), module, cli.datamodule, ours)


def save_source(path: str | Path, folder: str | Path) -> None:
    """Write a checkpoint as ``save_pretrained`` does, with all that :func:`open_source` needs, and without pickle.

    Args:
        path: The checkpoint, of either half; that of the cloud half holds both.
        folder: Folder, made where it is missing.

    Raises:
        UserError: If the checkpoint is not usable.
    """
    checkpoint = read_checkpoint(path)
    trained = {key: checkpoint["lit_mmpg"].get(key) for key in _KEPT}
    trained["config"] = trained_config(path, checkpoint)
    module, _ = load_module(path)
    module.save_pretrained(folder)
    text = json.dumps(trained, indent=1, ensure_ascii=False, default=str)
    (Path(folder) / TRAINED).write_text(text + "\n", encoding="utf-8")


def _read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content of a folder in the form of a checkpoint, and its configuration."""
    checkpoint = read_folder(folder)
    try:
        trained = json.loads((folder / TRAINED).read_text(encoding="utf-8"))
        config: dict[str, Any] = trained["config"]
        checkpoint["lit_mmpg"] |= {key: trained[key] for key in _KEPT if trained[key] is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / TRAINED} is missing or damaged ({error}); log the model again") from error
    return checkpoint, config
