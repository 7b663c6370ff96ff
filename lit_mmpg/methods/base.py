"""One interface for every way to adapt a finished checkpoint to a device.

A *method* gets the same finished checkpoint as all its rivals and, for each device, the clips that the device has seen
before (the *support*). It returns ordinary :class:`~lit_mmpg.device.outputs.Outputs` for the query batches, so that
metrics, intervals and items are computed exactly as for a trained model. Work is split in two, as on a device: one
adaptation per device (:meth:`AdaptationMethod.adapt`), which then serves any number of queries
(:meth:`AdaptationMethod.respond`). Both are batched over devices.

What a method may see is enforced, not trusted: query answers are always hidden, and so are the labels of the support
unless the method is supervised (:mod:`lit_mmpg.methods.episodes`).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.cloud.exchange import Exchange, state_digest
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.device.contract import DeviceModel
from lit_mmpg.device.evaluation import Cost
from lit_mmpg.device.outputs import Outputs, answer_batch
from lit_mmpg.errors import UserError
from lit_mmpg.tasks import Task

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.base import AnsweringModule

Setting = Literal["floor", "episodic", "online", "transductive", "supervised", "control"]
"""``floor``: looks at no device. ``episodic``: adapts once to the device's earlier, unlabelled clips. ``online``: goes
on adapting while it answers. ``transductive``: answers a batch of queries together. ``supervised``: adapts to labelled
clips of the device. ``control``: none that one would use, but one that a claim has to beat."""

Known = Literal["nothing", "unlabelled", "labelled"]
"""What a method is given of the device's earlier clips."""

Options = Mapping[str, Any]
"""One value for each name of a method's grid."""

STREAM_CLIPS = 8
"""Clips of each device that an ``online`` method is asked about at a time."""

State = dict[str, Tensor]
"""What one adaptation leaves on the devices: tensors with a leading dimension G, one row per device."""


@dataclass(frozen=True, slots=True)
class Episode:
    """Clips of some devices with the texts about them.

    Attributes:
        batch: The clips; labels that must not be seen are hidden.
        parameters: Personal parameters that the cloud half generated for these devices, with leading dimension B;
            empty where the checkpoint is a static device half.
    """

    batch: Batch
    parameters: tuple[Tensor, ...] = ()


class Subject:
    """A finished checkpoint, whichever half it holds, as something that answers.

    Args:
        module: The module with its weights loaded.
        names: Id of each device, as messages carry it.

    Attributes:
        network: The device model; never changed by a method.
        cloud: The cloud half, where the checkpoint holds one.
    """

    def __init__(self, module: AnsweringModule, names: Sequence[str]) -> None:
        self.module = module.eval()
        self.network: DeviceModel = module.network  # type: ignore[assignment]
        self.network.requires_grad_(False)
        self.cloud = module if isinstance(module, CloudModule) else None
        self._names = list(names)
        self._exchange: Exchange | None = None
        if self.cloud is not None:
            self._exchange = Exchange(self.cloud.link, self.network.spec, state_digest(self.cloud))

    @property
    def task(self) -> Task:
        """Task of the checkpoint."""
        return self.network.task

    @property
    def pixels(self) -> bool:
        """Whether the device model takes pixels."""
        return len(self.network.shapes.frame) == 3

    @property
    def upload_bytes(self) -> float:
        """Mean bytes of the uploads so far."""
        return self._exchange.upload_bytes if self._exchange else 0.0

    @property
    def download_bytes(self) -> float:
        """Mean bytes of the downloads so far."""
        return self._exchange.download_bytes if self._exchange else 0.0

    @torch.no_grad()
    def personal(self, context: Frames, device: Tensor) -> tuple[Tensor, ...]:
        """Personal parameters from the devices' contexts through the link; nothing for a static half."""
        if self.cloud is None or self._exchange is None:
            return ()
        return self.cloud.personal(context, device, [self._names[int(d)] for d in device], self._exchange)

    def features(self, episode: Episode) -> Tensor:
        """Encoded frames ``[B, M, T, D]`` as the devices have them; pixels that are encoded already pass."""
        return self.network.encode(episode.batch.frames.values, episode.parameters)

    def answer(self, episode: Episode, features: Tensor | None = None) -> Outputs:
        """Answers of the checkpoint as it is, about its own features or others."""
        encoded = self.features(episode) if features is None else features
        return answer_batch(self.network, episode.batch, encoded, episode.parameters)


@dataclass
class Loaded:
    """A finished checkpoint with the data it was trained on.

    Attributes:
        subject: The checkpoint.
        data: The data, set up.
        checkpoint: Its file.
    """

    subject: Subject
    data: DeviceData
    checkpoint: str


class AdaptationMethod(ABC):
    """A method that adapts a trained checkpoint to devices.

    Args:
        subject: The checkpoint.
        data: The data, set up. Use it for statistics of the training data, never for labels of val or test clips.
        seed: Seed of the method's random numbers.

    Attributes:
        name: Name of the method in files and tables.
        paper: Source of the method; "control" or "floor" if it is not from a paper.
        setting: See :data:`Setting`.
        knows: What the method may see of the device's earlier clips.
        grid: Option -> values; the best point is selected on validation devices.
        backward: Whether the device runs a backward pass.
        needs: Properties that the task must have (:attr:`lit_mmpg.tasks.Task.lacks`).
        parts: Parts of the network that it works on (:mod:`lit_mmpg.device.contract`).
        needs_pixels: Whether it needs pixels instead of features.
        needs_clean: Whether it sees the earlier clips without the camera's artefacts (an oracle).
        encode_once: Whether the encoder is not changed, so that pixels may be encoded once for all steps.
        at_once: Devices that adapt together; results do not depend on it.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    setting: ClassVar[Setting]
    knows: ClassVar[Known] = "unlabelled"
    grid: ClassVar[dict[str, tuple[Any, ...]]] = {}
    backward: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()
    needs_pixels: ClassVar[bool] = False
    needs_clean: ClassVar[bool] = False
    encode_once: ClassVar[bool] = True
    at_once: ClassVar[int] = 32

    def __init__(self, subject: Subject, data: DeviceData, seed: int = 0) -> None:
        self.subject, self.network, self.seed = subject, subject.network, seed

    @classmethod
    def not_for_task(cls, task: Task) -> str | None:
        """Why the method does not apply to a task; ``None`` if it does."""
        return next((task.lacks[need] for need in cls.needs if need in task.lacks), None)

    @classmethod
    def not_for(cls, subject: Subject, data: DeviceData) -> str | None:
        """Why the method cannot run with a checkpoint and data; ``None`` if it can."""
        reason = cls.not_for_task(subject.task)
        lacking = [part for part in cls.parts if not hasattr(subject.network, part)]
        if reason is None and lacking:
            return f"the network {type(subject.network).__name__} has no {' and no '.join(lacking)}"
        if reason is None and cls.needs_pixels and not subject.pixels:
            return "the data has frame features, no pixels"
        if reason is None and cls.needs_clean and data.clean_frames() is None:
            return "the data has no clean twins of its frames"
        if reason is None and cls.knows == "labelled" and data.batch.context == "clip":
            return "each clip is its own context, so a labelled context would be the answer"
        if reason is None and cls.setting == "online" and data.batch.context == "clip":
            return "each clip is its own context, so there is no stream of clips"
        return reason

    @classmethod
    def points(cls, chosen: Options | None = None) -> list[dict[str, Any]]:
        """Return the points of the grid. Given values replace those of the grid; a list narrows it.

        Raises:
            UserError: If a value has another type than those of the grid, or is a text that the grid does not hold.
        """
        axes = {name: tuple(values) for name, values in cls.grid.items()}
        for name, value in (chosen or {}).items():
            axes[name] = tuple(value) if isinstance(value, list | tuple) else (value,)
            if not axes[name] or not all(_is_like(one, cls.grid[name]) for one in axes[name]):
                known = ", ".join(map(str, cls.grid[name]))
                raise UserError(f"option {name} of method '{cls.name}' is {value!r}; give one or a list as {known}")
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    def adapt(self, support: Episode, options: Options) -> State:
        """Adapt devices to their support set; queries are not visible.

        Args:
            support: ``[G, C, ...]`` earlier clips of G devices with their texts.
            options: One point of the grid.

        Returns:
            State of each device, passed to :meth:`respond`.
        """
        return {}

    def adapt_all(self, support: Episode, points: Sequence[Options]) -> Iterator[State]:
        """Return states for several points of the grid; override it if the points share work."""
        for options in points:
            yield self.adapt(support, options)

    answers_in: ClassVar[Literal["device", "cloud"]] = "device"
    """Who computes the answers, and so whose operations :meth:`respond` are."""
    bytes_per: ClassVar[Literal["adaptation", "clip"]] = "adaptation"
    """What :meth:`sent_bytes` counts for: one ``adaptation`` of a device, or one ``clip`` that is asked about."""

    def sent_bytes(self) -> Cost:
        """Bytes of the messages; by default those of the checkpoint's own adaptation."""
        return Cost(self.subject.upload_bytes, self.subject.download_bytes)

    @abstractmethod
    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answer queries.

        Args:
            query: ``[B, M, ...]`` query clips with their texts.
            state: Result of :meth:`adapt`; row b belongs to row b of the query. An ``online`` method is called with the
                next clips of all devices (none for a device whose stream has ended) and replaces entries of ``state``;
                it must not change tensors in place.
            options: The same point of the grid.
        """


def _is_like(value: Any, grid: Sequence[Any]) -> bool:
    """Whether a value may stand in a grid: one of its texts, or a number as its numbers are."""
    if isinstance(value, str):
        return value in grid
    kinds, numbers = {type(known) for known in grid}, [known for known in grid if isinstance(known, int | float)]
    like = type(value) in kinds or (type(value) is int and float in kinds)
    return like and (not isinstance(value, int | float) or min(0, *numbers) <= value < float("inf"))


def own_parameters(network: DeviceModel, layer: str, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Those of a model's personal parameters that belong to one of its layers."""
    if not parameters:
        return ()
    pairs = zip(network.spec, parameters, strict=True)
    return tuple(tensor for entry, tensor in pairs if entry.name.rsplit(".", 1)[0] == layer)


def rows(state: State, index: Tensor) -> State:
    """The rows of a state that belong to the rows of a query batch."""
    return {name: tensor[index] for name, tensor in state.items()}
