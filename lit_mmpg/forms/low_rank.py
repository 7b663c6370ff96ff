"""``low_rank``: a delta of low rank on the static layer (as LoRA, Hu et al., ICLR 2022, but generated)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from lit_mmpg.forms.base import Direction, Form, Part, Zero, sized_like
from lit_mmpg.forms.layers import Layer


class LowRank(Form):
    """``u [out, r], v [in, r], c [out]`` -> ``W x + b + u (v^T x) + c``."""

    name: ClassVar[str] = "low_rank"
    summary: ClassVar[str] = "u [out, r], v [in, r], c [out]: W x + b + u (v^T x) + c"

    def parts(self, layer: Layer, rank: int) -> tuple[Part, ...]:
        """Two factors and an offset."""
        rows, columns = self.need_matrix(layer)
        return (
            Part("u", (rows, rank), Zero()),
            Part("v", (columns, rank), Direction(columns)),
            Part("c", (rows,), Zero()),
        )

    def apply(
        self, layer: Layer, x: Tensor, static: Mapping[str, Tensor], own: Sequence[Tensor], devices: int | None
    ) -> Tensor:
        """The static layer plus the delta."""
        u, v, c = own
        return layer.delta(x, (v, u), devices, offset=c)

    def noise(self, layer: Layer, own: Sequence[Tensor], drawn: Sequence[Tensor]) -> list[Tensor]:
        """The product of the factors has the norm of the own one."""
        u, v, c = own
        noise_u, noise_v, noise_c = drawn
        wanted = (u @ v.transpose(1, 2)).flatten(1).norm(dim=1)
        found = (noise_u @ noise_v.transpose(1, 2)).flatten(1).norm(dim=1)
        return [noise_u * (wanted / found)[:, None, None], noise_v, sized_like(noise_c, c)]
