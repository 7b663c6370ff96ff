"""A pretrained frame encoder as a compiled graph: pixels of any size in, pooled features out.

ONNX Runtime runs the depthwise convolutions of mobile encoders several times faster than eager torch on a CPU, so the
encoder is exported once and the graph is kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg.data.readers.files import fingerprint_files, require_path
from lit_mmpg.errors import UserError

_log = logging.getLogger(__name__)

GRAPH_VERSION = 1
"""Raise it when graphs of an older version must not be reused."""


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
        if not self.graph.is_file():
            _log.info("exporting the frame encoder %s once", self.folder)
            _export(self.folder, self.size, self.graph)
        return self.graph

    @cached_property
    def _session(self) -> Any:
        return open_graph(self.prepare())

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Encode ``[N, 3, H, W]`` uint8 RGB pixels to ``[N, D]`` float32 features."""
        return run_graph(self._session, pixels)


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


def _export(folder: Path, size: int, target: Path) -> None:
    import torch

    from lit_mmpg.vision import load_vision_model

    encoder = load_vision_model(str(folder), size, "data.encoder").module

    class Resized(torch.nn.Module):
        """Resize inside the graph: simulated cameras film pixels of any size."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            """``[N, 3, H, W]`` uint8 ``-> [N, D]``."""
            x = torch.nn.functional.interpolate(pixels.float(), (size, size), mode="bilinear", align_corners=False)
            features: torch.Tensor = self.encoder(x)
            return features

    example = torch.randint(0, 256, (2, 3, 72, 96), dtype=torch.uint8)
    wrapped = Resized().eval()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder_name:
        path = Path(folder_name) / "encoder.onnx"
        axes = {axis: torch.export.Dim(name, min=1, max=4096) for axis, name in ((0, "n"), (2, "h"), (3, "w"))}
        torch.onnx.export(
            wrapped,
            (example,),
            str(path),
            input_names=["pixels"],
            output_names=["features"],
            dynamic_shapes=(axes,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        with torch.inference_mode():
            expected = wrapped(example).numpy()
        got = run_graph(open_graph(path), example.numpy())
        if not np.allclose(got, expected, rtol=1e-2, atol=1e-2):
            raise RuntimeError(f"the exported frame encoder differs from the original by {abs(got - expected).max()}")
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copyfile(path, partial)
        partial.replace(target)
