"""``core``: a small generated matrix between two static ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lit_mmpg.forms.base import Form, Part, Zero
from lit_mmpg.forms.layers import Layer


class Core(Form):
    """``core [r, r], c [out]`` -> ``W x + b + P core (Q^T x) + c`` with static ``P [out, r]`` and ``Q [in, r]``."""

    name: ClassVar[str] = "core"
    summary: ClassVar[str] = "core [r, r], c [out]: W x + b + P core (Q^T x) + c, P and Q static"

    def parts(self, layer: Layer, rank: int) -> tuple[Part, ...]:
        """A core and an offset."""
        rows, _ = self.need_matrix(layer)
        return Part("core", (rank, rank), Zero()), Part("c", (rows,), Zero())

    def static_parts(self, layer: Layer, rank: int) -> dict[str, Tensor]:
        """``Q`` and ``P`` at the scale of a layer."""
        rows, columns = self.need_matrix(layer)
        return {
            "fixed_in": torch.randn(columns, rank) * columns**-0.5,
            "fixed_out": torch.randn(rows, rank) * rank**-0.5,
        }

    def apply(
        self, layer: Layer, x: Tensor, static: Mapping[str, Tensor], own: Sequence[Tensor], devices: int | None
    ) -> Tensor:
        """The static layer plus the delta."""
        core, c = own
        return layer.delta(x, (static["fixed_in"], core, static["fixed_out"]), devices, offset=c)
