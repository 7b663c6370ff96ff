"""From a checkpoint to a bundle: graphs, checks, reference, manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch

import lit_mmpg
from lit_mmpg.device.graphs import GraphSpec, graph_specs
from lit_mmpg.export.acceptance import accept
from lit_mmpg.export.graphs import export_graph
from lit_mmpg.export.precision import convert
from lit_mmpg.export.reference import make_reference, static_parameters
from lit_mmpg.export.samples import Samples, draw_samples
from lit_mmpg.export.source import Source
from lit_mmpg.export.statistics import count_macs, tensor_infos
from lit_mmpg.export.write import bundle_folder, write_manifest
from lit_mmpg.runtime.bundle import REFERENCE, STATIC, WEIGHTS, file_digest
from lit_mmpg.runtime.manifest import OWN_ENCODER, AnchorRule, Frames, GraphInfo, Link, Manifest, Preprocessing

Step = Callable[[str], None]
"""Told what happens next, for a progress bar."""


@dataclass(frozen=True)
class Variant:
    """A graph that was made, whether or not it was good enough to be written.

    Attributes:
        info: Its entry in the manifest.
        problems: What exceeds the limits of its precision, in words.
        written: Whether it is in the bundle.
    """

    info: GraphInfo
    problems: list[str]
    written: bool


def write_bundle(
    source: Source,
    output: Path,
    precisions: Sequence[str] = ("fp32",),
    samples: str = "data",
    keep_failed: bool = False,
    weights: bool = False,
    step: Step = lambda text: None,
) -> list[Variant]:
    """Export a checkpoint.

    Args:
        source: The checkpoint.
        output: Folder of the bundle; an older bundle there is replaced.
        precisions: Precisions of every graph; fp32 is always among them.
        samples: ``data`` or ``synthetic``, see :mod:`lit_mmpg.export.samples`.
        keep_failed: Write variants that failed their acceptance, too.
        weights: Also write the weights and sizes of the device model, for engines that need torch.
        step: Told what happens next.

    Returns:
        All variants that were made.

    Raises:
        UserError: If the data cannot be read.
    """
    step("reading the devices of the data")
    drawn = draw_samples(source, samples)
    network, shape = source.network, source.data.batch
    options = max(device.inputs["model"]["text"].shape[1] for device in drawn.acceptance) if _asks(source) else 1
    specs = graph_specs(network, shape.max_frames, options)
    sizes = {"B": 1, "N": 1, "T": shape.max_frames, "L": source.meta["max_words"], "O": options}
    variants: list[Variant] = []
    with bundle_folder(output) as folder:
        for spec in specs:
            step(f"{spec.role}: export")
            graph = export_graph(spec, network)
            used = {d: sizes[d] for dims in spec.dims.values() for d in dims.values()}
            macs = count_macs(graph, sizes)
            for precision in dict.fromkeys(["fp32", *precisions]):
                step(f"{spec.role}: {precision}")
                variant = _variant(folder, graph, spec, precision, source, drawn, specs, macs, used, keep_failed)
                variants.append(variant)
        step("reference")
        safetensors_numpy.save_file(make_reference(specs, network, drawn.acceptance).to_tensors(), folder / REFERENCE)
        extra = [REFERENCE]
        if len(network.spec):
            safetensors_numpy.save_file(static_parameters(network), folder / STATIC)
            extra.append(STATIC)
        if weights:
            extra += _write_weights(source, folder)
        graphs = tuple(variant.info for variant in variants if variant.written)
        files = {name: file_digest(folder / name) for name in extra}
        write_manifest(folder, make_manifest(source, graphs, files))
    return variants


def _write_weights(source: Source, folder: Path) -> list[str]:
    from lit_mmpg.torch_engines.base import NETWORK, network_json

    state = {name: tensor.contiguous() for name, tensor in source.network.state_dict().items()}
    safetensors_torch.save_file(state, folder / WEIGHTS)
    dynamic = source.cloud.dynamic if source.cloud else None
    (folder / NETWORK).write_text(network_json(source.network, dynamic) + "\n", encoding="utf-8")
    return [WEIGHTS, NETWORK]


def _asks(source: Source) -> bool:
    return source.network.shapes.task != "retrieval"


def _variant(
    folder: Path,
    graph: onnx.ModelProto,
    spec: GraphSpec,
    precision: str,
    source: Source,
    drawn: Samples,
    specs: Sequence[GraphSpec],
    macs: int,
    sizes: dict[str, int],
    keep_failed: bool,
) -> Variant:
    calibration = [{**d.inputs[spec.role], **(d.parameters if spec.personal else {})} for d in drawn.calibration]
    model = convert(graph, precision, calibration)
    others = next((s for s in specs if {s.role, spec.role} == {"model", "text"} and s.output == "embedding"), None)
    acceptance, problems = accept(model, precision, spec, source.network, drawn.acceptance, drawn.source, others)
    name = f"{spec.role}.onnx" if precision == "fp32" else f"{spec.role}.{precision}.onnx"
    onnx.save_model(model, str(folder / name))
    info = GraphInfo(
        role=spec.role,
        precision=precision,
        file=name,
        sha256=file_digest(folder / name),
        bytes=(folder / name).stat().st_size,
        nodes=len(model.graph.node),
        macs=macs,
        macs_at=sizes,
        inputs=tensor_infos(model.graph.input),
        outputs=tensor_infos(model.graph.output),
        acceptance=acceptance,
    )
    written = not problems or keep_failed
    if not written:
        (folder / name).unlink()
    return Variant(info, problems, written)


def make_manifest(source: Source, graphs: tuple[GraphInfo, ...], files: dict[str, str]) -> Manifest:
    """The manifest of a bundle.

    Args:
        source: The checkpoint.
        graphs: Graphs in the bundle.
        files: SHA-256 of every other file.
    """
    network, shape, meta, cloud = source.network, source.data.batch, source.meta, source.cloud
    pixels = len(network.shapes.frame) == 3
    preprocessing = None
    if pixels:
        _, height, width = network.shapes.frame
        preprocessing = Preprocessing(height, width, "none", "RGB", OWN_ENCODER)
    features = network.config.encoder_features if pixels else network.shapes.frame[0]
    return Manifest(
        version=lit_mmpg.__version__,
        task=network.shapes.task,
        half=str(source.ours["half"]),
        checkpoint_digest=source.digest(),
        run_id=source.ours.get("run_id"),
        tracking_uri=source.ours.get("tracking_uri"),
        data_fingerprint=str(meta["fingerprint"]),
        spec=network.spec,
        frames=Frames(features, network.anchor_width, shape.max_frames),
        anchors=AnchorRule(cloud.anchor_config.count, cloud.anchor_config.rule, shape.context_clips, shape.context)
        if cloud
        else None,
        link=Link(cloud.link.upload_codec, cloud.link.download_codec) if cloud else None,
        preprocessing=preprocessing,
        max_words=int(meta["max_words"]),
        vocabulary=dict(meta["vocabulary"]),
        answers=tuple(meta["answers"]["answers"]),
        graphs=graphs,
        files=files,
    )
