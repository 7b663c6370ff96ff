"""TensorRT and TensorRT-RTX: build, keep, run, refit. After their Python APIs (TensorRT 10.3 to 11, RTX 1.2 on).

Building ahead of time is tested; running is not verified on hardware.

The API has few exceptions: most of its calls answer an error with ``False``, ``None`` or -1 and go on. Here each answer
is looked at (:class:`Library`), and becomes an error with what TensorRT logged.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lit_mmpg.errors import UserError, install_hint
from lit_mmpg.runtime.baking import bake
from lit_mmpg.runtime.bundle import Arrays
from lit_mmpg.runtime.cudart import Cuda, driver_version, gpu_identity, why_no_gpu
from lit_mmpg.runtime.engines.base import Engine, EngineConfig
from lit_mmpg.runtime.engines.cache import board
from lit_mmpg.runtime.engines.onnx_runtime import profile_sizes
from lit_mmpg.settings import within

if TYPE_CHECKING:
    import ctypes

OLDEST = (10, 3)
"""Oldest TensorRT: JetPack 6.2 brings it."""

INPUTS = "use personalise=inputs"
"""The remedy where refit does not work."""

REMEDIES = {"B": "max_batch", "N": "max_batch", "O": "max_options"}
"""Varying dimension -> option that an engine is built with for more of it."""


@dataclass(frozen=True)
class TensorRTConfig(EngineConfig):
    """Options of TensorRT.

    Attributes:
        max_batch: Most rows of a call; engines are built for a range of shapes.
        max_options: Most options of a question of multiple choice; never fewer than the bundle was exported with.
        workspace_mib: Most memory for tactics while building, in MiB; 0 leaves it to TensorRT.
        cuda_graph: Replay the second and later calls with inputs of the same shapes as a CUDA graph. Not verified on
            hardware.
        cache: Folder of built engines and timings; the user's cache folder when None.
    """

    max_batch: int = 32
    max_options: int = 16
    workspace_mib: int = 0
    cuda_graph: bool = False
    cache: str | None = None

    def __post_init__(self) -> None:
        within("tensorrt: ", 1, max_batch=self.max_batch, max_options=self.max_options)
        within("tensorrt: ", 0, workspace_mib=self.workspace_mib)


@dataclass(frozen=True)
class Compiled:
    """A built engine.

    Attributes:
        data: The serialised engine.
        build_s: Seconds that building took; ``None`` where it came from the cache.
    """

    data: bytes
    build_s: float | None


class Library:
    """``tensorrt`` or ``tensorrt_rtx`` with a logger that keeps errors for the message and shows nothing.

    Args:
        trt: The module.
    """

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.errors: deque[str] = deque(maxlen=4)
        errors = self.errors

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.ERROR:
                    errors.append(" ".join(message.split())[:300])

        self.logger = Logger()

    def refused(self, what: str, remedy: str = "") -> UserError:
        """The error for a call that was refused, with what was logged since the last one.

        Args:
            what: What it does, as the rest of a sentence: ``cannot build the graph``.
            remedy: What to do about it.
        """
        reasons = "; ".join(self.errors)
        self.errors.clear()
        text = f"{self.trt.__name__} {self.trt.__version__} {what}"
        return UserError(text + (f": {reasons}" if reasons else "") + (f"; {remedy}" if remedy else ""))

    def made(self, make: Callable[[], Any], what: str, remedy: str = "") -> Any:
        """What a call makes.

        Raises:
            UserError: If it makes nothing: None, or the exception of a constructor.
        """
        try:
            found = make()
        except (RuntimeError, TypeError, ValueError) as error:
            self.errors.append(" ".join(str(error).split())[:300])
            raise self.refused(what, remedy) from error
        if found is None:
            raise self.refused(what, remedy)
        return found

    def check(self, answer: Any, what: str, remedy: str = "") -> None:
        """Take the answer of a call that says whether it was done.

        Raises:
            UserError: If it was not.
        """
        if not answer:
            raise self.refused(what, remedy)


def refit_problem(trt: Any) -> str | None:
    """Why a refittable engine cannot be built here; ``None`` where it can.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
    """
    reason = why_no_gpu() if trt.__name__ == "tensorrt_rtx" else None
    return reason and (
        f"{trt.__name__} builds an engine for refit on a machine with a GPU only ({reason}); "
        "build it there, or use personalise=inputs"
    )


def build_engine(
    library: Library,
    graph: bytes,
    largest: Mapping[str, int],
    usual: Mapping[str, int] | None = None,
    refit: bool | Sequence[str] = False,
    workspace_mib: int = 0,
    timings: bytes | None = None,
) -> tuple[bytes, bytes | None]:
    """Parse and build a strongly typed network.

    Args:
        library: TensorRT or TensorRT-RTX.
        graph: Serialised ONNX graph.
        largest: Largest sizes of the varying dimensions.
        usual: Sizes to optimise for; the largest when None.
        refit: Names of the weights that may be replaced later; True: all, which leaves less to optimise.
        workspace_mib: Most memory while building, in MiB; 0: no limit of ours.
        timings: Serialised timing cache of earlier builds; one of another machine is left out.

    Returns:
        The serialised engine and the timing cache.

    Raises:
        UserError: If the graph is refused; with the parser's reason.
    """
    trt, made, check = library.trt, library.made, library.check
    problem = refit_problem(trt) if refit else None
    if problem:
        raise UserError(problem)
    builder = made(lambda: trt.Builder(library.logger), "starts no builder", "is the driver installed and new enough?")
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # later versions know no other kind
    network = made(lambda: builder.create_network(0 if flag is None else 1 << int(flag)), "makes no network")
    parser = made(lambda: trt.OnnxParser(network, library.logger), "makes no parser")
    if not parser.parse(graph):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise UserError(f"{trt.__name__} {trt.__version__} cannot parse the graph: {reasons}")
    config = made(builder.create_builder_config, "makes no builder config")
    if workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
        kept = config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == workspace_mib << 20
        check(kept, f"takes no limit of {workspace_mib} MiB", "change workspace_mib")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the inspector knows the kinds of layers
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    if refit is True:
        config.set_flag(trt.BuilderFlag.REFIT)
    elif refit:
        config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
        for name in refit:
            check(network.mark_weights_refittable(name), f"finds no weights '{name}' to refit", INPUTS)
    timed = trt.__name__ == "tensorrt"  # TensorRT-RTX times nothing while it builds
    if timed:
        _take_timings(library, config, timings)
    _take_shapes(library, builder, config, network, graph, usual or largest, largest)
    most = ", ".join(f"{name} up to {size}" for name, size in largest.items())
    built = made(
        lambda: builder.build_serialized_network(network, config),
        "cannot build the graph",
        f"it was to take {most}: lower max_batch where memory is short" if most else "",
    )
    if not timed:
        return bytes(built), None
    cache = config.get_timing_cache()
    measured = None if cache is None else cache.serialize()
    return bytes(built), None if measured is None else bytes(measured)


def _take_timings(library: Library, config: Any, timings: bytes | None) -> None:
    """Attach the timings of earlier builds, or new ones where those are another machine's."""
    for data in (timings, b"") if timings else (b"",):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            library.errors.clear()
            return
    raise library.refused("takes no timing cache", "empty the folder of the option cache")


def _take_shapes(
    library: Library,
    builder: Any,
    config: Any,
    network: Any,
    graph: bytes,
    usual: Mapping[str, int],
    largest: Mapping[str, int],
) -> None:
    """Tell the builder the range of every input that varies."""
    profile = library.made(builder.create_optimization_profile, "makes no optimisation profile")
    dims = _varying(graph)
    ranges = {}
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        unknown = [d for d in dims[name] if isinstance(d, str) and not (d in usual and d in largest)]
        if unknown:
            raise UserError(f"input '{name}' varies in {', '.join(unknown)}, for which no size is given")
        shapes = [
            tuple(sizes[d] if isinstance(d, str) else d for d in dims[name])
            for sizes in (dict.fromkeys(largest, 1), usual, largest)
        ]
        if any(isinstance(d, str) for d in dims[name]):
            ranges[name] = shapes
            try:
                profile.set_shape(name, *shapes)
            except ValueError as error:
                raise library.refused(f"takes no shapes {shapes} for '{name}' ({error})") from error
    if ranges:
        index = config.add_optimization_profile(profile)
        text = "; ".join(f"'{name}' from {least} to {most}" for name, (least, _, most) in ranges.items())
        library.check(index is not None and index >= 0, f"takes no range of shapes with {text}", "change max_batch")


def _varying(graph: bytes) -> dict[str, list[int | str]]:
    """Shapes of the inputs, with the names of varying dimensions."""
    import onnx

    model = onnx.load_model_from_string(graph)
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }


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
    portable: ClassVar[bool] = False
    """Whether a built engine runs on other GPUs than that of the machine that built it."""
    config: TensorRTConfig

    _cuda: Cuda | None = None
    _runtime: Any = None
    _engine: Any = None
    _context: Any = None
    _compiled: Compiled | None = None
    _graph: Any = None
    _graph_key: object = None
    _profiled = False
    _ran = False

    @classmethod
    def compile_requirements(cls, config: EngineConfig | None = None) -> str | None:
        """Why this machine cannot build an engine; ``None`` where it can.

        Args:
            config: Options of an engine with personal parameters, which may ask for more.
        """
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

    def compile(self, parameters: Arrays | None = None, fresh: bool = False) -> Compiled:
        """Build the engine, or take it from the cache; nothing is run.

        Building ahead of time and activation both come here, so one finds what the other has built.

        Args:
            parameters: Personal parameters that a baked graph holds; those in use when None.
            fresh: Leave the cache out.

        Raises:
            UserError: If this machine cannot build it, or the graph is refused.
        """
        parameters = self.parameters if parameters is None else parameters
        reason = self.compile_requirements(self.config if self.personal else None)
        if reason:
            raise UserError(f"engine '{self.name}' cannot be built here: {reason}")
        cache, key = self.cache, self._key()
        by_input = not self.personal or self.config.personalise == "inputs"
        refit = list(parameters) if self.personal and self.config.personalise == "refit" else []
        # The constants of a baked graph are one device's own: kept only where refit replaces them.
        kept = by_input or bool(refit)
        found = cache.read(key) if kept and not fresh else None
        if found is not None:
            return Compiled(found, None)
        graph = self.graph.read_bytes() if by_input else bake(self.graph, parameters)
        _, usual, largest = profile_sizes(self, self.config.max_batch, self.config.max_options)
        timing_key = {name: key[name] for name in ("library", "version", "machine")}
        timings = cache.read(timing_key, ".timings")
        start = time.perf_counter()
        library = Library(import_module(self.library))
        data, timings = build_engine(library, graph, largest, usual, refit, self.config.workspace_mib, timings)
        build_s = time.perf_counter() - start
        if kept:
            cache.write(key, data, label=self.label)
        if timings:
            cache.write(timing_key, timings, ".timings")
        return Compiled(data, build_s)

    def build(self) -> bytes:
        """The serialised engine, built ahead of time; raises as :meth:`compile` does."""
        compiled = self.compile()
        self.build_s = compiled.build_s
        return compiled.data

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """The library, and the machine where an engine depends on it."""
        problem = cls._library_problem()
        if problem:
            raise UserError(problem)
        machine = "any" if cls.portable else {"gpu": gpu_identity(), "driver": driver_version(), **board()}
        return {"library": cls.library, "version": import_module(cls.library).__version__, "machine": machine}

    def key(self) -> dict[str, Any] | None:
        """What the engine depends on; None where it holds one device's own parameters."""
        return None if self.personal and self.config.personalise == "reload" else self._key()

    def _key(self) -> dict[str, Any]:
        return self.identity() | {
            "graph": self.info.sha256,  # its precision is in it
            "personalise": self.config.personalise if self.personal else "inputs",
            "workspace_mib": self.config.workspace_mib,
            "sizes": profile_sizes(self, self.config.max_batch, self.config.max_options),
            "verbosity": "detailed",
        }

    # -- running -----------------------------------------------------------------------------------------------------

    def _activate(self) -> None:
        self._library = Library(import_module(self.library))
        self._buffers: dict[str, tuple[ctypes.c_void_p, int]] = {}
        self._ran = False
        self._cuda = Cuda()
        self._events = tuple(self._cuda.event() for _ in range(4))
        self._graph, self._graph_key = None, None
        compiled = self.compile()
        self.build_s = compiled.build_s
        try:
            self._deserialise(compiled)
        except UserError:
            if compiled.build_s is not None:
                raise
            compiled = self.compile(fresh=True)  # what was kept does not fit after all
            self.build_s = compiled.build_s
            self._deserialise(compiled)
        if self.personal and self.config.personalise != "reload":
            self._load_parameters(self.parameters)

    def _deserialise(self, compiled: Compiled) -> None:
        """Load a built engine; the former one stays in use where that fails."""
        library, trt = self._library, self._library.trt
        runtime = library.made(lambda: trt.Runtime(library.logger), "starts no runtime")
        engine = library.made(
            lambda: runtime.deserialize_cuda_engine(compiled.data),
            f"refuses the engine that was built for {self.graph}",
            "is it this GPU's? Empty the folder of the option cache",
        )
        if self.personal and self.config.personalise == "refit":
            library.check(getattr(engine, "refittable", True), "built an engine that cannot be refitted", INPUTS)
        for info in (*self.inputs, *self.info.outputs):
            found = self._type_of(engine, info.name)
            if found is not None and found != info.dtype:
                raise UserError(f"{self.library}: '{info.name}' of {self.graph} is {found}, not {info.dtype}")
        needed = _workspace_bytes(engine)
        context = library.made(
            lambda: self._new_context(engine),
            "makes no execution context"
            + ("" if needed is None else f", for which it needs {needed} bytes of the GPU"),
            f"free memory of the GPU, or lower max_batch (now {self.config.max_batch})",
        )
        self._drop_graph()
        self._context, self._engine, self._runtime, self._compiled = context, engine, runtime, compiled

    def _new_context(self, engine: Any) -> Any:
        """An execution context; TensorRT-RTX replays graphs by itself, one for each shape, where it is told to."""
        if not (self.config.cuda_graph and self.portable):
            return engine.create_execution_context()
        runtime_config = engine.create_runtime_config()
        runtime_config.cuda_graph_strategy = self._library.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(runtime_config)

    def _type_of(self, engine: Any, name: str) -> np.dtype | None:
        """Type of a tensor; ``None`` where NumPy has none for it."""
        try:
            return np.dtype(self._library.trt.nptype(engine.get_tensor_dtype(name)))
        except (AttributeError, TypeError):
            return None

    @property
    def _gpu(self) -> Cuda:
        assert self._cuda is not None
        return self._cuda

    def _buffer(self, name: str, size: int) -> ctypes.c_void_p:
        pointer, capacity = self._buffers.get(name, (None, -1))
        if pointer is None or capacity < size:
            if pointer is not None:
                del self._buffers[name]
                self._gpu.free(pointer)
            pointer = self._gpu.allocate(size)
            self._buffers[name] = (pointer, size)
        return pointer

    def _bind(self, name: str, array: np.ndarray) -> None:
        """Shape, memory and values of an input."""
        if not self._context.set_input_shape(name, tuple(array.shape)):
            raise self._outside(name, array.shape)
        pointer = self._buffer(name, array.nbytes)
        self._gpu.upload(pointer, array)
        self._address(name, pointer)

    def _address(self, name: str, pointer: ctypes.c_void_p) -> None:
        answer = self._context.set_tensor_address(name, pointer.value)
        self._library.check(answer, f"takes no memory for '{name}' of {self.graph}", "export the bundle again")

    def _outside(self, name: str, shape: Sequence[int]) -> UserError:
        """The error for a shape that the engine was not built for."""
        least, _, most = (tuple(limit) for limit in self._engine.get_tensor_profile_shape(name, 0))
        dims = next((info.shape for info in self.info.inputs if info.name == name), ())
        remedies = []
        for dim, size, low, high in zip(dims, shape, least, most, strict=False):
            if low <= size <= high:
                continue
            option = REMEDIES.get(str(dim))
            if size > high and option:
                remedies.append(f"{dim} is {size}: give fewer, or set {option} above {getattr(self.config, option)}")
            else:
                remedies.append(f"{dim} is {size}, it must be {low} to {high}: give other inputs, or export again")
        what = f"takes no shape {tuple(shape)} for '{name}' of {self.graph}; the engine was built for {least} to {most}"
        return self._library.refused(what, "; ".join(remedies))

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        before, start, end, after = self._events
        arrays = {info.name: np.ascontiguousarray(inputs[info.name]) for info in self.inputs}
        self._gpu.record(before)
        for name, array in arrays.items():
            self._bind(name, array)
        outputs: Arrays = {}
        for info in self.info.outputs:
            shape = tuple(self._context.get_tensor_shape(info.name))
            if len(shape) != len(info.shape) or min(shape, default=0) < 0:
                raise self._unknown_shape(info.name, shape)
            outputs[info.name] = np.empty(shape, info.dtype)
            self._address(info.name, self._buffer(info.name, outputs[info.name].nbytes))
        self._gpu.record(start)
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        # A graph holds shapes and addresses, so it is replayed for the same ones only; values are read anew.
        graph_key = (shapes, tuple((name, pointer.value) for name, (pointer, _) in self._buffers.items()))
        replayed = self._graph is not None and graph_key == self._graph_key
        if self._graph is not None and replayed:
            self._gpu.launch(self._graph)
        else:
            self._enqueue(shapes)
        self._gpu.record(end)
        for name, array in outputs.items():
            self._gpu.download(array, self._buffers[name][0])
        self._gpu.record(after)
        self._gpu.synchronise()
        self._ran = True
        if self.config.cuda_graph and not self.portable and not self._profiled and not replayed:
            # After an ordinary call, in which TensorRT does what it does once for new shapes.
            self._drop_graph()
            self._graph, self._graph_key = self._gpu.capture(lambda: self._enqueue(shapes)), graph_key
        return outputs

    def _enqueue(self, shapes: str) -> None:
        answer = self._context.execute_async_v3(self._gpu.stream.value)
        remedy = "leave cuda_graph out" if self.config.cuda_graph else ""
        self._library.check(answer, f"could not run {self.graph} with {shapes}", remedy)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            graph, self._graph, self._graph_key = self._graph, None, None
            self._gpu.drop(graph)

    def parts_ms(self, inputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Times between CUDA events before and after the copies; what the processor does in between counts, too."""
        self.infer(inputs)
        names = ("copy_inputs", "compute", "copy_outputs")
        marks = pairwise(self._events)
        return {name: self._gpu.elapsed_ms(*pair) for name, pair in zip(names, marks, strict=True)}

    def layer_times(self, inputs: Mapping[str, np.ndarray], calls: int) -> list[dict[str, Any]]:
        """Times from TensorRT's ``IProfiler`` on a context of its own; kinds of layers from its engine inspector.

        Not verified on hardware.
        """
        library, arrays = self._library, self._checked(inputs)
        profiler, own = _profiler(library.trt), self._context
        self._drop_graph()
        self._context, self._profiled = library.made(self._engine.create_execution_context, "makes no context"), True
        try:
            self._context.profiler = profiler  # it is told after each call, as enqueue_emits_profile is on by default
            self._bind_parameters()
            for call in range(1 + calls):
                self._infer(arrays)
                if call == 0:
                    profiler.times_ms.clear()
        finally:
            self._context, self._profiled = own, False
            self._bind_parameters()
        inspector = library.made(self._engine.create_engine_inspector, "makes no engine inspector")
        text = inspector.get_engine_information(library.trt.LayerInformationFormat.JSON)
        return with_operators({name: ms / calls for name, ms in profiler.times_ms.items()}, inspected(text))

    def _bind_parameters(self) -> None:
        if self.personal and self.config.personalise == "inputs":
            self._load_parameters(self.parameters)

    def _unknown_shape(self, name: str, shape: Sequence[int]) -> UserError:
        """The error for an output without a shape: some input has none."""
        try:
            missing = [str(tensor) for tensor in self._context.infer_shapes()]
        except RuntimeError as error:
            missing = [" ".join(str(error).split())[:300]]
        inputs = ", ".join(missing) or "none"
        return self._library.refused(
            f"cannot tell the shape of '{name}' of {self.graph}: it is {shape}, unspecified: {inputs}"
        )

    @property
    def gpu_ms(self) -> float | None:
        """Time of the last inference on the GPU between two events, without the copies; ``None`` before the first."""
        return self._gpu.elapsed_ms(*self._events[1:3]) if self.active and self._ran else None

    def _load_parameters(self, parameters: Arrays) -> None:
        if self.config.personalise == "inputs":
            for name, array in parameters.items():
                self._bind(name, array)  # they stay on the device between calls
            self._gpu.synchronise()
        elif self.config.personalise == "reload":
            self._deserialise(self.compile(parameters))
        else:
            try:
                self._refit(parameters)
            except UserError:
                self._put_back(parameters)
                raise

    def _put_back(self, refused: Arrays) -> None:
        """The former parameters after a refit that failed, which may have replaced a part of them."""
        if not self.active or refused is self.parameters:
            return
        try:
            self._refit(self.parameters)
        except UserError:
            self.deactivate()  # neither set is whole, so no answer would be right

    def _refit(self, parameters: Arrays) -> None:
        self._drop_graph()  # it may hold the former weights
        library, trt = self._library, self._library.trt
        refitter = library.made(lambda: trt.Refitter(self._engine, library.logger), "makes no refitter")
        lost = sorted(set(parameters) - set(refitter.get_all_weights()))
        library.check(not lost, f"has no refittable weights {', '.join(lost)}", INPUTS)
        for name, array in parameters.items():
            if not refitter.set_named_weights(name, trt.Weights(array)):
                raise library.refused(f"takes no {array.size} values of {array.dtype} for '{name}'", INPUTS)
        if not refitter.refit_cuda_engine():
            missing = ", ".join(refitter.get_missing_weights()) or "none"
            raise library.refused(f"could not refit {self.graph} (missing: {missing})", INPUTS)

    def _deactivate(self) -> None:
        self._context = self._engine = self._runtime = self._compiled = None  # in this order: each needs the next
        self._graph, self._graph_key = None, None  # the device gives it back
        cuda, self._cuda, self._buffers = self._cuda, None, {}
        if cuda is not None:
            cuda.close()

    @property
    def engine_bytes(self) -> int | None:
        """Size of the built engine; of the graph before it is built."""
        return len(self._compiled.data) if self._compiled else super().engine_bytes

    @property
    def workspace_bytes(self) -> int | None:
        """Memory of the GPU for activations, at the largest shapes."""
        return _workspace_bytes(self._engine) if self._engine is not None else None

    def describe(self) -> dict[str, Any]:
        """Adds the version, the GPU and how long building took."""
        limits = {"max_batch": self.config.max_batch, "max_options": self.config.max_options}
        found = super().describe() | {"library": self.library, **limits, "cuda_graph": self.config.cuda_graph}
        if self.active and self._compiled:
            found |= {
                "version": self._library.trt.__version__,
                "gpu": gpu_identity(),
                "build_s": self._compiled.build_s,
                "cached": self._compiled.build_s is None,
            }
        return found


def _profiler(trt: Any) -> Any:
    """A profiler that adds up the milliseconds of each layer, in the order of their first reports."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # the bindings ask for the base class by name
            self.times_ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times_ms[layer_name] = self.times_ms.get(layer_name, 0.0) + ms

    return Profiler()


def inspected(text: str) -> dict[str, str]:
    """Kinds of layers by name, from the JSON of TensorRT's engine inspector or of ``trtexec --exportLayerInfo``.

    ``Layers`` holds an object with ``Name`` and ``LayerType`` for each layer; names alone where the engine was built
    without detailed verbosity, and then there are no kinds.

    Raises:
        ValueError: If it is no such JSON.
    """
    told = json.loads(text)
    layers = told.get("Layers") if isinstance(told, dict) else None
    if not isinstance(layers, list):
        raise ValueError("it holds no 'Layers'")
    return {str(each["Name"]): str(each.get("LayerType", "")) for each in layers if isinstance(each, dict)}


def with_operators(times_ms: Mapping[str, float], operators: Mapping[str, str]) -> list[dict[str, Any]]:
    """Layers as :meth:`Engine.layer_times` has them."""
    return [{"name": name, "operator": operators.get(name, ""), "time_ms": ms} for name, ms in times_ms.items()]


def _workspace_bytes(engine: Any) -> int | None:
    """What an engine says of the memory of an execution context; the name of the property depends on the version."""
    for name in ("device_memory_size_v2", "device_memory_size"):
        size = getattr(engine, name, None)
        if size is not None:
            return int(size)
    return None


class TensorRTRTXEngine(TensorRTEngine):
    """TensorRT-RTX: builds ahead of time on a machine without a GPU, for Ampere and later GPUs."""

    name = "tensorrt_rtx"
    library = "tensorrt_rtx"
    missing = f"tensorrt-rtx is not installed; {install_hint('rtx')}"
    portable = True

    @classmethod
    def compile_requirements(cls, config: EngineConfig | None = None) -> str | None:
        """The library alone; for refit a GPU, too."""
        problem = cls._library_problem()
        if problem or config is None or config.personalise != "refit":
            return problem
        return refit_problem(import_module(cls.library))
