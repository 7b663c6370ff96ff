"""The device model of a bundle as a torch module: what all torch engines run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import Dim

from lit_mmpg.device.contract import DeviceModel, DynamicConfig, Shapes, build_network, network_factory
from lit_mmpg.device.graphs import GraphSpec, graph_specs
from lit_mmpg.device.model import DeviceModelConfig
from lit_mmpg.errors import UserError
from lit_mmpg.forms.input_layer import InputLayer
from lit_mmpg.runtime.bundle import WEIGHTS, Arrays, Bundle
from lit_mmpg.runtime.engines.base import Engine, EngineConfig
from lit_mmpg.runtime.manifest import OWN_ENCODER
from lit_mmpg.settings import MOST_THREADS, to_plain, within

NETWORK = "network.json"
"""File of the sizes of the device model, beside its weights."""


@dataclass(frozen=True)
class TorchConfig(EngineConfig):
    """Options of the torch engines.

    Attributes:
        device: ``cpu`` or ``cuda``.
        threads: Threads within an operator, for the whole process; 0 leaves it to torch.
    """

    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise UserError(f"torch: device is '{self.device}'; it must be cpu or cuda")
        within("torch: ", 0, MOST_THREADS, threads=self.threads)


def network_json(network: DeviceModel, dynamic: DynamicConfig | None) -> str:
    """Sizes of a device model as text."""
    plain = {
        "shapes": asdict(network.shapes),
        "config": to_plain(network.factory, "network"),
        "dynamic": asdict(dynamic) if dynamic else None,
    }
    return json.dumps(plain, indent=1)


def load_network(bundle: Bundle) -> DeviceModel:
    """The device model of a bundle that was exported with ``--torch``.

    Raises:
        UserError: If the bundle does not hold it, or it does not fit this version.
    """
    if not {WEIGHTS, NETWORK} <= set(bundle.manifest.files):
        raise UserError(f"{bundle.path} holds no weights for torch; export it with --torch")
    plain = json.loads(bundle.file(NETWORK).read_text(encoding="utf-8"))
    try:
        shapes = Shapes(**plain["shapes"] | {"frame": tuple(plain["shapes"]["frame"])})
        dynamic = plain["dynamic"]
        if dynamic is not None:
            entered = dynamic.get("input_layer")
            if entered is not None:
                entered = InputLayer(**entered | {"grid": tuple(entered["grid"])})
            dynamic = DynamicConfig(**dynamic | {"layers": tuple(dynamic["layers"]), "input_layer": entered})
        config = plain["config"]
        factory = network_factory(config) if "class_path" in config else DeviceModelConfig(**config)
        network = build_network(factory, shapes, dynamic)
        network.load_state_dict(load_file(bundle.file(WEIGHTS)))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{bundle.path / NETWORK} does not fit this version ({reason}); export it again") from error
    return network.eval().requires_grad_(False)


class TorchModuleEngine(Engine):
    """Base of the torch engines: personal parameters are arguments of the module, or buffers of it (``rebind``)."""

    config_class = TorchConfig
    precisions = ("fp32",)
    ways: ClassVar[tuple[str, ...]] = ("inputs", "rebind")
    config: TorchConfig

    def __init__(self, bundle: Bundle, role: str, precision: str = "fp32", config: EngineConfig | None = None) -> None:
        super().__init__(bundle, role, precision, config)
        preprocessing = bundle.manifest.preprocessing
        if role == "encode" and preprocessing is not None and preprocessing.encoder != OWN_ENCODER:
            raise UserError(f"engine '{self.name}' does not run the frame encoder of {bundle.path}; use an ONNX engine")

    @classmethod
    def requirements(cls) -> str | None:
        """Torch, which this module has imported already."""
        return None

    def spec(self) -> GraphSpec:
        """The module of the role, with example inputs."""
        network = load_network(self.bundle)
        manifest = self.bundle.manifest
        specs = graph_specs(network, manifest.frames.max_frames, self.info.macs_at.get("O", 1))
        return next(spec for spec in specs if spec.role == self.role)

    def _activate(self) -> None:
        if self.config.device == "cuda" and not torch.cuda.is_available():
            raise UserError(f"engine '{self.name}' cannot run here: torch sees no CUDA GPU")
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self._spec = self.spec()
        self._inside = self.personal and self.config.personalise != "inputs"
        if self._inside and self.config.personalise == "rebind":
            self._spec = self._baked(self._spec, self.parameters)
        self._module = self._prepare(self._spec)
        self._load_parameters(self.parameters)

    def _prepare(self, spec: GraphSpec) -> Any:
        """What is called, on the configured device."""
        return spec.module.to(self.config.device)

    def arguments(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Arguments of the module."""
        # In the order of the graph: a compiled package takes them by position and crashes on another order.
        arguments: dict[str, Any] = {info.name: self._tensor(inputs[info.name]) for info in self.inputs}
        if self.personal and not self._inside:
            arguments["parameters"] = self._personal
        return arguments

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self.config.device, non_blocking=True)

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        with torch.inference_mode():
            output: Tensor = self._module(**self.arguments(inputs))
        return {self._spec.output: output.cpu().numpy()}

    def _load_parameters(self, parameters: Arrays) -> None:
        if self.personal and self.config.personalise == "rebind":
            cast(Baked, self._spec.module).take(parameters)  # in place, so nothing is compiled again
            return
        self._personal = tuple(self._tensor(parameters[e.name]) for e in self.entries) if self.personal else ()

    def _baked(self, spec: GraphSpec, parameters: Arrays) -> GraphSpec:
        """The graph with the parameters inside."""
        module = Baked(spec.module, self.entries.names, parameters)
        return GraphSpec(spec.role, module, spec.example, spec.dims, spec.output, False)

    def _deactivate(self) -> None:
        for made in ("_module", "_spec", "_personal"):
            vars(self).pop(made, None)

    def describe(self) -> dict[str, Any]:
        """Adds the version, the device and the threads."""
        return super().describe() | {
            "torch": torch.__version__,
            "device": self.config.device,
            "threads": self.config.threads,
        }


class Baked(nn.Module):
    """A graph whose personal parameters are buffers.

    Args:
        module: The graph.
        names: Names of the parameters.
        parameters: Their values.
    """

    def __init__(self, module: nn.Module, names: tuple[str, ...], parameters: Arrays) -> None:
        super().__init__()
        self.module = module
        self.names = {own: own.replace(".", "_") for own in names}
        for own, name in self.names.items():
            self.register_buffer(name, torch.from_numpy(parameters[own].copy()))

    def take(self, parameters: Arrays) -> None:
        """Replace the values in place."""
        for own, name in self.names.items():
            getattr(self, name).copy_(torch.from_numpy(parameters[own]))

    def forward(self, **inputs: Tensor) -> Tensor:
        """The graph with its own parameters."""
        output: Tensor = self.module(**inputs, parameters=tuple(getattr(self, name) for name in self.names.values()))
        return output


def exported_program(spec: GraphSpec, network: nn.Module, personal: bool) -> torch.export.ExportedProgram:
    """The module with named varying dimensions, as :func:`lit_mmpg.onnx_graphs.export_graph` exports it.

    Args:
        spec: The graph.
        network: The device model.
        personal: Whether it takes personal parameters.
    """
    assert isinstance(network, DeviceModel)
    most = {"L": network.shapes.max_words}
    named = {name: Dim(name, max=most.get(name)) for dims in spec.dims.values() for name in dims.values()}
    shapes: dict[str, Any] = {n: {axis: named[d] for axis, d in spec.dims[n].items()} for n in spec.example}
    arguments: dict[str, Any] = dict(spec.example)
    if personal:
        own = spec.entries(network.spec)
        arguments["parameters"] = tuple(torch.zeros(entry.shape) for entry in own)
        shapes["parameters"] = tuple({} for _ in own)
    device = next(network.parameters()).device
    arguments = {
        name: tuple(t.to(device) for t in value) if isinstance(value, tuple) else value.to(device)
        for name, value in arguments.items()
    }
    return torch.export.export(spec.module, (), arguments, dynamic_shapes=shapes)
