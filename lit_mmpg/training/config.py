"""Experiment files: where they are found and how they compose. No torch here, so a wrong path is answered at once.

An experiment file names its groups by files relative to itself, or writes them out, or both::

    data: ../data/personal_clips.yaml
    trainer: [../trainer/cpu.yaml, {max_epochs: 8}]   # merged from left to right
    device_stage: {model: device.yaml, trainer: {max_epochs: 4}}   # or a file: the device half, trained first

A file may hold ``variants`` (tasks of one data set): ``FILE#NAME`` is its common part with that variant over it.
``${NAME}`` in a value stands for the environment variable NAME, ``~/`` at its start for the home folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.files import RepeatedKeyError, expand_home, find_config, merge, parse_yaml, read_config, split_variant
from lit_mmpg.trust import trust_own

DEMO = "configs/experiment/demo.yaml"
"""A complete configuration, on the embedded data."""

GROUPS = ("data", "model", "trainer")
"""Keys of an experiment file whose value may be a file."""

_ROWS = {
    "output": "JSON file for the rows of the table",
    "json": "print the rows as JSON to stdout, and everything else to stderr",
}
_MEASURE = {"ckpt_path": "checkpoint to measure", **_ROWS}

OPTIONS = {
    "fit": {
        "ckpt_path": "checkpoint to go on from; 'last' finds the interrupted run of this same configuration",
        "device_stage": "configuration of the device half, trained first when the model names no device_ckpt; "
        "--device_stage.KEY VALUE sets a key of that half alone",
        "stage": "'device' trains the device half of a configuration with both alone",
    },
    "validate": _MEASURE,
    "test": _MEASURE,
    "devices": _ROWS,
    "predict": {
        "ckpt_path": "checkpoint that answers",
        "output": "CSV or JSONL file for the answers",
        "device": "id of the one device to answer for; all unseen devices when not given",
    },
    "export": {},  # its own options are no part of a configuration
}
"""Options of each verb beside those of the model, the data, the trainer and the tracking."""

FLAGS = {"json"}
"""Options that take no value."""

TOLD = ("title", "about")
"""Keys of an experiment file that say what it is, for the reports of comparisons."""

ALL_OPTIONS = {*TOLD} | {option for options in OPTIONS.values() for option in options}

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_INTERPOLATION = re.compile(r"\$\{[^}]*\}?")


@dataclass
class Request:
    """What was asked on the command line.

    Attributes:
        verb: fit, validate, test or predict.
        config: The composed configuration files.
        flags: All other arguments, to be parsed over the configuration.
        options: Values of the verb's own options, None where not given.
        name: Name of the configuration: stem of its last file, or the verb.
        device_flags: Arguments for the device stage alone, written ``--device_stage.KEY``, as its parser takes them.
    """

    verb: str
    config: dict[str, Any]
    flags: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    device_flags: list[str] = field(default_factory=list)

    def overridden(self) -> set[str]:
        """Dotted keys that the flags set, without ``init_args``."""
        return {_short(flag[2:].split("=", 1)[0].split(".")) for flag in self.flags if flag.startswith("--")}

    def flag(self, name: str) -> str | None:
        """Value that a flag gives to a dotted key, None where none does."""
        found = None
        for flag, following in zip(self.flags, [*self.flags[1:], ""], strict=False):
            key, equals, value = flag.partition("=")
            if key.startswith("--") and _short(key[2:].split(".")) == name:
                found = value if equals else following
        return found

    def section(self, name: str) -> dict[str, Any]:
        """One section as far as it is known without a parser: the configuration, and over it the flags of its fields.

        Raises:
            UserError: If a value needs an environment variable that is not set.
        """
        section = _interpolate({name: self.config.get(name) or {}}, (), self.overridden())[name]
        for flag, value in _pairs(self.flags):
            group, *path = flag[2:].split(".")
            if group == name and path:
                if path[0] not in ("class_path", "init_args"):
                    path = ["init_args", *path]
                for key in reversed(path):
                    value = {key: value}
                section = merge(section, value)
        return section

    def derive(self, stage: str | Path | dict[str, Any]) -> Request:
        """Request for the device stage (a file or a section), with the flags that concern both stages."""
        config = _device_config(self.config, stage)
        trust_own(config)
        flags = [*split_flags(self.flags, "model")[1], *self.device_flags]
        request = Request("fit", config, flags, name=self.name)
        request.options = dict.fromkeys(OPTIONS["fit"]) | {"ckpt_path": self.options["ckpt_path"]}
        return request

    def arguments(self) -> list[str]:
        """Arguments for the parser: the configuration, then the flags.

        Raises:
            UserError: If a value needs an environment variable that is not set.
        """
        config = _interpolate(self.config, (), self.overridden())
        config, flags = _network_taken(config, self.flags)
        return [f"--config={json.dumps(config)}", *flags]


def read_request(verb: str, argv: Sequence[str]) -> Request:
    """Split the command line into configuration files, the verb's own options and other flags.

    Raises:
        UserError: If a file is missing or malformed.
    """
    parser = argparse.ArgumentParser(prog=f"lit-mmpg {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    for option in OPTIONS[verb]:
        parser.add_argument(f"--{option}", action="store_true" if option in FLAGS else "store")
    try:
        known, flags = parser.parse_known_args([expand_home(text) for text in argv])
    except SystemExit as error:
        raise UserError(f"an option of 'lit-mmpg {verb}' lacks its value; see lit-mmpg {verb} --help") from error
    device_flags: list[str] = []
    if "device_stage" in OPTIONS[verb]:
        named, flags = split_flags(flags, "device_stage")
        device_flags = [flag.replace("--device_stage.", "--", 1) for flag in named]
    given = list(_pairs([*flags, *device_flags]))
    for flag, value in given:
        if flag[2:] in GROUPS and str(value).endswith((".yaml", ".yml")):
            _read_mapping(find_config(str(value)))  # the parser reads it in its own way, and would let faults pass
    config: dict[str, Any] = {}
    for name in known.config:
        config = merge(config, load_config(find_config(name)))
    options = {option: getattr(known, option) or config.pop(option, None) for option in OPTIONS[verb]}
    # An experiment file serves every verb: what concerns only another verb is no mistake.
    config = {key: value for key, value in config.items() if key not in ALL_OPTIONS}
    if device_flags and not options["device_stage"]:
        raise UserError(f"{named[0]} sets what no device_stage trains; leave it out, or name one with --device_stage")
    stage = options.pop("stage", None)
    if stage is not None:
        config = _stage_alone(stage, config, options["device_stage"])
        flags, device_flags = [*flags, *device_flags], []
        options["device_stage"] = None
    file, variant = split_variant(Path(known.config[-1])) if known.config else (Path(verb), "")
    name = f"{file.stem}_{variant}" if variant else file.stem
    classes = ("class_path", "network", *(f"--{group}" for group in GROUPS))
    trust_own([config, *({"class_path": value} for flag, value in given if flag.rpartition(".")[2] in classes)])
    return Request(verb, config, flags, options, name, device_flags)


def load_config(path: Path) -> dict[str, Any]:
    """Read one configuration file and the group files that it names.

    Raises:
        UserError: If a file is missing or is not YAML with a mapping at the top.
    """
    config = _read_mapping(path)
    for group in GROUPS:
        if group in config:
            config[group] = _compose(config[group], path, group)
    stage = config.get("device_stage")
    if isinstance(stage, dict):
        config["device_stage"] = {k: _compose(v, path, k) if k in GROUPS else v for k, v in stage.items()}
    elif stage:
        config["device_stage"] = str(find_config(stage, path.parent).absolute())
    return config


def _device_config(config: dict[str, Any], stage: str | Path | dict[str, Any]) -> dict[str, Any]:
    """Configuration of the device stage: what it says itself, and of the whole what is not about the cloud's model."""
    inherited = {key: value for key, value in config.items() if key != "model"}
    return inherited | (stage if isinstance(stage, dict) else load_config(Path(stage)))


def _stage_alone(asked: str, config: dict[str, Any], stage: Any) -> dict[str, Any]:
    if asked != "device":
        raise UserError(f"--stage {asked}: 'device' trains the device half alone; leave it out to train both halves")
    if not stage:
        raise UserError("--stage device: the configuration has no 'device_stage'; leave it out to train what it has")
    alone = _device_config(config, stage)
    return {key: alone[key] for key in sorted(alone)}


def _compose(value: Any, path: Path, group: str) -> dict[str, Any]:
    if isinstance(value, str):
        return _read_mapping(find_config(value, path.parent))
    if isinstance(value, list):
        composed: dict[str, Any] = {}
        for part in value:
            composed = merge(composed, _compose(part, path, group))
        return composed
    if isinstance(value, dict):
        return value
    raise UserError(f"{path}: '{group}' must be a file, a mapping or a list of these, not {value!r}")


def _read_mapping(path: Path) -> dict[str, Any]:
    config = read_config(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a mapping such as 'trainer: ...' at the top")
    return config


def _interpolate(value: Any, key: tuple[str, ...], overridden: set[str]) -> Any:
    if isinstance(value, dict):
        # A value that a flag replaces need not be resolvable.
        return {
            name: _interpolate(entry, (*key, str(name)), overridden)
            for name, entry in value.items()
            if not (isinstance(entry, str) and _short((*key, str(name))) in overridden)
        }
    if isinstance(value, list):
        return [_interpolate(entry, key, overridden) for entry in value]
    if isinstance(value, str):
        for variable in _VARIABLE.findall(value):
            if variable not in os.environ:
                flag = _short(key)
                raise UserError(
                    f"'{flag}' is {value}, but the environment variable {variable} is not set; "
                    f"set it or pass --{flag} VALUE"
                )
        other = _INTERPOLATION.search(_VARIABLE.sub("", value))
        if other:
            raise UserError(
                f"'{_short(key)}' is {value}: {other.group()} is no environment variable, and no other interpolation "
                "(as OmegaConf's) is supported; write the value out, or ${NAME}"
            )
        return expand_home(_VARIABLE.sub(lambda match: os.environ[match.group(1)], value))
    return value


def _short(key: Sequence[str]) -> str:
    return ".".join(part for part in key if part != "init_args")


def _pairs(flags: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Flags with their values, which are YAML where they can be."""
    for i, flag in enumerate(flags):
        name, equals, text = flag.partition("=")
        if not name.startswith("--") or not (equals or (i + 1 < len(flags) and not flags[i + 1].startswith("--"))):
            continue
        text = text if equals else flags[i + 1]
        try:
            yield name, parse_yaml(text, name)
        except RepeatedKeyError:
            raise
        except UserError:
            yield name, text


def _network_taken(config: dict[str, Any], flags: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The configuration with what flags say of a network of somebody's own, and the other flags.

    The parser would take a flag of one of its fields for one of the shipped network, and train that.
    """
    model = config.get("model") or {}
    if "class_path" not in model:
        return config, list(flags)
    network = (model.get("init_args") or {}).get("network")
    starts = [i for i, flag in enumerate(flags) if flag.startswith("--")]
    kept = list(flags[: starts[0]] if starts else flags)
    for start, end in zip(starts, [*starts[1:], len(flags)], strict=False):
        name, value = next(_pairs(flags[start:end]), ("", None))
        group, _, path = name[2:].removeprefix("model.init_args.").removeprefix("model.").partition("network")
        within = path.removeprefix(".init_args")[1:].split(".")
        if name.startswith("--model.") and not group and path[:1] in ("", ".") and within != ["help"]:
            network = {"class_path": network} if isinstance(network, str) else network or {}
            if within in ([""], ["class_path"]):
                named = isinstance(value, str) and not value.endswith((".yaml", ".yml"))
                network = {"class_path": value} if named else value
            elif "class_path" in network:
                for key in reversed(within):
                    value = {key: value}
                network = merge(network, {"init_args": value})
            if isinstance(network, dict) and "class_path" in network:
                config = merge(config, {"model": {"init_args": {"network": network}}})
                continue
        kept += flags[start:end]
    return config, kept


def split_flags(flags: Sequence[str], group: str) -> tuple[list[str], list[str]]:
    """Flags of one group, each with its value, and all others."""
    theirs: list[str] = []
    others: list[str] = []
    kept = others
    for flag in flags:
        if flag.startswith("--"):
            kept = theirs if flag.split("=", 1)[0].split(".")[0] == f"--{group}" else others
        kept.append(flag)
    return theirs, others
