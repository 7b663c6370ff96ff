"""``full``: the whole weight and bias are generated (DUET, the authors' earlier method for recommenders)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from lit_mmpg.errors import UserError
from lit_mmpg.forms.base import Copy, Form, Part, Start, Zero, sized_like
from lit_mmpg.forms.layers import Layer

FULL_LIMIT = 65_536
"""Most weights of one layer that are generated."""


class Full(Form):
    """``weight, bias`` -> ``weight x + bias``."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "weight, bias: replace the layer's own"

    def parts(self, layer: Layer, rank: int) -> tuple[Part, ...]:
        """The layer's own shapes."""
        weight, bias = layer.weight, layer.bias
        if weight is None:
            raise UserError(f"form 'full' replaces a weight, {layer.what} has none; use film or shift")
        if layer.depthwise:
            raise UserError(f"form 'full' on the depthwise {layer.what} leaves nothing that devices share; use film")
        if weight.numel() > FULL_LIMIT:
            raise UserError(
                f"dynamic form 'full' on {layer.what} generates {weight.numel()} weights, more than {FULL_LIMIT}; "
                "use low_rank, core or basis"
            )
        if layer.overridden:
            raise UserError(
                f"form 'full' replaces what {layer.what} computes, and its class has a forward of its own; use low_rank"
            )
        start: Start = Zero() if bias is None else Copy(bias)
        return (Part("weight", tuple(weight.shape), Copy(weight)), Part("bias", layer.channels, start))

    def apply(
        self, layer: Layer, x: Tensor, static: Mapping[str, Tensor], own: Sequence[Tensor], devices: int | None
    ) -> Tensor:
        """The generated layer."""
        weight, bias = own
        return layer.replaced(x, weight, bias, devices)

    def noise(self, layer: Layer, own: Sequence[Tensor], drawn: Sequence[Tensor]) -> list[Tensor]:
        """Around the static values, as far from them as the own ones are."""
        static = [part.start.neutral(part.shape).to(o) for part, o in zip(self.parts(layer, 0), own, strict=True)]
        return [s + sized_like(n, o - s) for s, n, o in zip(static, drawn, own, strict=True)]
