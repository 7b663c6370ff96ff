"""``lit-mmpg profile engines build | list | load``: what engines build for this machine, as things that are kept.

What is kept stays on this machine and is never taken from another one: loading a built engine runs what is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError, reason_of
from lit_mmpg.profiling.config import ProfileConfig
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import Engine, create_engine, engine_class
from lit_mmpg.runtime.engines.cache import EngineCache, Kept, differences
from lit_mmpg.runtime.verify import verify

Row = dict[str, Any]
Say = Callable[[str], None]

ONE_DEVICE = "it would hold one device's own parameters"
"""Why an engine with parameters inside is not kept."""


def engines_of(config: ProfileConfig, bundle: Bundle) -> Iterator[tuple[dict[str, str], Mapping[str, Any]]]:
    """Every engine of a configuration for every graph of a bundle: what it is, and its options.

    A graph without the precision runs in fp32, as in a profile.
    """
    seen = set()
    for selection in config.engines:
        for wanted in selection.precisions:
            for role in bundle.roles:
                precision = wanted if wanted in bundle.precisions(role) else "fp32"
                key = (selection.engine, str(selection.options), role, precision)
                if key in seen:
                    continue
                seen.add(key)
                yield {"engine": selection.engine, "role": role, "precision": precision}, selection.options


def build(config: ProfileConfig, bundle: Bundle, say: Say) -> list[Row]:
    """Build and keep every engine, or find it kept.

    Returns:
        Rows ``engine``, ``role``, ``precision`` with ``state`` (built, kept, none, absent, failed), ``build_s``,
        ``bytes``, ``path`` and ``reason``.
    """

    def one(engine: Engine) -> Row:
        reason = getattr(engine, "compile_requirements", engine.requirements)()
        if reason is not None:
            return {"state": "absent", "reason": reason}
        key = engine.key()
        if key is None:
            return {"state": "none", "reason": ONE_DEVICE}
        before = engine.cache.why_not(key, engine.suffix, engine.label)
        data = engine.build()
        path = engine.cache.path(key, engine.suffix)
        if engine.cache.why_not(key, engine.suffix) is not None:
            raise UserError(f"{path} cannot be written; free some space, or name a folder by the option cache")
        state = "kept" if before is None else "built"
        return {"state": state, "build_s": engine.build_s, "bytes": len(data), "path": str(path)}

    return [_tried(bundle, what, options, one, say) for what, options in engines_of(config, bundle)]


def load(config: ProfileConfig, bundle: Bundle, say: Say) -> list[Row]:
    """Load every kept engine and compare it with the reference; nothing is built.

    Returns:
        Rows as of :func:`build` with ``state`` (loaded, none, absent, does not fit, wrong, failed), ``load_ms`` and
        ``reason``.
    """

    def one(engine: Engine) -> Row:
        absent, key = engine.requirements(), engine.key()
        if key is None:
            return {"state": "none", "reason": ONE_DEVICE}
        reason = engine.cache.why_not(key, engine.suffix, engine.label)
        if reason is not None:
            return {"state": "does not fit", "reason": reason}
        if absent is not None:
            return {"state": "absent", "reason": absent}
        start = time.perf_counter()
        with engine:
            spent_ms = (time.perf_counter() - start) * 1e3
            if engine.build_s is not None:
                return {"state": "does not fit", "reason": "it did not load, and was built anew"}
            verdict = verify(engine, bundle)
        state = "loaded" if verdict.ok else "wrong"
        return {"state": state, "load_ms": spent_ms, "reason": "; ".join(verdict.problems) or None}

    return [_tried(bundle, what, options, one, say) for what, options in engines_of(config, bundle)]


def _tried(
    bundle: Bundle, what: Mapping[str, str], options: Mapping[str, Any], one: Callable[[Engine], Row], say: Say
) -> Row:
    """A row, whatever goes wrong: one engine's failure costs no other."""
    row: Row = {**what, **dict.fromkeys(("build_s", "load_ms", "bytes", "path", "reason"))}
    say(" ".join(what.values()))
    try:
        cls = engine_class(what["engine"])
        if cls.identity() is None:
            return row | {"state": "none", "reason": "this engine keeps nothing that it builds"}
    except UserError as error:
        return row | {"state": "absent", "reason": str(error)}
    try:
        keep = {"keep": True} if any(field.name == "keep" for field in fields(cls.config_class)) else {}
        engine = create_engine(what["engine"], bundle, what["role"], what["precision"], **{**options, **keep})
    except UserError as error:  # a graph that this engine does not run
        return row | {"state": "absent", "reason": str(error)}
    try:
        return row | one(engine)
    except Exception as error:
        return row | {"state": "failed", "reason": reason_of(error)}


def kept_here(folder: Path | None = None) -> list[tuple[Kept, str | None]]:
    """What is kept, and why it does not fit this machine; None where it does.

    Args:
        folder: The cache; the user's when None.
    """
    here: dict[str, Mapping[str, Any] | str] = {}
    found = []
    for kept in EngineCache(folder).entries():
        name = kept.label.get("engine", "")
        if name not in here:
            try:
                here[name] = engine_class(name).identity() or f"engine '{name}' keeps nothing"
            except UserError as error:
                here[name] = str(error)
        identity = here[name]
        reason = identity if isinstance(identity, str) else "; ".join(differences(kept.key, identity))
        found.append((kept, reason or None))
    return found
