"""What several test processes need and one of them makes: folders that all of a run share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from filelock import FileLock

FOLDER = Path()
"""Of this run; set by the conftest beside this file before the first test."""


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process which asks for it fills; the others wait.

    Nobody writes into it afterwards: what a test changes is copied first.

    Args:
        name: Of the folder.
        make: Fills the new, empty folder that it is given.
    """
    folder, done = FOLDER / name, FOLDER / f"{name}.done"
    with FileLock(FOLDER / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()  # an earlier try that failed is an error again
            make(folder)
            done.touch()
    return folder


def keep_torchlib() -> None:
    """Look the exporter's translations of operators up once in a process, not once a graph: a fourth of an export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
        ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
