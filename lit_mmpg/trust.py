"""Which classes a file may name: it brings no code, but to import a module that it names runs that module's code.

A checkpoint, a saved folder or a bundle may name classes of lit_mmpg, those that are imported already, those in modules
that the entry points of installed packages name (groups ``lit_mmpg.*``), and those that the user names: in a
configuration or flag of the command, or with the environment variable ``LIT_MMPG_TRUST`` (modules or packages,
separated by commas).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from lit_mmpg.errors import UserError

VARIABLE = "LIT_MMPG_TRUST"
_named: set[str] = set()
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def trust_own(settings: Any) -> None:
    """Trust the modules of all classes that the user's own configuration names."""
    _named.update(path.rpartition(".")[0] for path in _class_paths(settings) if "." in path)


def to_trust() -> str:
    """What :data:`VARIABLE` has to name for a command that knows only the files of this one; empty for nothing."""
    own = {name for name in _named if name.partition(".")[0] not in ("lightning", "torch") and not _trusted(name, ())}
    return ",".join(sorted(own))


def check_classes(settings: Any, source: str) -> None:
    """Refuse settings from a file that would get a module imported which nobody trusted.

    Args:
        settings: Plain data, in which classes stand under ``class_path``; but the parser takes any text for the name of
            a class where a setting may be one, and imports it before it knows better. So no text may be such a name.
        source: The file, for the message.

    Raises:
        UserError: If there is such a class.
    """
    for path in _class_paths(settings):
        check_class(path, source)
    for text in _texts(settings):
        if _NAME.fullmatch(text) and _importable(text):
            check_class(text, source)


def check_class(path: str, source: str) -> None:
    """As :func:`check_classes`, for one class; a name without a dot is looked up among what is imported.

    Raises:
        UserError: If its module is neither imported nor trusted.
    """
    module, _, name = path.rpartition(".")
    if module and not (_here(module, name) or _trusted(module, _named)):
        raise UserError(
            f"{source} names the class {path}, and to import it would run code of the module {module}; if you trust "
            f"it, import {module} before loading, or set {VARIABLE}={module}"
        )


def _texts(settings: Any) -> Iterator[str]:
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            # None of these is a setting that could be a class: a file's path, the words of the data, Lightning's own.
            yield from () if name in ("device_ckpt", "vocabulary", "answers", "_instantiator") else _texts(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _texts(value)
    elif isinstance(settings, str):
        yield settings


def _importable(path: str) -> bool:
    """Whether to import the name would run a file: folders without code are no modules worth the name."""
    root, *rest = path.split(".")
    try:
        spec = find_spec(root)
        while spec is not None and spec.origin is None and spec.submodule_search_locations and rest:
            spec = PathFinder.find_spec(rest[0], list(spec.submodule_search_locations))
            rest = rest[1:]
    except (ImportError, ValueError):  # a module that was put there by hand
        return True
    return spec is not None and spec.origin is not None


def _class_paths(settings: Any, key: str = "") -> Iterator[str]:
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from _class_paths(value, str(name))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _class_paths(value)
    elif isinstance(settings, str) and key in ("class_path", "_class_path", "network"):  # the parser imports each
        yield settings


def _here(module: str, name: str) -> bool:
    """Whether looking the class up imports nothing: packages and modules with ``__getattr__`` import what they lack."""
    loaded = sys.modules.get(module)
    if loaded is None:
        outer, _, inner = module.rpartition(".")  # a class within a class
        return isinstance(vars(sys.modules[outer]).get(inner), type) if outer in sys.modules else False
    return name in vars(loaded) or not {"__path__", "__getattr__"} & vars(loaded).keys()


def _trusted(module: str, named: Collection[str]) -> bool:
    given = (text.strip() for text in os.environ.get(VARIABLE, "").split(","))
    if any(module == root or module.startswith(f"{root}.") for root in ("lit_mmpg", *named, *given) if root):
        return True
    points = entry_points()
    groups = [group for group in points.groups if group.startswith("lit_mmpg.")]
    return any(point.module == module for group in groups for point in points.select(group=group))
