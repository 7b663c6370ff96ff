"""Configuration files by name: in the current folder, or among those that come with the package."""

from __future__ import annotations

from pathlib import Path

import lit_mmpg
from lit_mmpg.errors import UserError, nearest


def shipped_configs() -> Path:
    """Folder of the configuration files that come with the package, installed or in a checkout."""
    package = Path(lit_mmpg.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(name: str, folder: Path | None = None) -> Path:
    """Path of a configuration file.

    Args:
        name: Path relative to the folder, or ``configs/...`` for a file that comes with the package.
        folder: Where to look first; the current directory when None.

    Raises:
        UserError: If there is no such file; names the nearest one.
    """
    path = (folder or Path()) / name
    if path.is_file():
        return path
    relative = Path(name)
    if relative.parts[:1] == ("configs",):
        shipped = shipped_configs().joinpath(*relative.parts[1:])
        if shipped.is_file():
            return shipped
        if not path.parent.is_dir():
            path = shipped
    raise UserError(f"configuration file {name} does not exist{nearest(path)}")
