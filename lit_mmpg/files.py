"""Configuration files by name: in the current folder, or among those that come with the package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

import lit_mmpg
from lit_mmpg.errors import UserError, nearest


def shipped_configs() -> Path:
    """Folder of the configuration files that come with the package, installed or in a checkout."""
    return Path(lit_mmpg.__file__).parent / "configs"


def expand_home(text: str) -> str:
    """A value or an argument with the home folder for ``~``, as a path and as the value of a flag.

    Shells leave ``--flag=~/file`` as it is, and nothing expands the values of a file.
    """
    flag, equals, value = text.partition("=")
    if equals and flag.startswith("--") and (value == "~" or value.startswith("~/")):
        return f"{flag}={os.path.expanduser(value)}"
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


def find_config(name: str, folder: Path | None = None) -> Path:
    """Path of a configuration file.

    Args:
        name: Path relative to the folder, or ``configs/...`` for a file that comes with the package.
        folder: Where to look first; the current directory when None.

    Raises:
        UserError: If there is no such file; names the nearest one.
    """
    path = (folder or Path()) / os.path.expanduser(name)
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


def read_yaml(path: Path) -> Any:
    """Content of a YAML file.

    Raises:
        UserError: If it cannot be read, is no YAML, or gives a key twice; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The same for a text that is at hand; ``where`` says what it is.

    Raises:
        UserError: See :func:`read_yaml`.
    """
    loader = _Loader(text)
    loader.where = where
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key that is given twice is an error instead of the last one winning."""

    where = ""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise UserError(
                    f"{self.where}, line {line}: key '{key.value}' is given a second time, after line {lines[name]}; "
                    "delete one of them"
                )
            lines[name] = line
        return node
