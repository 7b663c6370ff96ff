"""What other installed packages add to this one, found by their entry points and loaded when it is asked for.

[project.entry-points."lit_mmpg.forms"]
my_form = "my_package.my_form:MyForm"
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lit_mmpg.errors import UserError


@lru_cache(maxsize=16)
def found(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of a group, of all installed packages; nothing is imported.

    Raises:
        UserError: If two packages use the same name.
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            raise UserError(
                f"the packages '{package(other)}' and '{package(point)}' both offer '{point.name}' in {group}; "
                "uninstall one of them"
            )
    return points


def package(point: EntryPoint) -> str:
    """Name and version of the package of an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "?"


def load(group: str, name: str) -> Any:
    """What the entry point of that name stands for.

    Raises:
        UserError: If it cannot be imported; the message names the package.
    """
    point = found(group)[name]
    try:
        return point.load()
    except Exception as error:  # whatever a foreign module raises while it is imported
        raise UserError(
            f"'{name}' ({group}) of the package '{package(point)}' cannot be loaded ({type(error).__name__}: {error}); "
            f"mend {point.value} or uninstall the package"
        ) from error
