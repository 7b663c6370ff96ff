"""What engines compile for this machine, kept between runs. Local only: nothing in it comes from a bundle.

An entry is found by a key over everything that it depends on (GPU, driver, module and power mode of a board, versions,
graph, settings), so what another version has compiled is never loaded; and its digest is compared before it is, so a
damaged entry is compiled again. A record beside each entry holds its key in the clear: what is kept can be listed, with
the reason where it does not fit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lit_mmpg import sysfs
from lit_mmpg.invoker import invoker
from lit_mmpg.writing import write_bytes


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/lit-mmpg``, else ``~/.cache/lit-mmpg``; under sudo, of the user who called it."""
    user = invoker()
    return Path(os.environ.get("XDG_CACHE_HOME") or (user.home if user else Path.home()) / ".cache") / "lit-mmpg"


def key_digest(key: Mapping[str, object]) -> str:
    """Short name for a key."""
    text = json.dumps(key, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def board(root: Path = Path("/")) -> dict[str, str | None]:
    """What tells boards apart whose GPUs look alike: an Orin Nano and an Orin NX answer CUDA with the same name.

    Args:
        root: Root of the file system.

    Returns:
        ``module`` (model and compatible names of the device tree) and ``power_mode`` (nvpmodel's mode, ``15W (2)``:
        clocks and cores differ, and with them the fastest tactics); None where there is none, as on a PC.
    """
    tree = [sysfs.device_tree(root, name) for name in ("model", "compatible")]
    module = " ".join(text.replace("\0", " ").strip() for text in tree if text) or None
    mode = re.search(r"pmode:(\d+)", sysfs.text(root / "var/lib/nvpmodel/status") or "")
    if module and not mode:
        mode = re.search(r"^\s*(\d+)\s*$", _nvpmodel(), re.MULTILINE)
    if mode is None:
        return {"module": module, "power_mode": None}
    name = power_mode_names(root).get(int(mode[1]))
    return {"module": module, "power_mode": f"{name} ({int(mode[1])})" if name else str(int(mode[1]))}


def power_mode_names(root: Path = Path("/")) -> dict[int, str]:
    """Names of a Jetson's power modes by number, from ``< POWER_MODEL ID=0 NAME=15W >`` in /etc/nvpmodel.conf."""
    lines = re.finditer(
        r"^\s*<\s*POWER_MODEL\s+ID\s*=\s*\"?([0-9]{1,9})\"?\s+NAME\s*=\s*(.*?)\s*>",
        sysfs.text(root / "etc/nvpmodel.conf") or "",
        re.MULTILINE,
    )
    return {int(line[1]): line[2].strip("\"'") for line in lines}


def _nvpmodel() -> str:
    """What nvpmodel says of the mode; empty where it does not."""
    try:
        return subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""


FIELDS = {
    "machine.power_mode": "for power mode {}",
    "machine.module": "for module {}",
    "machine.gpu": "for GPU {}",
    "machine.driver": "with driver {}",
    "machine.cpu": "for processor {}",
    "version": "by version {}",
}
"""Fields of a key that belong to the machine, in words; others are what was asked for."""


def differences(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Why an entry does not fit, in words: ``built for power mode 15W (2), this is MAXN (0)``; empty where it does.

    Args:
        kept: Key of the entry.
        wanted: Key that is asked for; fields that it lacks are not compared.
    """
    a, b = _flat(kept), _flat(wanted)
    found = []
    for name in sorted(b, key=lambda name: (name not in FIELDS, name)):
        if a.get(name) == b[name]:
            continue
        if name == "graph":
            found.append("built for another graph, as of another export")
        elif name in FIELDS:
            found.append(f"built {FIELDS[name].format(a.get(name) or 'unknown')}, this is {b[name] or 'unknown'}")
        else:
            found.append(f"built with {name.replace('_', ' ')} {a.get(name)}, asked for {b[name]}")
    return found


def _flat(key: Mapping[str, Any]) -> dict[str, Any]:
    """Nested fields by dotted names, as JSON has them."""
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(key, default=str)).items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


@dataclass(frozen=True)
class Kept:
    """An entry of the cache.

    Attributes:
        key: What it depends on.
        label: What it was built from: ``engine``, ``bundle``, ``role``, ``precision``.
        path: Its file.
        size_bytes: Its size.
        built: When, UTC, ISO 8601.
    """

    key: dict[str, Any]
    label: dict[str, str]
    path: Path
    size_bytes: int
    built: str


class EngineCache:
    """A folder of compiled engines.

    Args:
        folder: The folder; the default one when None.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder() / "engines"

    def path(self, key: Mapping[str, object], suffix: str = ".engine") -> Path:
        """Where the entry of a key lies."""
        return self.folder / f"{key_digest(key)}{suffix}"

    def read(self, key: Mapping[str, object], suffix: str = ".engine") -> bytes | None:
        """An undamaged entry; ``None`` where there is none."""
        path = self.path(key, suffix)
        try:
            data = path.read_bytes()
            expected = path.with_suffix(f"{suffix}.sha256").read_text(encoding="ascii").strip()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == expected else None

    def write(
        self,
        key: Mapping[str, object],
        data: bytes,
        suffix: str = ".engine",
        label: Mapping[str, str] | None = None,
    ) -> Path:
        """Keep an entry; a full or read-only disk loses only the saved time.

        Args:
            key: What it depends on.
            data: Its content.
            suffix: Of its file.
            label: What it was built from; an entry without one is not listed.
        """
        path = self.path(key, suffix)
        files = {path: data, path.with_suffix(f"{suffix}.sha256"): hashlib.sha256(data).hexdigest().encode()}
        if label is not None:
            built = datetime.now(timezone.utc).isoformat(timespec="seconds")
            record = json.dumps({"key": key, "label": label, "built": built}, default=str, indent=1)
            files[path.with_suffix(f"{suffix}.json")] = record.encode()
        try:
            for target, content in files.items():
                write_bytes(target, content)
        except OSError:
            pass
        return path

    def entries(self) -> list[Kept]:
        """What is kept and has a record, oldest first."""
        found = []
        for record in self.folder.glob("*.json"):
            path = record.with_suffix("")
            try:
                told = json.loads(record.read_text(encoding="utf-8"))
                found.append(Kept(told["key"], told["label"], path, path.stat().st_size, told["built"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # no record of ours, or its entry is gone
        return sorted(found, key=lambda kept: (kept.built, kept.path.name))

    def why_not(self, key: Mapping[str, object], suffix: str = ".engine", label: Mapping[str, str] = {}) -> str | None:
        """Why the entry of a key cannot be loaded, from the one that is nearest to it; None where it can.

        Args:
            key: What is asked for.
            suffix: Of its file.
            label: What it is to be built from: entries of the same are near, whatever their graphs.
        """
        if self.read(key, suffix) is not None:
            return None
        if self.path(key, suffix).exists():
            return f"{self.path(key, suffix)} is damaged: its digest differs"
        near: list[list[str]] = [
            differences(kept.key, key)
            for kept in self.entries()
            if (kept.path.suffix, kept.key.get("library")) == (suffix, key.get("library"))
            and (kept.key.get("graph") == key.get("graph") or (label and kept.label == label))
        ]
        near = [found for found in near if found]
        nearest = min(near, key=len, default=["none was built"])
        return "; ".join(nearest)
