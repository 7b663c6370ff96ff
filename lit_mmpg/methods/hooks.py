"""Reaching into the device model without changing it: watch a layer's input, or replace its output for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def watched(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the inputs of a layer, one tensor per call."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    with layer.register_forward_pre_hook(hook):
        yield seen


@contextmanager
def input_replaced(layer: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While this lasts, the layer sees ``function(input)``."""

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (function(inputs[0]), *inputs[1:])

    with layer.register_forward_pre_hook(hook):
        yield


@contextmanager
def output_replaced(layer: nn.Module, function: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """While this lasts, the layer returns ``function(input, output)``."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return function(inputs[0], output)

    with layer.register_forward_hook(hook):
        yield


def over(vector: Tensor, like: Tensor) -> Tensor:
    """One vector per device ``[B, H]``, shaped to broadcast over ``[B, ..., H]``."""
    return vector.reshape(vector.shape[0], *(1 for _ in range(like.dim() - 2)), vector.shape[-1])
