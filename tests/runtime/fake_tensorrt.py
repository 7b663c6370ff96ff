"""TensorRT's documented Python API and the CUDA runtime in host memory: graphs are computed by ONNX Runtime.

What is checked with it is how answers of the API are taken (``refuse`` names calls that answer with an error), and the
order and arguments of calls; nothing of a GPU.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

WORKSPACE = 4096


class FakeCuda:
    """The runtime's functions; ``owned`` holds what was made and not given back, ``status`` what calls answer."""

    def __init__(self, **status: int) -> None:
        self.memory: dict[int, ctypes.Array] = {}
        self.owned: dict[str, set[int]] = {"Stream": set(), "Event": set(), "Graph": set(), "GraphExec": set()}
        self.capturing: list | None = None
        self.graphs: dict[int, list] = {}
        self.calls: list[str] = []
        self.status = status
        self.gpu = b"Orin\0"

    def __getattr__(self, name: str):
        def call(*arguments):
            if name == "cudaGetErrorString":
                return {2: b"out of memory"}.get(arguments[0])
            self.calls.append(name)
            if self.status.get(name):
                return self.status[name]
            kind = name.removeprefix("cuda").removesuffix("Create").removesuffix("Destroy")
            if self.capturing is not None and name not in ("cudaStreamEndCapture", "cudaMemcpyAsync"):
                return 900  # cudaErrorStreamCaptureUnsupported
            if name == "cudaGetDeviceCount":
                arguments[0]._obj.value = 1
            elif name == "cudaDriverGetVersion":
                arguments[0]._obj.value = 12060
            elif name == "cudaStreamBeginCapture":
                self.capturing = []
            elif name == "cudaStreamEndCapture":
                self._made("Graph", arguments[1], self.capturing)
                self.capturing = None
            elif name == "cudaGraphInstantiateWithFlags":
                self._made("GraphExec", arguments[0], self.graphs[arguments[1].value])
            elif name == "cudaGraphLaunch":
                for work in self.graphs[arguments[0].value]:
                    work()
            elif name.endswith("Create"):
                handle = len(self.calls) + 1000
                arguments[0]._obj.value = handle
                self.owned[kind].add(handle)
            elif name.endswith("Destroy"):
                self.owned[kind].remove(arguments[0].value)
            elif name == "cudaMalloc":
                block = ctypes.create_string_buffer(arguments[1].value)
                arguments[0]._obj.value = ctypes.addressof(block)
                self.memory[ctypes.addressof(block)] = block
            elif name == "cudaFree":
                del self.memory[arguments[0].value]
            elif name == "cudaMemcpyAsync":
                ctypes.memmove(arguments[0], arguments[1], arguments[2].value)
            elif name == "cudaDeviceGetAttribute":
                arguments[0]._obj.value = {16: 16, 75: 8, 76: 7}[arguments[1]]
            elif name.startswith("cudaGetDeviceProperties"):
                ctypes.memmove(arguments[0], self.gpu, len(self.gpu))
            return 0

        return call

    def _made(self, kind: str, target, work) -> None:
        handle = len(self.calls) + 1000
        target._obj.value = handle
        self.owned[kind].add(handle)
        self.graphs[handle] = work

    @property
    def leaked(self) -> bool:
        return bool(self.memory or any(self.owned.values()))


class Network:
    def __init__(self) -> None:
        self.model = onnx.ModelProto()
        self.marked: list[str] = []

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    def get_input(self, index: int):
        return SimpleNamespace(name=self.model.graph.input[index].name)


class Config:
    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.profiles: list[dict[str, list[tuple[int, ...]]]] = []
        self.timings: bytes | None = None
        self.set_flag, self.clear_flag = self.flags.add, self.flags.discard


class Profile(dict):
    def set_shape(self, name: str, *shapes) -> None:
        self[name] = [tuple(shape) for shape in shapes]


class Engine:
    """A graph with the range of its shapes."""

    refittable = True
    device_memory_size_v2 = WORKSPACE

    def __init__(self, model: onnx.ModelProto, ranges: Mapping[str, list[list[int]]], trt: ModuleType) -> None:
        self.model, self.ranges, self.trt = model, ranges, trt
        self.values = {value.name: value for value in (*model.graph.input, *model.graph.output)}

    def dims(self, name: str) -> list[int | str]:
        return [d.dim_param or d.dim_value for d in self.values[name].type.tensor_type.shape.dim]

    def get_tensor_profile_shape(self, name: str, index: int):
        return self.ranges.get(name) or [tuple(self.dims(name))] * 3

    def get_tensor_dtype(self, name: str):
        return self.trt.types.get(name) or self.values[name].type.tensor_type.elem_type

    def create_execution_context(self):
        return None if "create_execution_context" in self.trt.refuse else Context(self)

    def create_engine_inspector(self):
        layers = [{"Name": node.output[0], "LayerType": f"kind of {node.op_type}"} for node in self.model.graph.node]
        return SimpleNamespace(get_engine_information=lambda _: json.dumps({"Layers": layers, "Bindings": []}))


class Context:
    profiler = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, 0)
        fits = len(shape) == len(least) and all(a <= s <= b for a, s, b in zip(least, shape, most, strict=True))
        if fits and "set_input_shape" not in self.engine.trt.refuse:
            self.shapes[name] = shape
            return True
        return False

    def set_tensor_address(self, name: str, address: int) -> bool:
        if "set_tensor_address" in self.engine.trt.refuse:
            return False
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {d: s for i, shape in self.shapes.items() for d, s in zip(self.engine.dims(i), shape, strict=True)}
        if "get_tensor_shape" in self.engine.trt.refuse:
            sizes = {}
        return tuple(sizes.get(d, -1) if isinstance(d, str) else d for d in self.engine.dims(name))

    def infer_shapes(self) -> list[str]:
        return ["frames"]

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.engine.values[name].type.tensor_type.elem_type))
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), dtype).reshape(shape)

    def execute_async_v3(self, stream: int) -> bool:
        if "execute_async_v3" in self.engine.trt.refuse:
            return False
        if self.engine.trt.cuda is not None and self.engine.trt.cuda.capturing is not None:
            self.engine.trt.cuda.capturing.append(self._execute)
            return True
        self._execute()
        for node in self.engine.model.graph.node if self.profiler is not None else ():
            self.profiler.report_layer_time(node.output[0], 0.25)
        return True

    def _execute(self) -> None:
        session = onnxruntime.InferenceSession(self.engine.model.SerializeToString())
        given = {v.name: self._array(v.name, self.shapes[v.name]) for v in self.engine.model.graph.input}
        for value, output in zip(self.engine.model.graph.output, session.run(None, given), strict=True):
            self._array(value.name, output.shape)[...] = output


class Refitter:
    def __init__(self, engine: Engine, logger) -> None:
        self.engine, self.weights, self.trt = engine, {}, engine.trt
        self.known = {t.name: t for t in engine.model.graph.initializer}

    def get_all_weights(self) -> list[str]:
        return [] if "get_all_weights" in self.trt.refuse else list(self.known)

    def set_named_weights(self, name: str, weights: np.ndarray) -> bool:
        if "set_named_weights" in self.trt.refuse or weights.size != numpy_helper.to_array(self.known[name]).size:
            return False
        self.weights[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        return ["other"]

    def refit_cuda_engine(self) -> bool:
        for name, weights in self.weights.items():
            self.known[name].CopyFrom(numpy_helper.from_array(weights, name))
            if "refit_cuda_engine" in self.trt.refuse:  # "a subset of weights may have been refitted"
                self.trt.refuse -= self.trt.once
                return False
        return True


def fake_tensorrt(name: str = "tensorrt", cuda: FakeCuda | None = None) -> ModuleType:
    """A module with TensorRT's names; ``refuse`` holds the calls that answer with an error, ``once`` only once."""
    trt = ModuleType(name)
    trt.__version__ = "10.3.0"
    trt.refuse, trt.once, trt.types, trt.built, trt.cuda = set(), set(), {}, [], cuda
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED")
    trt.LayerInformationFormat = SimpleNamespace(JSON="JSON")
    trt.IProfiler = type("IProfiler", (), {})
    trt.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    trt.BuilderFlag = SimpleNamespace(TF32="TF32", REFIT="REFIT", REFIT_INDIVIDUAL="REFIT_INDIVIDUAL")
    trt.nptype = onnx.helper.tensor_dtype_to_np_dtype
    trt.Refitter, trt.Weights = Refitter, lambda array: array

    class ILogger:
        ERROR = 1

    def or_none(call: str, value):
        return None if call in trt.refuse else value

    def parse(network: Network, graph: bytes) -> bool:
        network.model = onnx.load_model_from_string(graph)
        return True

    def mark(network: Network, weights: str) -> bool:
        network.marked.append(weights)
        return "mark_weights_refittable" not in trt.refuse

    def create_network(flags: int):
        network = Network()
        network.mark_weights_refittable = lambda weights: mark(network, weights)
        return or_none("create_network", network)

    def attach(config: Config, cache, ignore_mismatch: bool) -> bool:
        config.timings = cache.data
        return cache.data in (b"", b"this machine") and "set_timing_cache" not in trt.refuse

    def add_profile(config: Config, profile: Profile) -> int:
        config.profiles.append(profile)
        sizes = [size for shapes in profile.values() for size in zip(*shapes, strict=True)]
        valid = all(low <= usual <= high for low, usual, high in sizes)
        return 0 if valid and "add_optimization_profile" not in trt.refuse else -1

    def create_config():
        config = Config()
        config.create_timing_cache = lambda data: or_none("create_timing_cache", SimpleNamespace(data=data))
        config.set_timing_cache = lambda cache, ignore: attach(config, cache, ignore)
        config.get_timing_cache = lambda: SimpleNamespace(serialize=lambda: b"this machine")
        config.add_optimization_profile = lambda profile: add_profile(config, profile)
        return or_none("create_builder_config", config)

    def build(network: Network, config: Config):
        trt.built.append((sorted(config.flags), network.marked))
        ranges = json.dumps(config.profiles[0] if config.profiles else {}).encode()
        data = len(ranges).to_bytes(4, "big") + ranges + network.model.SerializeToString()
        return or_none("build_serialized_network", data)

    def deserialise(data: bytes):
        if "deserialize_cuda_engine" in trt.refuse:
            trt.refuse -= trt.once
            return None
        size = int.from_bytes(data[:4], "big")
        return Engine(onnx.load_model_from_string(data[4 + size :]), json.loads(data[4 : 4 + size]), trt)

    trt.ILogger = ILogger
    trt.OnnxParser = lambda network, logger: SimpleNamespace(parse=lambda graph: parse(network, graph))
    trt.Builder = lambda logger: SimpleNamespace(
        create_network=create_network,
        create_builder_config=create_config,
        create_optimization_profile=lambda: or_none("create_optimization_profile", Profile()),
        build_serialized_network=build,
    )
    trt.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialise)
    return trt
