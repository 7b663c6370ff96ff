"""A pretrained frame encoder as a compiled graph: pixels of any size in, pooled features out.

ONNX Runtime runs the depthwise convolutions of mobile encoders several times faster than eager torch on a CPU, so the
encoder is exported once and the graph is kept.
"""

from __future__ import annotations

import hashlib
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.data.readers.files import fingerprint_files, require_path
from lit_mmpg.errors import UserError, first_line, install_hint
from lit_mmpg.runtime.bundle import file_digest

_log = logging.getLogger(__name__)

GRAPH_VERSION = 1
"""Raise it when graphs of an older version must not be reused."""


_CONFIG = "config.json"
_FILES = (_CONFIG, "preprocessor_config.json", "processor_config.json")
FEATURES_VERSION = 2
"""Raise it when the same files give other features than before, so that they are never mixed."""


class FrameEncoder:
    """A vision encoder of the transformers library, from a local folder, behind ONNX Runtime.

    Args:
        folder: Folder with ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.
        size: Height and width to which frames are resized (bilinear), pixels.
        cache_dir: Where the graph is kept.

    Raises:
        UserError: If the folder or one of its files is missing.
    """

    def __init__(self, folder: str | Path, size: int, cache_dir: str | Path) -> None:
        self.folder, self.size = require_path(folder, "data.encoder"), size
        files = [self.folder / n for n in ("config.json", "model.safetensors", "preprocessor_config.json")]
        for file in files:
            require_path(file, "data.encoder")
        if size < 32:
            raise UserError(f"data.image_size is {size}; pretrained encoders need at least 32 pixels")
        self.digest = hashlib.sha256(f"{GRAPH_VERSION} {size} {fingerprint_files(files)}".encode()).hexdigest()
        self.graph = Path(cache_dir) / f"{self.digest[:24]}.onnx"

    def prepare(self) -> Path:
        """Export the graph unless it is there; call it before several processes open it."""
        if not is_whole(self.graph):
            _log.info("exporting the frame encoder %s once", self.folder)
            from lit_mmpg.vision import keep_graph

            keep_graph(str(self.folder), self.size, self.graph, any_size=True, option="data.encoder")
        return self.graph

    @cached_property
    def _session(self) -> Any:
        return open_graph(self.prepare())

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Encode ``[N, 3, H, W]`` uint8 RGB pixels to ``[N, D]`` float32 features."""
        return run_graph(self._session, pixels)


def encoder_folder(source: str, option: str = "--encoder") -> Path:
    """The folder of an encoder; one that is named on the hub is downloaded (settings and safetensors weights only).

    Args:
        source: Folder, or name on the hub.
        option: What an error calls the option that named it.

    Raises:
        UserError: If it is not there, cannot be fetched, or lacks a file.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith((".", "/", "~")) or source.count("/") > 1:
            raise UserError(f"{option} {source} is not a folder, and no name on the hub")
        try:
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(source, allow_patterns=[*_FILES, "model*.safetensors*"]))
        except ImportError as error:
            raise UserError(f"{option} needs transformers; {install_hint('train,video')}") from error
        except Exception as error:  # the hub's client has many, none of them ours to mend
            reason = first_line(error)
            raise UserError(f"{option} {source} is no folder here and cannot be fetched ({reason})") from error
    for name in (_CONFIG, "model*.safetensors"):
        if not list(folder.glob(name)):
            raise UserError(f"{option} {source} lacks {name.replace('*', '')}; name a vision encoder")
    return folder


def encoder_digest(folder: Path) -> str:
    """Digest of everything that the features depend on."""
    files = [folder / name for name in _FILES if (folder / name).is_file()] + sorted(folder.glob("model*.safetensors"))
    return hashlib.sha256(f"{FEATURES_VERSION} {fingerprint_files(files)}".encode()).hexdigest()[:24]


def is_whole(graph: Path) -> bool:
    """Whether a kept graph is what :func:`lit_mmpg.vision.keep_graph` wrote; another one is exported again."""
    try:
        return file_digest(graph) == graph.with_suffix(".sha256").read_text(encoding="ascii")
    except (OSError, ValueError):
        return False


def open_graph(path: str | Path) -> Any:
    """An ONNX Runtime session of one thread: several processes each run their own."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(session: Any, pixels: np.ndarray, at_once: int = 32) -> np.ndarray:
    """Features ``[N, D]`` float32 of ``[N, 3, H, W]`` uint8 pixels."""
    parts = [session.run(None, {"pixels": pixels[i : i + at_once]})[0] for i in range(0, len(pixels), at_once)]
    return np.concatenate(parts)
