"""``basis``: a few generated coefficients over a static basis of low rank: the smallest download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_mmpg.forms.base import Form, Part, Zero
from lit_mmpg.forms.layers import Layer


class Basis(Form):
    """``coefficients [r]`` -> ``W x + b + P (coefficients * (Q^T x)) + S coefficients``, ``P, Q, S`` static."""

    name: ClassVar[str] = "basis"
    summary: ClassVar[str] = "coefficients [r]: W x + b + P (coefficients * (Q^T x)) + S coefficients, P, Q, S static"

    def parts(self, layer: Layer, rank: int) -> tuple[Part, ...]:
        """The coefficients."""
        self.need_matrix(layer)
        return (Part("coefficients", (rank,), Zero()),)

    def static_parts(self, layer: Layer, rank: int) -> dict[str, Tensor]:
        """``Q``, ``P`` and ``S`` at the scale of a layer."""
        rows, columns = self.need_matrix(layer)
        return {
            "fixed_in": torch.randn(columns, rank) * columns**-0.5,
            "fixed_out": torch.randn(rows, rank) * rank**-0.5,
            "fixed_bias": torch.randn(rows, rank) * rank**-0.5,
        }

    def apply(
        self, layer: Layer, x: Tensor, static: Mapping[str, Tensor], own: Sequence[Tensor], devices: int | None
    ) -> Tensor:
        """The static layer plus the delta."""
        (coefficients,) = own
        y = layer.delta(x, (static["fixed_in"], coefficients, static["fixed_out"]), devices)
        return layer.over(torch.add, y, F.linear(coefficients, static["fixed_bias"]), devices)
