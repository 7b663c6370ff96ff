"""The frame encoder as a graph that every worker opens: the same graph that ``lit-mmpg export`` puts into a bundle.

So features that a model is trained on and features that a device computes agree to rounding.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from lit_mmpg.data.readers.files import fingerprint_files
from lit_mmpg.data.vision import is_whole
from lit_mmpg.errors import UserError, first_line, install_hint
from lit_mmpg.writing import write_bytes

CONFIG = "config.json"
FILES = (CONFIG, "preprocessor_config.json", "processor_config.json")
GRAPH_VERSION = 2
"""Raise it when graphs of an older version must not be reused."""


def encoder_folder(source: str) -> Path:
    """The folder of an encoder; one that is named on the hub is downloaded (settings and safetensors weights only).

    Raises:
        UserError: If it is not there, cannot be fetched, or lacks a file.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise UserError(f"--encoder {source} is not a folder, and no name on the hub")
        try:
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(source, allow_patterns=[*FILES, "model*.safetensors*"]))
        except ImportError as error:
            raise UserError(f"--encoder needs transformers; {install_hint('train,video')}") from error
        except Exception as error:  # the hub's client has many, none of them ours to mend
            reason = first_line(error)
            raise UserError(f"--encoder {source} is no folder here and cannot be fetched ({reason})") from error
    for name in (CONFIG, "model*.safetensors"):
        if not list(folder.glob(name)):
            raise UserError(f"--encoder {source} lacks {name.replace('*', '')}; name a vision encoder")
    return folder


def encoder_digest(folder: Path) -> str:
    """Digest of everything that the features depend on."""
    files = [folder / name for name in FILES if (folder / name).is_file()] + sorted(folder.glob("model*.safetensors"))
    return hashlib.sha256(f"{GRAPH_VERSION} {fingerprint_files(files)}".encode()).hexdigest()[:24]


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
