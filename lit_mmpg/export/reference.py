"""What the model itself answers: the reference of a bundle, computed by torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lit_mmpg.device.contract import DeviceModel
from lit_mmpg.device.graphs import GraphSpec
from lit_mmpg.export.samples import DeviceSample
from lit_mmpg.forms.base import Direction
from lit_mmpg.runtime.bundle import STATIC_CASE, Arrays, Reference, RoleReference
from lit_mmpg.runtime.verify import ABSENT_BELOW

CASES = 3
"""Devices whose personal parameters are in the reference, beside the static case and the probe."""

ROWS = 32
"""Samples of each role."""

PROBE = "probe"
"""Case whose parameters move the outputs by ``PROBE_EFFECT`` of their spread. Generated parameters may move them
by less than low precision does, and an engine that ignores or drops them would pass unseen."""
PROBE_EFFECT = 0.5


def static_parameters(network: DeviceModel) -> Arrays:
    """Personal parameters with which the model computes what it computes without any."""
    neutral = network.neutral_parameters()
    return {name: tensor.numpy() for name, tensor in zip(network.spec.names, neutral, strict=True)}


@torch.inference_mode()
def expected_outputs(spec: GraphSpec, network: DeviceModel, inputs: Mapping[str, np.ndarray], own: Arrays) -> Arrays:
    """Outputs of the model itself.

    Args:
        spec: The graph.
        network: The device model.
        inputs: Inputs of the role.
        own: Personal parameters; empty for the static model.
    """
    arguments: dict[str, object] = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if own and len(taken := spec.entries(network.spec)):
        arguments["parameters"] = tuple(torch.from_numpy(own[e.name]) for e in taken)
    return {spec.output: spec.module(**arguments).numpy()}


def make_reference(specs: Sequence[GraphSpec], network: DeviceModel, devices: Sequence[DeviceSample]) -> Reference:
    """Samples of several devices, with the outputs for the parameters of some of them and for none.

    Args:
        specs: The graphs.
        network: The device model.
        devices: Unseen devices.
    """
    chosen = devices[:CASES] if len(network.spec) else []
    parameters = {f"device{i}": device.parameters for i, device in enumerate(chosen)}
    parameters[STATIC_CASE] = static_parameters(network)
    roles = {}
    mixed = {spec.role: mixed_rows([d.inputs[spec.role] for d in devices[: CASES + 1]], ROWS) for spec in specs}
    if chosen:
        parameters[PROBE] = {}
        for spec in specs:
            if len(spec.entries(network.spec)):
                parameters[PROBE] |= probe_parameters(spec, network, mixed[spec.role], chosen[0].parameters)
    for spec in specs:
        inputs = mixed[spec.role]
        cases = parameters if len(spec.entries(network.spec)) else {STATIC_CASE: parameters[STATIC_CASE]}
        outputs = {
            case: expected_outputs(spec, network, inputs, {} if case == STATIC_CASE else own)
            for case, own in cases.items()
        }
        roles[spec.role] = RoleReference(inputs, outputs)
    return Reference(roles, parameters)


def probe_parameters(spec: GraphSpec, network: DeviceModel, inputs: Arrays, own: Arrays) -> Arrays:
    """Random parameters of a graph, of such a size that they move its outputs by ``PROBE_EFFECT`` of their spread.

    Args:
        spec: The graph that takes them.
        network: The device model.
        inputs: Inputs of its role.
        own: Parameters of some device, for the parts that give a direction rather than a size (``v``).
    """
    rng = np.random.default_rng(0)
    static = static_parameters(network)
    target = expected_outputs(spec, network, inputs, {})[spec.output]
    present = target > ABSENT_BELOW
    spread = target[present].std()
    directions = {
        f"{name}.{part.name}"
        for name, layer in network.dynamic_layers().items()
        for part in layer.parts()
        if isinstance(part.start, Direction)
    }
    moves = {
        e.name: rng.standard_normal(e.shape).astype(e.dtype) * max(float(static[e.name].std()), 0.1)
        for e in spec.entries(network.spec)
        if e.name not in directions
    }

    def at(size: float) -> Arrays:
        moved = {name: (static[name] + size * d).astype(d.dtype) for name, d in moves.items()}
        return {e.name: moved.get(e.name, own[e.name]) for e in spec.entries(network.spec)}

    def effect(size: float) -> float:
        outputs = expected_outputs(spec, network, inputs, at(size))[spec.output]
        return float(np.sqrt(np.mean(np.square(outputs - target)[present])) / spread)

    low, high = 1e-4, 1e2
    for _ in range(20):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if effect(middle) < PROBE_EFFECT else (low, middle)
    return at(low)


def mixed_rows(parts: Sequence[Arrays], rows: int) -> Arrays:
    """The first rows of each part, padded to the longest and put one after the other.

    Args:
        parts: Inputs of one role from several devices.
        rows: Most rows of the result.
    """
    share = -(-rows // len(parts))
    mixed = {}
    for name in parts[0]:
        arrays = [part[name][:share] for part in parts]
        size = np.max([array.shape[1:] for array in arrays], axis=0)
        padded = [
            np.pad(a, [(0, 0), *((0, int(n) - m) for n, m in zip(size, a.shape[1:], strict=True))]) for a in arrays
        ]
        mixed[name] = np.ascontiguousarray(np.concatenate(padded)[:rows])
    return mixed
