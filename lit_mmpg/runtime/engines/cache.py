"""What engines compile for this machine, kept between runs. Local only: nothing in it comes from a bundle.

An entry is found by a key over everything that it depends on (GPU, module and power mode of a board, versions, graph,
settings), so what another version has compiled is never loaded; and its digest is compared before it is, so a damaged
entry is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

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
        ``module`` (model and compatible names of the device tree) and ``power_mode`` (number of nvpmodel's mode: clocks
        and cores differ, and with them the fastest tactics); None where there is none, as on a PC.
    """
    tree = [sysfs.text(root / "proc/device-tree" / name) for name in ("model", "compatible")]
    module = " ".join(text.replace("\0", " ").strip() for text in tree if text) or None
    mode = re.search(r"pmode:(\d+)", sysfs.text(root / "var/lib/nvpmodel/status") or "")
    if module and not mode:
        mode = re.search(r"^\s*(\d+)\s*$", _nvpmodel(), re.MULTILINE)
    return {"module": module, "power_mode": str(int(mode[1])) if mode else None}


def _nvpmodel() -> str:
    """What nvpmodel says of the mode; empty where it does not."""
    try:
        return subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""


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

    def write(self, key: Mapping[str, object], data: bytes, suffix: str = ".engine") -> Path:
        """Keep an entry; a full or read-only disk loses only the saved time."""
        path = self.path(key, suffix)
        try:
            for target, content in (
                (path, data),
                (path.with_suffix(f"{suffix}.sha256"), hashlib.sha256(data).hexdigest().encode()),
            ):
                write_bytes(target, content)
        except OSError:
            pass
        return path
