"""Reading checkpoints that came from outside: tensors and plain data only, never unpickled code."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lit_mmpg.errors import UserError, first_line, nearest, path_of
from lit_mmpg.trust import check_classes

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

Module = TypeVar("Module", bound="LightningModule")

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
"""Files of a folder that ``save_pretrained`` writes (:mod:`lit_mmpg.pretrained`)."""
CODEBOOKS = "lit_mmpg.codebooks."
"""Begins the names of its tensors that are the link's."""

_IN_MEMORY: dict[str, dict[str, Any]] = {}


def hand_on(module: LightningModule) -> str:
    """Keep what a checkpoint of a module would hold in memory, under a name that :func:`read_checkpoint` knows."""
    checkpoint: dict[str, Any] = {"state_dict": {name: value.detach() for name, value in module.state_dict().items()}}
    checkpoint["hyper_parameters"] = dict(module.hparams)
    module.on_save_checkpoint(checkpoint)
    name = f"memory:{checkpoint['lit_mmpg']['half']}"
    _IN_MEMORY[name] = checkpoint
    return name


@contextmanager
def in_memory(module: LightningModule) -> Iterator[str]:
    """As :func:`hand_on`, for the length of a ``with`` block."""
    name = hand_on(module)
    try:
        yield name
    finally:
        del _IN_MEMORY[name]


def require_checkpoint(path: str | Path) -> Path:
    """The path, if a file is there: the cheap check, before torch is imported.

    Raises:
        UserError: If there is no such file; names the nearest one.
    """
    path = path_of(path, "checkpoint")
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, which does not say with which data it was trained; name the checkpoint file itself"
        )
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist{nearest(path)}")
    return path


def require_trained(path: str | Path) -> Path:
    """As :func:`require_checkpoint`, where a folder that ``save_pretrained`` wrote will do.

    Raises:
        UserError: If there is neither.
    """
    path = path_of(path, "checkpoint")
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise UserError(f"{path} is a folder without {CONFIG}; name a checkpoint, or what save_pretrained wrote")
        return path
    return require_checkpoint(path)


def read_checkpoint(path: str | Path, half: str | None = None) -> dict[str, Any]:
    """Load a checkpoint of this project on the CPU.

    Args:
        path: The file, or a folder that ``save_pretrained`` wrote.
        half: ``device`` or ``cloud``, if it has to be one of them.

    Returns:
        The checkpoint; ``["lit_mmpg"]`` holds what the project adds to Lightning's entries.

    Raises:
        UserError: If the file is missing, torn, not a checkpoint of this project, or of the other half.
    """
    import torch

    if str(path) in _IN_MEMORY:
        return _IN_MEMORY[str(path)]
    path = require_trained(path)
    if path.is_dir():
        checkpoint = _read_folder(path)
        _expect(half, checkpoint["lit_mmpg"]["half"], str(path))
        return checkpoint
    if not zipfile.is_zipfile(path):  # torn files lose the directory at their end
        raise UserError(f"checkpoint '{path}' is damaged or not a checkpoint; copy it again")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint '{path}' holds more than tensors and plain data and is not loaded; "
            "use a checkpoint that a module of lit-mmpg wrote"
        ) from error
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"checkpoint '{path}' is damaged or not a checkpoint ({reason}); copy it again") from error
    ours = checkpoint.get("lit_mmpg") if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or not {"half", "data"} <= set(ours):
        raise UserError(f"checkpoint '{path}' was not written by lit-mmpg; name one that 'lit-mmpg fit' wrote")
    _expect(half, ours["half"], f"checkpoint '{path}'")
    return checkpoint


def _read_folder(folder: Path) -> dict[str, Any]:
    """A folder that ``save_pretrained`` wrote, in the form of a checkpoint.

    Raises:
        UserError: If a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        settings, half = config["hyper_parameters"], config["half"]
        data = settings["data"]
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(f"{folder} lacks {Path(error.filename or WEIGHTS).name}; save_pretrained writes it") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise UserError(f"{folder} does not hold what save_pretrained wrote ({error}); save it again") from error
    books = [name for name in tensors if name.startswith(CODEBOOKS)]
    ours = {"half": half, "data": data, "codebooks": {n.removeprefix(CODEBOOKS): tensors.pop(n) for n in books}}
    return {"hyper_parameters": settings, "state_dict": tensors, "lit_mmpg": ours}


def _expect(half: str | None, found: str, name: str) -> None:
    if half is not None and found != half:
        raise UserError(
            f"{name} holds the {found} half, expected the {half} half; name a checkpoint of the {half} half"
        )


def rebuild(checkpoint: dict[str, Any], name: str, kind: type[Module], **changed: Any) -> Module:
    """The module of a checkpoint with its weights.

    The class that the checkpoint names, and the class of its network, are imported by their names; the file itself
    brings no code, both have to be trusted (:mod:`lit_mmpg.trust`), and classes of the right kind.

    Args:
        checkpoint: Content of the file.
        name: The file, for messages.
        kind: Class of the module, or a base of it.
        **changed: Arguments of the class that replace those of the checkpoint.

    Raises:
        UserError: If the checkpoint is of another version or class, or names a class that is not trusted.
    """
    import jsonargparse

    settings = checkpoint.get("hyper_parameters", {})
    again = "was written by another version of lit-mmpg"
    if "_class_path" not in settings:
        raise UserError(f"{name} {again}, which kept no settings of the model in it; train again")
    _expect(getattr(kind, "half_name", None), checkpoint["lit_mmpg"]["half"], name)
    check_classes(settings, name)
    given = {key: value for key, value in settings.items() if not key.startswith("_")} | changed
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "module")
    try:
        config = {"module": {"class_path": settings["_class_path"], "init_args": given}}
        module: Module = parser.instantiate(parser.parse_object(config)).module
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    except (jsonargparse.ArgumentError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} {again}, or needs a class that is not there ({reason}); train again") from error
    return module


def load_module(path: str | Path, kind: type[Module]) -> tuple[Module, str | None]:
    """The module of a checkpoint, in evaluation mode, and the MLflow run that trained it.

    A module of the cloud half holds the device model too (``module.network``).

    Args:
        path: A checkpoint, or a folder that ``save_pretrained`` wrote.
        kind: Class of the half that is wanted; the base of both where either will do.

    Raises:
        UserError: If it is neither, or holds the other half.
    """
    checkpoint = read_checkpoint(path, half=getattr(kind, "half_name", None))
    module = rebuild(checkpoint, str(path), kind)
    return module.eval().requires_grad_(False), checkpoint["lit_mmpg"].get("run_id")


def trained_config(path: str | Path, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the configuration that it was trained with: model, data and seed.

    Args:
        path: The file, for the message.
        checkpoint: Its content, from :func:`read_checkpoint`.

    Raises:
        UserError: If it does not say, or names a class that is not trusted (:mod:`lit_mmpg.trust`).
    """
    import yaml

    ours = checkpoint["lit_mmpg"]
    if "network" in ours:
        raise UserError(f"{path} was written by an older version of lit-mmpg; train again")
    trained = yaml.safe_load(ours["config"]) if "config" in ours else {}
    # A trainer in a notebook has no configuration, but Lightning keeps what model and data were built with.
    model, data = (section_of(checkpoint.get(key, {})) for key in ("hyper_parameters", "datamodule_hyper_parameters"))
    if model is not None:
        trained["model"] = model
    if data is not None:
        trained.setdefault("data", data)
    missing = [key for key in ("model", "data") if key not in trained]
    if missing:
        raise UserError(
            f"{path} does not say with which {' and '.join(missing)} it was trained; name a checkpoint that "
            "'lit-mmpg fit' wrote, or fit with a data module (trainer.fit(module, datamodule=...))"
        )
    kept = {key: trained[key] for key in ("model", "data", "seed_everything") if key in trained}
    check_classes(kept, str(path))
    return kept


def section_of(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """``class_path`` and ``init_args`` of what an object was built with; its description of the data is no setting."""
    if "_class_path" not in settings:
        return None
    init_args = {key: value for key, value in settings.items() if not key.startswith("_") and key != "data"}
    return {"class_path": settings["_class_path"], "init_args": init_args}
