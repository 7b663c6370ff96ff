"""Writing a bundle: into a folder beside the target, which takes the target's place when everything is there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import MANIFEST
from lit_mmpg.runtime.manifest import Manifest
from lit_mmpg.writing import FULL


def check_target(path: Path) -> None:
    """Check that a bundle can be written, before anything is computed.

    Raises:
        UserError: If something that is no bundle is in the way.
    """
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise UserError(f"--output {path} is a folder with other files; name a new folder, or an older bundle")
    strangers = [p.name for p in path.glob("[!.]*") if p.is_dir() or p.suffix not in (".json", ".onnx", ".safetensors")]
    if strangers:  # such as a state folder, or its files
        raise UserError(
            f"--output {path} holds {', '.join(sorted(strangers)[:3])}, which would be lost with the older bundle; "
            "move that away, or name a new folder"
        )
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {path} is a file; name a folder")
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"--output {path}: no permission to write in {existing}")


@contextmanager
def bundle_folder(path: Path) -> Iterator[Path]:
    """A new folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        UserError: If there is no room for it.
    """
    path = Path(os.path.realpath(path))  # a link to a folder stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in FULL:
            raise
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--output {path} cannot be written ({why}); name a folder with more room") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``."""
    text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
