"""TensorRT (10.3 to 11.x) and TensorRT-RTX from the same ONNX graphs: one class, two libraries with the same interface.

Networks are strongly typed: the precision lives in the graph. TensorRT-RTX compiles ahead of time without a GPU, so
:meth:`TensorRTEngine.compile` is a verb of its own; running needs a GPU. Parsing and building have been verified with
TensorRT-RTX; execution and refit follow the documentation of TensorRT and have not been verified on hardware.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.baking import bake
from lit_mmpg.runtime.bundle import Arrays
from lit_mmpg.runtime.cudart import Cuda, why_no_gpu
from lit_mmpg.runtime.engines.base import Engine, EngineConfig
from lit_mmpg.runtime.engines.cache import EngineCache
from lit_mmpg.runtime.engines.onnx_runtime import profile_sizes

OLDEST = (10, 3)
"""Oldest TensorRT: JetPack 6.2 brings it."""


@dataclass(frozen=True)
class TensorRTConfig(EngineConfig):
    """Options of TensorRT.

    Attributes:
        max_batch: Most rows of a call; engines are built for a range of shapes.
        workspace_mib: Most memory for tactics while building, in MiB; 0 leaves it to TensorRT.
        cache: Folder of built engines and timings; the user's cache folder when None.
    """

    max_batch: int = 32
    workspace_mib: int = 0
    cache: str | None = None

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise UserError(f"tensorrt: max_batch is {self.max_batch}; it must be at least 1")
        if self.workspace_mib < 0:
            raise UserError(f"tensorrt: workspace_mib is {self.workspace_mib}; it must be 0 or more")


@dataclass(frozen=True)
class Compiled:
    """A built engine.

    Attributes:
        data: The serialised engine.
        build_s: Seconds that building took; ``None`` where it came from the cache.
    """

    data: bytes
    build_s: float | None


def build_engine(
    trt: Any,
    graph: bytes,
    largest: Mapping[str, int],
    usual: Mapping[str, int] | None = None,
    refit: bool = False,
    workspace_mib: int = 0,
    timings: bytes | None = None,
) -> bytes:
    """Parse and build a strongly typed network.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        graph: Serialised ONNX graph.
        largest: Largest sizes of the varying dimensions.
        usual: Sizes to optimise for; the largest when None.
        refit: Let weights be replaced later.
        workspace_mib: Most memory while building, in MiB; 0: no limit of ours.
        timings: Serialised timing cache of earlier builds.

    Returns:
        The serialised engine.

    Raises:
        UserError: If the graph is refused; with the parser's reason.
    """
    return _build(trt, graph, largest, usual or largest, refit, workspace_mib, timings)[0]


def _build(
    trt: Any,
    graph: bytes,
    largest: Mapping[str, int],
    usual: Mapping[str, int],
    refit: bool,
    workspace_mib: int,
    timings: bytes | None,
) -> tuple[bytes, bytes | None]:
    """The serialised engine and the timing cache."""
    logger = _logger(trt)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # later versions know no other kind
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise UserError(f"{trt.__name__} {trt.__version__} cannot parse the graph: {reasons}")
    config = builder.create_builder_config()
    if workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    if refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    timed = trt.__name__ == "tensorrt"  # TensorRT-RTX times nothing while it builds
    if timed:
        config.set_timing_cache(config.create_timing_cache(timings or b""), False)
    profile = builder.create_optimization_profile()
    varying = False
    dims = _varying(graph)
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        names = dims[tensor.name]
        if any(isinstance(d, str) for d in names):
            varying = True
            shapes = [
                [sizes[d] if isinstance(d, str) else d for d in names] for sizes in (_ones(names), usual, largest)
            ]
            profile.set_shape(tensor.name, *shapes)
    if varying:
        config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise UserError(f"{trt.__name__} {trt.__version__} cannot build the graph: {'; '.join(logger.errors)}")
    return bytes(built), bytes(config.get_timing_cache().serialize()) if timed else None


def _ones(names: list[int | str]) -> dict[str, int]:
    return {name: 1 for name in names if isinstance(name, str)}


def _varying(graph: bytes) -> dict[str, list[int | str]]:
    """Shapes of the inputs, with the names of varying dimensions."""
    import onnx

    model = onnx.load_model_from_string(graph)
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }


def _logger(trt: Any) -> Any:
    """A logger that keeps errors for the message and shows nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split())[:500])

    return Logger()


class TensorRTEngine(Engine):
    """TensorRT. Personal parameters as inputs, by refit of a baked graph, or by building that graph again."""

    name = "tensorrt"
    config_class = TensorRTConfig
    ways = ("inputs", "refit", "reload")
    library: ClassVar[str] = "tensorrt"
    missing: ClassVar[str] = (
        "tensorrt is not installed; on a board JetPack brings it (make the venv with --system-site-packages), "
        "elsewhere run pip install tensorrt"
    )
    config: TensorRTConfig

    @classmethod
    def compile_requirements(cls) -> str | None:
        """Why this machine cannot build an engine; ``None`` where it can."""
        return cls._library_problem() or why_no_gpu()

    @classmethod
    def requirements(cls) -> str | None:
        """The library in a version that works, and a GPU."""
        return cls._library_problem() or why_no_gpu()

    @classmethod
    def _library_problem(cls) -> str | None:
        try:
            trt = import_module(cls.library)
        except (ImportError, OSError) as error:
            return cls.missing if isinstance(error, ModuleNotFoundError) else f"{cls.library} cannot be loaded: {error}"
        version = tuple(int(part) for part in trt.__version__.split(".")[:2])
        if cls.library == "tensorrt" and version < OLDEST:
            return f"TensorRT {trt.__version__} is too old; {OLDEST[0]}.{OLDEST[1]} or newer is needed"
        return None

    # -- building ----------------------------------------------------------------------------------------------------

    def compile(self, gpu: str | None = None) -> Compiled:
        """Build the engine, or take it from the cache; nothing is run.

        Args:
            gpu: Identity of the GPU that it is built for; ``None`` for an engine that is built ahead of time.

        Raises:
            UserError: If this machine cannot build it, or the graph is refused.
        """
        reason = self.compile_requirements() if gpu is None else None
        if reason:
            raise UserError(f"engine '{self.name}' cannot be built here: {reason}")
        trt = import_module(self.library)
        cache = EngineCache(self.config.cache)
        key = self._key(trt, gpu)
        by_input = not self.personal or self.config.personalise == "inputs"
        # The constants of a baked graph are one device's own: kept only where refit replaces them.
        kept = by_input or self.config.personalise == "refit"
        found = cache.read(key) if kept else None
        if found is not None:
            return Compiled(found, None)
        graph = self.graph.read_bytes() if by_input else bake(self.graph, self.parameters)
        _, usual, largest = profile_sizes(self, self.config.max_batch)
        refit = self.personal and self.config.personalise == "refit"
        timing_key = {name: key[name] for name in ("library", "version", "gpu")}
        timings = cache.read(timing_key, ".timings")
        start = time.perf_counter()
        data, timings = _build(trt, graph, largest, usual, refit, self.config.workspace_mib, timings)
        build_s = time.perf_counter() - start
        if kept:
            cache.write(key, data)
        if timings:
            cache.write(timing_key, timings, ".timings")
        return Compiled(data, build_s)

    def build(self) -> bytes:
        """The serialised engine, built ahead of time; raises as :meth:`compile` does."""
        return self.compile().data

    def _key(self, trt: Any, gpu: str | None) -> dict[str, object]:
        return {
            "library": self.library,
            "version": trt.__version__,
            "gpu": gpu or "ahead of time",
            "graph": self.info.sha256,
            "personalise": self.config.personalise if self.personal else "inputs",
            "max_batch": self.config.max_batch,
            "workspace_mib": self.config.workspace_mib,
            "sizes": self.info.macs_at,
        }

    # -- running -----------------------------------------------------------------------------------------------------

    def _activate(self) -> None:
        self._trt = import_module(self.library)
        self._cuda = Cuda()
        self._buffers: dict[str, tuple[ctypes.c_void_p, int]] = {}
        self._events = (self._cuda.event(), self._cuda.event())
        self._compiled = self.compile(self._cuda.identity())
        self._deserialise()
        if self.personal and self.config.personalise != "reload":
            self._load_parameters(self.parameters)

    def _deserialise(self) -> None:
        self._runtime = self._trt.Runtime(_logger(self._trt))
        self._engine = self._runtime.deserialize_cuda_engine(self._compiled.data)
        if self._engine is None:
            raise UserError(f"engine '{self.name}': {self.library} refuses the engine that it built for {self.graph}")
        self._context = self._engine.create_execution_context()

    def _buffer(self, name: str, size: int) -> ctypes.c_void_p:
        pointer, capacity = self._buffers.get(name, (None, -1))
        if pointer is None or capacity < size:
            if pointer is not None:
                self._cuda.free(pointer)
            pointer = self._cuda.allocate(size)
            self._buffers[name] = (pointer, size)
        return pointer

    def _bind(self, name: str, array: np.ndarray) -> None:
        self._context.set_input_shape(name, array.shape)
        pointer = self._buffer(name, array.nbytes)
        self._cuda.upload(pointer, array)
        self._context.set_tensor_address(name, pointer.value)

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        arrays = {info.name: np.ascontiguousarray(inputs[info.name]) for info in self.inputs}
        for name, array in arrays.items():
            self._bind(name, array)
        outputs: Arrays = {}
        for info in self.info.outputs:
            shape = tuple(self._context.get_tensor_shape(info.name))
            outputs[info.name] = np.empty(shape, info.dtype)
            pointer = self._buffer(info.name, outputs[info.name].nbytes)
            self._context.set_tensor_address(info.name, pointer.value)
        start, end = self._events
        self._cuda.record(start)
        if not self._context.execute_async_v3(self._cuda.stream.value):
            raise RuntimeError(f"engine '{self.name}': {self.library} could not run {self.graph}")
        self._cuda.record(end)
        for name, array in outputs.items():
            self._cuda.download(array, self._buffers[name][0])
        self._cuda.synchronise()
        return outputs

    @property
    def gpu_ms(self) -> float | None:
        """Time of the last inference on the GPU between two events, without the copies; ``None`` before the first."""
        return self._cuda.elapsed_ms(*self._events) if self.active else None

    def _load_parameters(self, parameters: Arrays) -> None:
        if self.config.personalise == "inputs":
            for name, array in parameters.items():
                self._bind(name, array)  # they stay on the device between calls
            self._cuda.synchronise()
        elif self.config.personalise == "refit":
            self._refit(parameters)
        else:
            self.parameters = parameters
            self._compiled = self.compile(self._cuda.identity())
            self._deserialise()

    def _refit(self, parameters: Arrays) -> None:
        refitter = self._trt.Refitter(self._engine, _logger(self._trt))
        known = set(refitter.get_all_weights())
        lost = sorted(set(parameters) - known)
        if lost:
            raise UserError(
                f"engine '{self.name}': {self.library} has no refittable weights {', '.join(lost)}; "
                "use personalise=inputs"
            )
        for name, array in parameters.items():
            refitter.set_named_weights(name, self._trt.Weights(array))
        if not refitter.refit_cuda_engine():
            raise RuntimeError(f"engine '{self.name}': refit failed, missing {refitter.get_missing_weights()}")

    def _deactivate(self) -> None:
        del self._context, self._engine, self._runtime
        for pointer, _ in self._buffers.values():
            self._cuda.free(pointer)
        self._buffers = {}
        self._cuda.close(*self._events)

    @property
    def engine_bytes(self) -> int | None:
        """Size of the built engine; of the graph before it is built."""
        return len(self._compiled.data) if self.active else super().engine_bytes

    def describe(self) -> dict[str, Any]:
        """Adds the version, the GPU and how long building took."""
        found = super().describe() | {"library": self.library, "max_batch": self.config.max_batch}
        if self.active:
            found |= {
                "version": self._trt.__version__,
                "gpu": self._cuda.identity(),
                "build_s": self._compiled.build_s,
                "cached": self._compiled.build_s is None,
            }
        return found


class TensorRTRTXEngine(TensorRTEngine):
    """TensorRT-RTX: builds ahead of time on a machine without a GPU."""

    name = "tensorrt_rtx"
    library = "tensorrt_rtx"
    missing = "tensorrt-rtx is not installed; run pip install 'lit-mmpg[rtx]'"

    @classmethod
    def compile_requirements(cls) -> str | None:
        """The library alone."""
        return cls._library_problem()
