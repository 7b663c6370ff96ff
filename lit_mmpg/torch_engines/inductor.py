"""Inductor: just in time (torch.compile), and ahead of time into a package that is a cache of this machine."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

import lit_mmpg
from lit_mmpg.device.graphs import GraphSpec
from lit_mmpg.runtime.engines.cache import board
from lit_mmpg.torch_engines.base import TorchModuleEngine, exported_program


class InductorEngine(TorchModuleEngine):
    """``torch.compile`` with Inductor; the first inferences compile."""

    name = "torch_inductor"

    @classmethod
    def requirements(cls) -> str | None:
        """A compiler."""
        found = shutil.which("g++") or shutil.which("clang++")
        return None if found else "Inductor needs a C++ compiler; install g++"

    def _prepare(self, spec: GraphSpec) -> Any:
        return torch.compile(super()._prepare(spec), dynamic=True)


class AotInductorEngine(InductorEngine):
    """AOTInductor: compiled once per machine, then loaded as a library."""

    name = "torch_aoti"
    ways = ("inputs",)
    suffix = ".pt2"

    def _prepare(self, spec: GraphSpec) -> Any:
        return torch._inductor.aoti_load_package(str(self._package(spec)))

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Torch with this package, and the machine."""
        machine = {
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "gpu": f"{torch.cuda.get_device_properties(0)}" if torch.cuda.is_available() else None,
            **board(),
        }
        return {"library": "torch", "version": f"{torch.__version__}, {lit_mmpg.__version__}", "machine": machine}

    def key(self) -> dict[str, Any]:
        """Adds graph and device."""
        return self.identity() | {"graph": self.info.sha256, "device": self.config.device}

    def build(self) -> bytes:
        """The package, compiled or as it is kept."""
        return self._package(self.spec()).read_bytes()

    def _package(self, spec: GraphSpec) -> Path:
        key, self.build_s = self.key(), None
        path = self.cache.path(key, self.suffix)
        if self.cache.read(key, self.suffix) is None:
            start = time.perf_counter()
            path.parent.mkdir(parents=True, exist_ok=True)
            network = spec.module.to(self.config.device).get_submodule("network")
            program = exported_program(spec, network, self.personal)
            built = Path(torch._inductor.aoti_compile_and_package(program, package_path=str(path)))
            self.cache.write(key, built.read_bytes(), self.suffix, self.label)
            self.build_s = time.perf_counter() - start
        return path
