"""``film``: feature-wise modulation (Perez et al., AAAI 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from lit_mmpg.forms.base import Form, Part, Zero
from lit_mmpg.forms.layers import Layer


class Film(Form):
    """``scale [out], shift [out]`` -> ``(1 + scale) * (W x + b) + shift``."""

    name: ClassVar[str] = "film"
    summary: ClassVar[str] = "scale [out], shift [out]: (1 + scale) * (W x + b) + shift"

    def parts(self, layer: Layer, rank: int) -> tuple[Part, ...]:
        """Two numbers a channel."""
        return Part("scale", layer.channels, Zero()), Part("shift", layer.channels, Zero())

    def apply(
        self, layer: Layer, x: Tensor, static: Mapping[str, Tensor], own: Sequence[Tensor], devices: int | None
    ) -> Tensor:
        """The static output, modulated."""
        scale, shift = own
        return layer.modulated(x, 1 + scale, shift, devices)
