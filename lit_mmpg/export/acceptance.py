"""Whether a graph is good enough: compared with the model on unseen devices with their own generated parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import onnx

from lit_mmpg.device.contract import DeviceModel
from lit_mmpg.device.graphs import GraphSpec
from lit_mmpg.export.reference import expected_outputs
from lit_mmpg.export.samples import DeviceSample
from lit_mmpg.runtime.manifest import Acceptance
from lit_mmpg.runtime.verify import LIMITS, Figures, compare, pool


def accept(
    model: onnx.ModelProto,
    precision: str,
    spec: GraphSpec,
    network: DeviceModel,
    devices: Sequence[DeviceSample],
    kind: str,
    others: GraphSpec | None = None,
) -> tuple[Acceptance, list[str]]:
    """Run a graph under ONNX Runtime on unseen devices and compare it with the model.

    Args:
        model: The graph.
        precision: Its precision, which sets the limits.
        spec: What it should compute.
        network: The device model.
        devices: Devices that had no part in the calibration.
        kind: ``data`` or ``synthetic``.
        others: For embeddings, the graph of the other modality, by whose outputs they are compared.

    Returns:
        The figures, and what exceeds the limits in words.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # Scores are compared within a row, so rows of all devices can be lined up; embeddings against their own gallery.
    found: list[Figures] = []
    entries = spec.entries(network.spec)
    for device in devices:
        inputs = device.inputs[spec.role]
        own = device.own(entries)
        expected = expected_outputs(spec, network, inputs, own)[spec.output]
        (got,) = session.run([spec.output], {**inputs, **own})
        gallery = None
        if others is not None:
            gallery = expected_outputs(others, network, device.inputs[others.role], device.parameters)[others.output]
        found.append(compare(got, expected, gallery, choice=spec.output == "scores"))
    figures = pool(found)
    problems = figures.problems(LIMITS[precision])
    accepted = Acceptance(
        source=kind,
        devices=len(devices) if len(entries) else 0,
        accepted=not problems,
        **asdict(figures),
    )
    return accepted, problems
