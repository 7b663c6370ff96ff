"""Kinds of layers that forms act on: linear layers, convolutions, and norms with the affine part behind them.

Each kind offers the few operations of which forms are made, for one device or for several at once. Devices lie one
after the other in the rows of the input: ``[G * B, ...]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_mmpg.errors import UserError

Operation = Callable[[Tensor, Tensor], Tensor]


class Layer(ABC):
    """One layer with its static weights.

    Args:
        module: The module.
        static: What it computes without personal parameters; None: its own ``forward``.

    Attributes:
        matrix: Rows and columns of the weight as a matrix, None where it is none.
        channels: Shape of one value for each channel of the output.
        depthwise: Whether each channel is convolved on its own.
        overridden: Whether the module's class computes in a way of its own.
    """

    kind: ClassVar[type[nn.Module] | tuple[type[nn.Module], ...]]
    matrix: tuple[int, int] | None = None
    channels: tuple[int, ...]
    depthwise = False

    def __init__(self, module: Any, static: Callable[[Tensor], Tensor] | None = None) -> None:
        self.module = module
        self.static: Callable[[Tensor], Tensor] = static or module.forward
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        self.overridden = static is None and all(type(module).forward is not kind.forward for kind in kinds)

    @property
    def weight(self) -> Tensor | None:
        """The static weight."""
        weight: Tensor | None = self.module.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The static bias."""
        bias: Tensor | None = self.module.bias
        return bias

    @property
    def what(self) -> str:
        """Kind and sizes, for messages."""
        return f"{type(self.module).__name__}({self.module.extra_repr()})"

    @abstractmethod
    def replaced(self, x: Tensor, weight: Tensor, bias: Tensor, devices: int | None) -> Tensor:
        """Output with another weight and bias, each ``[...]`` or ``[G, ...]``."""

    def delta(self, x: Tensor, factors: Sequence[Tensor], devices: int | None, offset: Tensor | None = None) -> Tensor:
        """Static output plus a product of factors on the input, plus an offset.

        Args:
            x: Input.
            factors: First ``[columns, r]``, which the input is multiplied by; then matrices ``[to, from]`` or vectors
                (diagonals); the last one ``[rows, r]``. Each static, or with a leading dimension G.
            devices: Number of devices G, or None.
            offset: ``[rows]`` or ``[G, rows]``.
        """
        raise UserError(f"{self.what} has no weight matrix")

    @abstractmethod
    def over(self, operation: Operation, y: Tensor, vector: Tensor, devices: int | None) -> Tensor:
        """``operation(y, vector)``, with one value of the vector for each channel of the output y."""

    def modulated(self, x: Tensor, scale: Tensor | None, shift: Tensor, devices: int | None) -> Tensor:
        """The static output, scaled and shifted by one value for each channel.

        Args:
            x: Input.
            scale: Factors; ``None``: 1.
            shift: Offsets.
            devices: Number of devices, whose values then have a leading dimension; None for one.
        """
        y = self.static(x)
        return self.over(torch.add, y if scale is None else self.over(torch.mul, y, scale, devices), shift, devices)


class LinearLayer(Layer):
    """``nn.Linear``: channels last."""

    kind = nn.Linear
    module: nn.Linear

    def __init__(self, module: nn.Linear, static: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(module, static)
        self.matrix = module.out_features, module.in_features
        self.channels = (module.out_features,)

    @property
    def what(self) -> str:
        """Sizes."""
        return f"a {self.module.in_features} x {self.module.out_features} layer"

    def replaced(self, x: Tensor, weight: Tensor, bias: Tensor, devices: int | None) -> Tensor:
        """One matrix product, batched over devices."""
        if devices is None:
            return torch.matmul(x, weight.transpose(-1, -2)) + bias
        y = torch.matmul(x.reshape(devices, -1, x.shape[-1]), weight.transpose(-1, -2)) + bias.unsqueeze(-2)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def delta(self, x: Tensor, factors: Sequence[Tensor], devices: int | None, offset: Tensor | None = None) -> Tensor:
        """The factors one after the other: the product is never made."""
        y = self.static(x)
        shape = y.shape
        if devices is not None:
            x, y = x.reshape(devices, -1, x.shape[-1]), y.reshape(devices, -1, shape[-1])
        if offset is not None:
            y = y + (offset if devices is None else offset.unsqueeze(-2))
        first, *middle, last = factors
        hidden = torch.matmul(x, first)
        for factor in middle:
            if factor.dim() - (devices is not None) == 1:
                hidden = hidden * (factor if devices is None else factor.unsqueeze(-2))
            else:
                hidden = torch.matmul(hidden, factor.transpose(-1, -2))
        if last.dim() == 3:
            return torch.baddbmm(y, hidden, last.transpose(-1, -2)).reshape(shape)
        return (y + torch.matmul(hidden, last.transpose(-1, -2))).reshape(shape)

    def over(self, operation: Operation, y: Tensor, vector: Tensor, devices: int | None) -> Tensor:
        """Channels are last."""
        if devices is None:
            return operation(y, vector)
        return operation(y.reshape(devices, -1, y.shape[-1]), vector.unsqueeze(-2)).reshape(y.shape)


class Conv2dLayer(Layer):
    """``nn.Conv2d``; its weight as a matrix has a column for each place of the kernel and input channel of a group."""

    kind = nn.Conv2d
    module: nn.Conv2d

    def __init__(self, module: nn.Conv2d, static: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(module, static)
        self.matrix = module.out_channels, module.weight[0].numel()
        self.channels = (module.out_channels,)
        self.depthwise = module.groups > 1 and module.groups == module.in_channels

    def replaced(self, x: Tensor, weight: Tensor, bias: Tensor, devices: int | None) -> Tensor:
        """The same convolution with other weights."""
        return self._convolve(x, weight, bias, devices, self.module.groups)

    def delta(self, x: Tensor, factors: Sequence[Tensor], devices: int | None, offset: Tensor | None = None) -> Tensor:
        """One device: a convolution into r channels, and one of 1 x 1 behind it; the static weights stay constant.

        For several devices, and for groups, where each of the r channels would be needed once for each group, the
        product is made and added to the weight: measured faster.
        """
        if devices is not None or self.module.groups > 1:
            return self._made(x, factors, devices, offset)
        first, *middle, last = factors
        y = self.static(x)
        if offset is not None:
            y = self.over(torch.add, y, offset, None)
        kernel = first.transpose(-1, -2).reshape(-1, *self.module.weight.shape[1:])
        hidden = self._convolve(x, kernel, None, None, 1)
        for factor in middle:
            if factor.dim() == 1:
                hidden = self.over(torch.mul, hidden, factor, None)
            else:
                hidden = F.conv2d(hidden, factor[..., None, None])
        return y + F.conv2d(hidden, last[..., None, None])

    def modulated(self, x: Tensor, scale: Tensor | None, shift: Tensor, devices: int | None) -> Tensor:
        """Several devices one after the other: measured faster, since a device's output is still in the cache."""
        if devices is None:
            return super().modulated(x, scale, shift, None)
        scales = [None] * devices if scale is None else scale
        rows = zip(x.chunk(devices), scales, shift, strict=True)
        return torch.cat([super(Conv2dLayer, self).modulated(*row, None) for row in rows])

    def _made(self, x: Tensor, factors: Sequence[Tensor], devices: int | None, offset: Tensor | None) -> Tensor:
        first, *middle, last = factors
        product = first.transpose(-1, -2)
        for factor in middle:
            is_diagonal = factor.dim() - (devices is not None) == 1
            product = factor.unsqueeze(-1) * product if is_diagonal else factor @ product
        product = last @ product
        weight = self.module.weight + product.reshape(*product.shape[:-2], *self.module.weight.shape)
        bias = self.module.bias
        if offset is not None:
            bias = offset if bias is None else bias + offset
        elif bias is not None and devices is not None:
            bias = bias.expand(devices, -1)
        return self._convolve(x, weight, bias, devices, self.module.groups)

    def over(self, operation: Operation, y: Tensor, vector: Tensor, devices: int | None) -> Tensor:
        """Channels are third from last."""
        vector = vector[..., None, None]
        if devices is None:
            return operation(y, vector)
        return operation(y.unflatten(0, (devices, -1)), vector.unsqueeze(1)).flatten(0, 1)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, devices: int | None, groups: int) -> Tensor:
        conv = self.module
        padding = conv.padding
        if conv.padding_mode != "zeros":
            x, padding = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), (0, 0)

        def one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, groups)

        if devices is None:
            return one(x, weight, bias)
        # One call for each device: measured faster than devices side by side as groups of channels, for every geometry.
        biases = [None] * devices if bias is None else bias
        return torch.cat([one(*row) for row in zip(x.chunk(devices), weight, biases, strict=True)])


class NormLayer(Layer):
    """Norms: what they standardise stays, the affine part behind it is adapted."""

    kind = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)

    def __init__(self, module: Any, static: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(module, static)
        self.last = isinstance(module, nn.LayerNorm) and not (self.overridden and _takes_channels_second(module))
        if isinstance(module, nn.LayerNorm):
            self.channels = tuple(module.normalized_shape)
        else:
            self.channels = (module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features,)

    def replaced(self, x: Tensor, weight: Tensor, bias: Tensor, devices: int | None) -> Tensor:
        """Standardised, with another affine part."""
        m = self.module
        if isinstance(m, nn.LayerNorm):
            y = F.layer_norm(x, m.normalized_shape, None, None, m.eps)
        elif isinstance(m, nn.GroupNorm):
            y = F.group_norm(x, m.num_groups, None, None, m.eps)
        else:
            y = F.batch_norm(x, m.running_mean, m.running_var, None, None, False, 0.0, m.eps)
        return self.over(torch.add, self.over(torch.mul, y, weight, devices), bias, devices)

    def over(self, operation: Operation, y: Tensor, vector: Tensor, devices: int | None) -> Tensor:
        """Channels are last for a ``LayerNorm`` of torch, second for the others and in some of its subclasses."""
        behind = 0 if self.last else y.dim() - 2
        vector = vector.reshape(*vector.shape, *(1 for _ in range(behind)))
        if devices is None:
            return operation(y, vector)
        before = y.dim() + 1 - vector.dim()  # dimensions between the devices and the channels
        vector = vector.reshape(devices, *(1 for _ in range(before)), *vector.shape[1:])
        return operation(y.unflatten(0, (devices, -1)), vector).flatten(0, 1)


def _takes_channels_second(module: nn.LayerNorm) -> bool:
    """Whether a ``LayerNorm`` with a way of its own takes ``[N, C, h, w]``, as convolutions do; it is asked."""
    channels, *more = module.normalized_shape
    sides = (2, 3) if channels > 3 else (4, 5)
    try:
        with torch.no_grad():
            module.forward(torch.zeros(1, channels, *sides).to(next(module.parameters(), torch.zeros(()))))
    except Exception:
        return False
    return not more


KINDS: tuple[type[Layer], ...] = (LinearLayer, Conv2dLayer, NormLayer)


def kind_of(module: nn.Module) -> type[Layer] | None:
    """The kind of a module, None where no form acts on it."""
    return next((kind for kind in KINDS if isinstance(module, kind.kind)), None)
