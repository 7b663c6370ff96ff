"""A checkpoint or a saved folder as modules, without its data: what a service and the Python door need."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from lit_mmpg.checkpoint import read_checkpoint, rebuild
from lit_mmpg.device.base import AnsweringModule

Module = TypeVar("Module", bound=AnsweringModule)


def load_module(path: str | Path, kind: type[Module]) -> tuple[Module, str | None]:
    """The module of a checkpoint, in evaluation mode, and the MLflow run that trained it.

    A module of the cloud half holds the device model too (``module.network``).

    Args:
        path: A checkpoint, or a folder that ``save_pretrained`` wrote.
        kind: Class of the half that is wanted; the base of both where either will do.

    Raises:
        UserError: If it is neither, or holds the other half.
    """
    checkpoint = read_checkpoint(path, half=getattr(kind, "half_name", None))
    module = rebuild(checkpoint, str(path), kind)
    return module.eval().requires_grad_(False), checkpoint["lit_mmpg"].get("run_id")
