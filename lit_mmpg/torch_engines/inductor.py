"""Inductor: just in time (torch.compile), and ahead of time into a package that is a cache of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lit_mmpg
from lit_mmpg.device.graphs import GraphSpec
from lit_mmpg.runtime.engines.cache import EngineCache, board
from lit_mmpg.torch_engines.base import TorchModuleEngine, exported_program


def why_no_compiler() -> str | None:
    """Why Inductor cannot compile for the CPU; ``None`` where it can."""
    if shutil.which("g++") or shutil.which("clang++"):
        return None
    return "Inductor needs a C++ compiler; install g++"


class InductorEngine(TorchModuleEngine):
    """``torch.compile`` with Inductor; the first inferences compile."""

    name = "torch_inductor"

    @classmethod
    def requirements(cls) -> str | None:
        """A compiler."""
        return why_no_compiler()

    def _prepare(self, spec: GraphSpec) -> Any:
        return torch.compile(super()._prepare(spec), dynamic=True)


class AotInductorEngine(TorchModuleEngine):
    """AOTInductor: compiled once per machine, then loaded as a library."""

    name = "torch_aoti"
    ways = ("inputs",)

    @classmethod
    def requirements(cls) -> str | None:
        """A compiler."""
        return why_no_compiler()

    def _prepare(self, spec: GraphSpec) -> Any:
        network = spec.module.to(self.config.device).get_submodule("network")
        return torch._inductor.aoti_load_package(str(self._package(spec, network)))

    def _package(self, spec: GraphSpec, network: nn.Module) -> Path:
        cache = EngineCache()
        key = {
            "engine": self.name,
            "torch": torch.__version__,
            "version": lit_mmpg.__version__,
            "graph": self.info.sha256,
            "device": self.config.device,
            "target": torch.backends.cpu.get_cpu_capability(),
            "gpu": f"{torch.cuda.get_device_properties(0)}" if self.config.device == "cuda" else "",
            **board(),
        }
        path = cache.path(key, ".pt2")
        if cache.read(key, ".pt2") is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            program = exported_program(spec, network, self.personal)
            built = Path(torch._inductor.aoti_compile_and_package(program, package_path=str(path)))
            cache.write(key, built.read_bytes(), ".pt2")
        return path
