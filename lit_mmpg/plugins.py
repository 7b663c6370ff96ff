"""What other installed packages add to this one, found by their entry points and loaded when it is asked for.

[project.entry-points."lit_mmpg.forms"]
my_form = "my_package.my_form:MyForm"
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from lit_mmpg.errors import UserError, closest

_log = logging.getLogger(__name__)

Thing = TypeVar("Thing")


@lru_cache(maxsize=16)
def found(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Name -> entry points of a group, of all installed packages; nothing is imported.

    There is more than one where packages chose the same name; a package that is found twice counts once.
    """
    points: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=group):
        others = points.setdefault(point.name, ())
        if all(other.value != point.value for other in others):
            points[point.name] = (*others, point)
    return points


def package(point: EntryPoint) -> str:
    """Name and version of the package of an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "?"


class Registry(Generic[Thing]):
    """Things of one kind by name: those of this package, those that a program registers, those of other packages.

    A package that is faulty, or that takes a name that is taken, is an error where that name is asked for, and nowhere
    else.

    Args:
        group: Group of the entry points.
        what: What one is called in messages, for example ``task``.
        built_in: Those of this package.
        take: Makes a thing of an entry point's name and object; what it raises says why it cannot.
    """

    def __init__(self, group: str, what: str, built_in: Mapping[str, Thing], take: Callable[[str, Any], Thing]) -> None:
        self.group, self.what, self.built_in = group, what, dict(built_in)
        self._own, self._take = dict(built_in), take
        self._loaded: dict[tuple[str, str], Thing] = {}
        self._told: set[str] = set()

    def names(self) -> tuple[str, ...]:
        """All names, those of this package first; nothing is imported."""
        return tuple(dict.fromkeys([*self._own, *found(self.group)]))

    def package(self, name: str) -> str | None:
        """Name and version of the package that offers one; ``None``: this one, or the program itself."""
        return None if name in self._own else package(found(self.group)[name][0])

    def register(self, name: str, thing: Thing) -> Thing:
        """Make a thing known in this process; returns what has that name, which may be another one."""
        return self._own.setdefault(name, thing)

    def forget(self, name: str) -> None:
        """Undo :meth:`register`."""
        if name not in self.built_in:
            self._own.pop(name, None)

    def find(self, name: str, field: str = "") -> Thing:
        """A thing by its name.

        Args:
            name: The name.
            field: What names it, for messages.

        Raises:
            UserError: If there is none of that name, more than one, or the package that offers it is faulty.
        """
        where = f"{field}: " if field else ""
        points = found(self.group).get(name, ())
        owners = [*(["lit-mmpg"] if name in self.built_in else []), *map(package, points)]
        if len(owners) > 1:
            raise UserError(
                f"{where}the packages '{owners[0]}' and '{owners[1]}' both offer a {self.what} '{name}'; uninstall "
                f"'{owners[1]}'"
            )
        if name in self._own:
            return self._own[name]
        if not points:
            known = self.names()
            raise UserError(
                f"{where}there is no {self.what} '{name}'{closest(name, known)}; known are {', '.join(known)}; others "
                "come with packages of their own"
            )
        key = name, points[0].value
        if key not in self._loaded:
            try:
                self._loaded[key] = self._load(name, points[0])
            except UserError as error:
                raise UserError(f"{where}{error}") from error
        return self._loaded[key]

    def _load(self, name: str, point: EntryPoint) -> Thing:
        said = f"the {self.what} '{name}' of the package '{package(point)}' cannot be"
        remedy = f"mend {point.value} or uninstall the package"
        try:
            made = point.load()
        except Exception as error:  # whatever a foreign module raises while it is imported
            raise UserError(f"{said} loaded ({type(error).__name__}: {error}); {remedy}") from error
        try:
            return self._take(name, made)
        except Exception as error:  # likewise
            raise UserError(f"{said} used: {error}; {remedy}") from error

    def all(self) -> dict[str, Thing]:
        """All that can be used, for lists; what cannot is left out, and said once in the log."""
        things = {}
        for name in self.names():
            try:
                things[name] = self._own[name] if name in self._own else self.find(name)
            except UserError as error:
                if name not in self._told:
                    self._told.add(name)
                    _log.warning("left out: %s", error)
        return things


def subclass_of(base: type[Thing], name: str, made: Any) -> type[Thing]:
    """The object of an entry point, which must be a concrete subclass whose ``name`` is the entry point's.

    Raises:
        TypeError: If it is not; the message goes on from "cannot be used:".
    """
    if not (isinstance(made, type) and issubclass(made, base)):
        raise TypeError(f"it is no subclass of {base.__module__}.{base.__qualname__}")
    if inspect.isabstract(made):
        raise TypeError(f"it lacks {', '.join(sorted(made.__abstractmethods__))}")  # type: ignore[attr-defined]
    if getattr(made, "name", None) != name:
        raise TypeError(f"its name is {getattr(made, 'name', None)!r} instead of '{name}'")
    return made
