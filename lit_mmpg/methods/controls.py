"""Controls on a finished cloud half: parameters that are not the device's own, and a generator that runs on the device.

A gain that one of these reaches as well is not a gain of adaptation, or not one of the cloud.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.cloud.reasoner import Reconstruction
from lit_mmpg.device.dynamic import DynamicLinear
from lit_mmpg.device.evaluation import Cost
from lit_mmpg.device.outputs import Outputs
from lit_mmpg.methods.base import AdaptationMethod, Episode, Options, Setting, State, Subject, own_parameters
from lit_mmpg.methods.episodes import Episodes

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.contract import DeviceModel


def materialised(layer: nn.Linear, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The weight and bias that a layer computes with, whatever the form of its parameters: every form is affine.

    Args:
        layer: A dynamic layer.
        parameters: Its own personal parameters, with leading dimension G.

    Returns:
        ``[G, out, in]`` and ``[G, out]``.
    """
    devices = len(parameters[0])
    probe = torch.eye(layer.in_features, device=layer.weight.device)
    answered = layer(torch.cat([probe, torch.zeros_like(probe[:1])]).expand(devices, -1, -1), parameters)
    bias = answered[:, -1]
    return (answered[:, :-1] - bias.unsqueeze(1)).transpose(1, 2), bias


class CloudControl(AdaptationMethod):
    """Common part: needs a checkpoint with a cloud half, and sends nothing."""

    paper = "control"
    setting: ClassVar[Setting] = "control"

    def __init__(self, subject: Subject, data: DeviceData, seed: int = 0) -> None:
        super().__init__(subject, data, seed)
        assert subject.cloud is not None
        self.cloud: CloudModule = subject.cloud

    @classmethod
    def not_for(cls, subject: Subject, data: DeviceData) -> str | None:
        """Needs a cloud half."""
        return "the checkpoint holds no cloud half" if subject.cloud is None else super().not_for(subject, data)

    def sent_bytes(self) -> Cost:
        """Nothing crosses the network for one device."""
        return Cost()


class MeanDevice(CloudControl):
    """The mean of the layers that the cloud generates for training devices: adapted, but to nobody in particular.

    The mean is taken over the weights that the parameters stand for, not over their factors.
    """

    name = "mean_device"
    knows = "nothing"

    @classmethod
    def not_for(cls, subject: Subject, data: DeviceData) -> str | None:
        """Needs layers whose weight and bias can be told."""
        others = [name for name, m in subject.network.dynamic_layers().items() if not isinstance(m, DynamicLinear)]
        if others:
            return f"no mean is defined for injected layers ({', '.join(others)})"
        return super().not_for(subject, data)

    def __init__(self, subject: Subject, data: DeviceData, seed: int = 0) -> None:
        super().__init__(subject, data, seed)
        total: dict[str, tuple[Tensor, Tensor]] = {}
        devices = 0
        with torch.no_grad():
            for group in Episodes(data, "train"):
                parameters = subject.personal(group.support.context, group.support.device)
                devices += len(group.support)
                for name, layer in linear_layers(self.network).items():
                    weight, bias = materialised(layer, own_parameters(self.network, name, parameters))
                    old = total.get(name, (torch.zeros(()), torch.zeros(())))
                    total[name] = old[0] + weight.sum(0), old[1] + bias.sum(0)
        self.layers = {name: (weight / devices, bias / devices) for name, (weight, bias) in total.items()}

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers with the mean layers."""
        with fixed_layers(linear_layers(self.network), self.layers):
            return self.subject.answer(Episode(query.batch))


def linear_layers(network: DeviceModel) -> dict[str, DynamicLinear]:
    """Those dynamic layers of a network that are linear layers of their own class."""
    return {name: layer for name, layer in network.dynamic_layers().items() if isinstance(layer, DynamicLinear)}


@contextmanager
def fixed_layers(layers: dict[str, DynamicLinear], values: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """While this lasts, layers compute with given weights ``[out, in]`` and biases ``[out]``."""
    before = {name: (layers[name].weight.data, layers[name].bias.data) for name in values}
    try:
        for name, (weight, bias) in values.items():
            layers[name].weight.data, layers[name].bias.data = weight, bias
        yield
    finally:
        for name, (weight, bias) in before.items():
            layers[name].weight.data, layers[name].bias.data = weight, bias


class SameNormNoise(CloudControl):
    """Random parameters that change each layer by as much as the device's own do, in the same form."""

    name = "same_norm_noise"

    @torch.no_grad()
    def adapt(self, support: Episode, options: Options) -> State:
        """Random parameters; of a low-rank delta the product has the norm of the own one."""
        state: State = {}
        for name, layer in self.network.dynamic_layers().items():
            entries = [entry for entry in self.network.spec if entry.name.rsplit(".", 1)[0] == name]
            own = own_parameters(self.network, name, support.parameters)
            drawn: list[Tensor] = []
            for entry, tensor in zip(entries, own, strict=True):
                generator = torch.Generator().manual_seed(self.seed + len(state) + len(drawn))
                # The same draw for every device, so that a result does not depend on who is beside it.
                drawn.append(torch.randn(entry.shape, generator=generator).expand_as(tensor))
            for entry, tensor in zip(entries, layer.noise(own, drawn), strict=True):
                state[entry.name] = tensor
        return state

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers with the random parameters."""
        return self.subject.answer(Episode(query.batch, tuple(state[e.name] for e in self.network.spec)))


class GeneratorOnDevice(CloudControl):
    """The same generator, run by the device itself: zero bytes, and no anchors are needed.

    ``frames: all`` gives it every frame of the support, as they are; ``anchors`` what the cloud gets, without the
    codecs. Its operations are the device's.
    """

    name = "fda_on_device"
    grid: ClassVar = {"frames": ("all", "anchors")}

    @torch.no_grad()
    def adapt(self, support: Episode, options: Options) -> State:
        """Generated parameters."""
        frames = support.batch.context
        anchors, projected = self.cloud.select(frames)
        if options["frames"] == "anchors":
            generated = self.cloud.generate(anchors)
        else:
            whole = Reconstruction(projected, torch.zeros_like(projected), None, None)
            generated = self.cloud.adaptor(self.cloud.pool(whole, frames.mask))
        return {e.name: tensor for e, tensor in zip(self.network.spec, generated, strict=True)}

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers with the parameters that the device generated for itself."""
        return self.subject.answer(Episode(query.batch, tuple(state[e.name] for e in self.network.spec)))
