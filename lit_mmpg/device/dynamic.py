"""Dynamic layers: linear layers whose personal parameters arrive as arguments of ``forward``.

The four forms (reconstruction; ``full`` follows DUET, the authors' earlier method for recommenders) and two controls:

=========== ============================================= ==============================================
form        what is downloaded                            what the layer computes
=========== ============================================= ==============================================
full        ``weight [out, in]``, ``bias [out]``          ``weight x + bias``
low_rank    ``u [out, r]``, ``v [in, r]``, ``c [out]``    ``W x + b + u (v^T x) + c``
core        ``core [r, r]``, ``c [out]``                  ``W x + b + P core (Q^T x) + c``
basis       ``coefficients [r]``                          ``W x + b + P (coefficients * (Q^T x)) + S coefficients``
film        ``scale [out]``, ``shift [out]``              ``(1 + scale) * (W x + b) + shift``
shift       ``shift [out]``                               ``W x + b + shift``
=========== ============================================= ==============================================

``W, b`` are static. ``P [out, r]``, ``Q [in, r]`` and ``S [out, r]`` are static too: they are trained with the cloud
half and shipped with the device model, so that only a few numbers travel.

``film`` is feature-wise modulation (Perez et al., 2018). ``shift`` is what a layer computes whose input is concatenated
with a code e of the context, ``[W, W_e] [x; e] + b``: the generated shift is ``W_e e``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_mmpg.errors import UserError
from lit_mmpg.parameters import ParameterEntry

Form = Literal["full", "low_rank", "core", "basis", "film", "shift"]

FULL_LIMIT = 65_536
"""Most weights of one layer that the ``full`` form may generate."""

ZERO_INITIALISED = frozenset({"u", "c", "core", "coefficients", "scale", "shift"})
"""Parts whose generator starts at zero, so that an untrained adaptor equals the static model. ``v`` must not: with both
factors at zero neither would receive a gradient."""


class DynamicLinear(nn.Linear):
    """A linear layer that computes with its static weights, or with personal parameters passed to ``forward``.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        form: How personal parameters act; ``None`` makes a plain static layer.
        rank: Rank r of the forms ``low_rank``, ``core`` and ``basis``.

    Raises:
        UserError: If ``full`` would generate more than ``FULL_LIMIT`` weights.
    """

    def __init__(self, in_features: int, out_features: int, form: Form | None = None, rank: int = 8) -> None:
        super().__init__(in_features, out_features)
        if form == "full" and in_features * out_features > FULL_LIMIT:
            raise UserError(
                f"dynamic form 'full' on a {in_features} x {out_features} layer generates "
                f"{in_features * out_features} weights, more than {FULL_LIMIT}; use low_rank, core or basis"
            )
        self.form = form
        self.rank = rank
        if form in ("core", "basis"):
            self.fixed_in = nn.Parameter(torch.randn(in_features, rank) * in_features**-0.5)
            self.fixed_out = nn.Parameter(torch.randn(out_features, rank) * rank**-0.5)
        if form == "basis":
            self.fixed_bias = nn.Parameter(torch.randn(out_features, rank) * rank**-0.5)

    def entries(self, name: str) -> tuple[ParameterEntry, ...]:
        """Entries of the ParameterSpec for this layer, called ``name`` in its model."""
        out, inp, rank = self.out_features, self.in_features, self.rank
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "full": {"weight": (out, inp), "bias": (out,)},
            "low_rank": {"u": (out, rank), "v": (inp, rank), "c": (out,)},
            "core": {"core": (rank, rank), "c": (out,)},
            "basis": {"coefficients": (rank,)},
            "film": {"scale": (out,), "shift": (out,)},
            "shift": {"shift": (out,)},
        }
        if self.form is None:
            return ()
        return tuple(ParameterEntry(f"{name}.{part}", shape) for part, shape in shapes[self.form].items())

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The static parts that only exist for the dynamic form; the cloud stage trains them."""
        return [p for name, p in self.named_parameters(recurse=False) if name.startswith("fixed_")]

    def forward(self, x: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:  # type: ignore[override]
        """Apply the layer.

        Args:
            x: ``[..., in]``; with batched parameters ``[G, ..., in]``, one leading row per device.
            parameters: Nothing (static), or the tensors of :meth:`entries` in order, either unbatched (one device)
                or each with a leading dimension G.

        Returns:
            ``[..., out]``.
        """
        if not parameters:
            return F.linear(x, self.weight, self.bias)
        batched = parameters[-1].dim() == 2  # the last part of every form is a vector per device
        if not batched:
            return self._personal(x, parameters)
        shape = x.shape
        y = self._personal(x.reshape(shape[0], -1, shape[-1]), parameters)
        return y.reshape(*shape[:-1], self.out_features)

    def _personal(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        def row(vector: Tensor) -> Tensor:  # [k] or [G, k] -> broadcastable over the rows of x
            return vector.unsqueeze(-2) if vector.dim() == 2 else vector

        if self.form == "full":
            weight, bias = parameters
            return torch.matmul(x, weight.transpose(-1, -2)) + row(bias)
        static = F.linear(x, self.weight, self.bias)
        if self.form == "low_rank":
            u, v, c = parameters
            hidden = torch.matmul(x, v)
            if u.dim() == 3:
                return torch.baddbmm(static + row(c), hidden, u.transpose(-1, -2))
            return static + row(c) + torch.matmul(hidden, u.transpose(-1, -2))
        if self.form == "film":
            scale, shift = parameters
            return static * (1 + row(scale)) + row(shift)
        if self.form == "shift":
            return static + row(parameters[0])
        hidden = torch.matmul(x, self.fixed_in)
        if self.form == "core":
            core, c = parameters
            return static + row(c) + F.linear(torch.matmul(hidden, core.transpose(-1, -2)), self.fixed_out)
        (coefficients,) = parameters
        return (
            static + F.linear(hidden * row(coefficients), self.fixed_out) + row(F.linear(coefficients, self.fixed_bias))
        )
