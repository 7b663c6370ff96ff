"""Reading checkpoints that came from outside: tensors and plain data only, never unpickled code."""

from __future__ import annotations

import difflib
import pickle
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError


def read_checkpoint(path: str | Path, half: str | None = None) -> dict[str, Any]:
    """Load a checkpoint of this project on the CPU.

    Args:
        path: The file.
        half: ``device`` or ``cloud``, if it has to be one of them.

    Returns:
        The checkpoint; ``["lit_mmpg"]`` holds what the project adds to Lightning's entries.

    Raises:
        UserError: If the file is missing, torn, not a checkpoint of this project, or of the other half.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path(".")
        close = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
        hint = f"; did you mean '{folder / close[0]}'?" if close else ""
        raise UserError(f"checkpoint '{path}' does not exist{hint}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint '{path}' holds more than tensors and plain data and is not loaded; use a checkpoint of lit-mmpg"
        ) from error
    except Exception as error:
        raise UserError(
            f"checkpoint '{path}' is damaged or not a checkpoint ({str(error).splitlines()[0]}); copy it again"
        ) from error
    if not isinstance(checkpoint, dict) or "half" not in checkpoint.get("lit_mmpg", {}):
        raise UserError(f"checkpoint '{path}' was not written by lit-mmpg; name one that 'lit-mmpg fit' wrote")
    found = checkpoint["lit_mmpg"]["half"]
    if half is not None and found != half:
        raise UserError(
            f"checkpoint '{path}' holds the {found} half, expected the {half} half; name a checkpoint of the {half} half"
        )
    return checkpoint
