"""A checkpoint or a saved folder as modules, without its data: what a service and the Python door need."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from lit_mmpg.checkpoint import read_checkpoint, rebuild
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.device.base import AnsweringModule

Module = TypeVar("Module", bound=AnsweringModule)


def load_module(path: str | Path) -> tuple[AnsweringModule, str | None]:
    """The module of a checkpoint of either half, in evaluation mode, and the MLflow run that trained it.

    A module of the cloud half holds the device model too (``module.network``).

    Args:
        path: A checkpoint, or a folder that ``save_pretrained`` wrote.

    Raises:
        UserError: If it is neither.
    """
    return _rebuilt(read_checkpoint(path), path, AnsweringModule)  # type: ignore[type-abstract]


def load_cloud_module(path: str | Path) -> tuple[CloudModule, str | None]:
    """As :func:`load_module`, of the cloud half.

    Raises:
        UserError: If it is not of the cloud half.
    """
    return _rebuilt(read_checkpoint(path, half="cloud"), path, CloudModule)


def _rebuilt(checkpoint: dict[str, Any], path: str | Path, kind: type[Module]) -> tuple[Module, str | None]:
    module = rebuild(checkpoint, str(path), kind)
    return module.eval().requires_grad_(False), checkpoint["lit_mmpg"].get("run_id")
