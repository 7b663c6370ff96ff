"""Engines: one small class for each way to run a graph of the bundle.

:func:`create_engine` makes one by name; :func:`engine_table` lists all, with the reason where this machine cannot run
one. An engine is imported when it is asked for, so a missing library costs nothing.
"""

from lit_mmpg.runtime.engines.base import Engine, EngineConfig
from lit_mmpg.runtime.engines.table import ENGINES, EngineEntry, EngineRow, create_engine, engine_class, engine_table

__all__ = [
    "ENGINES",
    "Engine",
    "EngineConfig",
    "EngineEntry",
    "EngineRow",
    "create_engine",
    "engine_class",
    "engine_table",
]
