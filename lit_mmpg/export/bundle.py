"""From a checkpoint to a bundle: graphs, checks, reference, manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from safetensors import torch as safetensors_torch

import lit_mmpg
from lit_mmpg.data.vision import encoder_digest, encoder_folder
from lit_mmpg.device.graphs import GraphSpec, graph_specs
from lit_mmpg.errors import UserError
from lit_mmpg.export.acceptance import accept
from lit_mmpg.export.encoder import pictures
from lit_mmpg.export.guard import choose_guard
from lit_mmpg.export.precision import convert
from lit_mmpg.export.reference import make_reference, static_parameters
from lit_mmpg.export.samples import DeviceSample, draw_samples
from lit_mmpg.export.source import Source, Trained
from lit_mmpg.export.statistics import count_macs, tensor_infos
from lit_mmpg.export.write import bundle_folder, write_manifest
from lit_mmpg.onnx_graphs import export_graph
from lit_mmpg.runtime.bundle import CODEBOOKS, MOMENTS, REFERENCE, STATIC, WEIGHTS, file_digest
from lit_mmpg.runtime.manifest import (
    OWN_ENCODER,
    Acceptance,
    AnchorRule,
    Frames,
    GraphInfo,
    Guard,
    Link,
    Manifest,
    OwnStatistics,
    Preprocessing,
)
from lit_mmpg.statistics import trained_moments
from lit_mmpg.texts import masked
from lit_mmpg.vision import VisionModel, load_vision_model
from lit_mmpg.writing import tensors_as_bytes, write_bytes

Step = Callable[[str], None]
"""Told what happens next, for a progress bar."""

PICTURES = 2
"""Pictures per device on which a frame encoder is checked."""


@dataclass(frozen=True)
class Options:
    """What goes into a bundle.

    Attributes:
        precisions: Precisions of every graph; fp32 is always among them.
        samples: ``data`` or ``synthetic``, see :mod:`lit_mmpg.export.samples`.
        keep_failed: Write variants that failed their acceptance, too.
        weights: Also write the weights and sizes of the device model, for engines that need torch.
        frame_encoder: Frame encoder that made the features: folder, or name on the hub.
        frames: Folder or zip archive of pictures on which the frame encoder is calibrated and checked.
    """

    precisions: tuple[str, ...] = ("fp32",)
    samples: str = "data"
    keep_failed: bool = False
    weights: bool = False
    frame_encoder: str | None = None
    frames: str | None = None


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
    source: Trained, output: Path, options: Options = Options(), step: Step = lambda text: None
) -> list[Variant]:
    """Export a checkpoint.

    Args:
        source: The checkpoint, or what a saved folder holds.
        output: Folder of the bundle; an older bundle there is replaced.
        options: What goes into it.
        step: Told what happens next.

    Returns:
        All variants that were made.

    Raises:
        UserError: If the data or the frame encoder cannot be read, or do not fit the checkpoint.
    """
    encoder = None
    if options.frame_encoder is not None:
        step("loading the frame encoder")
        encoder = fitting_encoder(source, options.frame_encoder)
    step("reading the devices of the data")
    drawn = draw_samples(source, options.samples)
    network, shape = source.network, source.shape
    asks = not network.task.searches
    choices = max(device.inputs["model"]["text"].shape[1] for device in drawn.acceptance) if asks else 1
    specs = graph_specs(network, shape.max_frames, choices)
    if encoder is not None:
        specs.append(encoder.spec())
        for seed, devices in enumerate((drawn.calibration, drawn.acceptance)):
            show_pictures(devices, encoder, options.frames, seed)
    sizes = {"B": 1, "N": 1, "T": shape.max_frames, "L": source.meta["max_words"], "O": choices}
    variants: list[Variant] = []
    with bundle_folder(output) as folder:
        for spec in specs:
            step(f"{spec.role}: export")
            graph = export_graph(spec, network)
            used = {d: sizes[d] for dims in spec.dims.values() for d in dims.values()}
            macs = count_macs(graph, sizes)
            entries = spec.entries(network.spec)
            calibration = [{**device.inputs[spec.role], **device.own(entries)} for device in drawn.calibration]
            for precision in dict.fromkeys(["fp32", *options.precisions]):
                step(f"{spec.role}: {precision}")
                model = convert(graph, precision, calibration)
                kind = drawn.source
                if encoder is not None and spec.role == "encode":
                    kind = "data" if options.frames else "synthetic"
                variant = _variant(
                    folder,
                    model,
                    spec,
                    precision,
                    macs,
                    used,
                    accept(model, precision, spec, network, drawn.acceptance, kind, _other(spec, specs)),
                    options.keep_failed,
                )
                variants.append(variant)
        guard = None
        if drawn.source == "data" and isinstance(source, Source):
            step("bounds of plausible parameters")
            guard = choose_guard(source, specs[0])
        step("reference")
        kept = {REFERENCE: make_reference(specs, network, drawn.acceptance).to_tensors()}
        if len(network.spec):
            kept[STATIC] = static_parameters(network)
        if source.cloud is not None and source.cloud.quantiser is not None:
            kept[CODEBOOKS] = source.cloud.quantiser.to_tensors()
        training = trained_moments(source.meta.get("own_statistics", {}))
        if training is not None:
            kept[MOMENTS] = {"mean": training.mean, "variance": training.variance}
        for name, arrays in kept.items():
            write_bytes(folder / name, tensors_as_bytes(arrays))
        extra = _write_weights(source, folder) if options.weights else []
        files = {name: file_digest(folder / name) for name in [*kept, *extra]}
        write_manifest(folder, make_manifest(source, variants, files, encoder, guard))
    return variants


def fitting_encoder(source: Trained, name: str, option: str = "--frame-encoder") -> VisionModel:
    """The frame encoder that made the features of a checkpoint.

    Args:
        source: The checkpoint.
        name: Folder, or name on the hub.
        option: What an error calls the option that named it.

    Raises:
        UserError: If it cannot be loaded, or is not the one.
    """
    frame = source.network.shapes.frame
    if len(frame) == 3:
        raise UserError(f"{option}: {source.path} takes pixels and has an encoder of its own; leave it out")
    made = source.meta.get("extracted", {})
    edge = made.get("height") if made.get("height") == made.get("width") else None
    encoder = load_vision_model(name, edge or getattr(getattr(source, "data", None), "image_size", None), option)
    if encoder.features != frame[0]:
        raise UserError(
            f"{option} {name} gives {encoder.features} features a frame, {source.path} was trained on "
            f"{frame[0]}; name the encoder that made the features"
        )
    if made and made.get("encoder") != encoder_digest(encoder_folder(name, option)):
        raise UserError(
            f"{option} {name} is not the encoder that made the features on which {source.path} was trained; name that "
            "one, or extract them again (lit-mmpg extract) and train on them"
        )
    return encoder


def show_pictures(devices: Sequence[DeviceSample], encoder: VisionModel, path: str | None, seed: int) -> None:
    """Give each device pictures for the frame encoder.

    Args:
        devices: The devices, whose inputs are added to.
        encoder: The frame encoder.
        path: Where the pictures are; ``None`` generates them.
        seed: Which pictures.
    """
    found = pictures(path, encoder, PICTURES * len(devices), seed)
    for i, device in enumerate(devices):
        device.inputs["encode"] = {"pixels": found[PICTURES * i : PICTURES * (i + 1)]}


def _other(spec: GraphSpec, specs: Sequence[GraphSpec]) -> GraphSpec | None:
    """For embeddings, the graph of the other modality."""
    pair = {"model", "text"}
    return next((s for s in specs if {s.role, spec.role} == pair and s.output == "embedding"), None)


def _write_weights(source: Trained, folder: Path) -> list[str]:
    from lit_mmpg.torch_engines.base import NETWORK, network_json

    state = {name: tensor.contiguous() for name, tensor in source.network.state_dict().items()}
    safetensors_torch.save_file(state, folder / WEIGHTS)
    dynamic = source.cloud.dynamic if source.cloud else None
    (folder / NETWORK).write_text(network_json(source.network, dynamic) + "\n", encoding="utf-8")
    return [WEIGHTS, NETWORK]


def _variant(
    folder: Path,
    model: onnx.ModelProto,
    spec: GraphSpec,
    precision: str,
    macs: int,
    sizes: dict[str, int],
    accepted: tuple[Acceptance, list[str]],
    keep_failed: bool,
) -> Variant:
    acceptance, problems = accepted
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


def make_manifest(
    source: Trained,
    variants: Sequence[Variant],
    files: dict[str, str],
    encoder: VisionModel | None = None,
    guard: Guard | None = None,
) -> Manifest:
    """The manifest of a bundle.

    Args:
        source: The checkpoint.
        variants: All graphs that were made.
        files: SHA-256 of every other file.
        encoder: The frame encoder, where the device model has none of its own.
        guard: Bounds of plausible parameters.
    """
    network, shape, meta, cloud = source.network, source.shape, source.meta, source.cloud
    before = None
    if encoder is not None:
        before = Preprocessing(encoder.height, encoder.width, "bilinear", "RGB", encoder.name)
    if network.shapes.pixels:
        _, height, width = network.shapes.frame
        before = Preprocessing(height, width, "none", "RGB", OWN_ENCODER)
    features = network.feature_width
    clips = 1 if shape.context == "clip" else shape.context_clips
    left_out: dict[str, dict[str, str]] = {}
    for variant in variants:
        if not variant.written:
            left_out.setdefault(variant.info.role, {})[variant.info.precision] = "; ".join(variant.problems)
    return Manifest(
        version=lit_mmpg.__version__,
        task=network.shapes.task,
        half=str(source.ours["half"]),
        checkpoint_digest=source.digest(),
        run_id=source.ours.get("run_id"),
        tracking_uri=masked(uri, "") if (uri := source.ours.get("tracking_uri")) else None,  # bundles travel
        data_fingerprint=str(meta["fingerprint"]),
        spec=network.spec,
        frames=Frames(features, network.anchor_width, shape.max_frames),
        anchors=AnchorRule(cloud.anchor_config.count, cloud.anchor_config.rule, clips, shape.context)
        if cloud
        else None,
        link=Link(cloud.link.upload_codec, cloud.link.download_codec) if cloud else None,
        preprocessing=before,
        max_words=int(meta["max_words"]),
        vocabulary=dict(meta["vocabulary"]),
        answers=tuple(meta["answers"]["answers"]),
        graphs=tuple(variant.info for variant in variants if variant.written),
        files=files,
        own_statistics=OwnStatistics(shape.own_statistics, clips, shape.context) if shape.own_statistics else None,
        left_out=left_out,
        guard=guard,
    )
