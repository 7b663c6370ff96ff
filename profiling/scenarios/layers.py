"""Where the time goes: each layer's time, and each graph against what the machine can do (roofline).

The ceilings are measured in the same run: a matrix product by ONNX Runtime with as many threads as the engine has, and
a copy in memory of as many bytes as the graph moves. A graph's arithmetic is the count of the manifest; of its traffic
only weights, inputs and outputs are counted, once: the least there can be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from lit_mmpg.profiling.meters import latency
from lit_mmpg.profiling.scenarios import Context, Outcome
from lit_mmpg.runtime.engines import Engine

CALLS = 50
SIZE = 768
"""Rows and columns of the matrix product."""
BOUND = 0.5
"""A graph is bound by what alone would take at least this share of its time."""


def multiply_adds_per_s(threads: int, attempts: int = 5) -> float:
    """Of a float32 matrix product; the best of several attempts."""
    import onnxruntime
    from onnx import TensorProto, helper

    shape = [SIZE, SIZE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y", "z")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "y"], ["z"])], "product", ends[:2], ends[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {name: np.full(shape, 0.5, np.float32) for name in ("x", "y")}
    return SIZE**3 / _least_s(lambda: session.run(None, feeds), attempts)


def bytes_per_s(working_set_bytes: float, attempts: int = 20) -> float:
    """Read and written by a copy whose two ends together are so large: what fits a cache comes from there."""
    source = np.ones(max(512, int(working_set_bytes) // 16))
    target = np.empty_like(source)
    return 2 * source.nbytes / _least_s(lambda: np.copyto(target, source), attempts)


def _least_s(call: Callable[[], object], attempts: int) -> float:
    times_s = []
    for _ in range(1 + attempts):
        start = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - start)
    return min(times_s[1:])


def roofline(
    time_ms: float, multiply_adds: float, traffic_bytes: float, machine: Mapping[str, float]
) -> dict[str, Any]:
    """A graph against the ceilings.

    Returns:
        ``arithmetic_ms`` and ``memory_ms``, what each alone would take, and ``bound``: ``arithmetic``, ``memory`` or
        ``overhead``, where neither explains half of the time.
    """
    alone = {
        "arithmetic": multiply_adds / machine["multiply_adds_per_s"] * 1e3,
        "memory": traffic_bytes / machine["bytes_per_s"] * 1e3,
    }
    most = max(alone, key=lambda name: alone[name])
    return {
        "multiply_adds": multiply_adds,
        "traffic_bytes": traffic_bytes,
        **{f"{name}_ms": value for name, value in alone.items()},
        "bound": most if alone[most] >= BOUND * time_ms else "overhead",
    }


def doubts(role: str, time_ms: float, roof: Mapping[str, Any]) -> list[str]:
    """A remark where a graph was faster than the ceilings allow: the machine did other work when they were measured."""
    if max(roof["arithmetic_ms"], roof["memory_ms"]) <= 1.25 * time_ms:
        return []
    return [f"{role} was faster than the ceilings of this run allow, so the machine was busy when they were measured"]


def run(context: Context) -> Outcome:
    """Profile the graphs of an answer one after the other."""
    pipeline = context.pipeline
    pipeline.personalise()
    found: dict[str, Any] = {}
    notes = []
    on_processor = pipeline.device_ms is None
    threads = int(getattr(pipeline.engines["model"].config, "threads", 1))
    products = multiply_adds_per_s(threads) if on_processor else None
    for role, engine in pipeline.engines.items():
        context.say(f"layers of {role}")
        inputs = pipeline.inputs[role]
        time_ms = latency.measure(partial(engine.infer, inputs), context.config.latency).wall.p50_ms
        layers = engine.layer_times(inputs, CALLS)
        if layers is None:
            notes.append(f"engine '{engine.name}' has no profiler of layers here")
        entry: dict[str, Any] = {"time_ms": time_ms, "layers": layers}
        if products is not None:
            traffic = _traffic_bytes(engine, inputs)
            machine = {"multiply_adds_per_s": products, "bytes_per_s": bytes_per_s(traffic)}
            entry |= {"ceilings": machine}
            entry["roofline"] = roofline(time_ms, _multiply_adds(engine, inputs), traffic, machine)
            notes += doubts(role, time_ms, entry["roofline"])
        found[role] = entry
    if products is None:
        notes.append("ceilings are measured on the processor, not on this engine's accelerator")
    return Outcome(unit=pipeline.unit, series={"layers": {"graphs": found}}, notes=notes)


def _multiply_adds(engine: Engine, inputs: Mapping[str, np.ndarray]) -> float:
    """The manifest's count, in proportion to the sizes here: about right where a size enters with its square."""
    sizes: dict[str, int] = {}
    for info in engine.inputs:
        sizes |= {d: s for d, s in zip(info.shape, inputs[info.name].shape, strict=True) if isinstance(d, str)}
    share = 1.0
    for name, counted in engine.info.macs_at.items():
        share *= sizes.get(name, counted) / counted
    return engine.info.macs * share


def _traffic_bytes(engine: Engine, inputs: Mapping[str, np.ndarray]) -> float:
    arrays = [*inputs.values(), *engine.parameters.values(), *engine.infer(inputs).values()]
    return engine.graph.stat().st_size + sum(array.nbytes for array in arrays)
