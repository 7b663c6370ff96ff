"""Stage 1: the static global device model, trained on the clips of all training devices."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.device.base import AnsweringModule, OptimiserConfig, shapes_of
from lit_mmpg.device.contract import InitialisationConfig, NetworkFactory, build_network
from lit_mmpg.device.model import DeviceModelConfig
from lit_mmpg.device.outputs import Outputs, alignment_loss, answer_batch
from lit_mmpg.errors import UserError
from lit_mmpg.settings import within

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData


def random_frames(count: int, frames: Frames, *twins: Frames) -> list[Frames]:
    """At most ``count`` random real frames of each clip, in temporal order; the same ones of each twin."""
    if count >= frames.mask.shape[-1]:
        return [frames, *twins]
    score = torch.rand(frames.mask.shape, device=frames.mask.device).masked_fill(~frames.mask, 2.0)
    index = score.argsort(dim=-1)[..., :count].sort(dim=-1).values
    mask = frames.mask.gather(-1, index)
    # Padding sorts between real frames when a clip is short; real frames have to come first.
    order = (~mask).to(torch.int8).argsort(dim=-1, stable=True)
    index, mask = index.gather(-1, order), mask.gather(-1, order)
    tail = frames.values.shape[frames.mask.dim() :]
    spread = index.reshape(*index.shape, *(1 for _ in tail)).expand(*index.shape, *tail)
    return [Frames(f.values.gather(frames.mask.dim() - 1, spread), mask) for f in (frames, *twins)]


class DeviceModule(AnsweringModule):
    """Trains the static device model.

    Args:
        data: Description of the data (``DeviceData.meta``); a configuration leaves it out.
        network: Sizes of the device model, or a class of one's own that keeps :mod:`lit_mmpg.device.contract`
            (``class_path`` and ``init_args``); ``None``: the device model with its default sizes.
        optimiser: Optimiser settings.
        initialisation: Start values that come from the training data.
        train_frames: Train on this many random frames of each clip (0: on all): cheaper, and augmentation.
        label_smoothing: Share of the probability spread over all answers (open-ended questions).
        alignment: Weight of the alignment of projected shifted frames with their clean twins; needs data with twins.
        task: Weight of the task loss.
        trained: ``all``, or ``correction``: all other layers stay as they start. A few thousand captioned clips are
            soon learnt by heart, and what is learnt against the cameras should not be paid for with that.
    """

    half_name = "device"

    def __init__(
        self,
        data: dict[str, Any],
        network: DeviceModelConfig | NetworkFactory | None = None,
        optimiser: OptimiserConfig = OptimiserConfig(),
        initialisation: InitialisationConfig = InitialisationConfig(),
        train_frames: int = 0,
        label_smoothing: float = 0.0,
        alignment: float = 0.0,
        task: float = 1.0,
        trained: Literal["all", "correction"] = "all",
    ) -> None:
        super().__init__(data, optimiser, label_smoothing)
        within("model.", 0, train_frames=train_frames, alignment=alignment, task=task)
        if not task and not alignment:
            raise UserError("model.task and model.alignment are both 0: nothing would be learnt; set one of them")
        self.task, self.trained = task, trained
        self.alignment, self.needs_clean = alignment, alignment > 0
        self.initialisation, self.train_frames = initialisation, train_frames
        with self._drawing():
            self.network = build_network(network or DeviceModelConfig(), shapes_of(data))
        self.factory: NetworkFactory = self.network.factory  # type: ignore[assignment]
        self.save_hyperparameters(self.settings(network=self.factory), logger=False)
        if trained == "correction":
            layers = self.network.correction_layers()
            if not layers:
                raise UserError("model.trained is 'correction', but model.network.correction is 0; give it a width")
            self.network.requires_grad_(False)
            for layer in layers:
                layer.requires_grad_(True)

    def start(self, data: DeviceData, fresh: bool) -> None:
        """Start values of the network."""
        if fresh:
            self.network.start(data, self.initialisation)

    @property
    def static_encoder(self) -> bool:
        """As the network says."""
        return self.network.frozen_encoder

    @property
    def methods(self) -> list[str]:
        """One method: the static model, or the floor that never sees a frame."""
        return ["text_only" if self.network.blind else "static"]

    def respond(self, batch: Batch, methods: list[str]) -> dict[str, Outputs]:
        """Answers of the static model."""
        return {
            method: answer_batch(self.network, batch, self.network.encode(batch.frames.values)) for method in methods
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of the task."""
        if self.train_frames:
            twins = () if batch.clean is None else (batch.clean,)
            frames, *rest = random_frames(self.train_frames, batch.frames, *twins)
            batch = replace(batch, frames=frames, clean=rest[0] if rest else None)
        features = self.network.encode(batch.frames.values)
        projected = self.network.project(features)
        outputs = answer_batch(self.network, batch, features, projected=projected)
        loss = self.task * self.task_loss(batch, outputs)
        if self.alignment:
            loss = loss + self.alignment * alignment_loss(self.network, batch, projected)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss
