"""Layers from the files of NVIDIA's ``trtexec``: ``--exportProfile`` and ``--exportLayerInfo``.

After the source of TensorRT's samples: the profile is a list whose first object holds ``count``, the number of
iterations, and each other one a layer with ``name``, ``timeMs`` (of all iterations) and ``averageMs``; the layer
information is the JSON of TensorRT's engine inspector. Tested on files built from that; not verified on hardware.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError, nearest
from lit_mmpg.runtime.engines.tensorrt import inspected, with_operators


def is_trtexec(path: Path) -> bool:
    """Whether a file holds a list, as trtexec's does; a profile of ours is an object.

    Raises:
        UserError: If the file cannot be read.
    """
    return isinstance(_read(path), list)


def read_trtexec(profile: Path, layer_info: Path | None = None) -> list[dict[str, Any]]:
    """Layers as :meth:`lit_mmpg.runtime.engines.Engine.layer_times` has them.

    Args:
        profile: File of ``trtexec --exportProfile``.
        layer_info: File of ``trtexec --exportLayerInfo``; without it the kinds of layers are empty.

    Raises:
        UserError: If a file is not what it should be.
    """
    told = _read(profile)
    times_ms: dict[str, float] = {}
    try:
        for layer in told:
            if "count" not in layer:
                times_ms[str(layer["name"])] = float(layer["averageMs"])
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{profile} is no file of 'trtexec --exportProfile': a layer lacks {error}") from error
    if not times_ms:
        raise UserError(f"{profile} holds no layers; export it with 'trtexec --dumpProfile --exportProfile=FILE'")
    operators: dict[str, str] = {}
    if layer_info is not None:
        try:
            operators = inspected(json.dumps(_read(layer_info)))
        except (ValueError, KeyError) as error:
            raise UserError(f"{layer_info} is no file of 'trtexec --exportLayerInfo': {error}") from error
    return with_operators(times_ms, operators)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist{nearest(path)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is truncated or no JSON; export it again") from error
