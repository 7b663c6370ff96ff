"""``save_pretrained`` and ``from_pretrained``: ``config.json`` and ``model.safetensors`` in a folder, without pickle.

The files and names are those of huggingface_hub's ``ModelHubMixin``, so that a folder can be uploaded to a hub as it
is; a name that is no folder is looked up there, where that package is installed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lit_mmpg.checkpoint import CODEBOOKS, CONFIG, WEIGHTS, read_checkpoint, rebuild, require_trained
from lit_mmpg.errors import UserError, first_line, nearest, path_of
from lit_mmpg.writing import write_bytes, write_text

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

Module = TypeVar("Module", bound="LightningModule")


def save(module: LightningModule, folder: str | Path) -> None:
    """Write a module.

    Args:
        module: A module of either half.
        folder: Folder, made where it is missing.

    Raises:
        UserError: If it cannot be written.
    """
    from safetensors.torch import save as serialised

    folder = path_of(folder, "folder")
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    ours = checkpoint["lit_mmpg"]
    # Clones: tied weights and views share memory, which safetensors does not keep.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}
    tensors |= {f"{CODEBOOKS}{name}": tensor for name, tensor in ours.pop("codebooks", {}).items()}
    config = {"library_name": "lit-mmpg", "half": ours["half"], "hyper_parameters": dict(module.hparams)}
    try:
        write_bytes(folder / WEIGHTS, serialised(tensors, metadata={"format": "pt"}))
        write_text(folder / CONFIG, json.dumps(config, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another folder") from error


def load(kind: type[Module], name: str | Path, **hub: Any) -> Module:
    """Read a module.

    Args:
        kind: Class of the module, or a base of it.
        name: A folder, or the name of a repository on the hub.
        **hub: Options of the download.

    Raises:
        UserError: If there is no such folder or repository, or it does not hold such a module.
    """
    folder = path_of(name, "name")
    if not folder.is_dir():
        folder = download(str(name), **hub)
    return rebuild(read_checkpoint(folder), str(folder), kind).eval()


def find_trained(name: str | Path) -> Path:
    """A checkpoint, or the folder of one, that somebody named: here, or on a hub (``owner/name``).

    Raises:
        UserError: If it is nowhere.
    """
    return download(str(name)) if is_repository(str(name)) else require_trained(name)


def is_repository(name: str) -> bool:
    """Whether a name is that of a repository on a hub (``owner/name``), not of a file or folder here or mistyped."""
    path = Path(name)
    named = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None
    return named and path.suffix != ".ckpt" and not path.exists() and not path.parent.is_dir()


def download(name: str, **options: Any) -> Path:
    """The folder of a repository on the hub, in the hub's cache.

    Args:
        name: ``owner/name``.
        **options: Options of ``huggingface_hub.snapshot_download``.

    Raises:
        UserError: If there is none, it cannot be reached, or huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise UserError(
            f"folder {name} does not exist{nearest(Path(name))}; for a repository on a hub, pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **options))
    except (OSError, ValueError) as error:  # what its own errors are, too
        reason = first_line(error)
        raise UserError(f"{name} is neither a folder{nearest(Path(name))} nor a repository ({reason})") from error
