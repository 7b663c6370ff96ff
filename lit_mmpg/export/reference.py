"""What the model itself answers: the reference of a bundle, computed by torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lit_mmpg.device.model import DeviceModel
from lit_mmpg.export.graphs import GraphSpec
from lit_mmpg.export.samples import ROWS, DeviceSample
from lit_mmpg.runtime.bundle import STATIC_CASE, Arrays, Reference, RoleReference

CASES = 3
"""Devices whose personal parameters are in the reference, beside the static case."""


def static_parameters(network: DeviceModel) -> Arrays:
    """Personal parameters with which the model computes what it computes without any."""
    layers = network.dynamic_layers()
    values: Arrays = {}
    for entry in network.spec:
        layer, part = entry.name.rsplit(".", 1)
        own = {"weight": layers[layer].weight, "bias": layers[layer].bias} if layers[layer].form == "full" else {}
        values[entry.name] = own[part].detach().numpy().copy() if part in own else np.zeros(entry.shape, entry.dtype)
    return values


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
    if spec.personal:
        arguments["parameters"] = tuple(torch.from_numpy(own[e.name]) for e in network.spec) if own else ()
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
    for spec in specs:
        inputs = mixed_rows([device.inputs[spec.role] for device in devices[: CASES + 1]], ROWS)
        cases = parameters if spec.personal else {STATIC_CASE: parameters[STATIC_CASE]}
        outputs = {
            case: expected_outputs(spec, network, inputs, {} if case == STATIC_CASE else own)
            for case, own in cases.items()
        }
        roles[spec.role] = RoleReference(inputs, outputs)
    return Reference(roles, parameters)


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
