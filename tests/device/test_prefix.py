"""What an encoder computes before its first dynamic layer is kept, and nothing that is given changes by that."""

from __future__ import annotations

import pytest
import torch

from lit_mmpg.device.contract import DeviceModel, DynamicConfig, build_network
from lit_mmpg.forms.input_layer import InputLayer
from tests.device.test_dual import folders
from tests.device.test_dual import made as dual
from tests.integration.test_own_network import SHAPES, Residual, random_parameters

__all__ = ["folders"]

LATE = {
    "residual": ("block.conv2", "stem.conv"),
    "mobile": ("encoder.model.layer.12.conv_3x3.convolution", "encoder.model.layer.3.conv_3x3.convolution"),
    "vit": ("encoder.model.layers.1.layernorm_before", "encoder.model.layers.0.mlp.fc1"),
}
"""A dynamic layer, and one before it."""


def made(kind: str, folders: dict[str, str]) -> DeviceModel:
    if kind == "residual":
        torch.manual_seed(0)
        dynamic = DynamicConfig((LATE[kind][0], "head"), "low_rank", 2)
        network = build_network(Residual, SHAPES, dynamic).eval()
    else:
        network = dual(folders, kind, "open_ended", (LATE[kind][0], "head"))
    return network.requires_grad_(False)


@pytest.mark.parametrize("kind", LATE)
def test_features_are_those_of_the_whole_encoder(kind: str, folders: dict[str, str]) -> None:
    network = made(kind, folders)
    size = network.shapes.frame[-1]
    pixels = torch.randint(0, 256, (2, 4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prefix = network.find_prefix(pixels[0])
    assert prefix is not None and prefix.width < 4 * 3 * size * size
    values = torch.stack([prefix.values(network.encode_values, clip) for clip in pixels])
    assert values.shape == (2, 4, prefix.width) and values.isfinite().all()
    parameters = tuple(p.requires_grad_() for p in random_parameters(network, 2))
    expected = [network.encode(pixels), network.encode(pixels, [p[0] for p in parameters])]
    expected.append(network.encode(pixels, parameters))
    wanted = torch.autograd.grad(expected[2].square().sum(), parameters, allow_unused=True)

    network.prefix = prefix
    late, early = (network.get_submodule(name) for name in LATE[kind])
    computed: list[str] = []
    late.register_forward_hook(lambda *_: computed.append("late"))
    early.register_forward_hook(lambda *_: computed.append("early"))
    found = [network.encode_asked(values), network.encode_asked(values, [p[0] for p in parameters])]
    found.append(network.encode_asked(values, parameters))
    assert set(computed) == {"late"}
    for got, own in zip(found, expected, strict=True):
        torch.testing.assert_close(got, own, rtol=1e-5, atol=1e-6)
    for got, own in zip(
        torch.autograd.grad(found[2].square().sum(), parameters, allow_unused=True), wanted, strict=True
    ):
        assert (got is None) == (own is None)
        if own is not None:
            torch.testing.assert_close(got, own, rtol=1e-4, atol=1e-5)
    assert torch.equal(network.encode_asked(pixels), expected[0]), "pixels are encoded as ever"
    assert not any("forward" in vars(module) for module in network.modules())


@pytest.mark.parametrize("dynamic", [DynamicConfig(("stem.conv",)), DynamicConfig(("head",), input_layer=InputLayer())])
def test_where_nothing_comes_before_nothing_is_kept(dynamic: DynamicConfig) -> None:
    network = build_network(Residual, SHAPES, dynamic).eval()
    pixels = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    assert network.encodes_personally and network.find_prefix(pixels) is None


def test_an_encoder_that_reads_pixels_again_is_left_alone() -> None:
    class Twice(Residual):
        def encode_frames(self, frames: torch.Tensor) -> torch.Tensor:
            return super().encode_frames(frames) + frames.flatten(-3).float().mean(-1, keepdim=True) / 255

    network = build_network(Twice, SHAPES, DynamicConfig(("block.conv2",), "low_rank", 2)).eval()
    assert network.find_prefix(torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)) is None
