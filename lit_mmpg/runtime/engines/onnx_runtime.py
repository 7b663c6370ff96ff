"""ONNX Runtime with its CPU, CUDA and TensorRT providers.

Ways to personalise: parameters are inputs of the graph (``inputs``); or constants of a baked graph, which a new session
takes from outside (``rebind``) or from a rewritten graph (``reload``). ONNX Runtime fixes constants when a session is
made, so both of the latter make a new one. Constants are packed for the processor once and inputs in every call, so
``settle_after`` goes on with a baked session once the same parameters have served so many calls.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lit_mmpg import sysfs
from lit_mmpg.errors import UserError, install_hint
from lit_mmpg.runtime.baking import bake
from lit_mmpg.runtime.bundle import Arrays
from lit_mmpg.runtime.cudart import gpu_identity, why_no_gpu
from lit_mmpg.runtime.engines.base import Engine, EngineConfig
from lit_mmpg.runtime.engines.cache import board, cache_folder, key_digest
from lit_mmpg.settings import MOST_THREADS, within


@dataclass(frozen=True)
class OnnxRuntimeConfig(EngineConfig):
    """Options of ONNX Runtime.

    Attributes:
        threads: Threads within an operator; 0 leaves it to ONNX Runtime.
        keep: Keep the graph as it is optimised for this processor, and load that from then on; on the processor only.
        cache: Folder of what is kept or built; the user's cache folder when None.
        settle_after: Calls with the same parameters as inputs after which a thread beside makes a session that has them
            as constants, which answers from then on until other parameters are loaded; it takes the memory of a second
            session. 0 for never; on the processor only.
    """

    threads: int = 1
    keep: bool = False
    cache: str | None = None
    settle_after: int = 0

    def __post_init__(self) -> None:
        if self.settle_after < 0:
            raise UserError(f"onnxruntime: settle_after is {self.settle_after}; it must be 0 or more")
        within("onnxruntime: ", 0, MOST_THREADS, threads=self.threads)


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime with its CPU provider."""

    name = "onnxruntime"
    config_class = OnnxRuntimeConfig
    ways: ClassVar[tuple[str, ...]] = ("inputs", "rebind", "reload")
    suffix = ".onnx"
    provider = "CPUExecutionProvider"
    memory = "cpu"
    """Where personal parameters are kept between calls."""
    package = f"onnxruntime is not installed; {install_hint('board-cpu')}"
    libraries = "install onnxruntime again"
    """What to do where the provider's libraries are not found."""
    others: ClassVar[tuple[str, ...]] = ()
    """Providers for what the first one does not take; the processor is always the last."""
    config: OnnxRuntimeConfig
    _session: Any = None
    _settling: _Settling | None = None
    _nodes: Mapping[str, int] | None = None

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
        if self.config.settle_after and self.provider != OnnxRuntimeEngine.provider:
            raise UserError(f"engine '{self.name}' bakes no session beside; leave settle_after out")
        if not self.personal or self.config.personalise == "inputs":
            self._session = self._open_session(onnxruntime)
        elif self.config.personalise == "rebind":
            self._baked = bake(self.graph, self.parameters, external=True)
        if self.personal:
            self._load_parameters(self.parameters)

    def _open_session(self, onnxruntime: Any) -> Any:
        """A session of the graph, optimised here or, where that is kept, before."""
        if self.config.keep and self.provider != OnnxRuntimeEngine.provider:
            raise UserError(f"engine '{self.name}' keeps no optimised graph; leave keep out")
        key = self.key() if self.config.keep else None
        kept = self.cache.read(key, self.suffix) if key is not None else None
        if kept is not None:
            self.build_s = None
            return self._make_session(onnxruntime, kept, optimised=True)
        graph, start = str(self.graph), time.perf_counter()
        if key is None:
            session = self._make_session(onnxruntime, graph)
        else:
            with tempfile.TemporaryDirectory() as folder:
                written = Path(folder) / "optimised.onnx"
                session = self._make_session(onnxruntime, graph, keep=written)
                self.cache.write(key, written.read_bytes(), self.suffix, self.label)
        self.build_s = time.perf_counter() - start
        return session

    @classmethod
    def identity(cls) -> dict[str, Any] | None:
        """The package, and the processor whose instructions the optimised graph is made for."""
        if cls.provider != OnnxRuntimeEngine.provider:
            return None
        try:
            import onnxruntime
        except ImportError:
            raise UserError(cls.package) from None
        machine = {"cpu": f"{sysfs.processor_name(sysfs.system_root())}, {platform.machine()}"}
        return {"library": "onnxruntime", "version": onnxruntime.__version__, "machine": machine}

    def key(self) -> dict[str, Any] | None:
        """Adds graph and precision; None where the graph holds one device's parameters, or a GPU runs it."""
        identity = self.identity()
        if identity is None or (self.personal and self.config.personalise != "inputs"):
            return None
        return identity | {"graph": self.info.sha256, "precision": self.precision}

    def build(self) -> bytes:
        """The optimised graph, kept."""
        import onnxruntime

        key = self.key()
        if key is None:
            return super().build()
        self.build_s = None
        found = self.cache.read(key, self.suffix)
        if found is None:
            self.config = replace(self.config, keep=True)
            self._open_session(onnxruntime)
            found = self.cache.read(key, self.suffix)
        if found is None:
            raise UserError(f"{self.cache.path(key, self.suffix)} cannot be written; free some space, or name a cache")
        return found

    def layer_times(self, inputs: Mapping[str, np.ndarray], calls: int) -> list[dict[str, Any]]:
        """Times of the kernels, from ONNX Runtime's profile of a session of its own; its first call is left out."""
        import onnxruntime

        feeds, graph = dict(self._checked(inputs)), str(self.graph)
        baked: str | bytes = graph
        if self.personal and self.config.personalise == "inputs":
            feeds |= self.parameters
        elif self.personal:
            baked = bake(self.graph, self.parameters)
        with tempfile.TemporaryDirectory() as folder:
            session = self._make_session(onnxruntime, baked, profile=Path(folder) / "profile")
            for _ in range(1 + calls):
                session.run(self._outputs, feeds)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return kernel_times(events, calls)

    def _make_session(
        self,
        onnxruntime: Any,
        graph: str | bytes,
        constants: Arrays | None = None,
        profile: Path | None = None,
        optimised: bool = False,
        keep: Path | None = None,
    ) -> Any:
        options = onnxruntime.SessionOptions()
        if optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if keep is not None:
            options.optimized_model_filepath = str(keep)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        options.intra_op_num_threads = self.config.threads
        options.log_severity_level = 3
        if self.precision == "int8_weight":
            # Dequantised once, when the session is made, instead of in every inference.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if constants:
            # External ones: others are replaced only after constants have been folded, with their former values.
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in constants.values()]
            options.add_external_initializers(list(constants), values)
        if self.provider != OnnxRuntimeEngine.provider:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        available = onnxruntime.get_available_providers()
        providers = [(self.provider, self._provider_options()), *(other for other in self.others if other in available)]
        try:
            # Left to itself it answers any error of a provider with the processor, and says so on the screen alone.
            session = onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        except Exception as error:  # its exceptions have no class of their own in common
            reason = " ".join(str(error).split())[:500]
            raise UserError(f"engine '{self.name}' cannot run {self.graph} here: {self.provider}: {reason}") from error
        if session.get_providers()[0] != self.provider:
            raise UserError(
                f"engine '{self.name}' cannot run here: {self.provider} could not be loaded; {self.libraries}"
            )
        self._nodes = assigned_nodes(session)
        if self._nodes is not None and not self._nodes.get(self.provider):
            raise UserError(
                f"engine '{self.name}': {self.provider} takes no node of {self.graph}, all would run on "
                f"{', '.join(self._nodes) or 'nothing'}; use another engine"
            )
        return session

    @property
    def settled(self) -> bool:
        """Whether a session that has the parameters as constants answers."""
        made = None if self._settling is None else self._settling.session
        return made is not None and self._session is made

    def _settle(self, settling: _Settling) -> None:
        settling.calls += 1
        if settling.calls == self.config.settle_after:
            settling.start(self)
        elif settling.session is not None and not self.settled:
            self._session, self._shapes = settling.session, []

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        if self._settling is not None:
            self._settle(self._settling)
        shapes = [inputs[name].shape for name in self._names]
        if shapes != self._shapes:
            self._bind(inputs)
            self._shapes = shapes
        for name, buffer in self._buffers.items():
            np.copyto(buffer, inputs[name])
        self._run(inputs)
        return dict(zip(self._outputs, self._binding.copy_outputs_to_cpu(), strict=True))

    def parts_ms(self, inputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Copies are those into bound memory and out of it; a provider's own, to a GPU and back, are in ``compute``."""
        arrays = self._checked(inputs)
        if [arrays[name].shape for name in self._names] != self._shapes:
            self._infer(arrays)
        clock = [time.perf_counter()]
        for name, buffer in self._buffers.items():
            np.copyto(buffer, arrays[name])
        clock.append(time.perf_counter())
        self._run(arrays)
        clock.append(time.perf_counter())
        self._binding.copy_outputs_to_cpu()
        clock.append(time.perf_counter())
        spent = (end - start for start, end in pairwise(clock))
        return dict(zip(("copy_inputs", "compute", "copy_outputs"), (1e3 * s for s in spent), strict=True))

    def _run(self, inputs: Mapping[str, np.ndarray]) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's errors have no narrower class
            given = ", ".join(f"{name} {list(inputs[name].shape)}" for name in self._names)
            reason = " ".join(str(error).split())[:500]
            raise UserError(f"engine '{self.name}' could not run {self.graph} with {given}: {reason}") from error

    def _bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Buffers for inputs of these shapes.

        They stay bound, and so do personal parameters: handing arrays over in every call costs more than copying them,
        for parameters even more than computing with them.
        """
        import onnxruntime

        self._binding = self._session.io_binding()
        self._buffers = {info.name: np.zeros(inputs[info.name].shape, info.dtype) for info in self.inputs}
        fixed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in self._buffers.items()}
        for name, value in (fixed | ({} if self.settled else self._values)).items():
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
            if self.config.settle_after:
                if self._settling is not None and self.settled:
                    self._session, self._shapes = self._settling.former, []
                self._settling = _Settling(parameters, self._session)
            return
        graph: str | bytes = self._baked or bake(self.graph, parameters)
        start = time.perf_counter()
        self._session = self._make_session(onnxruntime, graph, parameters if self._baked else None)
        self.build_s = time.perf_counter() - start
        self._shapes = []

    def _deactivate(self) -> None:
        if self._settling is not None:
            self._settling.wait()
            self._settling = None
        self._binding, self._values, self._bound, self._buffers = None, {}, {}, {}
        self._session = None

    def describe(self) -> dict[str, Any]:
        """Adds the version, the provider, the threads, and which provider took how many nodes where it is recorded."""
        import onnxruntime

        found = super().describe() | {
            "onnxruntime": onnxruntime.__version__,
            "provider": self.provider,
            "threads": self.config.threads,
        }
        if self._settling is not None:
            found["settled"] = self._settling.reason or self.settled
        return found | ({"nodes": self._nodes} if self._nodes else {})


class _Settling:
    """How far parameters are on their way from inputs to constants.

    Attributes:
        calls: Calls with them so far.
        former: The session that takes them as inputs.
        session: The session that has them as constants, once there is one.
        reason: Why there is none; inputs then stay.
    """

    def __init__(self, parameters: Arrays, former: Any) -> None:
        self.calls, self.session, self.reason = 0, None, ""
        self._parameters, self.former = parameters, former
        self._thread: threading.Thread | None = None

    def start(self, engine: OnnxRuntimeEngine) -> None:
        """Make the session in a thread of its own."""
        self._thread = threading.Thread(target=self._make, args=(engine,), name="baking")
        self._thread.start()

    def _make(self, engine: OnnxRuntimeEngine) -> None:
        import onnxruntime

        try:
            self.session = engine._make_session(onnxruntime, bake(engine.graph, self._parameters))
        except Exception as error:  # the answers are right without it
            self.reason = " ".join(str(error).split())[:500]

    def wait(self) -> None:
        """Until nothing is being made."""
        if self._thread is not None:
            self._thread.join()


def kernel_times(events: Sequence[Mapping[str, Any]], calls: int) -> list[dict[str, Any]]:
    """Mean time of each kernel in a call, from the events of ONNX Runtime's profile.

    Args:
        events: Its content: ``cat``, ``name``, ``dur`` (us) and ``args`` of each.
        calls: Calls after the first one, which is left out.
    """
    found: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        name = name.removesuffix("_kernel_time")
        seen[name] = seen.get(name, 0) + 1
        if seen[name] == 1:
            found[name] = {"name": name, "operator": event["args"].get("op_name", ""), "time_ms": 0.0}
        else:
            found[name]["time_ms"] += float(event["dur"]) / 1e3 / calls
    return list(found.values())


def assigned_nodes(session: Any) -> dict[str, int] | None:
    """How many nodes each provider took; ``None`` where this version of ONNX Runtime does not record it.

    Args:
        session: A session with ``session.record_ep_graph_assignment_info``.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        return None
    try:
        subgraphs = ask()
    except Exception:  # it was not recorded; ONNX Runtime's errors have no narrower class
        return None
    nodes: dict[str, int] = {}
    for subgraph in subgraphs:
        nodes[subgraph.ep_name] = nodes.get(subgraph.ep_name, 0) + len(subgraph.get_nodes())
    return nodes


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """ONNX Runtime with its CUDA provider. Not verified on hardware."""

    name = "onnxruntime_cuda"
    provider = "CUDAExecutionProvider"
    memory = "cuda"
    package = "onnxruntime-gpu is not installed; install it in place of onnxruntime"
    libraries = "CUDA and cuDNN in the versions that this onnxruntime-gpu was built for must be found by the loader"

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
        max_options: Most options of a question of multiple choice.
    """

    max_batch: int = 32
    max_options: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        within("onnxruntime_tensorrt: ", 1, max_batch=self.max_batch, max_options=self.max_options)


class OnnxRuntimeTensorRTEngine(OnnxRuntimeCudaEngine):
    """ONNX Runtime with its TensorRT provider. Not verified on hardware."""

    name = "onnxruntime_tensorrt"
    config_class = OnnxRuntimeTensorRTConfig
    provider = "TensorrtExecutionProvider"
    libraries = "TensorRT's libraries (libnvinfer) in the version that this onnxruntime-gpu was built for must be found"
    ways = ("inputs", "reload")
    others = ("CUDAExecutionProvider",)
    config: OnnxRuntimeTensorRTConfig

    def _provider_options(self) -> dict[str, str]:
        # Python's options take the words True and False alone; a digit is an error.
        types = _element_types(self.graph)
        shapes = {kind: self._profile(kind) for kind in ("min", "opt", "max")}
        options = {
            "trt_fp16_enable": str("FLOAT16" in types),
            # Only where a tensor is quantised in every inference: without one TensorRT refuses the flag for want of
            # scales. Weights alone are dequantised by ONNX Runtime before TensorRT sees them.
            "trt_int8_enable": str("QuantizeLinear" in types),
            **{f"trt_profile_{kind}_shapes": text for kind, text in shapes.items()},
        }
        engines, timings = self._cache_folders(options)
        # A baked graph holds one device's own parameters: nothing of it is kept.
        by_input = not self.personal or self.config.personalise == "inputs"
        for kind, folder, wanted in (("engine", engines, by_input), ("timing", timings, True)):
            with suppress(OSError):  # a full or read-only disk loses only the saved time
                folder.mkdir(parents=True, exist_ok=True)
            kept = wanted and folder.is_dir() and os.access(folder, os.W_OK)
            options[f"trt_{kind}_cache_enable"] = str(kept)
            if kept:
                options[f"trt_{kind}_cache_path"] = str(folder)
        return options

    def _cache_folders(self, options: Mapping[str, str]) -> tuple[Path, Path]:
        """Folders of the built engine and of timings.

        The provider names its files by the structure of a graph: it would take the engine of other weights, another
        version or another module for its own, so each has a folder of its own.
        """
        import onnxruntime

        with suppress(ImportError, OSError):  # its wheel also brings the library that the provider looks for by name
            import_module("tensorrt")
        machine = {
            "onnxruntime": onnxruntime.__version__,
            "tensorrt": getattr(sys.modules.get("tensorrt"), "__version__", None),
            "gpu": gpu_identity() if why_no_gpu() is None else None,
            **board(),
        }
        root = Path(self.config.cache) if self.config.cache else cache_folder() / "onnxruntime"
        return root / self.info.sha256 / key_digest({**machine, **options}), root / f"timings-{key_digest(machine)}"

    def _profile(self, kind: str) -> str:
        """``name:1x8x1280,...`` for every input of varying size."""
        sizes = profile_sizes(self, self.config.max_batch, self.config.max_options)[("min", "opt", "max").index(kind)]
        parts = []
        for info in self.inputs:
            shape = [str(sizes[d]) if isinstance(d, str) else str(d) for d in info.shape]
            parts.append(f"{info.name}:{'x'.join(shape)}")
        return ",".join(parts)


def _element_types(graph: Path) -> set[str]:
    """Types of the tensors of an ONNX file, and names of its operators."""
    import onnx

    model = onnx.load_model(str(graph), load_external_data=False)
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    types = {value.type.tensor_type.elem_type for value in values} | {t.data_type for t in model.graph.initializer}
    return {onnx.TensorProto.DataType.Name(t) for t in types} | {node.op_type for node in model.graph.node}


def profile_sizes(
    engine: Engine, max_batch: int, max_options: int = 1
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Least, usual and largest sizes of the varying dimensions, for engines that are built for a range of shapes.

    Args:
        engine: The engine.
        max_batch: Most rows of a call.
        max_options: Most options of a question; never fewer than the bundle was exported with.
    """
    frames = engine.bundle.manifest.frames.max_frames
    usual = dict(engine.info.macs_at)
    usual |= {"N": max(usual["N"], frames)} if "N" in usual else {}  # of one clip
    largest = dict(usual)
    for name, size in (("B", max_batch), ("N", max_batch * frames), ("O", max_options)):
        if name in usual:
            largest[name] = max(size, usual[name])
    return dict.fromkeys(usual, 1), usual, largest
