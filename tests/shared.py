"""What several test processes need and one of them makes: folders that all of a run share."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
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


def keep_tables() -> None:
    """Make MLflow's tables in a new SQLite file by a copy: its fifty migrations take longer than most tests."""
    from mlflow.store.db import utils
    from sqlalchemy import Engine, create_engine

    make = utils._initialize_tables
    if getattr(make, "copies", False):
        return

    def made(folder: Path) -> None:
        make(create_engine(f"sqlite:///{folder / 'store.db'}"))

    def initialize(engine: Engine) -> None:
        if engine.dialect.name == "sqlite" and engine.url.database not in (None, "", ":memory:"):
            tables = made_once("mlflow-tables", made) / "store.db"
            with suppress(sqlite3.Error), closing(sqlite3.connect(str(engine.url.database))) as target:
                with closing(sqlite3.connect(tables)) as source:
                    source.backup(target)
                return
        make(engine)  # whose errors, of a full disk for one, are those that users get

    initialize.copies = True  # type: ignore[attr-defined]
    utils._initialize_tables = initialize
