"""ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import Arrays
from lit_mmpg.runtime.engines.base import Engine, EngineConfig


@dataclass(frozen=True)
class OnnxRuntimeConfig(EngineConfig):
    """Options of ONNX Runtime.

    Attributes:
        threads: Threads within an operator; 0 leaves it to ONNX Runtime.
    """

    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UserError(f"onnxruntime: threads is {self.threads}; it must be 0 or more")


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime with its CPU provider."""

    name = "onnxruntime"
    config_class = OnnxRuntimeConfig
    provider = "CPUExecutionProvider"
    config: OnnxRuntimeConfig

    @classmethod
    def requirements(cls) -> str | None:
        """The package, with the provider."""
        try:
            import onnxruntime
        except ImportError:
            return "onnxruntime is not installed; run pip install 'lit-mmpg[board-cpu]'"
        if cls.provider not in onnxruntime.get_available_providers():
            return f"this build of onnxruntime has no {cls.provider}"
        return None

    def _activate(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.config.threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(self.graph), options, providers=[self.provider])
        self._outputs = [info.name for info in self.info.outputs]
        self._load_parameters(self.parameters)

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        values = self._session.run(self._outputs, {**inputs, **self._personal})
        return dict(zip(self._outputs, values, strict=True))

    def _load_parameters(self, parameters: Arrays) -> None:
        self._personal = parameters

    def _deactivate(self) -> None:
        del self._session

    def describe(self) -> dict[str, Any]:
        """Adds the version, the provider and the threads."""
        import onnxruntime

        return super().describe() | {
            "onnxruntime": onnxruntime.__version__,
            "provider": self.provider,
            "threads": self.config.threads,
        }
