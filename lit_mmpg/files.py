"""Configuration files by name: in the current folder, or among those that come with the package."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

import lit_mmpg
from lit_mmpg.errors import UserError, closest, nearest, path_of


class RepeatedKeyError(UserError):
    """A key of a YAML mapping that is given twice."""


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
        name: Path relative to the folder, or ``configs/...`` for a file that comes with the package; ``FILE#VARIANT``
            for one of the variants that a file holds.
        folder: Where to look first; the current directory when None.

    Raises:
        UserError: If there is no such file; names the nearest one.
    """
    path = (folder or Path()) / path_of(name, "configuration file")
    if path.is_file():
        return path
    if path.is_dir():
        raise UserError(f"configuration file {path} is a folder; name a file in it")
    name, mark, variant = name.rpartition("#")
    if mark:
        path = find_config(name, folder)
        return path.with_name(f"{path.name}#{variant}")
    name = variant
    relative = Path(name)
    if relative.parts[:1] == ("configs",):
        shipped = shipped_configs().joinpath(*relative.parts[1:])
        if shipped.is_file():
            return shipped
        if not path.parent.is_dir():
            path = shipped
    raise UserError(f"configuration file {name} does not exist{_variant_named(path) or nearest(path)}")


def _variant_named(path: Path) -> str:
    """Where a file that is asked for is a variant of another one."""
    for file in sorted(path.parent.glob("*.yaml")):
        with suppress(UserError):
            data = read_yaml(file)
            for name in (data.get("variants") if isinstance(data, dict) else None) or ():
                if path.stem in (name, f"{file.stem}_{name}"):
                    return f"; it is {file}#{name}"
    return ""


def split_variant(path: Path) -> tuple[Path, str]:
    """The file, and the variant behind a ``#`` in what :func:`find_config` found; '' where none is named."""
    name, mark, variant = path.name.rpartition("#")
    return (path.with_name(name), variant) if mark and not path.is_file() else (path, "")


def read_config(path: Path) -> Any:
    """Content of a configuration file; of a file with ``variants`` the common part with the named one merged over it.

    Raises:
        UserError: See :func:`read_yaml`; if the file has variants and none of them is named, or another.
    """
    file, variant = split_variant(path)
    data = read_yaml(file)
    variants = data.pop("variants", None) if isinstance(data, dict) else None
    if variants is None and not variant:
        return data
    if not isinstance(variants, dict) or not all(isinstance(own, dict) for own in variants.values()):
        raise UserError(f"{file} holds no mapping of 'variants', so there is none to name behind '#'")
    if variant not in variants:
        told = f"there is no variant '{variant}'{closest(variant, variants)}"
        told = told if variant else f"name a variant, for example {file}#{next(iter(variants))}"
        raise UserError(f"{file}: {told}; it has {', '.join(variants)}")
    merged = merge(data, variants[variant])
    return {key: merged[key] for key in sorted(merged)}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Deep merge in which ``over`` wins; another class_path replaces the whole section."""
    if "class_path" in over and over["class_path"] != base.get("class_path"):
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


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


def read_json(path: Path, remedy: str) -> Any:
    """Content of a JSON file that a program wrote.

    Args:
        path: The file.
        remedy: What to do where it is damaged, such as ``copy it again``.

    Raises:
        UserError: If it is missing, cannot be read, is no JSON, or holds NaN or infinity, which JSON has not.
    """

    def refuse(name: str) -> None:
        raise UserError(f"{path} holds {name}, which is no number; {remedy}")

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=refuse)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist{nearest(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a file in it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is truncated or no JSON; {remedy}") from error


def parse_yaml(text: str, where: str) -> Any:
    """The same for a text that is at hand; ``where`` says what it is.

    Raises:
        UserError: See :func:`read_yaml`.
    """
    try:
        loader = _Loader(text)  # which refuses control characters
        loader.where = where
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key that is given twice is an error instead of the last one winning.

    So is what contains itself, and what JSON has not; dates stay text, and 1e-3 is a number.
    """

    where = ""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._open: set[str] = set()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent) and anchor in self._open:
            where = f"{self.where}, line {event.start_mark.line + 1}" if event.start_mark else self.where
            raise UserError(f"{where}: '*{anchor}' stands inside what it repeats; write it out")
        if anchor is None or isinstance(event, yaml.AliasEvent):
            return super().compose_node(parent, index)
        self._open.add(anchor)
        try:
            return super().compose_node(parent, index)
        finally:
            self._open.discard(anchor)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            # ``yes`` and ``true`` are one key, and so are ``1`` and ``0x1``; what is to be merged is none.
            name = key.tag if key.tag == f"{_PLAIN}merge" else self.construct_object(key)
            if name in lines:
                raise RepeatedKeyError(
                    f"{self.where}, line {line}: key '{key.value}' is given a second time, after line {lines[name]}; "
                    "delete one of them"
                )
            lines[name] = line
        return node


_PLAIN = "tag:yaml.org,2002:"
_Loader.add_constructor(f"{_PLAIN}timestamp", yaml.SafeLoader.construct_yaml_str)  # type: ignore[type-var]
for _kind in ("binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"{_PLAIN}{_kind}", yaml.SafeLoader.construct_undefined)  # type: ignore[type-var]
_Loader.add_implicit_resolver(
    f"{_PLAIN}float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
