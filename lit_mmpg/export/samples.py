"""Devices with their clips, questions and generated parameters: what graphs are calibrated and checked on.

Two sources. ``data``: validation devices for calibration and unseen test devices for acceptance, so no device serves
both (where no device is unseen, other clips of the seen ones do). ``synthetic``: clips drawn from the statistics of the
training features, for a checkpoint whose data is not at hand; the manifest says which it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.errors import UserError
from lit_mmpg.parameters import ParameterEntry
from lit_mmpg.runtime.bundle import Arrays

if TYPE_CHECKING:
    from lit_mmpg.export.source import Source, Trained

ROWS = 16
"""Most questions or clips of one device."""
DEVICES = 24
"""Most devices of one kind."""


@dataclass(frozen=True)
class DeviceSample:
    """One device.

    Attributes:
        name: Its id.
        parameters: What the cloud generates for it; empty for a static model.
        inputs: Role -> inputs by name, without personal parameters.
    """

    name: str
    parameters: Arrays
    inputs: dict[str, Arrays]

    def own(self, entries: Iterable[ParameterEntry]) -> Arrays:
        """Its parameters of one graph."""
        return {entry.name: self.parameters[entry.name] for entry in entries}


@dataclass(frozen=True)
class Samples:
    """Devices for calibration and other devices for acceptance.

    Attributes:
        source: ``data`` or ``synthetic``.
        calibration: Devices whose activations set the scales of int8 graphs.
        acceptance: Devices on which graphs are compared with the model; none of the others.
    """

    source: str
    calibration: list[DeviceSample]
    acceptance: list[DeviceSample]


def draw_samples(source: Trained, kind: str) -> Samples:
    """Collect devices.

    Args:
        source: The checkpoint, or what a saved folder holds.
        kind: ``data`` or ``synthetic``.

    Raises:
        UserError: If the data cannot be read, or nobody knows which it is.
    """
    from lit_mmpg.export.source import Source

    if kind == "synthetic":
        rng = np.random.default_rng(0)
        devices = [_synthetic(source, i, rng) for i in range(2 * DEVICES)]
        return Samples(kind, devices[:DEVICES], devices[DEVICES:])
    if not isinstance(source, Source):
        raise UserError(
            f"{source.path} does not say with which data it was trained, on whose devices export compares its graphs: "
            "name the checkpoint, or use clips drawn from the training statistics (--samples synthetic)"
        )
    try:
        source.data.setup("test")
    except UserError as error:
        raise UserError(
            f"{error}. Export compares its graphs on the data's unseen devices: say where the data is now "
            "(--data.root FOLDER), or use clips drawn from the training statistics (--samples synthetic)"
        ) from error
    with_context = source.cloud is not None
    names = ("val", source.data.new_group)
    groups = [list(_devices(source, source.data.eval_batches(g, with_context))) for g in names]
    calibration, acceptance = (group[:DEVICES] for group in groups)
    if not acceptance:
        raise UserError("the data has no test device with a question and a context; use --samples synthetic")
    return Samples(kind, calibration or acceptance, acceptance)


@torch.inference_mode()
def _devices(source: Source, batches: Any) -> Iterator[DeviceSample]:
    """Each device of a group once, with the first of its contexts."""
    seen: set[int] = set()
    names = source.data.device_table.devices
    for batch in batches:
        for b in range(len(batch)):
            device = int(batch.device[b])
            context = batch.context.mask[b : b + 1]
            if device in seen or (source.cloud is not None and not context.any()) or not batch.text_mask[b].any():
                continue
            seen.add(device)
            own = Frames(batch.context.values[b : b + 1], context)
            yield DeviceSample(names[device].id, generate(source, own), _batch_inputs(source, batch, b))
            if len(seen) == DEVICES:
                return


@torch.inference_mode()
def generate(source: Trained, context: Frames) -> Arrays:
    """What the cloud half of a checkpoint generates for a context ``[1, C, T, ...]``; nothing for a device half."""
    if source.cloud is None:
        return {}
    anchors, _ = source.cloud.select(context)
    generated = source.cloud.generate(anchors)
    return {e.name: t[0].numpy() for e, t in zip(source.network.spec, generated, strict=True)}


def _batch_inputs(source: Source, batch: Batch, b: int) -> dict[str, Arrays]:
    items = torch.nonzero(batch.text_mask[b]).flatten()[:ROWS]
    clips = batch.text_clip[b, items]
    if source.network.task.searches:
        clips = torch.nonzero(batch.frames.mask[b].any(-1)).flatten()[:ROWS]
    values, mask = batch.frames.values[b, clips], batch.frames.mask[b, clips]
    return role_inputs(source, values, mask, batch.text[b, items])


def role_inputs(source: Trained, values: Tensor, mask: Tensor, text: Tensor) -> dict[str, Arrays]:
    """Inputs of every role for some clips of one device.

    Args:
        source: The checkpoint.
        values: ``[R, T, ...]`` frames as the data has them.
        mask: ``[R, T]``.
        text: ``[R, O, L]``.
    """
    network = source.network
    pixels = len(network.shapes.frame) == 3
    features = network.encode(values) if pixels else values
    clips = {"frames": features.numpy(), "frame_mask": mask.numpy()}
    inputs: dict[str, Arrays] = {"project": {"features": features[mask].numpy()}}
    inputs |= network.task.graph_inputs(clips, text.numpy())
    if pixels:
        inputs["encode"] = {"pixels": values[mask].numpy()}
    return inputs


def _synthetic(source: Trained, number: int, rng: np.random.Generator) -> DeviceSample:
    shape, meta, shapes = source.shape, source.meta, source.network.shapes
    options = source.network.task.example_options

    def clips(count: int) -> Frames:
        lengths = rng.integers(1, shape.max_frames + 1, count)
        mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
        size = (*mask.shape, *shapes.frame)
        if len(shapes.frame) == 3:
            tint = rng.uniform(40, 215, (1, 1, 3, 1, 1))
            values: np.ndarray = np.clip(tint + rng.normal(0, 40, size), 0, 255).astype(np.uint8)
        else:
            known = dict(source.network.named_buffers())  # the moments of training, where a network has them
            mean = known.get("encoder.mean", torch.zeros(shapes.frame)).numpy()
            std = known.get("encoder.std", torch.ones(shapes.frame)).numpy()
            scale = std * (0.5 + rng.random(shapes.frame))
            values = (mean + std * rng.normal(0, 0.5, shapes.frame) + scale * rng.standard_normal(size)).astype(
                "float32"
            )
        return Frames(torch.from_numpy(values) * mask.reshape(*mask.shape, *(1 for _ in shapes.frame)), mask)

    context, asked = clips(shape.context_clips), clips(ROWS)
    text = rng.integers(1, shapes.words, (ROWS, options, meta["max_words"]))
    text[np.arange(meta["max_words"]) >= rng.integers(1, meta["max_words"] + 1, (ROWS, options, 1))] = 0
    with torch.inference_mode():
        parameters = generate(source, Frames(context.values[None], context.mask[None]))
        inputs = role_inputs(source, asked.values, asked.mask, torch.from_numpy(text))
    return DeviceSample(f"synthetic-{number:03d}", parameters, inputs)
