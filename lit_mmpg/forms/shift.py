"""``shift``: one generated number for each output.

It is what a layer computes whose input is concatenated with a code e of the context, ``[W, W_e] [x; e] + b``: the
generated shift is ``W_e e``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from lit_mmpg.forms.base import Form, Part, Zero
from lit_mmpg.forms.layers import Layer


class Shift(Form):
    """``shift [out]`` -> ``W x + b + shift``."""

    name: ClassVar[str] = "shift"
    summary: ClassVar[str] = "shift [out]: W x + b + shift"

    def parts(self, layer: Layer, rank: int) -> tuple[Part, ...]:
        """One number a channel."""
        return (Part("shift", layer.channels, Zero()),)

    def apply(
        self, layer: Layer, x: Tensor, static: Mapping[str, Tensor], own: Sequence[Tensor], devices: int | None
    ) -> Tensor:
        """The static output, shifted."""
        return layer.modulated(x, None, own[0], devices)
