"""What one device pays: operations, time, memory and energy, from pixels to answer.

The unit is one *answered clip* with all its texts, answered by a single device, and one *adaptation*, which serves as
many clips as are answered before the next one. Both are run on the real modules: operations are counted while they run,
seconds are the median of repetitions on one thread of this machine's processor, and memory is what tensors occupy at
most. Energy is an estimate: seconds times the power that codecarbon's model states for this machine.
"""

from __future__ import annotations

import logging
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.device.anchors import select_anchors
from lit_mmpg.device.outputs import answer_batch
from lit_mmpg.errors import UserError

if TYPE_CHECKING:
    from lit_mmpg.cloud.exchange import Anchors
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.base import AnsweringModule
    from lit_mmpg.device.contract import DeviceModel
    from lit_mmpg.methods.base import Loaded

LEAST_SECONDS, LEAST_TIMES, MOST_SECONDS, MOST_TIMES = 0.2, 5, 3.0, 50
"""Each timing is repeated until both of the first are reached, and no further than one of the last."""

POWER_SECONDS = 3.0
"""Busy time from which the power model's figure is read."""

COUNTED = (
    "Operations are counted by torch on the modules as they run: matrix products and convolutions, a multiply-add as "
    "two; element-wise work is not counted."
)
TIMED = (
    "Device seconds are measured on this machine's processor, one thread, float32, PyTorch eager, one device at a "
    "time: the median of repetitions. They compare rows; they are not those of a phone or a Jetson."
)
REMEMBERED = (
    "Memory is the device model's weights plus the most that tensors occupy at once while it answers or adapts."
)


@dataclass(frozen=True)
class Measured:
    """What some work costs.

    Attributes:
        flops: Floating-point operations (matrix products and convolutions; a multiply-add is two).
        seconds: Median wall-clock seconds on one thread.
        peak_bytes: Most bytes of tensors that the work allocates and that live at once.
    """

    flops: float
    seconds: float
    peak_bytes: int

    def then(self, other: Measured) -> Measured:
        """This work and another, one after the other."""
        peak = max(self.peak_bytes, other.peak_bytes)
        return Measured(self.flops + other.flops, self.seconds + other.seconds, peak)


@dataclass(frozen=True)
class AdaptationCost:
    """What one adaptation and one answered clip cost.

    Attributes:
        upload_bytes: Bytes up, counted on the serialised messages.
        download_bytes: Bytes down.
        per: What the bytes are for: one ``adaptation`` (of a device), or one ``clip`` that is asked about.
        adapt_flops: Floating-point operations on the device for one adaptation (a multiply-add is two; matrix products
            and convolutions).
        adapt_s: Wall-clock seconds of one adaptation of a single device on this machine.
        answer_flops: Operations for a query clip with all its texts, what an online method learns from it included.
        answer_s: Wall-clock seconds of the same, for a single device.
        adapt_peak_bytes: Most bytes of tensors that live at once during one adaptation.
        answer_peak_bytes: The same during one answer.
        answers_in: Who answers, ``device`` or ``cloud``: whose operations ``answer_flops`` are.
        backward: Whether the adaptation needs a backward pass.
        support_clips: Mean number of earlier clips that were used.
        labelled_items: Mean number of labelled texts (QA pairs, captions) that were used; 0 without labels.
        cloud_s: Wall-clock seconds in the cloud for one adaptation; ``None`` where the checkpoint's own cloud half
            has no part in it.
        from_pixels: Whether operations, seconds and bytes include the frame encoder of a model that takes pixels.
    """

    upload_bytes: float = 0.0
    download_bytes: float = 0.0
    per: str = "adaptation"
    adapt_flops: float = 0.0
    adapt_s: float = 0.0
    answer_flops: float = 0.0
    answer_s: float = 0.0
    adapt_peak_bytes: int = 0
    answer_peak_bytes: int = 0
    answers_in: str = "device"
    backward: bool = False
    support_clips: float = 0.0
    labelled_items: float = 0.0
    cloud_s: float | None = None
    from_pixels: bool = False


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is entered and live at once.

    Attributes:
        live: Bytes that live now.
        peak: Most bytes that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note the storages of its results."""
        # What an operation takes was there before, unless another operation made it: it does not count.
        self._note((args, kwargs), own=False)
        result = func(*args, **(kwargs or {}))
        self._note(result, own=True)
        return result

    def _note(self, tree: Any, own: bool) -> None:
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes() if own else 0
                self.live += self._sizes[key]
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measured(work: Callable[[], Any]) -> Measured:
    """Operations, median seconds and peak memory of work that is run several times and does the same each time."""
    with one_thread():
        with FlopCounterMode(display=False) as counter:
            work()
        with PeakMemory() as memory:
            work()
        times: list[float] = []
        while not times or (
            len(times) < MOST_TIMES
            and sum(times) < MOST_SECONDS
            and (len(times) < LEAST_TIMES or sum(times) < LEAST_SECONDS)
        ):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return Measured(float(counter.get_total_flops()), statistics.median(times), memory.peak)


@dataclass(frozen=True)
class FrameEncoder:
    """A frame encoder that runs before the data's features, measured per frame.

    Attributes:
        name: What it is.
        flops: Operations of one frame.
        seconds: Median seconds of one frame on one thread.
        bytes: Its weights, plus the most its tensors occupy at once.
    """

    name: str
    flops: float
    seconds: float
    bytes: int


def frame_encoder(settings: Mapping[str, Any] | None) -> FrameEncoder | None:
    """Measure the encoder that a comparison names (``frame_encoder: {name: mobilenet_v2, size: 224}``).

    The network is built from its configuration with random weights: what it costs does not depend on their values.

    Raises:
        UserError: If the encoder is not known.
    """
    if settings is None:
        return None
    check_encoder(settings)
    return _mobilenet(int(settings.get("size", 224)), float(settings.get("width", 1.0)))


def check_encoder(settings: Mapping[str, Any]) -> None:
    """Refuse an encoder that :func:`frame_encoder` does not know, without building it.

    Raises:
        UserError: If the encoder is not known.
    """
    known, numbers = {"name", "size", "width"}, (settings.get("size", 224), settings.get("width", 1.0))
    if set(settings) - known or settings.get("name") != "mobilenet_v2" or not all(map(_is_size, numbers)):
        raise UserError(
            f"frame_encoder is {dict(settings)}; known is {{name: mobilenet_v2, size: PIXELS, width: MULTIPLIER}}"
        )


def _is_size(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


@cache
def _mobilenet(size: int, width: float) -> FrameEncoder:
    from transformers import MobileNetV2Config, MobileNetV2Model

    with torch.random.fork_rng():
        network = MobileNetV2Model(MobileNetV2Config(image_size=size, depth_multiplier=width)).eval()
    pixels = torch.zeros(1, 3, size, size)
    with torch.inference_mode():
        cost = measured(lambda: network(pixels))
    return FrameEncoder(
        f"MobileNetV2 {width:g} at {size} pixels", cost.flops, cost.seconds, _weights(network) + cost.peak_bytes
    )


@cache
def power_model() -> tuple[float | None, str]:
    """Power of this machine while it computes, watts, as codecarbon's model states it; and what is behind it."""
    try:
        from codecarbon import OfflineEmissionsTracker
    except ModuleNotFoundError:
        return None, "Energy is not estimated: the package codecarbon is not installed."
    noisy = logging.getLogger("codecarbon")
    noisy.disabled = True
    try:
        tracker = OfflineEmissionsTracker(
            country_iso_code="DEU",  # decides emissions only, which are not used
            measure_power_secs=1,
            save_to_file=False,
            log_level="critical",
            allow_multiple_runs=True,
        )
        tracker.start()
        start = time.perf_counter()
        values = torch.ones(256, 256)
        while time.perf_counter() - start < POWER_SECONDS:
            values @ values
        tracker.stop()
        found = tracker.final_emissions_data
        watts = 3.6e6 * (found.cpu_energy + found.ram_energy) / found.duration
    except Exception as error:  # a monitor that fails must not cost a comparison its results
        return None, f"Energy is not estimated: codecarbon failed ({' '.join(str(error).split())})."
    finally:
        noisy.disabled = False
    if not watts > 0:
        return None, "Energy is not estimated: codecarbon's model knows no power for this machine."
    return watts, (
        f"Energy is an estimate, not a measurement: device seconds times {watts:.0f} W, the power of processor and "
        f"memory in codecarbon's model of this machine ({found.cpu_model}) while it computes."
    )


def device_costs(
    module: AnsweringModule, data: DeviceData, encoder: FrameEncoder | None = None
) -> dict[str, dict[str, Any]]:
    """Costs of a module's methods: ``answer_*`` of one answered clip, ``adapt_*`` of one adaptation.

    Args:
        module: A trained module.
        data: Its data, set up.
        encoder: The encoder that made the data's features, where it is known.

    Returns:
        Method -> ``answer_flops, answer_s, answer_j, adapt_flops, adapt_s, adapt_j, peak_memory_bytes, cloud_s`` and
        ``how``: sentences on what was measured. ``None`` where something is not known.
    """
    module.eval()
    network: DeviceModel = module.network  # type: ignore[assignment]
    wants = module.needs_context or data.batch.own_statistics > 0
    batch = single_clip(next(iter(data.eval_batches(data.test_groups[0], with_context=wants))))
    frames = int(batch.frames.mask.sum())
    # Statistics of the device's own frames need all of them encoded, whatever else is adapted.
    known = int(batch.context.mask.sum()) if data.batch.own_statistics else 0
    with torch.inference_mode():
        personal: tuple[Tensor, ...] = ()
        adapt, cloud_s, encoded = None, None, 0
        if isinstance(module, CloudModule):
            context, encoded = device_part(module, batch.context)
            anchors = _anchors(module, context, batch.context)
            personal = module.generate(anchors)
            adapt = measured(lambda: _anchors(module, context, batch.context))
            cloud_s = measured(lambda: module.generate(anchors)).seconds
            if module.cloud_config.place == "device":
                adapt, cloud_s = measured(lambda: module.generate(_anchors(module, context, batch.context))), None
            if module.cloud_config.context != "anchors":
                adapt, encoded = Measured(0.0, 0.0, 0), 0  # the device sends and computes nothing
        answers = {
            name: measured(
                lambda p=parameters: answer_batch(network, batch, network.encode(batch.frames.values, p), p)  # type: ignore[misc]
            )
            for name, parameters in {"own": personal, "static": ()}.items()
        }
    costs = {}
    for method in module.methods:
        static = method == "static" or adapt is None
        needed = known if static else max(known, encoded)
        costs[method] = _bill(
            network, encoder, answers["static" if static else "own"], frames, None if static else adapt, needed
        )
        costs[method]["cloud_s"] = None if static else cloud_s
    return costs


def _bill(
    network: DeviceModel,
    encoder: FrameEncoder | None,
    answer: Measured,
    frames: int,
    adapt: Measured | None,
    adapt_frames: int,
) -> dict[str, Any]:
    """What a device pays for a row, with the frame encoder where it stands before the data.

    One answered clip has so many ``frames``; one adaptation on the device, where there is one, needs ``adapt_frames``
    of the context. Both were measured from what the data holds.
    """
    extra = (encoder.flops, encoder.seconds, encoder.bytes) if encoder else (0.0, 0.0, 0)
    adapt = adapt or Measured(0.0, 0.0, 0)
    answer_s, adapt_s = answer.seconds + frames * extra[1], adapt.seconds + adapt_frames * extra[1]
    watts, energy = power_model()
    peak = max(answer.peak_bytes, adapt.peak_bytes)
    return {
        "answer_flops": answer.flops + frames * extra[0],
        "adapt_flops": adapt.flops + adapt_frames * extra[0],
        "answer_s": answer_s,
        "adapt_s": adapt_s,
        "answer_j": None if watts is None else answer_s * watts,
        "adapt_j": None if watts is None else adapt_s * watts,
        "energy_source": "codecarbon_model" if watts is not None else None,
        "peak_memory_bytes": _weights(network) + peak + extra[2],
        "how": [_encoder_note(network, encoder), COUNTED, TIMED, REMEMBERED, energy],
    }


def _encoder_note(network: DeviceModel, encoder: FrameEncoder | None) -> str:
    """Whether the frame encoder is a part of the figures."""
    if encoder is not None:
        return (
            f"The frame encoder ({encoder.name}, {encoder.flops / 1e6:.0f} M operations a frame) is included, for the "
            "clip and for every frame of the context that an adaptation needs."
        )
    if len(network.shapes.frame) == 3:
        return "The frame encoder is a part of the device model and is included, for the clip and for the context."
    return "The data holds frame features and the encoder that made them is not named: it is NOT included."


def adapted_costs(cost: AdaptationCost, loaded: Loaded, encoder: FrameEncoder | None) -> dict[str, Any]:
    """Costs of a method that adapts a finished checkpoint, in the form of :func:`device_costs`."""
    network, data = loaded.subject.network, loaded.data
    wants = data.batch.own_statistics > 0
    batch = single_clip(next(iter(data.eval_batches(data.test_groups[0], with_context=wants))))
    frames = int(batch.frames.mask.sum())
    # Statistics of the device's own frames need all of them encoded, whatever the method itself looks at.
    needed = max(round(cost.support_clips * frames), int(batch.context.mask.sum()))
    own = len(network.shapes.frame) == 3
    if own and not cost.from_pixels:
        with torch.inference_mode():
            work = measured(lambda: network.encode(batch.frames.values))
        encoder = FrameEncoder("its own", work.flops / frames, work.seconds / frames, work.peak_bytes)
    answer = Measured(cost.answer_flops, cost.answer_s, cost.answer_peak_bytes)
    adapt = Measured(cost.adapt_flops, cost.adapt_s, cost.adapt_peak_bytes)
    bill = _bill(network, None if cost.from_pixels else encoder, answer, frames, adapt, needed)
    if own:
        bill["how"][0] = _encoder_note(network, None)
    bill["cloud_s"] = cost.cloud_s
    if cost.answers_in == "cloud":
        # The device only sends; what it spends on that is no matrix product and was not timed apart.
        bill |= dict.fromkeys(("answer_flops", "answer_s", "answer_j", "peak_memory_bytes"))
        bill["cloud_s"] = cost.answer_s
    return bill


def device_part(module: CloudModule, context: Frames) -> tuple[Frames, int]:
    """The frames of the context that the device has to encode for its anchors, and their number.

    A rule that looks at no content (uniform, first, random) needs the anchor frames alone; ``k_center`` looks at all.
    """
    config = module.anchor_config
    if config.count <= 0 or config.rule == "k_center":
        return context, int(context.mask.sum())
    tail = context.values.shape[context.mask.dim() :]
    index = torch.arange(context.mask.shape[-1], dtype=torch.float32).expand(context.mask.shape).unsqueeze(-1)
    chosen, _, mask = select_anchors(index, context.mask, config.count, config.rule)
    places = chosen.squeeze(-1).long().reshape(*mask.shape, *(1 for _ in tail)).expand(*mask.shape, *tail)
    return Frames(context.values.gather(context.mask.dim() - 1, places), mask), int(mask.sum())


def _anchors(module: CloudModule, needed: Frames, context: Frames) -> Anchors:
    anchors, _ = module.select(needed)
    return replace(anchors, num_frames=context.mask.sum(-1))


def single_clip(batch: Batch, clip: int = 0) -> Batch:
    """One clip of the first device of a batch, with all texts about it and the device's context."""

    def first(value: Any) -> Any:
        if isinstance(value, Frames):
            return Frames(value.values[:1], value.mask[:1])
        return value[:1] if isinstance(value, Tensor) else value

    one = replace(batch, **{entry.name: first(getattr(batch, entry.name)) for entry in fields(batch)})
    kept = (one.text_mask[0] & (one.text_clip[0] == clip)).nonzero().squeeze(-1)
    here, length = slice(clip, clip + 1), int(one.frames.mask[0, clip].sum())
    return replace(
        one,
        frames=Frames(one.frames.values[:, here, :length], one.frames.mask[:, here, :length]),
        clip=one.clip[:, here],
        text_clip=torch.zeros_like(one.text_clip[:, kept]),
        clean=None,
        foreign=None,
        **{name: getattr(one, name)[:, kept] for name in ("text", "text_mask", "answer", "item", "kind")},
    )


def _weights(network: nn.Module) -> int:
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
