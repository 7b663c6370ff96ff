"""The interface of a form: what is generated for a layer, how it starts, and how the layer computes with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lit_mmpg.errors import UserError
from lit_mmpg.forms.layers import Layer
from lit_mmpg.parameters import MODEL, ParameterEntry


class Start(ABC):
    """How a generated tensor starts."""

    @abstractmethod
    def begin(self, generator: nn.Linear) -> None:
        """Set the weights of the linear layer that generates the tensor."""

    @abstractmethod
    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """A first value for a tensor that is tuned instead of generated."""

    def neutral(self, shape: Sequence[int]) -> Tensor:
        """A value with which, if all parts of a layer have theirs, the layer computes what it does without."""
        return torch.zeros(tuple(shape))


class Zero(Start):
    """At zero: the layer starts as the static one."""

    def begin(self, generator: nn.Linear) -> None:
        """All weights are zero."""
        nn.init.zeros_(generator.weight)
        nn.init.zeros_(generator.bias)

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Zeros."""
        return torch.zeros(tuple(shape))


@dataclass(frozen=True)
class Direction(Start):
    """At random, at the scale of the layer that it feeds: a factor whose partner starts at zero.

    With both factors at zero neither would receive a gradient.

    Attributes:
        fan_in: Values that one row of the layer's weight sums over.
    """

    fan_in: int

    def begin(self, generator: nn.Linear) -> None:
        """A learned direction that the context moves gently."""
        nn.init.normal_(generator.bias, std=self.fan_in**-0.5)
        nn.init.normal_(generator.weight, std=0.3 * (self.fan_in * generator.in_features) ** -0.5)

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Normal values."""
        return torch.randn(tuple(shape), generator=generator) * self.fan_in**-0.5


@dataclass(frozen=True)
class Copy(Start):
    """At the static tensor that the generated one replaces.

    Attributes:
        static: That tensor.
    """

    static: Tensor

    def begin(self, generator: nn.Linear) -> None:
        """Generates the static tensor whatever the context."""
        with torch.no_grad():
            generator.bias.copy_(self.static.flatten())
        nn.init.zeros_(generator.weight)

    def draw(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """The static tensor."""
        return self.neutral(shape)

    def neutral(self, shape: Sequence[int]) -> Tensor:
        """The static tensor."""
        return self.static.detach().clone().reshape(tuple(shape))


@dataclass(frozen=True)
class Part:
    """One generated tensor of a layer.

    Attributes:
        name: Last part of its name in the specification: ``u`` of ``frame_projection.u``.
        shape: Shape for one device.
        start: How it starts.
    """

    name: str
    shape: tuple[int, ...]
    start: Start

    def __post_init__(self) -> None:
        sizes = isinstance(self.shape, tuple) and all(type(size) is int and size > 0 for size in self.shape)
        if not (sizes and isinstance(self.name, str) and self.name.isidentifier() and isinstance(self.start, Start)):
            raise UserError(f"{self} needs a name like 'u', a shape of whole numbers above 0, and a Start as its start")


def entries(name: str, parts: Sequence[Part], graph: str = MODEL) -> tuple[ParameterEntry, ...]:
    """Entries of the ParameterSpec for the parts of the layer ``name``."""
    return tuple(ParameterEntry(f"{name}.{part.name}", part.shape, graph=graph) for part in parts)


class Form(ABC):
    """How generated parameters act on a layer.

    A form holds no state. ``layer`` wraps the adapted layer, a linear layer, convolution or norm. ``own`` are the
    tensors of :meth:`parts` in order, unbatched (``devices`` is ``None``) or with a leading dimension ``devices``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """What is downloaded and computed, in a line."""

    @abstractmethod
    def parts(self, layer: Layer, rank: int) -> tuple[Part, ...]:
        """Return the tensors that are generated for a layer: names, shapes and start values.

        Raises:
            UserError: If the form does not suit the layer; the message names forms that do.
        """

    def static_parts(self, layer: Layer, rank: int) -> dict[str, Tensor]:
        """Return the start values of static tensors that the form adds to a layer, by name.

        They are trained with the cloud half and shipped with the device half, which keeps downloads small.
        """
        return {}

    @abstractmethod
    def apply(
        self, layer: Layer, x: Tensor, static: Mapping[str, Tensor], own: Sequence[Tensor], devices: int | None
    ) -> Tensor:
        """Compute the layer with generated parameters.

        Args:
            layer: The layer.
            x: Its input. The rows of each device are contiguous, and all devices have the same number of rows.
            static: The form's own static tensors (see :meth:`static_parts`).
            own: Generated tensors.
            devices: Number of devices G; ``None``: one device with unbatched tensors.

        Returns:
            Output of the layer, with the rows of ``x``.
        """

    def noise(self, layer: Layer, own: Sequence[Tensor], drawn: Sequence[Tensor]) -> list[Tensor]:
        """Return random parameters that change the layer by as much as ``own`` does (a control).

        Args:
            layer: The layer.
            own: Generated tensors, ``[G, ...]``.
            drawn: Standard normal values of the same shapes.
        """
        return [sized_like(noise, wanted) for noise, wanted in zip(drawn, own, strict=True)]

    def payload_bytes(self, layer: Layer, rank: int, bytes_per_value: float = 4) -> float:
        """Bytes that one download holds for a layer, without headers and scales of a codec."""
        return bytes_per_value * sum(entry.size for entry in entries("", self.parts(layer, rank)))

    def need_matrix(self, layer: Layer) -> tuple[int, int]:
        """Rows and columns of the layer's weight.

        Raises:
            UserError: If it has no weight matrix.
        """
        if layer.matrix is None:
            raise UserError(f"form '{self.name}' needs a weight matrix, {layer.what} has none; use film, shift or full")
        return layer.matrix


def asked(form: Form, layer: Layer, rank: int) -> tuple[tuple[Part, ...], dict[str, Tensor]]:
    """Parts and static parts of a layer, looked at: the form may be somebody else's.

    Raises:
        UserError: If the form does not suit the layer, or is faulty.
    """
    who = f"form '{form.name}' on {layer.what}"
    try:
        parts, static = tuple(form.parts(layer, rank)), dict(form.static_parts(layer, rank))
        likes = next(layer.module.parameters(), torch.empty(0))
        static = {name: values.to(likes) for name, values in static.items()}
    except UserError:
        raise
    except Exception as error:  # whatever a foreign form raises
        raise UserError(f"{who}: {type(error).__name__}: {error}; mend its parts or static_parts") from error
    if not parts or not all(isinstance(part, Part) for part in parts) or len({p.name for p in parts}) < len(parts):
        raise UserError(f"{who}: parts gives {parts}; it is a Part or several, each with a name of its own")
    return parts, static


def sized_like(noise: Tensor, wanted: Tensor) -> Tensor:
    """Noise ``[G, ...]`` with the norm of ``wanted``, device by device."""
    sizes = wanted.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
    return noise * sizes.reshape(-1, *(1 for _ in noise.shape[1:]))
