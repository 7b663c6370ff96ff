"""ONNX Runtime with its CPU, CUDA and TensorRT providers.

Ways to personalise: parameters are inputs of the graph (``inputs``); or constants of a baked graph, which a new session
takes from outside (``rebind``) or from a rewritten graph (``reload``). ONNX Runtime fixes constants when a session is
made, so both of the latter make a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.baking import bake
from lit_mmpg.runtime.bundle import Arrays
from lit_mmpg.runtime.cudart import why_no_gpu
from lit_mmpg.runtime.engines.base import Engine, EngineConfig
from lit_mmpg.runtime.engines.cache import cache_folder


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
    ways: ClassVar[tuple[str, ...]] = ("inputs", "rebind", "reload")
    provider = "CPUExecutionProvider"
    memory = "cpu"
    """Where personal parameters are kept between calls."""
    package = "onnxruntime is not installed; run pip install 'lit-mmpg[board-cpu]'"
    config: OnnxRuntimeConfig

    @classmethod
    def requirements(cls) -> str | None:
        """The package, with the provider."""
        try:
            import onnxruntime
        except ImportError:
            return cls.package
        if cls.provider not in onnxruntime.get_available_providers():
            return f"this build of onnxruntime has no {cls.provider}; install onnxruntime-gpu in its place"
        return None

    def _provider_options(self) -> dict[str, str]:
        return {}

    def _activate(self) -> None:
        import onnxruntime

        self._outputs = [info.name for info in self.info.outputs]
        self._names = [info.name for info in self.inputs]
        self._binding: Any = None
        self._values: dict[str, Any] = {}
        self._bound: dict[str, Any] = {}
        self._buffers: Arrays = {}
        self._shapes: list[tuple[int, ...]] = []
        self._baked = b""
        if not self.personal or self.config.personalise == "inputs":
            self._session = self._make_session(onnxruntime, str(self.graph))
        elif self.config.personalise == "rebind":
            self._baked = bake(self.graph, self.parameters, external=True)
        if self.personal:
            self._load_parameters(self.parameters)

    def _make_session(self, onnxruntime: Any, graph: str | bytes, constants: Arrays | None = None) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.config.threads
        options.log_severity_level = 3
        if self.precision == "int8_weight":
            # Dequantised once, when the session is made, instead of in every inference.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if constants:
            # External ones: others are replaced only after constants have been folded, with their former values.
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in constants.values()]
            options.add_external_initializers(list(constants), values)
        providers = [(self.provider, self._provider_options())]
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
        if session.get_providers()[0] != self.provider:
            # It falls back to the CPU with a warning; a timing of that would be wrong.
            raise UserError(f"engine '{self.name}' cannot run here: {self.provider} could not be loaded")
        return session

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        shapes = [inputs[name].shape for name in self._names]
        if shapes != self._shapes:
            self._bind(inputs)
            self._shapes = shapes
        for name, buffer in self._buffers.items():
            np.copyto(buffer, inputs[name])
        self._session.run_with_iobinding(self._binding)
        return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))

    def _bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Buffers for inputs of these shapes.

        They stay bound, and so do personal parameters: handing arrays over in every call costs more than copying them,
        for parameters even more than computing with them.
        """
        import onnxruntime

        self._binding = self._session.io_binding()
        self._buffers = {info.name: np.zeros(inputs[info.name].shape, info.dtype) for info in self.inputs}
        fixed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in self._buffers.items()}
        for name, value in (fixed | self._values).items():
            self._binding.bind_ortvalue_input(name, value)
        self._bound = fixed  # values of ONNX Runtime that share the buffers' memory
        for name in self._outputs:
            self._binding.bind_output(name)

    def _load_parameters(self, parameters: Arrays) -> None:
        import onnxruntime

        if self.config.personalise == "inputs":
            if not self._values:
                # Zeros of our own: on the CPU the value shares the array's memory, which a swap then overwrites.
                self._values = {
                    name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(array), self.memory, 0)
                    for name, array in parameters.items()
                }
            for name, array in parameters.items():
                self._values[name].update_inplace(array)
            return
        graph: str | bytes = self._baked or bake(self.graph, parameters)
        self._session = self._make_session(onnxruntime, graph, parameters if self._baked else None)
        self._shapes = []

    def _deactivate(self) -> None:
        self._binding, self._values, self._bound, self._buffers = None, {}, {}, {}
        del self._session

    def describe(self) -> dict[str, Any]:
        """Adds the version, the provider and the threads."""
        import onnxruntime

        return super().describe() | {
            "onnxruntime": onnxruntime.__version__,
            "provider": self.provider,
            "threads": self.config.threads,
        }


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """ONNX Runtime with its CUDA provider. Not verified on hardware."""

    name = "onnxruntime_cuda"
    provider = "CUDAExecutionProvider"
    memory = "cuda"
    package = "onnxruntime-gpu is not installed; install it in place of onnxruntime"

    @classmethod
    def requirements(cls) -> str | None:
        """Adds a GPU."""
        return super().requirements() or why_no_gpu()

    def _provider_options(self) -> dict[str, str]:
        return {"use_tf32": "0"}


@dataclass(frozen=True)
class OnnxRuntimeTensorRTConfig(OnnxRuntimeConfig):
    """Options of ONNX Runtime with its TensorRT provider.

    Attributes:
        max_batch: Most rows of a call.
        cache: Folder of the built engines; the user's cache folder when None.
    """

    max_batch: int = 32
    cache: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_batch < 1:
            raise UserError(f"onnxruntime_tensorrt: max_batch is {self.max_batch}; it must be at least 1")


class OnnxRuntimeTensorRTEngine(OnnxRuntimeCudaEngine):
    """ONNX Runtime with its TensorRT provider. Not verified on hardware."""

    name = "onnxruntime_tensorrt"
    config_class = OnnxRuntimeTensorRTConfig
    provider = "TensorrtExecutionProvider"
    ways = ("inputs", "reload")
    config: OnnxRuntimeTensorRTConfig

    def _provider_options(self) -> dict[str, str]:
        folder = self.config.cache or str(cache_folder() / "onnxruntime")
        shapes = {kind: self._profile(kind) for kind in ("min", "opt", "max")}
        return {
            "trt_engine_cache_enable": "1" if self.config.personalise == "inputs" else "0",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
            **{f"trt_profile_{kind}_shapes": text for kind, text in shapes.items()},
        }

    def _profile(self, kind: str) -> str:
        """``name:1x8x1280,...`` for every input of varying size."""
        sizes = profile_sizes(self, self.config.max_batch)[("min", "opt", "max").index(kind)]
        parts = []
        for info in self.inputs:
            shape = [str(sizes[d]) if isinstance(d, str) else str(d) for d in info.shape]
            parts.append(f"{info.name}:{'x'.join(shape)}")
        return ",".join(parts)


def profile_sizes(engine: Engine, max_batch: int) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Least, usual and largest sizes of the varying dimensions, for engines that are built for a range of shapes.

    Args:
        engine: The engine.
        max_batch: Most rows of a call.
    """
    usual = dict(engine.info.macs_at)
    largest = dict(usual)
    for name, size in (("B", max_batch), ("N", max_batch * engine.bundle.manifest.frames.max_frames)):
        if name in usual:
            largest[name] = size
    return dict.fromkeys(usual, 1), usual, largest
