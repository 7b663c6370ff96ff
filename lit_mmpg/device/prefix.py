"""What a frame encoder computes before its first dynamic layer: kept once for a training, which goes on from there.

No graph of the encoder is needed. In a run on a few pictures, the modules that finish before the first dynamic layer is
called are noted; later they hand out what they gave then, so that only what comes behind them is computed. Which of
their outputs matter is tried out: all others are NaN, and the result has to stay the same to the bit, with parameters
and without. Where that fails, nothing is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lit_mmpg.forms.injection import Holder

Encode = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""``[n, 3, H, W]`` pixels and parameters (or none) to ``[n, D]`` features."""


@dataclass
class Call:
    """A call of a module that ended before the first dynamic layer; no other such call contains it.

    Attributes:
        module: The module.
        output: What it gave, a row for each frame; None once only its shape and type are needed.
        shape: Of one row of the output.
        dtype: Of the output.
    """

    module: nn.Module
    output: Tensor | None
    shape: torch.Size
    dtype: torch.dtype


class _Reached(Exception):
    """All that is kept has been computed."""


class Prefix:
    """The part of an encoder before its first dynamic layer; made by :func:`find_prefix`.

    Args:
        network: Holds the modules.
        holder: Where parameters wait.
        neutral: Parameters with which the network is the static one.
        calls: What is not computed again, in order.
        kept: Which of these calls hand out what they gave; of the others nothing is read.
        frame: Shape of a picture.
    """

    def __init__(
        self,
        network: nn.Module,
        holder: Holder,
        neutral: Sequence[Tensor],
        calls: Sequence[Call],
        kept: Sequence[int],
        frame: Sequence[int],
    ) -> None:
        self.network, self.holder, self.neutral = network, holder, neutral
        self.calls, self.kept, self.frame = list(calls), tuple(kept), tuple(frame)

    @property
    def width(self) -> int:
        """Numbers that are kept of a frame."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(self.calls[number].shape) for number in self.kept]

    def values(self, encode: Encode, pixels: Tensor) -> Tensor:
        """What is kept of frames, ``[n, width]``.

        Args:
            encode: The encoder.
            pixels: ``[n, 3, H, W]``.
        """
        with _noting(self.network, self.holder, len(pixels)) as calls, suppress(_Reached):
            encode(pixels, self.neutral)
        return _rows(calls, self.kept)

    def resume(self, values: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Features of frames from what is kept of them.

        Args:
            values: ``[..., width]``.
            encode: The encoder, ``[..., 3, H, W]`` to ``[..., D]``.
        """
        rows = values.shape[:-1].numel()
        parts = dict(zip(self.kept, values.reshape(rows, -1).split(self._sizes, 1), strict=True))
        nothing = values.new_full((), math.nan)
        waiting: dict[nn.Module, list[Tensor]] = {}
        for number, call in enumerate(self.calls):
            shape = (rows, *call.shape)
            output = parts[number].reshape(shape) if number in parts else nothing.expand(shape)
            waiting.setdefault(call.module, []).append(output.to(call.dtype))
        with _handing_out(waiting):
            return encode(nothing.expand(*values.shape[:-1], *self.frame))


def find_prefix(
    network: nn.Module,
    holder: Holder,
    encode: Encode,
    pixels: Tensor,
    neutral: Sequence[Tensor],
    drawn: Sequence[Tensor],
) -> Prefix | None:
    """The part of an encoder before its first dynamic layer.

    Args:
        network: Holds the modules; in evaluation mode.
        holder: Where parameters wait.
        encode: The encoder.
        pixels: ``[n, 3, H, W]``, three or more: a row for each frame is told from constants by their number.
        neutral: Parameters with which the network is the static one.
        drawn: Random ones.

    Returns:
        None where nothing with weights comes before, or where the result would not be the same.
    """
    with _noting(network, holder, len(pixels)) as calls, suppress(_Reached):
        encode(pixels, neutral)
    if not any(True for call in calls for _ in call.module.parameters()):
        return None
    expected = [encode(pixels, own) for own in ((), drawn)]

    def right(kept: Sequence[int]) -> bool:
        prefix = Prefix(network, holder, neutral, calls, kept, pixels.shape[1:])
        values = _rows(calls, kept)
        found = [prefix.resume(values, partial(_with, encode, own)) for own in ((), drawn)]
        return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    kept = list(range(len(calls)))
    if not right(kept):
        return None
    for number in range(len(calls)):
        fewer = [other for other in kept if other != number]
        kept = fewer if fewer and right(fewer) else kept
    for call in calls:
        call.output = None
    return Prefix(network, holder, neutral, calls, kept, pixels.shape[1:])


def _with(encode: Encode, own: Sequence[Tensor], frames: Tensor) -> Tensor:
    return encode(frames, own)


def _rows(calls: Sequence[Call], kept: Sequence[int]) -> Tensor:
    return torch.cat([calls[number].output.flatten(1) for number in kept], 1)  # type: ignore[union-attr]


@contextmanager
def _noting(network: nn.Module, holder: Holder, rows: int) -> Iterator[list[Call]]:
    """Note the calls that end before a dynamic layer is called, but for those within another; then :class:`_Reached`.

    What gives something else than a row for each frame is not noted; it is computed as ever.
    """
    calls: list[Call] = []
    started: list[int] = []
    holder.called.clear()

    def before(module: nn.Module, inputs: Any) -> None:
        started.append(len(calls))

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        first = started.pop()
        if holder.called:
            raise _Reached
        if isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 1 and len(output) == rows:
            calls[first:] = [Call(module, output, output.shape[1:], output.dtype)]

    handles = [
        handle
        for module in network.modules()
        for handle in (module.register_forward_pre_hook(before), module.register_forward_hook(after))
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _handing_out(waiting: dict[nn.Module, list[Tensor]]) -> Iterator[None]:
    """Modules hand out what waits for them, call by call, and compute again once it is used up."""

    def player(module: nn.Module, outputs: Iterator[Tensor]) -> Callable[..., Any]:
        own = module.forward

        def forward(*inputs: Any, **named: Any) -> Any:
            found = next(outputs, None)
            return own(*inputs, **named) if found is None else found

        return forward

    before = {module: vars(module).get("forward") for module in waiting}
    for module, outputs in waiting.items():
        module.forward = player(module, iter(outputs))
    try:
        yield
    finally:
        for module, own in before.items():
            del module.forward
            if own is not None:
                module.forward = own
