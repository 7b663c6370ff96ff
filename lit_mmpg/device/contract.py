"""The contract of a device model: what training, evaluation, export and the methods ask of a network, and no more.

A network of one's own derives from :class:`DeviceModel`, takes ``shapes`` and ``dynamic`` as its first two arguments
and any settings after them, and is named in a configuration (no file of this package changes)::

    model:
      class_path: DeviceModule
      init_args:
        network: {class_path: my_networks.Small, init_args: {width: 32}}

It must offer :meth:`DeviceModel.project`, :attr:`DeviceModel.anchor_width`, and for questions
:meth:`DeviceModel.answer`, for retrieval :meth:`DeviceModel.embed_video` and :meth:`DeviceModel.embed_text`; for pixels
:meth:`DeviceModel.encode_frames` and :attr:`DeviceModel.feature_width` too. Personal parameters are arguments of these,
never attributes. Which layers take them is said by :class:`~lit_mmpg.device.dynamic.DynamicLinear` layers that
:meth:`DeviceModel.linear` makes.

Baselines that work on a part of the network find it under its customary name: ``head`` (the last linear layer),
``frame_projection`` (the first), ``frame_norm`` (a layer norm behind it). Where there is none, a comparison leaves them
out and says why.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_mmpg.device.dynamic import DynamicLinear
from lit_mmpg.errors import UserError
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.tasks import find_task
from lit_mmpg.trust import check_class

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.initialise import InitialisationConfig


@dataclass(frozen=True)
class DynamicConfig:
    """Which layers take generated parameters, and in which form.

    Attributes:
        layers: Names of the dynamic layers.
        form: Name of the form of their parameters (see :mod:`lit_mmpg.forms`).
        rank: Rank of the forms that have one.
    """

    layers: tuple[str, ...] = ("frame_projection", "head")
    form: str = "low_rank"
    rank: int = 8


@dataclass(frozen=True)
class Shapes:
    """What the data decides about the model.

    Attributes:
        task: Name of the task (:mod:`lit_mmpg.tasks`).
        frame: Shape of one frame: ``(D,)`` features or ``(3, H, W)`` pixels.
        words: Size of the vocabulary.
        answers: Size of the answer list (open-ended only).
        max_words: Longest text in words.
    """

    task: str
    frame: tuple[int, ...]
    words: int
    answers: int = 0
    max_words: int = 20

    @property
    def pixels(self) -> bool:
        """Whether frames are pixels, not features."""
        return len(self.frame) == 3


class DeviceModel(nn.Module, ABC):
    """Device half: static layers plus dynamic layers whose parameters are arguments.

    Args:
        shapes: What the data decides.
        dynamic: Dynamic layers; ``None`` for a purely static model (stage 1).

    Attributes:
        shapes: As given.
        task: What is asked of it.
        factory: What made it, by which it is made again; ``None`` where nobody said.
        spec: The personal parameters, in order; made by :func:`build_network` once all layers are there.
        blind: Whether it ignores the frames: the question-only floor.
        head: The last linear layer, where a network has one; so for the other two.
        frame_projection: The first layer of frame features.
        frame_norm: The norm behind it.

    Raises:
        UserError: If the class lacks what the task needs.
    """

    blind = False
    head: nn.Linear
    frame_projection: nn.Linear
    frame_norm: nn.LayerNorm

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None = None) -> None:
        super().__init__()
        self.shapes, self.dynamic, self.task = shapes, dynamic, find_task(shapes.task)
        self.factory: NetworkFactory | None = None
        self.spec = ParameterSpec(())
        self._parts: dict[str, int] = {}
        needed: tuple[str, ...] = ("embed_video", "embed_text") if self.task.searches else ("answer",)
        needed += ("encode_frames", "feature_width") if shapes.pixels else ()
        lacking = [name for name in needed if getattr(type(self), name) is getattr(DeviceModel, name)]
        if lacking:
            raise UserError(
                f"{type(self).__name__} cannot be used for task '{shapes.task}' on frames of shape {shapes.frame}: it "
                f"lacks {', '.join(lacking)} (see lit_mmpg.device.contract)"
            )
        if self.task.searches:
            self.log_temperature = nn.Parameter(torch.tensor(10.0).log())

    # -- dynamic layers ------------------------------------------------------------------------------------------

    def linear(self, name: str, inputs: int, outputs: int) -> DynamicLinear:
        """A linear layer that takes personal parameters where the configuration says so.

        Args:
            name: Attribute under which the layer will stand, as ``dynamic.layers`` names it.
            inputs: Width of the input.
            outputs: Width of the output.
        """
        if self.dynamic is not None and name in self.dynamic.layers:
            return DynamicLinear(inputs, outputs, self.dynamic.form, self.dynamic.rank)
        return DynamicLinear(inputs, outputs)

    def index(self) -> None:
        """Make ``spec`` from the dynamic layers, in the order in which they were added.

        Raises:
            UserError: If a layer is asked for that the model does not have.
        """
        layers = self.dynamic_layers()
        missing = [name for name in (self.dynamic.layers if self.dynamic else ()) if name not in layers]
        if missing:
            raise UserError(
                f"model.dynamic.layers: {missing} do not exist for task '{self.shapes.task}' in "
                f"{type(self).__name__}; remove them"
            )
        entries = {name: layer.entries(name) for name, layer in layers.items()}
        self._parts = {name: len(own) for name, own in entries.items()}
        self.spec = ParameterSpec(tuple(entry for own in entries.values() for entry in own))

    def dynamic_layers(self) -> dict[str, DynamicLinear]:
        """The dynamic layers by name, in the order of the specification."""
        return {
            name: layer
            for name, layer in self.named_modules()
            if isinstance(layer, DynamicLinear) and layer.form is not None
        }

    def own(self, name: str, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """The slice of ``parameters`` that belongs to one layer."""
        if not parameters or name not in self._parts:
            return ()
        start = 0
        for layer, count in self._parts.items():
            if layer == name:
                return parameters[start : start + count]
            start += count
        return ()

    def context_parameters(self) -> list[nn.Parameter]:
        """Static tensors that only what is uploaded needs: trained with the cloud half, shipped with the device."""
        return []

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Static tensors that only the exchange needs: those of the dynamic forms and of the context."""
        own = [p for layer in self.dynamic_layers().values() for p in layer.adapter_parameters()]
        return own + self.context_parameters()

    # -- before training -----------------------------------------------------------------------------------------

    def start(self, data: DeviceData, settings: InitialisationConfig) -> None:
        """Set start values from the training data; nothing unless a network knows better.

        Args:
            data: The data, set up.
            settings: What starts from where.
        """

    def correction_layers(self) -> list[nn.Module]:
        """Layers that undo what a camera did to the features, which ``model.trained: correction`` trains alone."""
        return []

    # -- frames --------------------------------------------------------------------------------------------------

    @property
    def feature_width(self) -> int:
        """Width D of the raw features of a frame, as :meth:`encode` gives them."""
        return self.shapes.frame[0]

    def encode(self, frames: Tensor) -> Tensor:
        """Raw features of frames, ``[..., T, D]``.

        Args:
            frames: ``[..., T, 3, H, W]`` uint8 pixels, or ``[..., T, D]`` features. Features given to a model of pixels
                are taken as already encoded by it.
        """
        return frames if self.shapes.pixels and frames.is_floating_point() else self.encode_frames(frames)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """As :meth:`encode`, without looking at the type: ``[..., 3, H, W]`` to ``[..., D]``; features as they are."""
        return frames

    @abstractmethod
    def project(self, features: Tensor, parameters: Sequence[Tensor] = (), corrected: bool = True) -> Tensor:
        """Projected frame features, ``[..., T, D]`` to ``[..., T, H]``.

        Args:
            features: Raw features.
            parameters: All personal parameters, or nothing; unbatched, or with the leading dimension of ``features``.
            corrected: ``False`` leaves a correction out: what frames without any shift should be projected to.
        """

    @property
    @abstractmethod
    def anchor_width(self) -> int:
        """Width of what is uploaded of each anchor frame."""

    def anchor_features(self, features: Tensor) -> Tensor:
        """What the cloud may see of each frame, ``[..., T, D]`` to ``[..., T, anchor_width]``.

        Computed without personal parameters, so that it does not depend on an earlier adaptation.
        """
        return self.project(features)

    def contextualise(self, projected: Tensor, mask: Tensor) -> Tensor:
        """Mix each frame with its time, ``[..., T, H]`` to ``[..., T, H]``; nothing unless a network does."""
        return projected

    # -- answers -------------------------------------------------------------------------------------------------

    def answer(self, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Scores of the answers to questions about contextualised frames.

        Args:
            frames: ``[..., T, H]``, one clip per text.
            mask: ``[..., T]`` bool.
            text: ``[..., O, L]`` word indices: O = 1 for an open-ended question, else one row per option.
            parameters: All personal parameters, or nothing.

        Returns:
            Open-ended: ``[..., A]``. Multiple choice: ``[..., O]``.
        """
        raise NotImplementedError

    def embed_video(self, frames: Tensor, mask: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Unit-length clip embedding ``[..., H]`` from contextualised frames ``[..., T, H]``."""
        raise NotImplementedError

    def embed_text(self, text: Tensor) -> Tensor:
        """Unit-length sentence embedding, ``[..., L]`` to ``[..., H]``."""
        raise NotImplementedError

    def forward(self, frames: Tensor, frame_mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Answer one text per clip.

        Args:
            frames: ``[..., T, D]`` features or ``[..., T, 3, H, W]`` uint8 pixels.
            frame_mask: ``[..., T]`` bool.
            text: ``[..., O, L]`` word indices: O = 1 for a question or a caption, else one row per option.
            parameters: Flat tuple in the order of ``spec``: empty for the static model, unbatched for one device, or
                with a leading dimension G, in which case all inputs have it too.

        Returns:
            Open-ended: ``[..., A]`` logits. Multiple choice: ``[..., O]`` logits. Retrieval: ``[...]`` cosine.
        """
        x = self.contextualise(self.project(self.encode(frames), parameters), frame_mask)
        return self.task.scores(self, x, frame_mask, text, parameters)


NetworkFactory = Callable[[Shapes, DynamicConfig | None], DeviceModel]
"""What makes a device model from the data's shapes: a class that keeps the contract, with its settings bound."""


def build_network(factory: NetworkFactory, shapes: Shapes, dynamic: DynamicConfig | None = None) -> DeviceModel:
    """A device model with its specification.

    Raises:
        UserError: If the factory makes something else, or the model lacks a layer that should be dynamic.
    """
    network = factory(shapes, dynamic)
    if not isinstance(network, DeviceModel):
        raise UserError(
            f"model.network makes a {type(network).__name__}, which is no device model; derive it from "
            "lit_mmpg.device.contract.DeviceModel"
        )
    network.factory = factory
    network.index()
    return network


def network_factory(plain: Mapping[str, Any]) -> NetworkFactory:
    """Inverse of :func:`lit_mmpg.settings.to_plain` for a network that names its class.

    The class is imported by its name, and has to be a device model; its module must be trusted (:mod:`lit_mmpg.trust`).

    Args:
        plain: ``class_path`` and ``init_args``.

    Raises:
        UserError: If there is no such device model, or it is not trusted.
    """
    path = str(plain["class_path"])
    module, _, name = path.rpartition(".")
    check_class(path, "the description of the network")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the network's class {path} cannot be imported ({error}); put it where Python finds it"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, DeviceModel)):
        raise UserError(f"{path} is no device model; derive it from lit_mmpg.device.contract.DeviceModel")
    return partial(kind, **dict(plain.get("init_args") or {}))
