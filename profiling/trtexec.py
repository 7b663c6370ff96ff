"""Layers from the files of NVIDIA's ``trtexec``: ``--exportProfile`` and ``--exportLayerInfo``.

After the source of TensorRT's samples: the profile is a list whose first object holds ``count``, the number of
iterations, and each other one a layer with ``name``, ``timeMs`` (of all iterations) and ``averageMs``; the layer
information is the JSON of TensorRT's engine inspector. Tested on files built from that; not verified on hardware.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.files import read_json
from lit_mmpg.runtime.engines.tensorrt import inspected, with_operators

AGAIN = "export it again"
MOST_MS = 1e9
"""No layer takes longer."""


def is_trtexec(path: Path) -> bool:
    """Whether a file holds a list, as trtexec's does; a profile of ours is an object.

    Raises:
        UserError: If the file cannot be read.
    """
    return isinstance(read_json(path, AGAIN), list)


def read_trtexec(profile: Path, layer_info: Path | None = None) -> list[dict[str, Any]]:
    """Layers as :meth:`lit_mmpg.runtime.engines.Engine.layer_times` has them.

    Args:
        profile: File of ``trtexec --exportProfile``.
        layer_info: File of ``trtexec --exportLayerInfo``; without it the kinds of layers are empty.

    Raises:
        UserError: If a file is not what it should be.
    """
    told = read_json(profile, AGAIN)
    times_ms: dict[str, float] = {}
    for number, layer in enumerate(told):
        if isinstance(layer, dict) and "count" in layer:
            continue
        found = layer if isinstance(layer, dict) else {}
        for key, kind in (("name", str), ("averageMs", int | float)):
            if not isinstance(found.get(key), kind) or isinstance(found[key], bool):
                what = f"a layer lacks '{key}' (entry {number})"
                raise UserError(f"{profile} is no file of 'trtexec --exportProfile': {what}")
        name, spent = found["name"], found["averageMs"]
        if not 0 <= spent < MOST_MS:
            raise UserError(f"{profile}: averageMs of layer '{name[:60]}' is {spent:.3g}, which is no time; {AGAIN}")
        times_ms[name] = times_ms.get(name, 0.0) + spent  # two layers may have one name
    if not times_ms:
        raise UserError(f"{profile} holds no layers; export it with 'trtexec --dumpProfile --exportProfile=FILE'")
    operators: dict[str, str] = {}
    if layer_info is not None:
        try:
            operators = inspected(json.dumps(read_json(layer_info, AGAIN)))
        except (ValueError, KeyError) as error:
            raise UserError(f"{layer_info} is no file of 'trtexec --exportLayerInfo': {error}") from error
    return with_operators(times_ms, operators)
