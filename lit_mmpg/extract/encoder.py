"""The frame encoder as a graph that every worker opens: the same graph that ``lit-mmpg export`` puts into a bundle.

So features that a model is trained on and features that a device computes agree to rounding.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from lit_mmpg.data.vision import is_whole
from lit_mmpg.writing import write_bytes


def prepare_graph(folder: Path, digest: str, edge: int | None, cache: Path) -> tuple[Path, tuple[int, int]]:
    """Export the encoder unless that was done before, and what was kept is whole.

    Returns:
        The graph, and height and width of its pictures: ``edge`` both, or where that is ``None`` the encoder's own.

    Raises:
        UserError: If the model has no pooled output, or cannot be loaded.
    """
    graph = cache / f"{digest}-{edge or 'own'}.onnx"
    note = graph.with_suffix(".json")
    with suppress(OSError, ValueError, TypeError):  # what is damaged is made again
        height, width = json.loads(note.read_text(encoding="utf-8"))
        if is_whole(graph):
            return graph, (int(height), int(width))
    from lit_mmpg.vision import keep_graph

    encoder = keep_graph(str(folder), edge, graph)
    write_bytes(note, json.dumps([encoder.height, encoder.width]).encode())
    return graph, (encoder.height, encoder.width)
