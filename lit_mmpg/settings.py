"""Settings as plain data, and back: what checkpoints and ``config.json`` keep, what files say. No torch here."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from lit_mmpg.errors import UserError, closest

T = TypeVar("T")

MOST = 2**16
"""Largest size that may be asked for where memory is taken for it: more is a slip, and could end other programs."""

MOST_THREADS = 1024
"""Most threads that may be asked for: libraries start as many as they are told, and crash where there is no room."""


def within(where: str, least: float, most: float = sys.float_info.max, **values: float | None) -> None:
    """Hold numbers against their range, which NaN is never in.

    Args:
        where: Place of the settings, with a dot behind it.
        least: Smallest value.
        most: Largest value.
        **values: The numbers by name; None is not looked at.

    Raises:
        UserError: If one lies outside; names it.
    """
    for name, value in values.items():
        try:
            fits = value is None or least <= value <= most
        except TypeError:
            fits = False
        if not fits:
            meant = f"at least {least}" if most == sys.float_info.max else f"between {least} and {most}"
            raise UserError(f"{where}{name} is {value}; it must be {meant}")


def class_path(kind: type) -> str:
    """Dotted name under which a class is imported again."""
    return f"{kind.__module__}.{kind.__qualname__}"


def to_plain(value: Any, name: str = "value") -> Any:
    """Settings as JSON has them: dataclasses become mappings, factories of classes ``class_path`` and ``init_args``.

    Args:
        value: A number, text, path, dataclass, class, partial of a class, or a list or mapping of these.
        name: What it is called in messages.

    Raises:
        UserError: If it is something else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: to_plain(getattr(value, entry.name), f"{name}.{entry.name}") for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(entry, name) for entry in value]
    if isinstance(value, type):
        return {"class_path": class_path(_typed(value))}
    if isinstance(value, functools.partial):
        # The parser of the command line hands over a partial of its own function, with the class as an argument.
        kinds = [part for part in (value.func, *value.args) if isinstance(part, type)]
        if len(kinds) == 1:
            init_args = to_plain(value.keywords, name)
            return {"class_path": class_path(_typed(kinds[0])), "init_args": init_args}
    raise UserError(
        f"{name} is {value!r}, which a checkpoint cannot keep; give plain values, a dataclass, a class, or "
        "functools.partial(CLASS, keyword=value)"
    )


def _typed(kind: type) -> type:
    """A class whose arguments a parser can read again from a checkpoint."""
    for name, argument in list(inspect.signature(kind.__init__).parameters.items())[1:]:  # type: ignore[misc]
        needed = argument.default is argument.empty and argument.kind not in (
            argument.VAR_POSITIONAL,
            argument.VAR_KEYWORD,
        )
        if needed and argument.annotation is argument.empty:
            raise UserError(
                f"argument {name} of {class_path(kind)} has no type, without which no checkpoint of it can be read; "
                f"write {name}: TYPE in its __init__"
            )
    return kind


def from_plain(kind: type[T], data: Any, where: str = "") -> T:
    """A dataclass from plain data, as a configuration file has them; every mistake is named by its place.

    jsonargparse is not asked here: it names no place within lists, suggests no names, and takes a second to import.

    Args:
        kind: The dataclass; its fields are numbers, texts, dataclasses, tuples or mappings of these, or None.
        data: A mapping.
        where: Place of the data in its file, with a dot behind it.

    Raises:
        UserError: If a field is unknown, missing, or of another type.
    """
    place = where.removesuffix(".") or "the file"
    if not isinstance(data, Mapping):
        raise UserError(f"{place} must be a mapping, not {data!r}")
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise UserError(
                f"there is no setting '{where}{key}'{closest(str(key), known)}; known are {', '.join(known)}"
            )
    lacking = [
        name
        for name, entry in known.items()
        if name not in data and entry.default is MISSING and entry.default_factory is MISSING
    ]
    if lacking:
        raise UserError(f"{where and f'{place} '}lacks {' and '.join(map(repr, lacking))}")
    hints = get_type_hints(kind)
    return kind(**{key: _converted(hints[key], value, f"{where}{key}") for key, value in data.items()})


def _converted(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return from_plain(hint, value, f"{where}.")  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} must be a list, not {value!r}")
        return tuple(_converted(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} must be a mapping, not {value!r}")
        kind = arguments[1]
        return {k: v if kind is Any else _converted(kind, v, f"{where}.{k}") for k, v in value.items()}
    if type(None) in arguments:
        return None if value is None else _converted(next(a for a in arguments if a is not type(None)), value, where)
    if type(value) in (int, float) and not abs(value) <= sys.float_info.max:
        raise UserError(f"{where} is {str(value)[:20]}; it must be a number that is not infinite")
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is not hint:
        raise UserError(f"{where} must be {hint.__name__}, not {value!r}")
    return value


class Remembering:
    """Mixin for classes that are rebuilt from what they were built with.

    Attributes:
        given: Arguments of ``__init__`` by name, defaults included.
    """

    given: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Note the arguments; a subclass of somebody else's need not do anything for that."""
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        except TypeError:  # a copy, which has no arguments, or a wrong call, which __init__ refuses
            return self
        bound.apply_defaults()
        named = list(bound.arguments.items())[1:]
        self.__dict__["given"] = {key: value for key, value in named if not isinstance(value, dict) or key != "kwargs"}
        return self

    def settings(self, **resolved: Any) -> dict[str, Any]:
        """Plain data from which Lightning (and :func:`lit_mmpg.checkpoint.rebuild`) make an equal object.

        Args:
            **resolved: Values that replace what was given.

        Raises:
            UserError: If a value cannot be kept.
        """
        plain = {name: to_plain(value, name) for name, value in {**self.given, **resolved}.items()}
        return plain | {
            "_class_path": class_path(type(self)),
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
        }
