"""The input layer: generated parameters in front of everything, where pixels become numbers.

A frozen encoder mixes what a camera did with what it saw; nothing behind it undoes that. For a picture x the layer
computes ``(1 + gain) * mix(x) + bias``, where ``mix`` is one small convolution: each channel by its own kernel
(identity plus ``kernel``), then channels by ``identity + colour``. Gain and bias are small pictures that are
enlarged to the size of x. All parts are zero at first, which leaves x as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_mmpg.errors import UserError
from lit_mmpg.forms.base import Part, Zero

PARTS = ("gain", "bias", "colour", "kernel")


@dataclass(frozen=True)
class InputLayer:
    """Generated parameters that act on the input pictures of a module.

    Attributes:
        at: Name of the module whose first input is adapted; the empty name is the whole network.
        channels: Channels C of the pictures.
        grid: Height and width of the gain and bias images.
        kernel: Edge k of the kernels, an odd number.
        use: Which of ``gain [C, h, w]``, ``bias [C, h, w]``, ``colour [C, C]`` and ``kernel [C, k, k]``.

    Example:
        >>> [(part.name, part.shape) for part in InputLayer(use=("bias", "colour"), grid=(2, 2)).parts()]
        [('bias', (3, 2, 2)), ('colour', (3, 3))]
    """

    at: str = ""
    channels: int = 3
    grid: tuple[int, int] = (4, 4)
    kernel: int = 3
    use: Sequence[str] = PARTS

    def parts(self) -> tuple[Part, ...]:
        """Return the generated tensors: names, shapes and start values.

        Raises:
            UserError: If a part does not exist, or the kernel size is even.
        """
        unknown = [part for part in self.use if part not in PARTS]
        if unknown or not self.use:
            raise UserError(f"input layer: use={list(self.use)}; choose among {', '.join(PARTS)}")
        if self.kernel % 2 == 0:
            raise UserError(f"input layer: a kernel of {self.kernel} has no centre; use an odd number")
        sizes = [self.kernel, self.channels, *(self.grid if isinstance(self.grid, Sequence) else [0])]
        if len(sizes) != 4 or any(type(size) is not int or size < 1 for size in sizes):
            raise UserError(
                f"input layer: channels={self.channels}, grid={self.grid}, kernel={self.kernel}; give whole numbers "
                "from 1 on, and two of them for the grid"
            )
        c, k = self.channels, self.kernel
        shapes = {"gain": (c, *self.grid), "bias": (c, *self.grid), "colour": (c, c), "kernel": (c, k, k)}
        return tuple(Part(name, shapes[name], Zero()) for name in PARTS if name in self.use)

    def apply(self, x: Tensor, own: Sequence[Tensor], devices: int | None) -> Tensor:
        """Adapt pictures.

        Args:
            x: Pictures ``[N, C, H, W]``, floating point; the rows of each device are contiguous.
            own: The tensors of :meth:`parts`, with a leading dimension G if ``devices`` is a number.
            devices: Number of devices G; ``None``: one device, tensors without the leading dimension.

        Returns:
            Pictures of the same shape.

        Raises:
            UserError: If ``x`` has another number of dimensions or is not floating point.
        """
        if not x.is_floating_point() or x.dim() != 4 or x.shape[1] != self.channels:
            raise UserError(
                f"input layer: pictures [N, {self.channels}, H, W] in floating point are needed, not {x.dtype} "
                f"{list(x.shape)}; with at='NAME' it stands in front of a module behind their conversion"
            )
        count = devices or 1
        given = {p.name: t if devices else t[None] for p, t in zip(self.parts(), own, strict=True)}
        rows = x.unflatten(0, (count, -1))  # [G, B, C, H, W]
        if "colour" in given or "kernel" in given:
            rows = self._mixed(rows, given)
        if "gain" in given:
            rows = rows * (1 + self._enlarged(given["gain"], x)).unsqueeze(1)
        if "bias" in given:
            rows = rows + self._enlarged(given["bias"], x).unsqueeze(1)
        return rows.flatten(0, 1)

    def _enlarged(self, picture: Tensor, x: Tensor) -> Tensor:
        return F.interpolate(picture, size=x.shape[-2:], mode="bilinear", align_corners=False)

    def _mixed(self, rows: Tensor, given: dict[str, Tensor]) -> Tensor:
        c, count = self.channels, len(rows)
        k = self.kernel if "kernel" in given else 1
        one = torch.zeros(k, k, dtype=rows.dtype, device=rows.device)
        one[k // 2, k // 2] = 1
        kernel = one + given["kernel"] if "kernel" in given else one.expand(count, c, k, k)
        eye = torch.eye(c, dtype=rows.dtype, device=rows.device)
        colour = eye + given["colour"] if "colour" in given else eye.expand(count, c, c)
        weight = colour[..., None, None] * kernel.unsqueeze(1)  # [G, to, from, k, k]
        if count == 1:
            return F.conv2d(rows[0], weight[0], padding=k // 2)[None]
        wide = F.conv2d(rows.transpose(0, 1).flatten(1, 2), weight.flatten(0, 1), padding=k // 2, groups=count)
        return wide.unflatten(1, (count, c)).transpose(0, 1)
