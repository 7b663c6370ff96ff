"""The table of engines: name -> class, loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

from lit_mmpg.errors import UserError, install_hint
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines.base import Engine


class EngineEntry(NamedTuple):
    """One engine.

    Attributes:
        target: ``module:class``.
        help: One line.
        extra: Extra of the package that brings what it needs; empty where the platform brings it.
    """

    target: str
    help: str
    extra: str


ENGINES = {
    "onnxruntime": EngineEntry(
        "lit_mmpg.runtime.engines.onnx_runtime:OnnxRuntimeEngine", "ONNX Runtime on the CPU", "board-cpu"
    ),
    "onnxruntime_cuda": EngineEntry(
        "lit_mmpg.runtime.engines.onnx_runtime:OnnxRuntimeCudaEngine", "ONNX Runtime's CUDA provider", ""
    ),
    "onnxruntime_tensorrt": EngineEntry(
        "lit_mmpg.runtime.engines.onnx_runtime:OnnxRuntimeTensorRTEngine", "ONNX Runtime's TensorRT provider", ""
    ),
    "tensorrt": EngineEntry("lit_mmpg.runtime.engines.tensorrt:TensorRTEngine", "TensorRT, strongly typed", ""),
    "tensorrt_rtx": EngineEntry(
        "lit_mmpg.runtime.engines.tensorrt:TensorRTRTXEngine",
        "TensorRT-RTX; compiles without a GPU, runs with one",
        "rtx",
    ),
    "torch": EngineEntry("lit_mmpg.torch_engines.eager:TorchEngine", "torch, eager", "train"),
    "torch_inductor": EngineEntry("lit_mmpg.torch_engines.inductor:InductorEngine", "torch.compile", "train"),
    "torch_aoti": EngineEntry(
        "lit_mmpg.torch_engines.inductor:AotInductorEngine", "torch, compiled ahead of time (AOTInductor)", "train"
    ),
    "torch_tensorrt": EngineEntry("lit_mmpg.torch_engines.tensorrt:TorchTensorRTEngine", "Torch-TensorRT", "tensorrt"),
}


@dataclass(frozen=True)
class EngineRow:
    """What the table says about one engine on this machine.

    Attributes:
        name: Name for :func:`create_engine`.
        help: One line.
        precisions: Precisions it runs.
        ways: Ways in which personal parameters can reach it.
        reason: Why it cannot run here; ``None`` where it can.
    """

    name: str
    help: str
    precisions: tuple[str, ...]
    ways: tuple[str, ...]
    reason: str | None


def engine_class(name: str) -> type[Engine]:
    """Class of an engine.

    Raises:
        UserError: If there is no such engine, or the library that its module is made of is missing.
    """
    if name not in ENGINES:
        near = get_close_matches(name, ENGINES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(ENGINES)}"
        raise UserError(f"there is no engine '{name}'; {hint}")
    try:
        return _load(ENGINES[name])
    except ImportError as error:
        raise UserError(f"engine '{name}' cannot run here: {_missing(name, error)}") from error


def create_engine(name: str, bundle: Bundle, role: str, precision: str = "fp32", **options: Any) -> Engine:
    """Make an engine, without activating it.

    Args:
        name: Name in the table.
        bundle: The bundle.
        role: Which graph.
        precision: In which precision.
        options: Options of the engine.

    Raises:
        UserError: If the engine does not exist, the bundle lacks the graph, or the options do not fit.
    """
    cls = engine_class(name)
    return cls(bundle, role, precision, cls.config_class.from_options(name, options))


def engine_table() -> Iterator[EngineRow]:
    """All engines; one that cannot run here comes with its reason."""
    for name, entry in ENGINES.items():
        try:
            cls = _load(entry)
        except ImportError as error:
            yield EngineRow(name, entry.help, (), (), _missing(name, error))
            continue
        yield EngineRow(name, entry.help, cls.precisions, cls.ways, cls.requirements())


def _load(entry: EngineEntry) -> type[Engine]:
    module, name = entry.target.split(":")
    cls: type[Engine] = getattr(import_module(module), name)
    return cls


def _missing(name: str, error: ImportError) -> str:
    extra = ENGINES[name].extra
    remedy = f"; {install_hint(extra)}" if extra else ""
    return f"{error.name or error} is not installed{remedy}"
