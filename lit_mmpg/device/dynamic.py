"""Dynamic layers: linear layers whose personal parameters arrive as arguments of ``forward``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from lit_mmpg.forms.base import Form, Part, asked
from lit_mmpg.forms.layers import LinearLayer
from lit_mmpg.forms.registry import find_form


class DynamicLinear(nn.Linear):
    """A linear layer that computes with its static weights, or with personal parameters passed to ``forward``.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        form: How personal parameters act (see :mod:`lit_mmpg.forms`); ``None`` makes a plain static layer.
        rank: Rank r of the forms that have one.

    Raises:
        UserError: If there is no such form, or it does not suit the layer.
    """

    def __init__(self, in_features: int, out_features: int, form: str | None = None, rank: int = 8) -> None:
        super().__init__(in_features, out_features)
        self.rank = rank
        self.form: Form | None = find_form(form) if form else None
        self._layer = LinearLayer(self, self._static)
        self._fixed: tuple[str, ...] = ()
        if self.form is not None:
            parts, fixed = asked(self.form, self._layer, rank)  # refuses what does not suit
            self._dims = len(parts[-1].shape)
            self._fixed = tuple(fixed)
            for name, values in fixed.items():
                self.register_parameter(name, nn.Parameter(values))

    def _static(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def parts(self) -> tuple[Part, ...]:
        """What is generated for this layer."""
        return () if self.form is None else self.form.parts(self._layer, self.rank)

    def noise(self, own: Sequence[Tensor], drawn: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`lit_mmpg.forms.base.Form.noise`."""
        assert self.form is not None
        return self.form.noise(self._layer, own, drawn)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The static parts that only exist for the dynamic form; the cloud stage trains them."""
        return [self.get_parameter(name) for name in self._fixed]

    def forward(self, x: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:  # type: ignore[override]
        """Apply the layer.

        Args:
            x: ``[..., in]``; with batched parameters ``[G, ..., in]``, one leading row per device.
            parameters: Nothing (static), or the tensors of :meth:`parts` in order, either unbatched (one device)
                or each with a leading dimension G.

        Returns:
            ``[..., out]``.
        """
        if self.form is None or not parameters:
            return self._static(x)
        devices = parameters[-1].shape[0] if parameters[-1].dim() > self._dims else None
        static = {name: getattr(self, name) for name in self._fixed}
        return self.form.apply(self._layer, x, static, parameters, devices)
