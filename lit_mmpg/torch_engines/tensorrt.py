"""Torch-TensorRT, written after its documentation (2.8 to 2.13). Not verified on hardware."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from lit_mmpg.device.graphs import GraphSpec
from lit_mmpg.errors import UserError, install_hint
from lit_mmpg.runtime.bundle import Arrays
from lit_mmpg.runtime.engines.onnx_runtime import profile_sizes
from lit_mmpg.settings import within
from lit_mmpg.torch_engines.base import TorchConfig, TorchModuleEngine, exported_program


@dataclass(frozen=True)
class TorchTensorRTConfig(TorchConfig):
    """Options of Torch-TensorRT.

    Attributes:
        device: Always ``cuda``.
        max_batch: Most rows of a call.
        max_options: Most options of a question of multiple choice.
    """

    device: str = "cuda"
    max_batch: int = 32
    max_options: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device != "cuda":
            raise UserError("torch_tensorrt runs on a GPU only; leave device out")
        within("torch_tensorrt: ", 1, max_batch=self.max_batch, max_options=self.max_options)


class TorchTensorRTEngine(TorchModuleEngine):
    """Torch-TensorRT. Personal parameters as inputs, or by refit of the compiled module."""

    name = "torch_tensorrt"
    config_class = TorchTensorRTConfig
    ways = ("inputs", "refit")
    config: TorchTensorRTConfig

    @classmethod
    def requirements(cls) -> str | None:
        """The package, and a GPU."""
        if find_spec("torch_tensorrt") is None:
            return f"torch_tensorrt is not installed; {install_hint('tensorrt')}"
        return None if torch.cuda.is_available() else "torch sees no CUDA GPU"

    def _prepare(self, spec: GraphSpec) -> Any:
        import torch_tensorrt

        program = self._program(spec, self.parameters)
        by_input = self.config.personalise == "inputs"
        least, usual, largest = profile_sizes(self, self.config.max_batch, self.config.max_options)
        inputs = []
        for info in self.inputs:
            shapes = [tuple(s[d] if isinstance(d, str) else d for d in info.shape) for s in (least, usual, largest)]
            dtype = getattr(torch, info.dtype)
            inputs.append(
                torch_tensorrt.Input(min_shape=shapes[0], opt_shape=shapes[1], max_shape=shapes[2], dtype=dtype)
            )
        arguments: dict[str, Any] = dict(zip((info.name for info in self.inputs), inputs, strict=True))
        if self.personal and by_input:
            arguments["parameters"] = tuple(torch_tensorrt.Input(shape=entry.shape) for entry in self.entries)
        compiled = torch_tensorrt.dynamo.compile(
            program,
            arg_inputs=(),
            kwarg_inputs=arguments,
            immutable_weights=by_input,
            min_block_size=1,
            truncate_double=True,
            disable_tf32=True,
        )
        if not any("_run_on_acc" in name for name, _ in compiled.named_modules()):
            raise UserError(f"engine '{self.name}': no part of {self.graph} was compiled, torch would run all of it")
        return compiled

    def _program(self, spec: GraphSpec, parameters: Arrays) -> torch.export.ExportedProgram:
        network = spec.module.to("cuda").get_submodule("network")
        if not self.personal or self.config.personalise == "inputs":
            return exported_program(spec, network, self.personal)
        baked = self._baked(spec, parameters)
        baked.module.to("cuda")
        return exported_program(baked, network, False)

    def _load_parameters(self, parameters: Arrays) -> None:
        super()._load_parameters(parameters)
        if not self.personal or self.config.personalise != "refit" or parameters is self.parameters:
            return  # compiled with these values
        try:
            self._refit(parameters)
        except Exception as error:
            try:
                self._refit(self.parameters)  # a part may have been replaced
            except Exception:
                self.deactivate()  # neither set is whole, so no answer would be right
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UserError(f"engine '{self.name}' could not refit: {reason}; use personalise=inputs") from error

    def _refit(self, parameters: Arrays) -> None:
        from torch_tensorrt.dynamo import refit_module_weights

        program = self._program(self._spec, parameters)
        # In place: a copy of the module at every swap would take its memory twice.
        self._module = refit_module_weights(self._module, program, in_place=True)
